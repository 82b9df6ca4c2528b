"""UTTERANCES, TRANSCRIPTS -> ERRORS: B-WER and U-WER, the words of the true phrases apart from all others.

A reference word is biased if it is a word of one of that utterance's true phrases and not a common word; an edit at a
reference word has that word's class. An inserted word is biased if it is one of the same words of that utterance;
every other insertion, distractors included, counts as unbiased.

Reference:
    Le et al. 2021, arXiv:2104.02194, as its published scorer computes it (with alignment nist, and the third column of
    its reference files as phrases).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import METRICS, PAIRS_PER_STEP, MetricCounts, errors_table, same_rows
from ctxasr_ray.stage import Costs, Resources, Stage, light


def common_words(path: str, normaliser: str) -> frozenset[str]:
    """Words of a file with one word per line, normalised; empty for no path.

    Raises:
        ValueError: the file is not there or not UTF-8.
    """
    if not path:
        return frozenset()
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise ValueError(f"common words '{path}': {error}; expected a UTF-8 file with one word per line.") from error
    return frozenset(word for line in lines for word in text.words(line, normaliser))


def digest(path: str) -> Mapping[str, str]:
    """What a stage with common words puts into its fingerprint.

    Raises:
        ValueError: the file is not there.
    """
    if not path:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"common words '{path}': no such file; expected one word per line.")
    return {"common_words": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def keyword_words(phrases: Iterable[str] | None, normaliser: str, common: frozenset[str]) -> frozenset[str]:
    """The biased words of an utterance: those of its true phrases that are not common."""
    return frozenset(word for phrase in phrases or () for word in text.words(phrase, normaliser)) - common


def biased_counts(
    references: Sequence[str],
    hypotheses: Sequence[str],
    biased_words: Sequence[frozenset[str]],
    edits: align.Edits,
) -> tuple[align.Counts, align.Counts]:
    """Splits the edits of P pairs into those of biased words and all others.

    Args:
        references: (P,) normalised.
        hypotheses: (P,) normalised.
        biased_words: (P,) normalised words.
        edits: Alignments of these pairs, in words.

    Returns:
        Counts of biased and of unbiased words, (P,) each.
    """
    num_pairs = len(references)
    errors = np.zeros((2, 4, num_pairs), np.int64)  # unbiased and biased x op
    last, reference, hypothesis = -1, [""], [""]
    columns = (edits.pair, edits.op, edits.reference_index, edits.hypothesis_index)
    for pair, op, i, j in zip(*(column.tolist() for column in columns), strict=True):
        if pair != last:
            last, reference, hypothesis = pair, references[pair].split(), hypotheses[pair].split()
        word = hypothesis[j] if op == align.INSERTION else reference[i]
        errors[int(word in biased_words[pair]), op, pair] += 1
    lengths = np.zeros((2, num_pairs), np.int64)
    for pair, (reference_text, words) in enumerate(zip(references, biased_words, strict=True)):
        tokens = reference_text.split()
        biased = sum(word in words for word in tokens) if words else 0
        lengths[:, pair] = len(tokens) - biased, biased
    unbiased_counts, biased_counts = (
        align.Counts(lengths[k] - errors[k, align.SUBSTITUTION] - errors[k, align.DELETION], *errors[k, 1:])
        for k in (0, 1)
    )
    return biased_counts, unbiased_counts


def biased_metrics(
    references: Sequence[str | None],
    hypotheses: Sequence[str],
    keywords: Sequence[Sequence[str] | None],
    normaliser: str,
    alignment: str,
    common: frozenset[str],
) -> list[MetricCounts]:
    """`biased_wer` and `unbiased_wer` over U utterances; unknown reference or keywords: not counted.

    Args:
        references: (U,) raw.
        hypotheses: (U,) raw; a failed utterance is the empty string.
        keywords: (U,) true phrases, raw.
        normaliser: One of `text.NORMALISERS`.
        alignment: One of `align.ALIGNMENTS`.
        common: Normalised words that are never biased.
    """
    counted = np.array([r is not None and k is not None for r, k in zip(references, keywords, strict=True)], bool)
    known = ["" if r is None else r for r in references]
    said = [h if ok else "" for h, ok in zip(hypotheses, counted.tolist(), strict=True)]
    parts = []
    for start in range(0, len(known), PAIRS_PER_STEP) or (0,):
        step = slice(start, start + PAIRS_PER_STEP)
        sides = [text.units(side[step], normaliser, "word") for side in (known, said)]
        reference_units, hypothesis_units = align.encode("word", *sides)
        edits = align.edits(reference_units, hypothesis_units, alignment)
        words = [keyword_words(phrases, normaliser, common) for phrases in keywords[step]]
        parts.append(biased_counts(sides[0], sides[1], words, edits))
    return [
        MetricCounts(
            metric=metric,
            unit="word",
            normaliser=normaliser,
            word_class=METRICS[metric][1],
            alignment=alignment,
            counted=counted,
            counts=align.Counts.joined([part[k] for part in parts]),
        )
        for k, metric in enumerate(("biased_wer", "unbiased_wer"))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BiasedCountsConfig:
    """Counts B-WER and U-WER by each utterance's own true phrases (UTTERANCES.keywords), never by its context list."""

    NAME: ClassVar[str] = "biased"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("reference", "keywords"),
        "transcripts": ("text", "error_type"),
    }
    WRITES: ClassVar[str] = "errors"

    common_words: str = ""
    """File of common words, one per line, that never count as biased (the 5k common ones); empty: none."""
    normaliser: str = "whisper_english"
    """One of `text.NORMALISERS`, for references, hypotheses, phrases and common words."""
    alignment: str = "unit"
    """Costs of the alignment: unit (1/1/1) or nist (4/3/3, as published)."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version and the digest of the common words.

        Raises:
            ValueError: an unknown normaliser or alignment, or a file that is not there.
        """
        align.check_alignment(self.alignment)
        return {"normaliser": text.versioned(self.normaliser), **digest(self.common_words)}

    def build(self) -> Stage:
        """Reads the common words."""
        self.fingerprint()
        common = common_words(self.common_words, self.normaliser)

        def count(*tables: pa.Table, costs: Costs) -> pa.Table:
            utterances, transcripts = tables
            same_rows("transcripts", transcripts, "utterances", utterances)
            failed = transcripts.column("error_type").is_valid().to_pylist()
            heard = ["" if bad else t for t, bad in zip(transcripts.column("text").to_pylist(), failed, strict=True)]
            with costs.timed("align"):
                metrics = biased_metrics(
                    utterances.column("reference").to_pylist(),
                    heard,
                    utterances.column("keywords").to_pylist(),
                    self.normaliser,
                    self.alignment,
                    common,
                )
            costs.count("pairs_aligned", len(heard))
            return errors_table(utterances.column("utterance_id").to_pylist(), metrics)

        return count
