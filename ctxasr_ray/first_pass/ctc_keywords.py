"""UTTERANCES, CONTEXT -> HYPOTHESES with a CTC model whose beam is boosted where it writes phrases of the list."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.first_pass.ctc import CtcConfig, CtcFirstPass
from ctxasr_ray.first_pass.ctc_lists import ctc_hypotheses, ctc_search
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS as CONTEXT_COLUMNS
from ctxasr_ray.keywords.context import RowPhrases, row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.nbest import NBest
from ctxasr_ray.recordings import COLUMNS
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    from ctxasr_ray.keywords.automaton_kernels import Automaton
    from ctxasr_ray.models.ctc import CtcModel


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcKeywordsConfig(CatalogueOptions):
    """First pass with a CTC model and a keyword boost in its search; an empty list is the run without, to the bit.

    Inputs: UTTERANCES, CONTEXT. A phrase earns `boost` times its weight per label, whole words only, and loses it where
    it breaks off. A phrase that stands both in the shared list and in an utterance's own counts once; phrases of the
    two lists that overlap in the text may both count.
    """

    NAME: ClassVar[str] = "ctc_keywords"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS, "context": CONTEXT_COLUMNS}
    WRITES: ClassVar[str] = "hypotheses"

    first_pass: CtcConfig
    """The recogniser and its beam; the same config as a stage of its own is the run without a list."""
    boost: float = 1.5
    """Nats per label of a phrase; 0 is no boost. Best keyword F1 with the shipped CTC model on 90 utterances of the
    synthetic dev part, 100 distractors each: 0.76, from 0.20 without (WER 35.9 %, from 46.2 %); 1.0 invents next to
    nothing."""
    source: str = "keyword_boost"
    """Name of the bonus in `scores`, kind `bonus`."""
    resources: Resources = field(default_factory=Resources)
    """`num_cpus` is also the number of search threads; those of `first_pass` are not used."""

    def __post_init__(self) -> None:
        """Refuses a boost that is no number, and one name for two scores."""
        if not np.isfinite(self.boost):
            raise ValueError(f"boost is {self.boost}; expected nats per label, for example 1.0.")
        if self.source == self.first_pass.source:
            raise ValueError(f"source and first_pass.source are both '{self.source}'; give them two names.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model and of the catalogue."""
        return {**self.first_pass.fingerprint(), **self.phrases_fingerprint()}

    def build(self) -> "CtcKeywordsFirstPass":
        """Loads the model and the catalogue; automata are built when the first rows come."""
        return CtcKeywordsFirstPass(self, self.first_pass.load(), self.phrases())


class CtcKeywordsFirstPass(CtcFirstPass):
    """Built by `CtcKeywordsConfig`; one call per shard."""

    def __init__(self, config: CtcKeywordsConfig, model: "CtcModel", catalogue: Catalogue | None) -> None:
        """Takes a loaded model and the shared phrases."""
        from ctxasr_ray.keywords.automaton import build, spellings, word_shape

        first_pass = replace(config.first_pass, resources=config.resources)
        super().__init__(first_pass, model, ctc_search(first_pass, model))
        self._boost, self._catalogue = config, catalogue
        self._shape = word_shape(model.vocabulary.pieces)
        self._empty = build(spellings([]), [], self._shape)
        self._shared: dict[int, tuple[Automaton, int]] = {0: (self._empty, 0)}
        self._automata: dict[str, tuple[Automaton, Automaton]] = {}

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES and CONTEXT in, HYPOTHESES out, each list in the order of exact forced score + bonus.

        Args:
            tables: UTTERANCES, CONTEXT of the same rows.
            costs: Counts what `CtcFirstPass` counts, `phrases_lost_in_tokenisation` (of the shared list, and of all
                own ones) and `automaton_states`; seconds of `automaton`.

        Raises:
            ContractError: other rows, or rows made with another catalogue.
        """
        utterances, context = tables
        same_rows("context", context, "utterances", utterances)
        with costs.timed("automaton"):
            rows = row_phrases(context, self._catalogue)
            sizes = [size or 0 for size in context["num_distractors"].to_pylist()]
            ids = utterances["utterance_id"].to_pylist()
            self._automata = {
                utterance_id: self._of_row(row, size, costs)
                for utterance_id, row, size in zip(ids, rows, sizes, strict=True)
            }
        return super().__call__(utterances, costs=costs)

    def _of_row(self, row: RowPhrases, size: int, costs: Costs) -> "tuple[Automaton, Automaton]":
        """The automaton of the first `size` phrases of the catalogue, and that of all other phrases of the row."""
        catalogue = self._catalogue
        size = 0 if catalogue is None else min(size, row.num_shared)
        if size not in self._shared:
            assert catalogue is not None, "rows that name a catalogue were refused without it"
            self._shared[size] = self._build(
                catalogue.phrases[:size], catalogue.weights()[:size], catalogue.spellings[:size]
            )
        shared, lost = self._shared[size]
        costs.peak("shared_phrases_lost_in_tokenisation", lost)
        costs.peak("automaton_states", len(shared.symbol))
        own = [phrase for phrase in row.own if not 0 <= phrase.phrase_id < size]
        mine = {phrase.phrase_id for phrase in own}
        rest = [] if catalogue is None else [n for n in range(size, row.num_shared) if n not in mine]
        if not own and not rest:
            return shared, self._empty
        weights, others = [phrase.weight for phrase in own], [self._spellings(phrase.phrase_id) for phrase in own]
        phrases = [phrase.text for phrase in own]
        if catalogue is not None:
            phrases += [catalogue.phrases[n] for n in rest]
            weights += catalogue.weights()[rest].tolist()
            others += [catalogue.spellings[n] for n in rest]
        automaton, lost = self._build(phrases, np.asarray(weights), others)
        costs.count("own_phrases_lost_in_tokenisation", lost)
        return shared, automaton

    def _spellings(self, phrase_id: int) -> Sequence[str]:
        return () if self._catalogue is None or phrase_id < 0 else self._catalogue.spellings[phrase_id]

    def _build(
        self, phrases: Sequence[str], weights: npt.ArrayLike, others: Sequence[Sequence[str]]
    ) -> "tuple[Automaton, int]":
        """(automaton, phrases that the model cannot write)."""
        from ctxasr_ray.keywords.automaton import build
        from ctxasr_ray.keywords.tokenised import tokenised

        found = tokenised(phrases, others, self._model.spelling.labels)
        return build(found.spellings, self._boost.boost * np.asarray(weights), self._shape), len(found.lost)

    def _nbest(self, utterance_id: str, log_probs_TV: npt.NDArray[np.float32]) -> tuple[NBest, float, int]:
        from ctxasr_ray.search.keyword_boost import KeywordBoost
        from ctxasr_ray.search.lockstep import search_in_lockstep

        start = time.perf_counter()
        boost = KeywordBoost(automata=[self._automata[utterance_id]], source=self._boost.source)
        (searched,) = search_in_lockstep(self._search, [self._search.checked(log_probs_TV)], [boost])
        found = searched.labellings
        hypotheses = ctc_hypotheses(
            self._model,
            log_probs_TV,
            found,
            source=self._config.source,
            num_hypotheses=self._config.num_hypotheses,
            scores=searched.scores,
        )
        nbest = NBest(utterance_id=utterance_id, hypotheses=hypotheses)
        return nbest, time.perf_counter() - start, len(found) - len(hypotheses)
