"""Commands that work on a run, by a recipe's name and its fields: evaluate, plan, status, report, audit, export."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import tyro

from ctxasr_ray.experiment import Experiment
from ctxasr_ray.fit_command import fit
from ctxasr_ray.opening import open_run
from ctxasr_ray.recipes.evaluation import RECIPES, find

if TYPE_CHECKING:
    import pyarrow as pa

    from ctxasr_ray.storage.store import Shard, Store

WIDE: Final = 120
"""Columns of a table that goes into a file."""
_ONE_RECIPE: Final = (tyro.conf.AvoidSubcommands,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Runs a recipe and reports; the same command again goes on where the last one ended."""

    root: str
    """Run folder: tables, provenance and, if it is local, the report. Also s3://bucket/folder."""
    report: Path | None = None
    """Where the report goes; by default ROOT/report, for a root on S3 runs/RECIPE/report."""
    manifest: str | None = None
    """NeMo JSON-lines manifest, also s3:// or https://, or a folder of audio with transcripts; without one the recipe's
    own corpus."""
    json: bool = False
    """Print RESULTS as JSON lines, nothing else, on standard output."""
    retry_errors: bool = False
    """Redo utterances that carry an error, as a new attempt."""
    address: str | None = None
    """Ray cluster, for example ray://head:10001 or auto; without it a running one, else one started here."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Evaluate):
    """Says what a run would do; takes every option of evaluate."""

    cluster: Path | None = None
    """KubeRay's RayJob or RayCluster, or a Ray cluster launcher's YAML: only check that every pool fits it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Writes what a finished run says in another tool's format."""

    root: str
    """Run folder."""
    manifest: str | None = None
    """As for evaluate."""
    format: Literal["trn", "ctm", "stm", "kaldi", "nemo", "nbest"]
    """sclite trn, ctm or stm, Kaldi text, NeMo JSON lines with pred_text, or N-best lists as JSON lines."""
    path: Path
    """File to write."""
    system: str = "first_pass"
    """Whose transcripts."""
    split: Literal["train", "dev", "test"] = "test"
    """Which utterances."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The recipe."""


Options = TypeVar("Options", bound=Evaluate)


