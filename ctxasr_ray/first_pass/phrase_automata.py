"""CONTEXT rows -> automata over a recogniser's labels, which an in-search boost walks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.keywords.automaton import build, spellings, word_shape
from ctxasr_ray.keywords.catalogue import UNWRITABLE, Catalogue, other_spellings
from ctxasr_ray.keywords.context import RowPhrases, row_phrases
from ctxasr_ray.keywords.tokenised import Labels, tokenised
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.stage import Costs

if TYPE_CHECKING:
    from ctxasr_ray.keywords.automaton_kernels import Automaton


class PhraseAutomata:
    """The automata of a catalogue and of utterances' own phrases over a recogniser's labels.

    Args:
        labels: Spells texts as the recogniser does.
        pieces: (V,) what each of its labels writes; a word's start carries its leading space.
        boost: Nats per label of a phrase of weight 1.
        source: Name of the bonus.
        catalogue: The shared phrases.
    """

    def __init__(
        self, labels: Labels, pieces: Sequence[str], *, boost: float, source: str, catalogue: Catalogue | None
    ) -> None:
        self._labels, self._boost, self.source, self._catalogue = labels, boost, source, catalogue
        self._shape = word_shape(pieces)
        self._empty = build(spellings([]), [], self._shape)
        self._shared: dict[int, tuple[Automaton, list[str]]] = {0: (self._empty, [])}
        self._automata: dict[str, tuple[Automaton, Automaton]] = {}

    def read(self, utterances: pa.Table, context: pa.Table, costs: Costs) -> None:
        """Makes the automata of a shard.

        Args:
            utterances: UTTERANCES.
            context: CONTEXT of the same rows.
            costs: Names the phrases that the recogniser cannot write; `peak_automaton_states`; seconds of `automaton`.

        Raises:
            ContractError: other rows, or rows made with another catalogue.
        """
        same_rows("context", context, "utterances", utterances)
        with costs.timed("automaton"):
            rows = row_phrases(context, self._catalogue)
            sizes = [size or 0 for size in context["num_distractors"].to_pylist()]
            ids = utterances["utterance_id"].to_pylist()
            self._automata = {
                utterance_id: self._of_row(row, size, costs)
                for utterance_id, row, size in zip(ids, rows, sizes, strict=True)
            }

    def of(self, utterance_id: str) -> "tuple[Automaton, Automaton]":
        """The automata of an utterance of the shard: the shared one, and that of its own phrases."""
        return self._automata[utterance_id]

    def _of_row(self, row: RowPhrases, size: int, costs: Costs) -> "tuple[Automaton, Automaton]":
        """The automaton of the first `size` phrases of the catalogue, and that of all other phrases of the row."""
        catalogue = self._catalogue
        size = 0 if catalogue is None else min(size, row.num_shared)
        if size not in self._shared:
            assert catalogue is not None, "rows that name a catalogue were refused without it"
            self._shared[size] = self._build(
                catalogue.phrases[:size], catalogue.weights()[:size], catalogue.spellings[:size]
            )
        shared, unwritable = self._shared[size]
        costs.name(UNWRITABLE, unwritable)
        costs.peak("automaton_states", shared.num_states)
        own = [phrase for phrase in row.own if not 0 <= phrase.phrase_id < size]
        mine = {phrase.phrase_id for phrase in own}
        rest = [] if catalogue is None else [n for n in range(size, row.num_shared) if n not in mine]
        if not own and not rest:
            return shared, self._empty
        weights, others = (
            [phrase.weight for phrase in own],
            [other_spellings(catalogue, phrase.phrase_id) for phrase in own],
        )
        phrases = [phrase.text for phrase in own]
        if catalogue is not None:
            phrases += [catalogue.phrases[n] for n in rest]
            weights += catalogue.weights()[rest].tolist()
            others += [catalogue.spellings[n] for n in rest]
        automaton, unwritable = self._build(phrases, np.asarray(weights), others)
        costs.name(UNWRITABLE, unwritable)
        return shared, automaton

    def _build(
        self,
        phrases: Sequence[str],
        weights: npt.ArrayLike,
        others: Sequence[Sequence[str]],
    ) -> "tuple[Automaton, list[str]]":
        """(automaton, phrases that the model cannot write)."""
        found = tokenised(phrases, others, self._labels)
        automaton = build(found.spellings, self._boost * np.asarray(weights), self._shape)
        return automaton, found.unwritable(phrases)
