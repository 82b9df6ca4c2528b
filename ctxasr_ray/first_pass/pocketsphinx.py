"""UTTERANCES -> HYPOTHESES with PocketSphinx: its own search, our exact N-best from its lattice.

A real recogniser that needs no hub: an English model comes with its wheel. Acoustic and language model scores stand
apart, so that fusion weighs them anew.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from ctxasr_ray import audio
from ctxasr_ray.keywords.catalogue import UNWRITABLE
from ctxasr_ray.models.pocketsphinx import (
    ModelLimitError,
    Trigram,
    WordSearch,
    find_model,
    fingerprint,
    hear,
    load,
    read_samples,
)
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.search.lattice import read_htk
from ctxasr_ray.search.lattice_nbest import LatticePath, LatticeSearch
from ctxasr_ray.stage import Costs, Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class PocketSphinxConfig:
    """First pass with PocketSphinx: the English model of its wheel, or a model folder."""

    NAME: ClassVar[str] = "pocketsphinx"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("audio_uri", "start_s", "duration_s", "channel"),
    }
    WRITES: ClassVar[str] = "hypotheses"

    model: str | None = field(default=None, metadata={"identity": False})
    """Folder with *.lm.bin, *.dict and an acoustic model; None is the wheel's. Its fingerprint is in the hash."""
    words: tuple[str, ...] = ()
    """Words that the recogniser must learn: `zimbrato`, pronounced by espeak-ng, or `zimbrato=Z IH M B R AA T OW`."""
    num_hypotheses: int = 50
    """Longest N-best list; texts in it are distinct."""
    source: str = "pocketsphinx"
    """Scores are called <source>_acoustic, <source>_lm and <source>_lm/eos."""
    max_audio_s: float = 120.0
    """Longer audio is a `model_limit` row: its lattice would not fit; cut the recording into windows."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        if self.num_hypotheses < 1:
            raise ValueError(f"num_hypotheses is {self.num_hypotheses}; expected at least 1.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model's files, the engine's version and the pronunciations of one's own words."""
        return fingerprint(self.model, self.words)

    def build(self) -> "PocketSphinxFirstPass":
        """Loads the model and teaches it the words."""
        return PocketSphinxFirstPass(self, WordSearch(load(find_model(self.model), self.words)))


class ListConfig(Protocol):
    """What the stage reads of its config."""

    @property
    def num_hypotheses(self) -> int:
        """Longest N-best list."""
        ...

    @property
    def source(self) -> str:
        """Beginning of the scores' names."""
        ...

    @property
    def max_audio_s(self) -> float:
        """Longest audio."""
        ...


class Search(Protocol):
    """A decoder, the language model that it searches with, and the one that scores what is written."""

    decoder: Any
    search_model: Trigram
    language_model: Trigram
    num_phrases: int
    """Of a catalogue that is searched."""
    unwritable: Sequence[str]
    """Phrases of it that cannot be searched, by name and reason."""

    def written(
        self, names: Sequence[str], start_s: Sequence[float], end_s: Sequence[float]
    ) -> tuple[Sequence[str], Sequence[float], Sequence[float]]:
        """Words and their times of the dictionary entries that were found."""
        ...