def named_recipe(command: str, words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Gives a recipe's name and the words after it; asked for help, prints it and ends.

    Raises:
        ValueError: no recipe.
    """
    if words and words[0] in ("-h", "--help"):
        print(
            f"usage: ctxasr {command} RECIPE [OPTIONS]\n\nRecipes: {', '.join(RECIPES)}, or module:function.\n"
            f"`ctxasr {command} RECIPE --help` lists every field of a recipe."
        )
        raise SystemExit(0)
    if not words or words[0].startswith("-"):
        raise ValueError(f"expected a recipe: ctxasr {command} RECIPE ... with RECIPE one of {', '.join(RECIPES)}.")
    return words[0], words[1:]


def parse_evaluate(command: str, words: Sequence[str]) -> Evaluate:
    """Reads a recipe's name and its overrides, as every command does that works on a run.

    Raises:
        ValueError: no recipe, or an unknown one.
    """
    return _parsed(Evaluate, command, words)


def _parsed(kind: type[Options], command: str, words: Sequence[str]) -> Options:
    name, rest = named_recipe(command, words)
    home = f"runs/{name.replace(':', '-')}"
    default = kind(root=home, experiment=find(name)())
    options = tyro.cli(kind, default=default, args=rest, prog=f"ctxasr {command} {name}", config=_ONE_RECIPE)
    report = options.report or Path(home if "://" in options.root else options.root) / "report"
    return replace(options, report=report)


def evaluate(options: Evaluate) -> int:
    """Runs an experiment, prints its table or JSON lines, writes the report; returns the exit status."""
    from rich.console import Console

    from ctxasr_ray import pipeline
    from ctxasr_ray.progress import shown
    from ctxasr_ray.report.tables import results_records
    from ctxasr_ray.report.terminal import terminal_tables

    errors = Console(stderr=True)
    store, shards = open_run(options.experiment, options.root, options.manifest)
    with shown(errors) as on_progress:
        summary = pipeline.run(
            options.experiment,
            store,
            shards,
            on_progress=on_progress,
            retry_errors=options.retry_errors,
            address=options.address,
        )
    results = pipeline.results(options.experiment, store, shards)
    page = _write_report(options, store, shards, results)
    if options.json:
        for record in results_records(results):
            print(json.dumps(record, ensure_ascii=False))
    else:
        console = Console()
        console.width = console.width if console.is_terminal else WIDE
        console.print(terminal_tables(results))
    if not results.num_rows:
        errors.print("No utterance has a reference: there are no error rates; `ctxasr export` writes what was heard.")
    done = f"{summary.done + summary.redone} tables made, {summary.skipped} already committed"
    errors.print(f"{done}, {summary.wall_s:.0f} s.", highlight=False)
    errors.print(f"Report: {page.resolve()}", highlight=False, soft_wrap=True)
    return 0


def plan(words: Sequence[str]) -> int:
    """Say what a recipe would run, what is committed already, and whether its pools fit a cluster (--cluster FILE)."""
    from ctxasr_ray import layout
    from ctxasr_ray.execution import planning

    options = _parsed(Plan, "plan", words)
    if options.cluster is not None:
        return fit(options.experiment, options.cluster)
    store, shards = open_run(options.experiment, options.root, options.manifest)
    _show(planning.plan(store, layout.line(options.experiment).steps, shards), options.json)
    return 0


def status(words: Sequence[str]) -> int:
    """Say how far a run is, from its receipts, also while it goes on."""
    from ctxasr_ray import layout
    from ctxasr_ray.execution import planning

    options = parse_evaluate("status", words)
    if "://" not in options.root and not Path(options.root).is_dir():
        raise ValueError(f"there is no run at '{options.root}'; name its folder with --root, or start it: evaluate.")
    store, shards = open_run(options.experiment, options.root, options.manifest)
    _show(planning.status(store, layout.line(options.experiment).steps, shards), options.json)
    return 0


def report(words: Sequence[str]) -> int:
    """Write the report of a finished run again."""
    from ctxasr_ray import pipeline

    options = parse_evaluate("report", words)
    store, shards = open_run(options.experiment, options.root, options.manifest)
    print(_write_report(options, store, shards, pipeline.results(options.experiment, store, shards)))
    return 0


def _write_report(options: Evaluate, store: "Store", shards: "list[Shard]", results: "pa.Table") -> Path:
    from ctxasr_ray import pipeline

    assert options.report is not None, "set by parse_evaluate"
    title = f"Run {options.root.rstrip('/').rpartition('/')[2]}"
    return pipeline.report(options.experiment, store, shards, results, options.report, title)


def audit(words: Sequence[str]) -> int:
    """Do a sample of a finished run again, in other batches and on the other executor, and compare the tables."""
    from ctxasr_ray.audit import audit as done_again

    options = parse_evaluate("audit", words)
    store, shards = open_run(options.experiment, options.root, options.manifest)
    findings = done_again(options.experiment, store, shards, address=options.address)
    for finding in findings:
        print(f"{finding.severity}: {finding}")
    return int(any(finding.severity == "error" for finding in findings))


def export(words: Sequence[str]) -> int:
    """Write a finished run's transcripts or N-best lists as trn, ctm, stm, Kaldi text, NeMo or JSON lines."""
    import pyarrow.compute as pc

    from ctxasr_ray import layout
    from ctxasr_ray.metrics.joined_windows import join_windows
    from ctxasr_ray.report.export import export as write

    name, rest = named_recipe("export", words)
    default = Export(
        root=f"runs/{name.replace(':', '-')}",
        format=tyro.MISSING,
        path=tyro.MISSING,
        experiment=find(name)(),
    )
    options = tyro.cli(Export, default=default, args=rest, prog=f"ctxasr export {name}", config=_ONE_RECIPE)
    store, shards = open_run(options.experiment, options.root, options.manifest)
    line = layout.line(options.experiment)
    if options.system not in line.transcripts:
        raise ValueError(f"system '{options.system}' has no transcripts; choose one of {', '.join(line.transcripts)}.")
    utterances = store.gather(line.corpus, shards)
    own = pc.equal(utterances["split"], options.split)
    written = write(
        options.format,
        options.path,
        utterances=utterances.filter(own),
        transcripts=join_windows(utterances, store.gather(line.transcripts[options.system], shards)).filter(own),
        hypotheses=store.gather(line.nbest(options.system), shards).filter(own) if options.format == "nbest" else None,
    )
    left_out = f", {len(written.left_out)} without a text left out" if written.left_out else ""
    print(f"{written.path}: {written.num_written} utterances{left_out}")
    if written.failed:
        shown = ", ".join(written.failed[:5]) + (", ..." if len(written.failed) > 5 else "")
        print(f"{len(written.failed)} of them failed and are written as empty: {shown}", file=sys.stderr)
    return 0


def _show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    from rich.console import Console

    from ctxasr_ray.report.steps import steps_table

    console = Console()
    console.width = console.width if console.is_terminal else WIDE
    console.print(steps_table(rows))
