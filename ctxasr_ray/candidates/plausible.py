"""UTTERANCES, CONTEXT -> CONTEXT: the phrases of a list that a CTC recogniser's frames make plausible.

The recogniser hears the utterance and every phrase of its list is looked for in the frames themselves
(`search.ctc_spotting`), so that a name is found that no hypothesis comes near. The model has actors of its own; what
it says of the frames is never stored. The table is one way of a shortlist (`shortlist.ShortlistConfig.plausible`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.keywords.catalogue import UNWRITABLE, Catalogue, CatalogueOptions, other_spellings
from ctxasr_ray.keywords.context import COLUMNS as CONTEXT_COLUMNS
from ctxasr_ray.keywords.context import Phrase, RowPhrases, columns, row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.recordings import COLUMNS, Heard, heard_batches
from ctxasr_ray.schema import CONTEXT, conform
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.search.ctc_spotting import PhraseTrie


@dataclass(frozen=True, kw_only=True, slots=True)
class PlausibleConfig(CatalogueOptions):
    """Keeps the phrases with the most evidence in the frames. Inputs: UTTERANCES, CONTEXT.

    An utterance that cannot be heard has no plausible phrase; it is counted, and so is a phrase that the model cannot
    write.
    """

    NAME: ClassVar[str] = "plausible"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS, "context": CONTEXT_COLUMNS}
    WRITES: ClassVar[str] = "context"

    recogniser: CtcOptions
    """The model that hears."""
    max_phrases: int = 64
    """Phrases per utterance, at most."""
    reward: float = 3.0
    """Nats that a token of a phrase earns. With `slack`, the best recall at 64 of 50,000 phrases among settings that
    take less than 0.015 s per second of speech: 0.82 on 60 utterances of the synthetic dev part (8 nats of slack: 0.84
    at 0.021; a reward of 2: 0.77 at 0.008)."""
    slack: float = 4.0
    """Nats of evidence below 0 at which the beginning of a phrase is given up."""
    beam_size: int = 3000
    """Beginnings of phrases that go on after a frame, about: bounds what vague frames cost with a long list. On the 60
    utterances above, 94 of 116 true phrases stand among the first 64 of 50,000 (93 with 2000, 94 with 4000, 95 without
    a bound at six times the cost)."""
    resources: Resources = field(default_factory=Resources)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses what finds nothing."""
        self.recogniser.check()
        if not (self.reward > 0 and self.slack >= 0) or min(self.max_phrases, self.beam_size) < 1:
            raise ValueError(
                f"reward is {self.reward}, slack {self.slack}, max_phrases {self.max_phrases}, beam_size "
                f"{self.beam_size}; expected nats above 0, nats of at least 0, and at least 1 of both."
            )

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model and of the catalogue."""
        return {**self.recogniser.fingerprint(), **self.phrases_fingerprint()}

    def build(self) -> "Plausible":
        """Loads the model and the catalogue; the trie is made when the first rows come."""
        return Plausible(self, self.recogniser.load(), self.phrases())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tries:
    """Phrases as a trie of their spellings."""

    trie: "PhraseTrie"
    owners: npt.NDArray[np.int32]
    """(S,) the phrase of each spelling."""
    num_phrases: int
    unwritable: list[str]


class Plausible:
    """Built by `PlausibleConfig`; one call per shard.

    Args:
        config: Of the stage.
        model: Loaded.
        catalogue: What CONTEXT rows name.
    """

    def __init__(self, config: PlausibleConfig, model: "CtcModel", catalogue: Catalogue | None) -> None:
        self._config, self._model, self._catalogue = config, model, catalogue
        self._shared: dict[int, _Tries] = {}

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """CONTEXT rows with the plausible phrases alone, the most evidence first.

        Args:
            tables: UTTERANCES, CONTEXT of the same rows.
            costs: Counts `forwards`, `audio_ms`, `unheard_utterances`, `peak_trie_nodes`; names the phrases that the
                recogniser cannot write; seconds of `index`, `model` and `shortlist`.

        Raises:
            ContractError: other rows, or rows made with another catalogue.
            OSError: a fault of the disk or network while reading audio.
        """
        utterances, context = tables
        same_rows("context", context, "utterances", utterances)
        rows = row_phrases(context, self._catalogue)
        kept: list[list[Phrase]] = [[] for _ in rows]
        options = self._config.recogniser

        def refuse(row: int, error: tuple[str, str]) -> None:
            costs.count("unheard_utterances")

        limits = self._model.limits(options.max_audio_s)
        for batch in heard_batches(utterances, limits, options.batch_size, costs, refuse):
            self._hear(batch, rows, kept, costs)
        digest = None if self._catalogue is None else self._catalogue.digest
        made = [
            {"utterance_id": utterance_id, "catalogue": digest, "num_distractors": 0, **columns(mine)}
            for utterance_id, mine in zip(context["utterance_id"].to_pylist(), kept, strict=True)
        ]
        return conform(pa.Table.from_pylist(made, schema=CONTEXT), "context")

    def _hear(self, batch: Sequence[Heard], rows: Sequence[RowPhrases], kept: list[list[Phrase]], costs: Costs) -> None:
        with costs.timed("model"):
            log_probs = self._model.log_probs([heard.samples for heard in batch if heard.samples is not None])
        costs.count("forwards")
        for heard, log_probs_TV in zip(batch, log_probs, strict=True):
            if np.isfinite(log_probs_TV).all():
                kept[heard.row] = self._of_row(rows[heard.row], log_probs_TV, costs)
            else:
                costs.count("unheard_utterances")

    def _of_row(self, row: RowPhrases, log_probs_TV: npt.NDArray[np.float32], costs: Costs) -> list[Phrase]:
        found: list[tuple[float, int, Phrase]] = []
        catalogue = self._catalogue
        if catalogue is not None and row.num_shared:
            shared = self._trie_of_shared(catalogue, row.num_shared, costs)
            evidence_P = self._evidence(shared, log_probs_TV, costs)
            evidence_P[[phrase.phrase_id for phrase in row.own if 0 <= phrase.phrase_id < row.num_shared]] = -np.inf
            weights = catalogue.weights()
            heard = np.flatnonzero(evidence_P > -np.inf)
            for n in heard[np.argsort(-evidence_P[heard], kind="stable")[: self._config.max_phrases]].tolist():
                phrase = Phrase(
                    phrase_id=n, text=catalogue.phrases[n], weight=float(weights[n]), origin=self._config.NAME
                )
                found.append((-float(evidence_P[n]), n, phrase))
        if row.own:
            own = self._trie([p.text for p in row.own], [other_spellings(catalogue, p.phrase_id) for p in row.own])
            costs.name(UNWRITABLE, own.unwritable)
            for phrase, evidence in zip(row.own, self._evidence(own, log_probs_TV, costs).tolist(), strict=True):
                made = Phrase(
                    phrase_id=phrase.phrase_id, text=phrase.text, weight=phrase.weight, origin=self._config.NAME
                )
                found.append((-evidence, -1, made))
        ranked = sorted((one for one in found if one[0] < np.inf), key=lambda one: (one[0], one[1], one[2].text))
        return [phrase for _, _, phrase in ranked[: self._config.max_phrases]]

    def _trie_of_shared(self, catalogue: Catalogue, num_shared: int, costs: Costs) -> _Tries:
        """The trie of the catalogue's first phrases, made once per size."""
        if num_shared not in self._shared:
            with costs.timed("index"):
                self._shared[num_shared] = self._trie(catalogue.phrases[:num_shared], catalogue.spellings[:num_shared])
        made = self._shared[num_shared]
        costs.name(UNWRITABLE, made.unwritable)
        costs.peak("trie_nodes", len(made.trie.token))
        return made

    def _trie(self, phrases: Sequence[str], others: Sequence[Sequence[str]]) -> _Tries:
        from ctxasr_ray.keywords.tokenised import tokenised
        from ctxasr_ray.search.ctc_spotting import phrase_trie

        found = tokenised(phrases, others, self._model.spelling.labels)
        trie = phrase_trie(found.spellings, len(self._model.vocabulary.pieces))
        return _Tries(
            trie=trie,
            owners=found.spellings.phrase,
            num_phrases=len(phrases),
            unwritable=found.unwritable(phrases),
        )

    def _evidence(self, tries: _Tries, log_probs_TV: npt.NDArray[np.float32], costs: Costs) -> npt.NDArray[Any]:
        """(P,) the best evidence of each phrase's spellings."""
        from ctxasr_ray.search.ctc_spotting import plausibility

        config, blank_id = self._config, self._model.vocabulary.blank_id
        evidence_P = np.full(tries.num_phrases, -np.inf, dtype=np.float32)
        with costs.timed("shortlist"):
            evidence_S = plausibility(
                tries.trie,
                log_probs_TV,
                blank_id,
                reward=config.reward,
                slack=config.slack,
                beam_size=config.beam_size,
            )
            heard = np.flatnonzero(evidence_S > -np.inf)
            np.maximum.at(evidence_P, tries.owners[heard], evidence_S[heard])
        return evidence_P