class PocketSphinxFirstPass:
    """Built by the configs of this recogniser; one call per shard, one decoder per actor: it is not thread-safe."""

    def __init__(self, config: ListConfig, search: Search) -> None:
        """Takes the config and what it built."""
        self._config, self._search, self._decoder = config, search, search.decoder
        self._rate = int(self._decoder.config["samprate"])

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, HYPOTHESES out: same rows, same order, each list best first by the recogniser's own weights.

        Tokens are words: their times count from the start of the utterance, and `token_ids` is null. The acoustic score
        is `opaque`: every frame of it is normalised by that frame's best senone, so it compares the texts of one
        utterance and nothing else. The language model's score is an exact log_prob, unweighted. An utterance in which
        nothing is recognised has one hypothesis, the empty text.

        Raises:
            OSError: a fault of the disk or network while reading audio; faults of the audio itself are rows.
        """
        (utterances,) = tables
        costs.peak("phrases_searched", self._search.num_phrases)
        costs.name(UNWRITABLE, self._search.unwritable)
        with tempfile.TemporaryDirectory(prefix="ctxasr-lattice-") as folder:
            rows = utterances.to_pylist()
            return hypotheses_table([self._nbest(row, Path(folder) / "lattice", costs) for row in rows])

    def _nbest(self, row: Mapping[str, Any], file: Path, costs: Costs) -> NBest:
        try:
            with costs.timed("decode"):
                samples = read_samples(row, sample_rate_hz=self._rate, max_audio_s=self._config.max_audio_s)
        except audio.AudioError as fault:
            return NBest(utterance_id=row["utterance_id"], error_type="audio", error=str(fault))
        except ModelLimitError as fault:
            return NBest(utterance_id=row["utterance_id"], error_type="model_limit", error=str(fault))
        costs.count("audio_ms", round(1000 * len(samples) / self._rate))
        with costs.timed("model"):
            hear(self._decoder, samples)
            best = self._decoder.hyp()  # this search over the lattice is the engine's own
            lattice = self._decoder.get_lattice()
        one_best = tuple(best.hypstr.split()) if best is not None else ()
        costs.count("frames", self._decoder.n_frames())
        with costs.timed("search"):
            hypotheses: list[Hypothesis] = []
            if lattice is not None:
                lattice.write_htk(str(file))
                hypotheses = self._list(file.read_text(encoding="utf-8"), one_best, costs)
            hypotheses = hypotheses or [self._without_lattice(one_best)]
        costs.count("hypotheses", len(hypotheses))
        return NBest(utterance_id=row["utterance_id"], hypotheses=hypotheses)

    def _list(self, lattice: str, one_best: Sequence[str], costs: Costs) -> list[Hypothesis]:
        """The N best texts; the recogniser's own choice, found by a search that is not exact, is always among them."""
        search = LatticeSearch(read_htk(lattice), self._search.search_model.weighted)
        size = asked = self._config.num_hypotheses
        while True:
            paths = search.best(asked)
            texts: dict[str, Hypothesis] = {}
            for path in paths:  # a phrase and its words one by one are the same text: its better way counts
                hypothesis = self._hypothesis(path)
                texts.setdefault(hypothesis.text, hypothesis)
            if len(texts) >= size or len(paths) < asked:
                break
            asked *= 2
        kept = list(texts.values())[:size]
        own = search.score(one_best) if paths and tuple(one_best) not in {path.words for path in paths} else None
        if own is not None:
            kept = [*kept[: size - 1], self._hypothesis(own)]
            costs.count("one_best_outside_list")
        for name, amount in search.counters.items():
            costs.count(name, amount)
        return kept

    def _hypothesis(self, path: LatticePath) -> Hypothesis:
        acoustic = Score(source=f"{self._config.source}_acoustic", kind="opaque", log_prob=path.acoustic)
        words, start_s, end_s = self._search.written(path.words, path.start_s, path.end_s)
        return Hypothesis(
            text=" ".join(words),
            token_start_s=start_s,
            token_end_s=end_s,
            token_words=range(len(words)),
            scores=(acoustic, *self._language(words, path.words)),
            search_score=path.score,
        )

    def _without_lattice(self, names: Sequence[str]) -> Hypothesis:
        """What is known where the audio was too short or too strange for a lattice: no acoustic score, no times."""
        words, _, _ = self._search.written(names, [0.0] * len(names), [0.0] * len(names))
        return Hypothesis(text=" ".join(words), scores=self._language(words, names))

    def _language(self, words: Sequence[str], names: Sequence[str]) -> list[Score]:
        """The language model's score of the text, and that of the search where another one searched."""
        source, scores = self._config.source, []
        models = {f"{source}_lm": (self._search.language_model, words)}
        if self._search.search_model is not self._search.language_model:
            models[f"{source}_search_lm"] = (self._search.search_model, names)
        for name, (model, entries) in models.items():
            log_prob, eos_log_prob = model.sentence(entries)
            scores.append(Score(source=name, kind="log_prob", log_prob=log_prob))
            scores.append(Score(source=f"{name}/eos", kind="log_prob", log_prob=eos_log_prob))
        return scores
