"""UTTERANCES -> HYPOTHESES with an attention recogniser and a language model of the same pieces inside its search.

The list is in the order of what the search maximised, a record of kind `search`; the recogniser's own exact score and
the LM's stand apart in `scores`, so that fusion can weight them anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ctxasr_ray.first_pass.attention import AttentionConfig, AttentionFirstPass, Beside, Find, Found
from ctxasr_ray.first_pass.search_lms import fused_lists, prefixed, text_tokens, together
from ctxasr_ray.first_pass.token_times import Encoded
from ctxasr_ray.models.checkpoint import load_tokenizer, resolve
from ctxasr_ray.models.lm_prompt import LmPrompt, Told, check_template
from ctxasr_ray.nbest import Score
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.search.token_gate import TokenGate
from ctxasr_ray.stage import Costs, NextScorer, Resources, TreeScorerHost, runtime_field
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.models.seq2seq import Seq2SeqModel
    from ctxasr_ray.search.gated_fusion import GatedRows, ShallowRows
    from ctxasr_ray.search.label_fusion import LmRows
    from ctxasr_ray.search.phrase_copy import PhraseCopy

_FORMS_AS_WRITTEN = ("raw", "spaced")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionFusedConfig:
    """First pass with an attention recogniser whose search asks a causal LM at each token, gated or shallow."""

    NAME: ClassVar[str] = "attention_fused"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = AttentionConfig.READS
    WRITES: ClassVar[str] = "hypotheses"

    first_pass: AttentionConfig
    """The recogniser and its beam; the same config as a stage of its own is the run without fusion."""
    lm: CausalLmConfig
    """The language model and the name of its scores; it must write with the recogniser's tokenizer."""
    lm_prompt: str | None = None
    """Text before every text that the LM reads, in place of `lm.prompt`, with `{keywords}` for the utterance's phrases
    and `{history}` for what was said before; without either in its CONTEXT an utterance has no prompt. A search inside
    `PhraseCopyConfig` takes it (`confidence` 1 never copies). Where it does not fit, the oldest words of the history go
    (`context_slides`), else the utterance is searched without the LM (`utterances_unfused`)."""
    fusion: Literal["gated", "shallow"] = "gated"
    """Gated: the LM is heard as far as the recogniser is unsure. Shallow: always, with `lm_weight`."""
    leader: Literal["recogniser", "lm"] = "recogniser"
    """Of gated fusion: whose uncertainty opens the gate to the other."""
    uncertainty: Literal["entropy", "margin"] = "entropy"
    """Of gated fusion: entropy, or 1 - (the best token's probability - the second best's)."""
    entropy_scale: Literal["nats", "log_vocab"] = "nats"
    """Unit of the entropy: nats, or the logarithm of the vocabulary's size, which compares vocabularies."""
    min_weight: float = 0.0
    """Of gated fusion: where the weight is below, the LM is not asked. 0.5 is never reached, so it is never asked."""
    opened_by: Literal["row", "best_row"] = "row"
    """Of gated fusion: whether each row's own weight must reach `min_weight`, or that of the utterance's best row for
    all of its rows. On 40 utterances of dev (the showcase's beam of 16, WER 44.7 % in 1,261 calls of the LM where none
    is skipped) best_row at 0.2 makes 544 calls, at 43.8 %; row at 0.2 makes 1,181, at 42.6 %."""
    temperature: float = 1.0
    """Of gated fusion: the recogniser's logits are divided by it before entropy and sum."""
    lm_temperature: float = 1.0
    """Of gated fusion: the same for the LM."""
    lm_weight: float = 0.2
    """Of shallow fusion: weight of the LM's log-prob, end of sequence included."""
    length_bonus: float = 0.0
    """Of shallow fusion: nats per token."""
    score_hypotheses: bool = True
    """Whether lists carry the LM's score of every hypothesis; tokens that the search did not ask for are then asked in
    one last call. Without, an LM that is never heard is never called."""
    lm_pool: Resources | None = runtime_field(None)
    """Actors of the LM's own on a cluster, which all actors of the stage share; None loads it beside the recogniser."""
    lm_connect: Callable[[], TreeScorerHost] | None = runtime_field(None)
    """Set by the executor where there is such a pool."""
    resources: Resources = field(default_factory=Resources)
    """Of the actor that holds the recogniser, and the LM if it has no pool; those of `first_pass` and `lm` are not
    used."""

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        if self.fusion not in ("gated", "shallow"):
            raise ValueError(f"fusion is '{self.fusion}'; expected gated or shallow.")
        if self.opened_by not in ("row", "best_row"):
            raise ValueError(f"opened_by is '{self.opened_by}'; expected row or best_row.")
        if self.leader not in ("recogniser", "lm"):
            raise ValueError(f"leader is '{self.leader}'; expected recogniser or lm.")
        if not (self.temperature > 0 and self.lm_temperature > 0):
            raise ValueError(
                f"temperature is {self.temperature}, lm_temperature {self.lm_temperature}; expected more than 0."
            )
        if self.lm.source == self.first_pass.source:
            raise ValueError(f"lm.source and first_pass.source are both '{self.lm.source}'; give them two names.")
        if self.lm.text_form not in _FORMS_AS_WRITTEN:
            raise ValueError(
                f"lm.text_form is '{self.lm.text_form}', but the LM reads the recogniser's tokens as they are written; "
                "set it to raw."
            )
        if self.lm_prompt is not None:
            check_template(self.lm_prompt)
            if self.lm.prompt:
                raise ValueError("lm_prompt and lm.prompt are both set; write the fixed text into lm_prompt.")
        self.gate()

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of both models."""
        return prefixed({"": self.first_pass.fingerprint(), "lm_": self.lm.fingerprint()})

    def gate(self) -> TokenGate:
        """The gate that the fields describe."""
        return TokenGate(uncertainty=self.uncertainty, entropy_scale=self.entropy_scale, min_weight=self.min_weight)

    def refuse_prompt(self, stage: str) -> None:
        """Refuses an `lm_prompt` on behalf of a stage that has nothing to fill it with.

        Raises:
            ValueError: there is one.
        """
        if self.lm_prompt is not None:
            raise ValueError(
                f"{stage}: lm_prompt takes each utterance's phrases and history, which this stage does not hand on; "
                "put the search into a PhraseCopyConfig (confidence 1 never copies)."
            )

    def asked_lm(self) -> CausalLmConfig:
        """The LM as it is loaded: all utterances of a search share a pass unless its config says otherwise."""
        return replace(self.lm, utterances_per_forward=self.lm.utterances_per_forward or self.first_pass.batch_size)

    def build(self) -> AttentionFirstPass:
        """Loads both models.

        Raises:
            ValueError: as the two configs, an LM that does not write with the recogniser's pieces, or an `lm_prompt`.
        """
        self.refuse_prompt(self.NAME)
        host = self.asked_lm().host() if self.lm_connect is None else self.lm_connect()
        model = self.first_pass.load()
        return AttentionFirstPass(self.first_pass, model, FindFused(self, model, host))


class FindFused:
    """A search with the LM in it; a `first_pass.attention.FindLists`.

    An utterance that the LM cannot serve is searched without it: its hypotheses lack the LM's scores, and the reason
    stands in `error`, without an `error_type`.

    Args:
        config: The config.
        model: The recogniser.
        host: The language model.

    Raises:
        ValueError: an LM that does not write with the recogniser's pieces.
    """

    def __init__(self, config: AttentionFusedConfig, model: "Seq2SeqModel", host: TreeScorerHost) -> None:
        from ctxasr_ray.models.shared_vocabulary import shared_tokens

        texts = text_tokens(config.lm)
        self._tokens = shared_tokens(
            load_tokenizer(resolve(config.first_pass.model, config.first_pass.revision)),
            texts.tokenizer,
            ~model.tokens.suppressed,
            recogniser_eos=model.tokens.eos_id,
            lm_eos=host.eos_token_id,
            name=config.lm.model,
        )
        self._config, self._host, self._prefix = config, host, texts.prefix
        self._prompt: LmPrompt | None = None
        if config.lm_prompt is not None:
            limit = host.max_positions
            room = None if limit is None else limit - config.first_pass.max_tokens
            self._prompt = LmPrompt(texts, config.lm_prompt, room)
        self._eos_id = model.tokens.eos_id
        self._plain = Find(config.first_pass.search(model))

    def __call__(
        self,
        heard: Sequence[Encoded],
        prompt: Int32,
        costs: Costs,
        copy: "PhraseCopy | None" = None,
        beside: Beside | None = None,
        told: Sequence[Told] = (),
    ) -> list[Found]:
        """Searches with the LM, which is told of each utterance what `lm_prompt` has a place for; nothing without one.

        Counts `context_slides`, `lm_rows`, `lm_rows_skipped`, `utterances_unfused` and what `TreeSessions` counts.
        """
        rows = self.rows(len(heard), costs, told)
        try:
            fusion = together(self._fusion(rows, costs), beside, len(heard))
            found = self._plain(heard, prompt, costs, fusion, copy)
            hypotheses = [one.hypotheses for one in found]
            scored: list[list[tuple[Score, ...]]] = [[()] * len(own) for own in hypotheses]
            if self._config.score_hypotheses:
                scored = rows.scores(hypotheses)
        finally:
            rows.close()
        return fused_lists(
            found,
            scored,
            record=f"{self._config.first_pass.source}_{self._config.fusion}",
            source=self._config.lm.source,
            unserved=rows.reasons,
            alone=lambda place: self._plain([heard[place]], prompt, costs, beside and beside([place]))[0],
            costs=costs,
        )

    def rows(self, num_utterances: int, costs: Costs, told: Sequence[Told] = ()) -> "LmRows":
        """The LM behind the rows of some utterances; to be closed."""
        from ctxasr_ray.search.label_fusion import LmRows, RowLm

        scorer = self._host.sessions(costs)
        if not isinstance(scorer, NextScorer):
            raise ValueError(f"LM '{self._config.lm.source}': its pool gives no distributions over the next token.")
        lm = RowLm(
            scorer=scorer,
            tokens=self._tokens,
            prefix=self._prefix,
            eos_token_id=int(self._tokens[self._eos_id]),
            max_positions=self._host.max_positions,
            source=self._config.lm.source,
            costs=costs,
        )
        prefixes = None if self._prompt is None else [self._prompt.prefix(one, costs) for one in told]
        return LmRows(lm, num_utterances, prefixes)

    def _fusion(self, rows: "LmRows", costs: Costs) -> "GatedRows | ShallowRows":
        from ctxasr_ray.search.gated_fusion import ShallowRows

        config = self._config
        if config.fusion == "gated":
            return self.gated(rows, costs)
        return ShallowRows(lm=rows, eos_id=self._eos_id, lm_weight=config.lm_weight, length_bonus=config.length_bonus)

    def gated(self, rows: "LmRows", costs: Costs) -> "GatedRows":
        """The gate that the config describes, over an LM."""
        from ctxasr_ray.search.gated_fusion import GatedRows

        config = self._config
        return GatedRows(
            lm=rows,
            gate=config.gate(),
            leader=config.leader,
            opened_by=config.opened_by,
            temperature=config.temperature,
            lm_temperature=config.lm_temperature,
            costs=costs,
        )
