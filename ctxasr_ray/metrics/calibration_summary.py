"""UTTERANCES, TRANSCRIPTS... -> RESULTS: calibration of word confidence, and the words that are confidently wrong.

| metric | value |
|---|---|
| confidence_ece, confidence_nce, confidence_auc | of all written words that have a confidence, see `calibration` |
| reliability | share of right words in a bin of equal mass; conditions `bin` (00 least sure) and `mean_confidence` |
| confidently_wrong | share of written words that are substituted or inserted with a confidence of at least 0.9 |
| confidently_wrong_repaired | share of the baseline's confidently wrong words that another system repairs |

A substitution is repaired where the system has the reference's word right, an insertion where it does not insert that
word in that utterance. Deletions have no confidence; they stand apart in the counts. A system without confidences has
no rows but the repairs, which need only the baseline's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.calibration import (
    CONFIDENT,
    FIGURES,
    NUM_BINS,
    equal_mass_bins,
    exact_auc,
    is_confidently_wrong,
)
from ctxasr_ray.metrics.joined_windows import WINDOW_COLUMNS, WORD_COLUMNS
from ctxasr_ray.metrics.judged_words import JudgedWords, judge
from ctxasr_ray.metrics.significance import (
    MAX_BLOCKS,
    Blocks,
    Comparison,
    choose_blocks,
    compare,
    percentile_levels,
    resampled_sums,
)
from ctxasr_ray.schema import RESULTS, conform
from ctxasr_ray.stage import Costs, Resources, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig:
    """Judges the confidence of every system's words; reads UTTERANCES, then one TRANSCRIPTS per entry of `systems`."""

    NAME: ClassVar[str] = "calibration"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("corpus", "split", "speaker_id", "session_id", *WINDOW_COLUMNS),
        "transcripts": WORD_COLUMNS,
    }
    WRITES: ClassVar[str] = "results"

    systems: tuple[str, ...]
    """The system of each TRANSCRIPTS table, in the order of the step's inputs."""
    baseline: str = "first_pass"
    """The system whose confidently wrong words the others may repair, and that they are compared with."""
    splits: tuple[str, ...] = ("dev", "test")
    """Splits that are read and reported."""
    normaliser: str = "whisper_english"
    """One of `text.NORMALISERS`."""
    alignment: str = "unit"
    """Costs of the alignment: unit (1/1/1) or nist (4/3/3)."""
    num_replicates: int = 10_000
    """Bootstrap replicates."""
    seed: int = 7
    """Of the bootstrap."""
    condition: Mapping[str, str] = field(default_factory=dict)
    """Stands in every row."""
    resources: Resources = field(default_factory=Resources)
    """Unused: the driver runs this."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version.

        Raises:
            ValueError: an unknown normaliser or alignment, a baseline that is no system, or no replicates.
        """
        align.check_alignment(self.alignment)
        if self.baseline not in self.systems:
            raise ValueError(f"baseline '{self.baseline}' is not among systems {list(self.systems)}; name it there.")
        if self.num_replicates < 1:
            raise ValueError(f"num_replicates is {self.num_replicates}; expected at least 1.")
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> Stage:
        """Returns the summing function; there is no model to load."""
        self.fingerprint()
        return self._summarise

    def _summarise(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, *transcripts = tables
        rows: list[dict[str, Any]] = []
        with costs.timed("calibration"):
            judged = {
                system: judge(utterances, table, self.normaliser, self.alignment)
                for system, table in zip(self.systems, transcripts, strict=True)
            }
            corpus, split = (np.asarray(utterances.column(c).to_pylist(), object) for c in ("corpus", "split"))
            for name in ((s, c) for s in self.splits for c in dict.fromkeys(corpus[split == s].tolist())):
                members = (split == name[0]) & (corpus == name[1]) & judged[self.baseline].has_reference
                rows += _Group(self, utterances, name, members).rows(judged)
        costs.count("unplaced_words", sum(words.unplaced for words in judged.values()))
        return conform(pa.Table.from_pylist(rows, schema=RESULTS), "results")


class _Group:
    """The rows of one corpus and split."""

    def __init__(
        self, config: CalibrationConfig, utterances: pa.Table, name: tuple[str, str], members: npt.NDArray[np.bool_]
    ) -> None:
        self._config, self._name, self._members = config, name, members
        self._row_of = np.cumsum(members) - 1
        speakers, sessions = (
            np.asarray(utterances.column(c).to_pylist(), object)[members].tolist() for c in ("speaker_id", "session_id")
        )
        self._blocks = (
            choose_blocks(speakers, sessions)
            if members.any()
            else Blocks(kind="utterance", index=np.zeros(0, np.int64), num_blocks=0)
        )

    def rows(self, judged: Mapping[str, JudgedWords]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        if not self._members.any():
            return rows
        for system, words in judged.items():
            mine = self._members[words.utterance] & words.known
            if mine.any():
                rows += self._figures(system, words, mine) + self._reliability(system, words, mine)
        known = {s: w for s, w in judged.items() if (self._members[w.utterance] & w.known).any()}
        rows += self._confidently_wrong(known)
        if self._config.baseline in known:
            rows += self._repaired(judged)
        return rows

    def _figures(self, system: str, words: JudgedWords, mine: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
        confidence, is_right = words.confidence[mine], words.is_right[mine]
        blocks = self._blocks.merged(self._config.seed)
        owner = blocks.index[self._row_of[words.utterance[mine]]]
        rows = []
        for metric, (block_sums, figure) in FIGURES.items():
            sums = block_sums(confidence, is_right, owner, blocks.num_blocks)
            value = float(figure(sums.sum(axis=0, keepdims=True))[0])
            drawn = figure(resampled_sums(sums, self._config.num_replicates, self._config.seed))
            exact = exact_auc(confidence, is_right) if metric == "confidence_auc" else value
            low, high = _interval(drawn, exact, blocks.num_blocks)
            row = self._row(system, metric, "word")
            counts = [("words", int(mine.sum())), ("right", int(is_right.sum()))]
            rows.append(row | {"value": _number(exact), "ci_low": low, "ci_high": high, "counts": counts})
        return rows

    def _reliability(self, system: str, words: JudgedWords, mine: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
        confidence, is_right = words.confidence[mine], words.is_right[mine]
        bins = equal_mass_bins(confidence)
        owner = self._row_of[words.utterance[mine]]
        per_bin = np.zeros((2, int(self._members.sum()), NUM_BINS))
        np.add.at(per_bin[0], (owner, bins), is_right)
        np.add.at(per_bin[1], (owner, bins), 1)
        rows = []
        used = np.unique(bins)
        result = self._compare(per_bin[0][:, used], per_bin[1][:, used])
        for column, bin_ in enumerate(used.tolist()):
            of_bin = bins == bin_
            condition = {"bin": f"{bin_:02d}", "mean_confidence": f"{confidence[of_bin].mean():.6f}"}
            row = self._row(system, "reliability", "word", condition)
            counts = [("words", int(of_bin.sum())), ("right", int(is_right[of_bin].sum()))]
            values = {name: _number(getattr(result, name)[column]) for name in ("value", "ci_low", "ci_high")}
            rows.append(row | values | {"counts": counts})
        return rows

    def _confidently_wrong(self, known: Mapping[str, JudgedWords]) -> list[dict[str, Any]]:
        if not known:
            return []
        parts = np.zeros((int(self._members.sum()), len(known)))
        wholes = np.zeros_like(parts)
        for column, words in enumerate(known.values()):
            mine = self._members[words.utterance] & words.known
            np.add.at(wholes[:, column], self._row_of[words.utterance[mine]], 1)
            slice_ = mine & is_confidently_wrong(words.confidence, words.is_right)
            np.add.at(parts[:, column], self._row_of[words.utterance[slice_]], 1)
        systems = list(known)
        has_baseline = self._config.baseline in known
        baseline = systems.index(self._config.baseline) if has_baseline else 0
        result = self._compare(parts, wholes, baseline)
        rows = []
        for column, (system, words) in enumerate(known.items()):
            slice_ = (
                self._members[words.utterance] & words.known & is_confidently_wrong(words.confidence, words.is_right)
            )
            counts = {
                "confidently_wrong": int(parts[:, column].sum()),
                "substituted": int((slice_ & (words.op == align.SUBSTITUTION)).sum()),
                "inserted": int((slice_ & (words.op == align.INSERTION)).sum()),
                "words": int(wholes[:, column].sum()),
                "deletions": int(words.deletions[self._members].sum()),
            }
            names = ["value", "ci_low", "ci_high"]
            compared = has_baseline and column != baseline
            if compared:
                names += ["delta", "delta_ci_low", "delta_ci_high", "p_value", "probability_of_improvement"]
            row = self._row(system, "confidently_wrong", "word") | {"counts": [*counts.items()]}
            row["baseline"] = self._config.baseline if compared else None
            rows.append(row | {name: _number(getattr(result, name)[column]) for name in names})
        return rows

    def _repaired(self, judged: Mapping[str, JudgedWords]) -> list[dict[str, Any]]:
        first = judged[self._config.baseline]
        at = np.flatnonzero(
            self._members[first.utterance] & first.known & is_confidently_wrong(first.confidence, first.is_right)
        )
        if not len(at):
            return []
        owner = self._row_of[first.utterance[at]]
        all_wrong = np.bincount(owner, minlength=int(self._members.sum())).astype(np.float64)
        rows = []
        for system, words in judged.items():
            if system == self._config.baseline:
                continue
            is_repaired = _repairs(words, first, at)
            repaired = np.bincount(owner[is_repaired], minlength=len(all_wrong)).astype(np.float64)
            result = self._compare(repaired[:, None], all_wrong[:, None])
            row = self._row(system, "confidently_wrong_repaired", "word")
            row["counts"] = [("repaired", int(is_repaired.sum())), ("confidently_wrong", len(at))]
            rows.append(row | {name: _number(getattr(result, name)[0]) for name in ("value", "ci_low", "ci_high")})
        return rows

    def _compare(self, parts_US: npt.NDArray[Any], wholes_US: npt.NDArray[Any], baseline: int = 0) -> Comparison:
        config = self._config
        return compare(
            parts_US,
            wholes_US,
            self._blocks,
            baseline=baseline,
            num_replicates=config.num_replicates,
            seed=config.seed,
        )

    def _row(self, system: str, metric: str, unit: str, condition: Mapping[str, str] | None = None) -> dict[str, Any]:
        config, blocks = self._config, self._blocks
        split, corpus = self._name
        parts = (
            metric,
            f"norm:{text.versioned(config.normaliser)}",
            f"align:{config.alignment}",
            f"bins:{NUM_BINS},confident:{CONFIDENT}",
            f"boot:{config.num_replicates},seed:{config.seed}",
            f"block:{blocks.kind}",
            f"split:{split}",
            f"n:{int(self._members.sum())}",
            f"v{version('ctxasr-ray')}",
        )
        return {
            "corpus": corpus,
            "split": split,
            "system": system,
            "condition": [*{**config.condition, **(condition or {})}.items()],
            "metric": metric,
            "unit": unit,
            "num_utterances": int(self._members.sum()),
            "num_failed": 0,
            "num_unscored": 0,
            "num_blocks": min(blocks.num_blocks, MAX_BLOCKS),
            "num_configurations": 1,
            "signature": "|".join(parts),
        }


def _repairs(words: JudgedWords, first: JudgedWords, at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which wrong words of the first system, at some rows, the other one does not have."""
    inserted = words.insertions()
    is_repaired = np.zeros(len(at), bool)
    for i, row in enumerate(at.tolist()):
        if first.op[row] == align.SUBSTITUTION:
            is_repaired[i] = not words.wrong_references[first.place[row]]
            continue
        same = (int(first.utterance[row]), first.words[row])
        is_repaired[i] = inserted[same] == 0
        inserted[same] -= not is_repaired[i]  # one insertion of the other system answers for one of the first
    return is_repaired


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(drawn: npt.NDArray[np.float64], value: float, num_blocks: int) -> tuple[float | None, float | None]:
    """Percentiles of the replicates, moved by their mean distance to the value.

    Resampling adds noise to every bin of an ECE, so that its replicates lie too high; steps make those of an AUC a
    little too low.
    """
    known = drawn[~np.isnan(drawn)]
    if num_blocks < 2 or not len(known) or np.isnan(value):
        return None, None
    low, high = np.quantile(known, percentile_levels(num_blocks, 0.95)) - (known.mean() - value)
    return float(min(low, value)), float(max(high, value))
