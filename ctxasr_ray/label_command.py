"""`ctxasr pseudo-label RECIPE`: transcribe with a stronger model, keep what may be learnt from, say what was not."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import tyro

from ctxasr_ray.experiment import Experiment
from ctxasr_ray.opening import open_run
from ctxasr_ray.recipes.evaluation import find
from ctxasr_ray.recipes.own_speech import LABELS
from ctxasr_ray.run_commands import named_recipe
from ctxasr_ray.training.pseudo_labels import LabelFilters, Yield

if TYPE_CHECKING:
    import pyarrow as pa

SPLIT: Final = "train"
"""The only split that labels are made for: models are measured on references that people wrote."""
YIELDS: Final = "yields.json"
"""What each filter took, beside the manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabel:
    """Transcribes train utterances and writes a manifest of those that pass; goes on where a killed one stopped."""

    root: str
    """Run folder, as for evaluate; transcripts that it holds already are not made again."""
    manifest: str | None = None
    """As for evaluate; `text` is the caption, where there is one."""
    directory: Path
    """Where `manifest.jsonl` and `yields.json` go."""
    system: str = "first_pass"
    """Whose transcripts become labels."""
    json: bool = False
    """Print the yields as JSON lines, nothing else."""
    address: str | None = None
    """Ray cluster, as for evaluate."""
    filters: Annotated[LabelFilters, tyro.conf.arg(name="")] = field(default_factory=LabelFilters)
    """What is kept."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The recipe."""


def pseudo_label(words: Sequence[str]) -> int:
    """Transcribe train utterances with a stronger model, keep what passes three filters, say what each took."""
    name, rest = named_recipe("pseudo-label", words)
    default = PseudoLabel(root=f"runs/{name.replace(':', '-')}", directory=Path(LABELS), experiment=find(name)())
    options = tyro.cli(
        PseudoLabel,
        default=default,
        args=rest,
        prog=f"ctxasr pseudo-label {name}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    utterances, transcripts = _transcribed(options)
    return _write(options, utterances, transcripts)


def _transcribed(options: PseudoLabel) -> "tuple[pa.Table, pa.Table]":
    """UTTERANCES and TRANSCRIPTS of the split, row for row; of the run, only the steps above them are made."""
    from rich.console import Console

    from ctxasr_ray import layout, pipeline
    from ctxasr_ray.progress import shown

    store, shards = open_run(options.experiment, options.root, options.manifest)
    line = layout.line(options.experiment)
    if options.system not in line.transcripts:
        raise ValueError(f"system '{options.system}' has no transcripts; choose one of {', '.join(line.transcripts)}.")
    own = [shard for shard in shards if shard.split == SPLIT]
    if not own:
        found = ", ".join(sorted({shard.split for shard in shards}))
        raise ValueError(
            f'the manifest has no utterance of split {SPLIT}, only of {found} (no "split" means test), and nothing is '
            f'trained on others. Write "split": "{SPLIT}" into the lines that labels are for.'
        )
    is_fitted = any(step.config.WRITES == "fits" for step in line.until(options.system))
    with shown(Console(stderr=True)) as on_progress:
        pipeline.run(
            options.experiment,
            store,
            [shard for shard in shards if shard.split == SPLIT or (is_fitted and shard.split == "dev")],
            on_progress=on_progress,
            address=options.address,
            system=options.system,
        )
    return store.gather(line.corpus, own), store.gather(line.transcripts[options.system], own)


def _write(options: PseudoLabel, utterances: "pa.Table", transcripts: "pa.Table") -> int:
    from rich.console import Console

    from ctxasr_ray.corpora.manifest import MANIFEST, write_manifest
    from ctxasr_ray.training.pseudo_labels import label

    kept, yields = label(
        utterances,
        transcripts,
        options.filters,
        normaliser=options.experiment.normaliser,
        labelled_by=f"{options.system} of {options.root}",
    )
    rows = [{**asdict(each), "num_kept": each.num_kept} for each in yields]
    options.directory.mkdir(parents=True, exist_ok=True)
    found = {"root": options.root, "system": options.system, "filters": asdict(options.filters), "yields": rows}
    (options.directory / YIELDS).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        Console().print(_table(yields))
    if not kept.num_rows:
        earlier = options.directory / MANIFEST
        gone = f", and {earlier} of an earlier run is removed" if earlier.exists() else ""
        earlier.unlink(missing_ok=True)
        raise ValueError(
            f"none of {utterances.num_rows} utterances passes every filter, so no manifest is written{gone}; "
            f"{options.directory / YIELDS} says which filter took them. Raise its limit, or take a stronger model."
        )
    path = write_manifest(kept, options.directory)
    print(f"{path}: {kept.num_rows} of {utterances.num_rows} utterances", file=sys.stderr if options.json else None)
    return 0


def _table(yields: Sequence[Yield]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("filter", "seen", "dropped", "alone", "kept", "yield", "kept h"):
        table.add_column(name, justify="left" if name == "filter" else "right", no_wrap=True)
    for each in yields:
        share = f"{each.num_kept / each.num_seen:.1%}" if each.num_seen else "-"
        counts = (each.num_seen, each.num_dropped, each.num_dropped_alone, each.num_kept)
        table.add_row(each.name, *map(str, counts), share, f"{each.kept_s / 3600:.3f}")
    return table
