"""UTTERANCES -> HYPOTHESES with an attention recogniser and any language model inside its search, word by word.

The LM has a tokenizer of its own. The list is in the order of what the search maximised: attention (and CTC) score +
lm_weight * log P_LM (end of sequence included) + length_bonus * words; all parts stand apart in `scores`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ctxasr_ray.first_pass.attention import AttentionConfig, AttentionFirstPass, Beside, Find, Found
from ctxasr_ray.first_pass.search_lms import (
    asked_lm,
    fused_lists,
    prefixed,
    refuse_unknown_trigger,
    text_tokens,
    together,
    word_trigger,
)
from ctxasr_ray.first_pass.token_times import Encoded
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, Resources, TreeScorerHost, runtime_field
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.models.seq2seq import Seq2SeqModel
    from ctxasr_ray.search.word_rows import WordRows


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionWordsConfig:
    """First pass with an attention recogniser whose search asks a causal LM, by shallow or by delayed fusion."""

    NAME: ClassVar[str] = "attention_words"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = AttentionConfig.READS
    WRITES: ClassVar[str] = "hypotheses"

    first_pass: AttentionConfig
    """The recogniser and its beam; the same config as a stage of its own is the run without fusion."""
    lm: CausalLmConfig
    """The language model, its text form, its prompt and the name of its scores; any tokenizer."""
    fusion: Literal["delayed", "shallow"] = "delayed"
    """Delayed: at a trigger, about many words at once. Shallow: whenever a surviving hypothesis has a new word."""
    trigger: Literal["fixed_interval", "shortest_hypothesis"] = "fixed_interval"
    """Of delayed fusion: every `interval` tokens, or whenever the shortest hypothesis has one more word."""
    interval: int = 8
    """Tokens of the recogniser between two triggers of kind fixed_interval."""
    scored: Literal["common_words", "own_last_word"] = "common_words"
    """What delayed fusion scores at a trigger: all hypotheses to the number of words that they have in common, or each
    to its own last complete word."""
    lm_weight: float = 0.3
    """Of the LM's log-prob in the search, end of sequence included."""
    length_bonus: float = 0.0
    """Nats per complete word."""
    end_within: float = 5.0
    """Nats below a hypothesis' most probable token within which its end is searched: the open word and the end of
    sequence are then scored, so a wide margin costs a call at every token (a recogniser trained with label smoothing
    gives every end some probability)."""
    segmentation: Literal["spaces", "characters"] = "spaces"
    """What a word is; characters for Chinese and Japanese, see `models.word_boundaries`."""
    lm_pool: Resources | None = runtime_field(None)
    """Actors of the LM's own on a cluster, which all actors of the stage share; None loads it beside the recogniser."""
    lm_connect: Callable[[], TreeScorerHost] | None = runtime_field(None)
    """Set by the executor where there is such a pool."""
    resources: Resources = field(default_factory=Resources)
    """Of the actor that holds the recogniser, and the LM if it has no pool; those of `first_pass` and `lm` are not
    used."""

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        refuse_unknown_trigger(self)
        if self.interval < 1 or not self.end_within >= 0:
            raise ValueError(
                f"interval is {self.interval}, end_within {self.end_within}; expected at least 1, and 0 or more."
            )
        if self.lm.source == self.first_pass.source:
            raise ValueError(f"lm.source and first_pass.source are both '{self.lm.source}'; give them two names.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of both models."""
        return prefixed({"": self.first_pass.fingerprint(), "lm_": self.lm.fingerprint()})

    def asked_lm(self) -> CausalLmConfig:
        """The LM as it is loaded: all utterances of a search share a pass unless its config says otherwise."""
        return replace(self.lm, utterances_per_forward=self.lm.utterances_per_forward or self.first_pass.batch_size)

    def build(self) -> AttentionFirstPass:
        """Loads both models.

        Raises:
            ValueError: as the two configs.
        """
        host = self.asked_lm().host() if self.lm_connect is None else self.lm_connect()
        model = self.first_pass.load()
        return AttentionFirstPass(self.first_pass, model, FindWithWords(self, model, host))


class FindWithWords:
    """A search with the LM in it; a `first_pass.attention.FindLists`.

    An utterance that the LM cannot serve is searched without it: its hypotheses lack the LM's scores, and the reason
    stands in `error`, without an `error_type`.

    Args:
        config: The config.
        model: The recogniser.
        host: The language model.
    """

    def __init__(self, config: AttentionWordsConfig, model: "Seq2SeqModel", host: TreeScorerHost) -> None:
        from ctxasr_ray.models.word_boundaries import WordBoundaries
        from ctxasr_ray.models.word_tokens import WordTokens

        tokens = text_tokens(config.lm)
        self._config, self._host, self._prefix = config, host, tokens.prefix
        self._spelling = WordTokens(tokens, segmentation=config.segmentation)
        self._boundaries = WordBoundaries.of_attention(model.tokens, config.segmentation)
        self._eos_id = model.tokens.eos_id
        self._plain = Find(config.first_pass.search(model))

    def __call__(
        self, heard: Sequence[Encoded], prompt: Int32, costs: Costs, beside: Beside | None = None
    ) -> list[Found]:
        """Counts `utterances_unfused` and what `search.lm_texts.FusedLm` and `TreeSessions` count."""
        rows = self._rows(len(heard), costs)
        try:
            found = self._plain(heard, prompt, costs, together(rows, beside, len(heard)))
            scored = rows.scores([one.hypotheses for one in found])
        finally:
            rows.close()
        lists = fused_lists(
            found,
            scored,
            record=f"{self._config.first_pass.source}_{self._config.fusion}",
            source=self._config.lm.source,
            unserved=rows.reasons,
            alone=lambda place: self._plain([heard[place]], prompt, costs, beside and beside([place]))[0],
            costs=costs,
        )
        return [replace(one, work=work) for one, work in zip(lists, rows.work, strict=True)]

    def _rows(self, num_utterances: int, costs: Costs) -> "WordRows":
        from ctxasr_ray.search.word_rows import WordRows

        lm = asked_lm(self._host, self._spelling, self._prefix, self._config.lm.source, costs)
        return WordRows(
            lm,
            self._boundaries,
            word_trigger(self._config),
            eos_id=self._eos_id,
            lm_weight=self._config.lm_weight,
            length_bonus=self._config.length_bonus,
            end_within=self._config.end_within,
            num_utterances=num_utterances,
        )
