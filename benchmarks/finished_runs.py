"""Finished runs of a study: their results of test, and which keywords each system found, by kind of name."""

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
from figures import Figure

from ctxasr_ray import pipeline
from ctxasr_ray.corpora.names import KINDS
from ctxasr_ray.corpora.sentences import lexicon
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.layout import line
from ctxasr_ray.metrics.keywords import KeywordCountsConfig, phrase_table
from ctxasr_ray.opening import open_run

ROOT: Final = Path("runs/studies")
RESULTS: Final = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class KeywordsFound:
    """How often phrases were written that are spoken, written that are not, and spoken but not written."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def f1(self) -> float:
        """In [0, 1]; of no phrase at all 0."""
        return 2 * self.right / max(1, 2 * self.right + self.wrong + self.missed)

    @property
    def recall(self) -> float:
        """In [0, 1]; where none is spoken 0."""
        return self.right / max(1, self.right + self.missed)


class Finished:
    """A run of a study: its tables, made where they are not committed yet, and its RESULTS of test."""

    def __init__(self, name: str, experiment: Experiment, manifest: Path | None = None) -> None:
        """Runs it in this process, so that receipts hold seconds of one core."""
        self.experiment = replace(experiment, executor="inline")
        self.store, self.shards = open_run(self.experiment, str(ROOT / name), manifest)
        pipeline.run(self.experiment, self.store, self.shards, on_progress=say)
        results = pipeline.results(self.experiment, self.store, self.shards)
        pipeline.report(self.experiment, self.store, self.shards, results, ROOT / name / "report", name)
        self.line = line(self.experiment)
        self.results = results
        self.rows = [row for row in results.to_pylist() if row["split"] == "test"]

    def value(self, system: str, metric: str, corpus: str | None = None) -> dict[str, Any] | None:
        """The row of a metric; None where the system has none."""
        for row in self.rows:
            if (row["system"], row["metric"]) == (system, metric) and corpus in (None, row["corpus"]):
                return row
        return None

    def by_type(self, system: str) -> dict[str, KeywordsFound]:
        """Keywords found on test: people (surnames and first names), towns, products and drugs."""
        config = KeywordCountsConfig(catalogue=self.experiment.catalogue)
        steps = (self.line.corpus, self.line.transcripts[system], self.line.contexts.get(system))
        tables = [self.store.gather(step, self.shards) for step in steps if step is not None]
        test = pc.equal(tables[0].column("split"), "test")
        counts: dict[str, KeywordsFound] = {}
        for row in phrase_table(config, *(table.filter(test) for table in tables)):
            kind = kind_of(row["phrase"])
            if kind:
                mine = counts.get(kind, KeywordsFound())
                counts[kind] = KeywordsFound(
                    mine.right + row["true_positives"],
                    mine.wrong + row["false_positives"],
                    mine.missed + row["false_negatives"],
                )
        return dict(sorted(counts.items()))


def figures_of(
    run: Finished, prefix: str, system: str, metrics: Sequence[str], corpus: str | None = None
) -> Iterator[Figure]:
    """The metrics that a system has, with intervals, as figures without a goal."""
    for metric in metrics:
        row = run.value(system, metric, corpus)
        if row is not None and row["value"] is not None:
            told = {name: round(row[name], 4) for name in ("ci_low", "ci_high") if row[name] is not None}
            unit = "phrases" if metric in ("distractor_false_alarms", "keyword_leaks") else "fraction"
            counters = {**told, "utterances": row["num_utterances"]}
            yield Figure(name=f"{prefix}_{metric}", value=row["value"], unit=unit, counters=counters)


def kind_of(phrase: str) -> str | None:
    """person, town, product or drug, by the rare word in a phrase; None for a real word."""
    for word in phrase.split():
        for kind in KINDS:
            if word in _words(kind):
                return "person" if kind in ("surname", "first") else kind
    return None


@functools.cache
def _words(kind: str) -> frozenset[str]:
    return frozenset(lexicon(SyntheticConfig().seed, "test").names[kind])


def say(event: Any) -> None:
    """Tells what a run has done."""
    print(f"{event.done} of {event.total}: {event.report.step}", file=sys.stderr, flush=True)
