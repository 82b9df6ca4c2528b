"""UTTERANCES, TRANSCRIPTS, HYPOTHESES -> ERRORS: what could be done about words that are confidently wrong.

A word is confidently wrong as in `calibration_summary`: substituted or inserted with a confidence of at least 0.9.

- `confidently_wrong_repairable`: share of the baseline's confidently wrong words that some hypothesis of a list
  repairs; beside `confidently_wrong_repaired` it says how many errors a method can and how many it does repair.
- `gate_lockout`: share of the tokens of a system's own confidently wrong words at which the gate of gated fusion would
  let the helper in with a weight below 0.05. The weight is sigmoid(u) - 0.5 of the stored entropy, which is the
  recogniser's own in nats, at temperature 1.

A system without tokens or confidences, windows of longer recordings and utterances without a reference are not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.calibration import is_confidently_wrong
from ctxasr_ray.metrics.counts import CountOptions, MetricCounts, errors_table, same_rows
from ctxasr_ray.metrics.joined_windows import WINDOW_COLUMNS, WORD_COLUMNS
from ctxasr_ray.metrics.judged_words import JudgedWords, judge
from ctxasr_ray.nbest import FlatNBest, flatten
from ctxasr_ray.stage import Costs, Stage

LOCKED_OUT: Final = 0.05
"""A gate weight below keeps the helper out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidentErrorsConfig(CountOptions):
    """Counts both metrics. Reads UTTERANCES, the baseline's TRANSCRIPTS, the 1-best's TRANSCRIPTS, HYPOTHESES."""

    NAME: ClassVar[str] = "confident_errors"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": WINDOW_COLUMNS,
        "transcripts": (*WORD_COLUMNS, "hypothesis_index"),
        "hypotheses": ("hypotheses",),
    }
    WRITES: ClassVar[str] = "errors"

    def build(self) -> Stage:
        """Returns the counting function; there is no model to load."""
        self.fingerprint()
        return self._count

    def _count(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, baseline, own, hypotheses = tables
        same_rows("hypotheses", hypotheses, "utterances", utterances)
        flat = flatten(hypotheses)
        with costs.timed("judge"):
            first = judge(utterances, baseline, self.normaliser, self.alignment)
            is_baseline = own.equals(baseline)  # of the first pass's own list
            mine = first if is_baseline else judge(utterances, own, self.normaliser, self.alignment)
        whole = np.asarray(utterances.column("window_index").is_null()) & first.has_reference
        wrong = _per_utterance(first, is_confidently_wrong(first.confidence, first.is_right), len(flat.utterance_ids))
        with costs.timed("align"):
            repairable = self._repairable(utterances.column("reference").to_pylist(), flat, first, whole, costs)
        tokens, locked = _gate(hypotheses, flat, own, mine)
        knows = whole & np.isin(np.arange(len(wrong)), first.utterance[first.known])
        gated = whole & (tokens >= 0)
        nothing = np.zeros(len(wrong), np.int64)
        label: dict[str, Any] = {"normaliser": self.normaliser, "word_class": "confident", "alignment": self.alignment}
        repair = align.Counts(repairable, nothing, np.where(knows, wrong - repairable, 0), nothing)
        lock = align.Counts(np.where(gated, locked, 0), nothing, np.where(gated, tokens - locked, 0), nothing)
        metrics = [
            MetricCounts(metric="confidently_wrong_repairable", unit="word", counted=knows, counts=repair, **label),
            MetricCounts(metric="gate_lockout", unit="token", counted=gated, counts=lock, **label),
        ]
        return errors_table(utterances.column("utterance_id").to_pylist(), metrics)

    def _repairable(
        self,
        references: list[str | None],
        lists: FlatNBest,
        first: JudgedWords,
        whole: npt.NDArray[np.bool_],
        costs: Costs,
    ) -> npt.NDArray[np.int64]:
        """(U,) confidently wrong words that some hypothesis lacks: its reference word right, or not inserted."""
        wrong = np.flatnonzero(is_confidently_wrong(first.confidence, first.is_right) & whole[first.utterance])
        rows = np.unique(first.utterance[wrong]).tolist()
        offsets = lists.offsets
        texts = [(r, one) for r in rows for one in dict.fromkeys(lists.texts[offsets[r] : offsets[r + 1]])]
        known, heard = (
            text.units(side, self.normaliser, "word")
            for side in ([references[row] or "" for row, _ in texts], [one for _, one in texts])
        )
        costs.count("pairs_aligned", len(texts))
        reference_units, hypothesis_units = align.encode("word", known, heard)
        edits = align.edits(reference_units, hypothesis_units, self.alignment)
        lost: list[set[int]] = [set() for _ in texts]
        inserted: list[list[str]] = [[] for _ in texts]
        words = [one.split() for one in heard]
        for pair, op, at, said in zip(
            *(getattr(edits, name).tolist() for name in ("pair", "op", "reference_index", "hypothesis_index")),
            strict=True,
        ):
            if op == align.INSERTION:
                inserted[pair].append(words[pair][said])
            else:
                lost[pair].add(at)
        of_row: dict[int, list[int]] = {}
        for pair, (row, _) in enumerate(texts):
            of_row.setdefault(row, []).append(pair)
        lengths = [len(one.split()) for one in text.units([r or "" for r in references], self.normaliser, "word")]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        found = np.zeros(len(references), np.int64)
        for word in wrong.tolist():
            row, place = int(first.utterance[word]), int(first.place[word] - starts[first.utterance[word]])
            mine = of_row.get(row, [])
            if first.op[word] == align.SUBSTITUTION:
                found[row] += any(place not in lost[pair] for pair in mine)
            else:
                found[row] += any(first.words[word] not in inserted[pair] for pair in mine)
        return found


def _gate(
    hypotheses: pa.Table, lists: FlatNBest, transcripts: pa.Table, mine: JudgedWords
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(tokens of confidently wrong words, those of them that are locked out), (U,) each; -1 without tokens."""
    wrong: dict[int, set[int]] = {}
    chosen = is_confidently_wrong(mine.confidence, mine.is_right)
    for row, raw in zip(mine.utterance[chosen].tolist(), mine.raw_word[chosen].tolist(), strict=True):
        wrong.setdefault(row, set()).add(raw)
    index = transcripts.column("hypothesis_index").combine_chunks()
    rows = np.flatnonzero(index.is_valid())
    said = (
        hypotheses.column("hypotheses")
        .combine_chunks()
        .flatten()
        .take(pa.array(lists.offsets[rows] + index.drop_null().to_numpy()))
    )
    columns = (said.field(name).to_pylist() for name in ("token_words", "token_entropies"))
    tokens, locked = np.full((2, len(lists.utterance_ids)), -1, np.int64)
    for row, owners, entropies in zip(rows.tolist(), *columns, strict=True):
        if owners is None or entropies is None:
            continue
        mine_E = [e for owner, e in zip(owners, entropies, strict=True) if owner in wrong.get(row, ())]
        weights = 1 / (1 + np.exp(-np.asarray(mine_E))) - 0.5
        tokens[row], locked[row] = len(mine_E), int((weights < LOCKED_OUT).sum())
    return tokens, locked


def _per_utterance(words: JudgedWords, chosen: npt.NDArray[np.bool_], num: int) -> npt.NDArray[np.int64]:
    return np.bincount(words.utterance[chosen], minlength=num).astype(np.int64)
