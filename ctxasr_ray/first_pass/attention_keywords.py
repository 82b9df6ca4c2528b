"""UTTERANCES, CONTEXT -> HYPOTHESES with an attention recogniser whose beam is boosted where it writes phrases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from ctxasr_ray.first_pass.attention import AttentionConfig, AttentionFirstPass, Beside, Find, Found
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig, FindFused
from ctxasr_ray.first_pass.attention_words import AttentionWordsConfig, FindWithWords
from ctxasr_ray.first_pass.search_lms import refuse_boost
from ctxasr_ray.first_pass.token_times import Encoded
from ctxasr_ray.keywords.catalogue import CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS as CONTEXT_COLUMNS
from ctxasr_ray.stage import Costs, Resources
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.first_pass.phrase_automata import PhraseAutomata
    from ctxasr_ray.models.seq2seq import Seq2SeqModel
    from ctxasr_ray.search.boost_rows import BoostRows


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionKeywordsConfig(CatalogueOptions):
    """First pass with an attention recogniser and a keyword boost in its search; an empty list is the run without.

    Inputs: UTTERANCES, CONTEXT. Phrases earn and lose as in `first_pass.ctc_keywords`, per token of the recogniser.
    """

    NAME: ClassVar[str] = "attention_keywords"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {**AttentionConfig.READS, "context": CONTEXT_COLUMNS}
    WRITES: ClassVar[str] = "hypotheses"

    first_pass: AttentionConfig | AttentionFusedConfig | AttentionWordsConfig
    """The recogniser and its beam, with or without a language model in it, which is then loaded beside the recogniser;
    the same config as a stage of its own is the run without a list."""
    boost: float = 1.0
    """Nats per token of a phrase; 0 is no boost. The better of two on 60 utterances of the synthetic dev part, 1,000
    distractors each, under joint CTC-attention search: WER 23.8 %, B-WER 51.0 %, from 30.0 and 84.8 without; 2.0: 26.1
    and 37.8, with six points more on all other words."""
    source: str = "keyword_boost"
    """Name of the bonus in `scores`, kind `bonus`."""
    resources: Resources = field(default_factory=Resources)
    """Of the actor; those of `first_pass` are not used."""

    def __post_init__(self) -> None:
        """Refuses a boost that is no number, one name for two scores, and a pool that nobody would ask."""
        refuse_boost(
            self.boost,
            "token",
            source=self.source,
            recogniser=self._recogniser().source,
            search=self.first_pass if not isinstance(self.first_pass, AttentionConfig) else None,
        )
        if isinstance(self.first_pass, AttentionFusedConfig):
            self.first_pass.refuse_prompt(self.NAME)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the models and of the catalogue."""
        return {**self.first_pass.fingerprint(), **self.phrases_fingerprint()}

    def build(self) -> "AttentionKeywordsFirstPass":
        """Loads the models and the catalogue; automata are built when the first rows come.

        Raises:
            ValueError: as the configs of the search.
        """
        from ctxasr_ray.first_pass.phrase_automata import PhraseAutomata
        from ctxasr_ray.models.word_boundaries import WordBoundaries

        model = self._recogniser().load()
        tokens = model.tokens

        def labels(texts: Sequence[str]) -> list[Int32 | None]:
            return [None if tokens.unspellable(ids) else ids for ids in tokens.encode(texts)]

        phrases = PhraseAutomata(
            labels,
            WordBoundaries.of_attention(tokens).pieces,
            boost=self.boost,
            source=self.source,
            catalogue=self.phrases(),
        )
        return AttentionKeywordsFirstPass(self._recogniser(), model, self._find(model), phrases)

    def _find(self, model: "Seq2SeqModel") -> "Find | FindFused | FindWithWords":
        search = self.first_pass
        if isinstance(search, AttentionConfig):
            return Find(search.search(model))
        host = search.asked_lm().host()
        return (
            FindFused(search, model, host)
            if isinstance(search, AttentionFusedConfig)
            else FindWithWords(search, model, host)
        )

    def _recogniser(self) -> AttentionConfig:
        return self.first_pass if isinstance(self.first_pass, AttentionConfig) else self.first_pass.first_pass


class AttentionKeywordsFirstPass(AttentionFirstPass):
    """Built by `AttentionKeywordsConfig`; one call per shard.

    Args:
        config: Of the recogniser and its lists.
        model: Loaded.
        find: Over that model.
        phrases: Of the list.
    """

    def __init__(
        self,
        config: AttentionConfig,
        model: "Seq2SeqModel",
        find: Find | FindFused | FindWithWords,
        phrases: "PhraseAutomata",
    ) -> None:
        super().__init__(config, model, find)
        self._find_with, self._phrases = find, phrases
        self._ids: list[str] = []

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES and CONTEXT in, HYPOTHESES out, each list in the order of what the search ranked by.

        Args:
            tables: UTTERANCES, CONTEXT of the same rows.
            costs: Counts what the search counts, and `PhraseAutomata.read`.

        Raises:
            ContractError: as `PhraseAutomata.read`.
        """
        utterances, context = tables
        self._phrases.read(utterances, context, costs)
        self._ids = utterances.column("utterance_id").to_pylist()
        return super().__call__(utterances, costs=costs)

    def _search(self, rows: Sequence[int], heard: Sequence[Encoded], prompt: Int32, costs: Costs) -> list[Found]:
        from ctxasr_ray.search.boost_rows import BoostRows, bonus

        automata = [self._phrases.of(self._ids[row]) for row in rows]

        def boost(places: Sequence[int]) -> "BoostRows":
            return BoostRows([automata[place] for place in places], self._model.tokens.eos_id)

        beside: Beside = boost
        if isinstance(self._find_with, Find):
            found = self._find_with(heard, prompt, costs, boost(range(len(heard))))
        else:
            found = self._find_with(heard, prompt, costs, beside=beside)
        lists = []
        for one, own in zip(found, automata, strict=True):
            earned = [bonus(own, h, self._phrases.source) for h in one.hypotheses]
            before = one.scores or [()] * len(earned)
            lists.append(replace(one, scores=[(*s, more) for s, more in zip(before, earned, strict=True)]))
        return lists
