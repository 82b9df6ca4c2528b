"""Where a training gets its examples from: the synthetic corpus, or an UTTERANCES table. Loads no framework."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctxasr_ray import audio, text
from ctxasr_ray.corpora.mandarin import MandarinConfig
from ctxasr_ray.corpora.manifest import read_corpus
from ctxasr_ray.corpora.sentences import Sentence
from ctxasr_ray.corpora.spanish import SpanishConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.stage import identity

TRAINABLE = ("train", "dev")
"""Splits that a training may read: train to learn from, dev to be measured on."""


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance to learn from."""

    name: str
    text: str
    samples: npt.NDArray[np.float32]
    """(num_samples,) mono at 16 kHz."""


class Speech(Protocol):
    """A config of recordings with their texts, read at random, in any process."""

    def __len__(self) -> int:
        """Number of utterances."""
        ...

    def example(self, index: int) -> Example:
        """Reads one utterance.

        Raises:
            ValueError: the recording or its text cannot be used; says why.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSpeech:
    """Utterances of a split of the synthetic corpus, spoken when they are asked for."""

    num_utterances: int
    first: int = 0
    """Number of the first one; the corpus has no end."""
    split: str = "train"
    corpus: SpanishConfig | MandarinConfig | SyntheticConfig = field(default_factory=SyntheticConfig)
    num_seeds: int = 1
    """Corpora that the utterances come from, as many of each and one after the other, their seeds counted up from the
    corpus's own: more names, voices and noises."""

    def __post_init__(self) -> None:
        refuse_test(self.split, "the synthetic corpus")
        if self.num_utterances < 1:
            raise ValueError(f"num_utterances of split '{self.split}' is {self.num_utterances}; expected at least 1.")
        if self.num_seeds < 1 or self.num_utterances % self.num_seeds:
            raise ValueError(
                f"num_seeds is {self.num_seeds}, num_utterances {self.num_utterances}; expected as many utterances of "
                "each seed, and a seed at least."
            )

    def __len__(self) -> int:
        """Number of utterances."""
        return self.num_utterances

    def example(self, index: int) -> Example:
        """Speaks one utterance."""
        corpus, number = self._place(index)
        spoken = corpus.spoken(self.split, number)
        name = spoken.utterance_id if self.num_seeds == 1 else f"seed-{corpus.seed}/{spoken.utterance_id}"
        return Example(name, spoken.text, spoken.samples)

    def sentence(self, index: int) -> Sentence:
        """Gives the text and the rare phrases of an utterance without speaking it."""
        corpus, number = self._place(index)
        return corpus.sentence(self.split, number)

    def _place(self, index: int) -> tuple[SpanishConfig | MandarinConfig | SyntheticConfig, int]:
        turn, number = divmod(index, self.num_utterances // self.num_seeds)
        return dataclasses.replace(self.corpus, seed=self.corpus.seed + turn), self.first + number


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSpeech:
    """The utterances of one split of a corpus of your own, or of an UTTERANCES table (a Parquet file)."""

    path: str
    """A manifest or any other corpus that `corpora.manifest.read_corpus` reads, or a Parquet file with the columns of
    `schema.UTTERANCES`."""
    split: str = "train"
    normaliser: str = "basic"
    """Name of the normaliser that makes the training text from the raw reference."""

    def __post_init__(self) -> None:
        refuse_test(self.split, self.path)

    def __len__(self) -> int:
        """Number of utterances of the split that have a reference."""
        return len(_transcribed(self.path, self.split))

    def example(self, index: int) -> Example:
        """Reads one recording and its reference.

        Raises:
            ValueError: the audio cannot be decoded.
        """
        row = _transcribed(self.path, self.split)[index]
        return _recorded(row, text.normalise(row["reference"], self.normaliser))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recordings:
    """The recordings of one split of a corpus of your own, for a training that only listens: no transcript is read."""

    path: str
    """A manifest or any other corpus that `corpora.manifest.read_corpus` reads, with transcripts or without."""
    split: str = "train"

    def __post_init__(self) -> None:
        refuse_test(self.split, self.path)

    def __len__(self) -> int:
        """Number of utterances of the split."""
        return len(_rows(self.path, self.split))

    def example(self, index: int) -> Example:
        """Reads one recording; its text is empty.

        Raises:
            ValueError: the audio cannot be decoded.
        """
        return _recorded(_rows(self.path, self.split)[index], "")


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticText:
    """Sentences of the synthetic corpus, unspoken; of train, also sentences with the names of further seeds.

    A model that sees the same names again and again learns them by heart and finds new ones unlikely; what it
    should learn is how names are made.
    """

    num_sentences: int
    split: str = "train"
    corpus: SpanishConfig | SyntheticConfig = field(default_factory=SyntheticConfig)
    num_seeds: int = 1
    """Corpora that the sentences come from in equal shares, their seeds counted up from the corpus's own. Sentences
    with a name of its dev or test are left out."""

    def __post_init__(self) -> None:
        refuse_test(self.split, "the synthetic corpus")
        if self.num_seeds < 1 or (self.split != "train" and self.num_seeds > 1):
            raise ValueError(f"num_seeds is {self.num_seeds} for split '{self.split}'; at least 1, and 1 for dev.")

    def sentences(self) -> Iterator[str]:
        """Gives one sentence after the other."""
        seed = self.corpus.seed
        held_out = {w for split in ("dev", "test") if split != self.split for w in self.corpus.rare_words(split)}
        for number in range(self.num_seeds):
            corpus = dataclasses.replace(self.corpus, seed=seed + number)
            texts = (corpus.sentence(self.split, index).text for index in itertools.count())
            share = len(range(number, self.num_sentences, self.num_seeds))
            yield from itertools.islice((t for t in texts if held_out.isdisjoint(t.split())), share)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFile:
    """A file of one sentence per line, UTF-8."""

    path: str
    split: str = "train"
    """What the text is used for; a file of test references is not to be named here."""

    def __post_init__(self) -> None:
        refuse_test(self.split, self.path)

    def sentences(self) -> Iterator[str]:
        """Gives the lines that are not blank.

        Raises:
            ValueError: the file is missing.
        """
        if not Path(self.path).is_file():
            raise ValueError(f"training: no text file at {self.path}.")
        with open(self.path, encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())


def described(source: Any) -> Any:
    """What a source gives, as plain values: its config and, of files of your own, the digest of what they say.

    Recordings that change under the same name are not noticed.
    """
    said = identity(source)
    if isinstance(source, (TableSpeech, Recordings)):
        rows = json.dumps(_rows(source.path, source.split), sort_keys=True, default=str)
        said["rows"] = hashlib.sha256(rows.encode()).hexdigest()
    elif isinstance(source, TextFile):
        said["sentences"] = hashlib.sha256("\n".join(source.sentences()).encode()).hexdigest()
    return said


def _recorded(row: Mapping[str, Any], said: str) -> Example:
    samples = audio.load(row["audio_uri"], start_s=row["start_s"], duration_s=row["duration_s"], channel=row["channel"])
    return Example(row["utterance_id"], said, samples)


@functools.lru_cache(maxsize=4)
def _transcribed(path: str, split: str) -> list[dict[str, Any]]:
    return [row for row in _rows(path, split) if row["reference"] is not None]


@functools.lru_cache(maxsize=4)
def _rows(path: str, split: str) -> list[dict[str, Any]]:
    if not path.endswith(".parquet"):
        found = read_corpus(path)
        table = found.filter(pc.equal(found["split"], split))
    elif Path(path).is_file():
        table = pq.read_table(path, filters=[("split", "=", split)])
    else:
        raise ValueError(f"training: no UTTERANCES table at {path}; give the path of one Parquet file.")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def refuse_test(split: str, what: str) -> None:
    """Refuses to train or to tune on a test split.

    Raises:
        ValueError: the split is neither train nor dev.
    """
    if split not in TRAINABLE:
        raise ValueError(
            f"training: split '{split}' of {what} may not be trained on, nor measured while training; "
            f"use one of {TRAINABLE}. Test is for reporting only."
        )
