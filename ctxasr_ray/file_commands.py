"""Commands that read and write files and start no run: `ctxasr prepare`, `ctxasr score`, `ctxasr compare`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ctxasr_ray.corpora.segmentation import WindowConfig
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.recipes.evaluation import RECIPES, find


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareCorpus:
    """Writes a manifest of a corpus in another tool's layout."""

    source: str
    """The corpus: a directory, file or URL, as its layout has it."""
    directory: Path
    """Where `manifest.jsonl` goes."""
    corpus: str | None = None
    """Name of the corpus; by default that of the source."""
    segment: Literal["vad", "fixed"] | None = None
    """Cut recordings that are longer than a window: vad, windows around speech; fixed, one after another. The audio
    stays where it is; the manifest has one line per window. Without this, recordings stay whole."""
    windows: Annotated[WindowConfig, tyro.conf.arg(name="")] = field(default_factory=WindowConfig)
    """Where recordings are cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSynthetic:
    """Writes a recipe's synthetic corpus as audio files and a manifest."""

    directory: Path
    """Where the corpus goes."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The recipe."""


def prepare(words: Sequence[str]) -> int:
    """Write the manifest of a corpus (kaldi, librispeech, lhotse, ...), or a recipe's synthetic corpus."""
    from ctxasr_ray.corpora import manifest, synthetic

    if words and words[0] in ("-h", "--help"):
        print(
            f"usage: ctxasr prepare KIND --source DIR [OPTIONS]\n       ctxasr prepare RECIPE [OPTIONS]\n\n"
            f"Kinds: {', '.join(manifest.KINDS)}.\n`ctxasr prepare KIND --help` lists the options."
        )
        return 0
    if not words or words[0].startswith("-") or words[0] not in (*manifest.KINDS, *RECIPES):
        raise ValueError(
            f"expected a kind of corpus ({', '.join(manifest.KINDS)}: ctxasr prepare KIND --source DIR) or a recipe "
            f"with a synthetic corpus ({', '.join(RECIPES)}), got '{' '.join(words[:1])}'."
        )
    name, rest = words[0], list(words[1:])
    home = Path("corpora") / name
    if name in manifest.KINDS:
        given = PrepareCorpus(source=tyro.MISSING, directory=home)
        asked = tyro.cli(PrepareCorpus, default=given, args=rest, prog=f"ctxasr prepare {name}")
        if asked.segment is None:
            path, found = manifest.prepare(name, asked.source, asked.directory, asked.corpus)
            print(path)
            print(found, file=sys.stderr)
            return 0
        path, cut = manifest.prepare_windows(
            name, asked.source, asked.directory, asked.corpus, method=asked.segment, windows=asked.windows
        )
        print(path)
        print(cut, file=sys.stderr)
        return 0
    default = PrepareSynthetic(directory=home, experiment=find(name)())
    options = tyro.cli(
        PrepareSynthetic,
        default=default,
        args=rest,
        prog=f"ctxasr prepare {name}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    if options.experiment.synthetic is None:
        raise ValueError(f"recipe '{name}' makes no corpus; give your own with --manifest.")
    print(synthetic.prepare(options.experiment.synthetic, options.directory))
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Scores hypothesis files against a reference file; every system is compared with the first one, in pairs."""

    references: str
    """Reference file, local or URL."""
    hypotheses: tuple[str, ...]
    """One file per system: path, or name=path."""
    format: Literal["is21", "trn", "stm", "kaldi", "nemo", "tsv"] = "tsv"
    """is21 TSV, sclite trn, stm with hypotheses in ctm, Kaldi text, NeMo JSON lines, or TSV with id and text."""
    normaliser: str = "none"
    """One of `text.NORMALISERS`; files are scored as they are unless one is asked for."""
    alignment: Literal["unit", "nist"] = "unit"
    """Alignment costs: 1/1/1, or sclite's 4/3/3 for substitution, insertion and deletion."""
    metrics: tuple[str, ...] = ("wer", "cer")
    """Some of wer, cer, orthographic_wer, mer, rare_wer; biased_wer and unbiased_wer come with the keywords."""
    word_lists: WordLists = field(default_factory=lambda: WordLists(common_words=None))
    """Common words (never biased) and rare words, by files."""
    baseline: str | None = None
    """System that the others are compared with; by default the first."""
    group_by: str | None = None
    """Rows per group too: speaker_id, session_id, length, or an attribute of the references."""
    num_replicates: int = 10_000
    """Bootstrap replicates behind every interval."""
    seed: int = 7
    """Of the bootstrap."""
    json: bool = False
    """Print one JSON line per metric, nothing else."""


def score(words: Sequence[str]) -> int:
    """Score hypothesis files (is21, trn, ctm with stm, Kaldi, NeMo, TSV) against a reference file."""
    return _score("score", words)


def compare(words: Sequence[str]) -> int:
    """Compare two or more hypothesis files with each other: the same as score, with at least two systems."""
    return _score("compare", words)


def _score(command: str, words: Sequence[str]) -> int:
    from rich.console import Console

    from ctxasr_ray.metrics.score_files import json_rows, score_files
    from ctxasr_ray.report.terminal import terminal_tables

    options = tyro.cli(Score, args=list(words), prog=f"ctxasr {command}")
    if command == "compare" and len(options.hypotheses) < 2:
        raise ValueError(f"compare needs at least two hypothesis files, got {len(options.hypotheses)}; or use score.")
    results = score_files(
        options.references,
        options.hypotheses,
        form=options.format,
        normaliser=options.normaliser,
        alignment=options.alignment,
        metrics=options.metrics,
        word_lists=options.word_lists,
        baseline=options.baseline,
        group_by=options.group_by,
        num_replicates=options.num_replicates,
        seed=options.seed,
    )
    if options.json:
        for row in json_rows(results):
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(f"references: {Path(options.references).name}")
        Console().print(terminal_tables(results))
    return 0
