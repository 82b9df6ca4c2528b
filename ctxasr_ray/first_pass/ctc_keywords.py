"""UTTERANCES, CONTEXT -> HYPOTHESES with a CTC model whose beam is boosted where it writes phrases of the list."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.first_pass.ctc import CtcConfig, CtcFirstPass
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig, CtcFusedFirstPass
from ctxasr_ray.first_pass.ctc_lists import ctc_hypotheses, ctc_search
from ctxasr_ray.first_pass.search_lms import refuse_boost
from ctxasr_ray.keywords.catalogue import CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS as CONTEXT_COLUMNS
from ctxasr_ray.nbest import NBest
from ctxasr_ray.recordings import COLUMNS
from ctxasr_ray.stage import Costs, Resources, TreeScorerHost

if TYPE_CHECKING:
    from ctxasr_ray.first_pass.phrase_automata import PhraseAutomata
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.search.fusion import Fusion
    from ctxasr_ray.search.keyword_boost import KeywordBoost


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcKeywordsConfig(CatalogueOptions):
    """First pass with a CTC model and a keyword boost in its search; an empty list is the run without, to the bit.

    Inputs: UTTERANCES, CONTEXT. A phrase earns `boost` times its weight per label, whole words only (an ideograph is
    one), and loses it where it breaks off. A phrase that stands both in the shared list and in an utterance's own
    counts once; phrases of the two lists that overlap in the text may both count.
    """

    NAME: ClassVar[str] = "ctc_keywords"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS, "context": CONTEXT_COLUMNS}
    WRITES: ClassVar[str] = "hypotheses"

    first_pass: CtcConfig | CtcFusedConfig
    """The recogniser and its beam, with or without a language model in it, which is then loaded beside the recogniser;
    the same config as a stage of its own is the run without a list."""
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
        refuse_boost(
            self.boost,
            "label",
            source=self.source,
            recogniser=self._recogniser().source,
            search=self.first_pass if isinstance(self.first_pass, CtcFusedConfig) else None,
        )

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model and of the catalogue."""
        return {**self.first_pass.fingerprint(), **self.phrases_fingerprint()}

    def build(self) -> "CtcKeywordsFirstPass | CtcFusedKeywordsFirstPass":
        """Loads the models and the catalogue; automata are built when the first rows come."""
        from ctxasr_ray.first_pass.phrase_automata import PhraseAutomata

        model = self._recogniser().load()
        phrases = PhraseAutomata(
            model.spelling.labels,
            model.vocabulary.pieces,
            boost=self.boost,
            source=self.source,
            catalogue=self.phrases(),
        )
        if isinstance(self.first_pass, CtcFusedConfig):
            fused = replace(self.first_pass, resources=self.resources)
            return CtcFusedKeywordsFirstPass(fused, model, fused.asked_lm().host(), phrases)
        return CtcKeywordsFirstPass(replace(self.first_pass, resources=self.resources), model, phrases)

    def _recogniser(self) -> CtcConfig:
        return self.first_pass.first_pass if isinstance(self.first_pass, CtcFusedConfig) else self.first_pass


class CtcKeywordsFirstPass(CtcFirstPass):
    """Built by `CtcKeywordsConfig` around a plain search; one call per shard.

    Args:
        config: The recogniser and its beam.
        model: Loaded.
        phrases: Of the list.
    """

    def __init__(self, config: CtcConfig, model: "CtcModel", phrases: "PhraseAutomata") -> None:
        super().__init__(config, model, ctc_search(config, model))
        self._phrases = phrases

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES and CONTEXT in, HYPOTHESES out, each list in the order of exact forced score + bonus.

        Args:
            tables: UTTERANCES, CONTEXT of the same rows.
            costs: Counts what `CtcFirstPass` and `PhraseAutomata.read` count.

        Raises:
            ContractError: as `PhraseAutomata.read`.
        """
        utterances, context = tables
        self._phrases.read(utterances, context, costs)
        return super().__call__(utterances, costs=costs)

    def _nbest(self, utterance_id: str, log_probs_TV: npt.NDArray[np.float32]) -> tuple[NBest, float, int]:
        from ctxasr_ray.search.lockstep import search_in_lockstep

        start = time.perf_counter()
        boost = _boost(self._phrases, [utterance_id])
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


class CtcFusedKeywordsFirstPass(CtcFusedFirstPass):
    """Built by `CtcKeywordsConfig` around a search with a language model; one call per shard.

    Args:
        config: The recogniser, its beam and the language model.
        model: Loaded.
        host: The language model.
        phrases: Of the list.
    """

    def __init__(
        self, config: CtcFusedConfig, model: "CtcModel", host: TreeScorerHost, phrases: "PhraseAutomata"
    ) -> None:
        super().__init__(config, model, host)
        self._phrases = phrases

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES and CONTEXT in, HYPOTHESES out, each list in the order of what LM and bonus together rank.

        Args:
            tables: UTTERANCES, CONTEXT of the same rows.
            costs: Counts what `CtcFusedFirstPass` and `PhraseAutomata.read` count.

        Raises:
            ContractError: as `PhraseAutomata.read`.
        """
        utterances, context = tables
        self._phrases.read(utterances, context, costs)
        return super().__call__(utterances, costs=costs)

    def _further(self, ids: Sequence[str]) -> "Sequence[Fusion]":
        return (_boost(self._phrases, ids),)


def _boost(phrases: "PhraseAutomata", ids: Sequence[str]) -> "KeywordBoost":
    """The fusion of some utterances of the shard."""
    from ctxasr_ray.search.keyword_boost import KeywordBoost

    return KeywordBoost(automata=[phrases.of(one) for one in ids], source=phrases.source)
