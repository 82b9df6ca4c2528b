"""UTTERANCES, TRANSCRIPTS -> ERRORS: errors of each utterance, all words and classes of words, never averaged."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import (
    METRICS,
    PAIRS_PER_STEP,
    CountOptions,
    MetricCounts,
    count_metric,
    errors_table,
    same_rows,
)
from ctxasr_ray.metrics.joined_windows import WINDOW_COLUMNS, WORD_COLUMNS, join_windows
from ctxasr_ray.metrics.word_classes import WordClasses, WordLists, class_counts
from ctxasr_ray.stage import Costs, Stage


def count_metrics(
    metrics: Sequence[str],
    references: Sequence[str | None],
    hypotheses: Sequence[str],
    keywords: Sequence[Sequence[str] | None],
    *,
    normaliser: str,
    alignment: str,
    classes: WordClasses,
) -> list[MetricCounts]:
    """Counts some of `counts.METRICS` over U utterances, in the order given.

    Args:
        metrics: Names.
        references: (U,) raw; None: not counted.
        hypotheses: (U,) raw; a failed utterance is the empty string.
        keywords: (U,) true phrases, raw; None: not counted in biased_wer and unbiased_wer.
        normaliser: One of `text.NORMALISERS`; orthographic_wer and mer have their own.
        alignment: One of `align.ALIGNMENTS`.
        classes: Common and rare words under that normaliser.

    Raises:
        ValueError: an unknown metric, normaliser or alignment, or rare_wer without a word list.
    """
    has_reference = np.array([r is not None for r in references], bool)
    has_keywords = np.array([k is not None for k in keywords], bool)
    members: dict[str, Sequence[Container[str]]] = {}
    if {"biased_wer", "unbiased_wer"} & set(metrics):
        members["biased"] = [classes.biased(phrases) for phrases in keywords]
    if "rare_wer" in metrics:
        if not classes.rare.known:
            raise ValueError("rare_wer: no word list is given; set common_words, rare_words or training_text.")
        members["rare"] = [classes.rare] * len(references)
    by_class = _class_counts(references, hypotheses, members, normaliser, alignment)
    found = []
    for metric in metrics:
        unit, word_class = METRICS.get(metric, ("", ""))
        if word_class not in by_class:
            found.append(count_metric(metric, references, hypotheses, normaliser, alignment))
            continue
        counted = has_reference & has_keywords if word_class in ("biased", "unbiased") else has_reference
        counts = by_class[word_class]
        found.append(
            MetricCounts(
                metric=metric,
                unit=unit,
                normaliser=normaliser,
                word_class=word_class,
                alignment=alignment,
                counted=counted,
                counts=align.Counts(*(np.where(counted, column, 0) for column in counts.columns())),
            )
        )
    return found


def _class_counts(
    references: Sequence[str | None],
    hypotheses: Sequence[str],
    members: Mapping[str, Sequence[Container[str]]],
    normaliser: str,
    alignment: str,
) -> dict[str, align.Counts]:
    """Counts per word class from one alignment of each pair."""
    parts: dict[str, list[align.Counts]] = {}
    known = ["" if r is None else r for r in references]
    said = ["" if r is None else h for r, h in zip(references, hypotheses, strict=True)]
    for start in range(0, len(known), PAIRS_PER_STEP) or (0,):
        step = slice(start, start + PAIRS_PER_STEP)
        if not members:
            break
        sides = [text.units(side[step], normaliser, "word") for side in (known, said)]
        reference_units, hypothesis_units = align.encode("word", *sides)
        edits = align.edits(reference_units, hypothesis_units, alignment)
        for word_class, own in members.items():
            inside, outside = class_counts(sides[0], sides[1], own[step], edits)
            parts.setdefault(word_class, []).append(inside)
            parts.setdefault(f"un{word_class}", []).append(outside)
    return {word_class: align.Counts.joined(each) for word_class, each in parts.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCountsConfig(CountOptions):
    """Counts errors against the reference; a failed utterance is all deletions, one without reference is left out.

    B-WER and U-WER count the utterances whose true phrases are known (UTTERANCES.keywords, never a context list), and
    stand in the results where a corpus has any. Windows of a recording with one reference are joined first
    (`joined_windows`): its errors stand at window 0, and the rows of the other windows are empty. orthographic_wer has
    the normaliser `none` and mer `mandarin` in place of the one that is named.
    """

    NAME: ClassVar[str] = "error_rate"
    STAGE_VERSION: ClassVar[int] = 3
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": (*WINDOW_COLUMNS, "keywords"),
        "transcripts": WORD_COLUMNS,
    }
    WRITES: ClassVar[str] = "errors"

    metrics: tuple[str, ...] = ("wer", "cer", "orthographic_wer", "rare_wer", "biased_wer", "unbiased_wer")
    """Some of wer, cer, orthographic_wer (O-WER), mer (Chinese with English), rare_wer, biased_wer, unbiased_wer."""
    word_lists: WordLists = field(default_factory=WordLists)
    """Common and rare words."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version and the digests of word lists: they change numbers without a change of this config.

        Raises:
            ValueError: an unknown metric, normaliser or alignment, or a list that is not there.
        """
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown:
            raise ValueError(f"metrics: {unknown} are unknown; choose some of {', '.join(METRICS)}.")
        return {**CountOptions.fingerprint(self), **self.word_lists.fingerprint()}

    def build(self) -> Stage:
        """Reads the word lists."""
        self.fingerprint()
        classes = self.word_lists.load(self.normaliser)

        def count(*tables: pa.Table, costs: Costs) -> pa.Table:
            utterances, transcripts = tables
            same_rows("transcripts", transcripts, "utterances", utterances)
            transcripts = join_windows(utterances, transcripts)
            failed = transcripts.column("error_type").is_valid().to_pylist()
            heard = ["" if bad else t for t, bad in zip(transcripts.column("text").to_pylist(), failed, strict=True)]
            with costs.timed("align"):
                metrics = count_metrics(
                    self.metrics,
                    utterances.column("reference").to_pylist(),
                    heard,
                    utterances.column("keywords").to_pylist(),
                    normaliser=self.normaliser,
                    alignment=self.alignment,
                    classes=classes,
                )
            costs.count("pairs_aligned", len(heard) * len(metrics))
            return errors_table(utterances.column("utterance_id").to_pylist(), metrics)

        return count


def error_counts(normaliser: str, word_lists: WordLists) -> ErrorCountsConfig:
    """Every metric of a run; R-WER only where the lists say which words are rare."""
    config = ErrorCountsConfig(normaliser=normaliser, word_lists=word_lists)
    if word_lists.tell_rare_words:
        return config
    return replace(config, metrics=tuple(metric for metric in config.metrics if metric != "rare_wer"))
