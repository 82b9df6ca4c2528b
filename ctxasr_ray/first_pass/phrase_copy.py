"""UTTERANCES, CONTEXT -> HYPOTHESES with an attention recogniser that may copy phrases of the list whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa

from ctxasr_ray.first_pass.attention import AttentionConfig, AttentionFirstPass, Find, Found
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig, FindFused
from ctxasr_ray.first_pass.token_times import Encoded
from ctxasr_ray.keywords.catalogue import UNWRITABLE, Catalogue, CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS as CONTEXT_COLUMNS
from ctxasr_ray.keywords.context import row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.models.lm_prompt import Told
from ctxasr_ray.nbest import Score
from ctxasr_ray.stage import Costs, Resources
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.models.copy_head import CopyHead
    from ctxasr_ray.models.seq2seq import Seq2SeqModel
    from ctxasr_ray.search.phrase_copy import Phrase, PhraseCopy, PhraseHead


@dataclass(frozen=True, kw_only=True, slots=True)
class PhraseCopyConfig(CatalogueOptions):
    """First pass whose beam is over tokens and phrases; an empty list is the run without, to the bit.

    Inputs: UTTERANCES, CONTEXT (a shortlist, best). Around a gated fusion it is both grains, which is multi-grained
    fusion. See `search.phrase_copy` for how copied and spelled hypotheses compare.
    """

    NAME: ClassVar[str] = "phrase_copy"
    STAGE_VERSION: ClassVar[int] = 3
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {**AttentionConfig.READS, "context": (*CONTEXT_COLUMNS, "history")}
    WRITES: ClassVar[str] = "hypotheses"

    search: AttentionConfig | AttentionFusedConfig
    """The recogniser and its beam, alone (phrase grain) or with an LM in it (both grains); the same config as a stage
    of its own is the run without copying. Its LM is loaded beside it."""
    head: Literal["training_free", "trained"] = "training_free"
    """Who says that a phrase starts here: phrases forced through the recogniser, or a trained copy head."""
    copy_head: str | None = field(default=None, metadata={"identity": False})
    """Directory of the trained head; its digest is in the fingerprint."""
    confidence: float = 0.9
    """Filter: phrases are copied only where one has more than this probability. 1 never copies; with an `lm_prompt` in
    the search that is the token grain whose LM is told the phrases."""
    temperature: float = 1.0
    """What the head's scores are divided by, in nats; that of a trained head is its training's `dev_temperature`."""
    reward: float = 3.5
    """Of the training-free head: nats that each token of a phrase earns. With the filter at 0.9 the setting that keeps
    U-WER, of six tried on 30 utterances of the synthetic dev part under joint CTC-attention search (no copying: B-WER
    81.9 %, U-WER 25.1 %; this: 45.8 and 25.7; a filter of 0.5: 37.3 and 27.1)."""
    first_within: float = 5.0
    """Of the training-free head: nats below the best token at which a phrase's first token may be to be tried."""
    resources: Resources = field(default_factory=Resources)
    """Of the actor; those of `search` are not used."""

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence is {self.confidence}; expected a probability, and 1 to never copy.")
        if not (self.temperature > 0 and self.first_within >= 0):
            raise ValueError(
                f"temperature is {self.temperature}, first_within {self.first_within}; expected more than 0, and 0 or "
                "more."
            )
        if self.head not in ("training_free", "trained"):
            raise ValueError(f"head is '{self.head}'; expected training_free or trained.")
        if (self.head == "trained") != (self.copy_head is not None):
            raise ValueError("head trained and a copy_head go together: give both, or neither.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the models, the copy head and the catalogue."""
        found = {**self.search.fingerprint(), **self.phrases_fingerprint()}
        if self.copy_head is not None:
            from ctxasr_ray.models.copy_head import digest

            found["copy_head"] = digest(self.copy_head)
        return found

    @property
    def recogniser(self) -> AttentionConfig:
        """The recogniser's own config."""
        return self.search.first_pass if isinstance(self.search, AttentionFusedConfig) else self.search

    def build(self) -> "PhraseCopyFirstPass":
        """Loads the models and the catalogue.

        Raises:
            ValueError: as the configs of the search, or a copy head that cannot be read.
        """
        model = self.recogniser.load()
        find: Find | FindFused = Find(self.recogniser.search(model))
        if isinstance(self.search, AttentionFusedConfig):
            find = FindFused(self.search, model, self.search.asked_lm().host())
        head = None
        if self.copy_head is not None:
            from ctxasr_ray.models.copy_head import load as load_head

            head = load_head(self.copy_head, device=str(model.device))
        return PhraseCopyFirstPass(self, model, find, head, self.phrases())


class PhraseCopyFirstPass(AttentionFirstPass):
    """Built by `PhraseCopyConfig`; one call per shard."""

    def __init__(
        self,
        config: PhraseCopyConfig,
        model: "Seq2SeqModel",
        find: Find | FindFused,
        head: "CopyHead | None",
        catalogue: Catalogue | None,
    ) -> None:
        """Takes loaded models and the shared phrases."""
        super().__init__(config.recogniser, model, find)
        self._copy, self._find_with, self._head, self._catalogue = config, find, head, catalogue
        self._phrases: list[list[Phrase]] = []
        self._told: list[Told] = []

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES and CONTEXT in, HYPOTHESES out.

        Args:
            tables: UTTERANCES, CONTEXT of the same rows.
            costs: Counts what `AttentionFirstPass` counts, `phrases_offered` and `phrases_copied` (in the lists);
                names the phrases that the recogniser cannot write, or not within `max_tokens`.

        Raises:
            ContractError: other rows, or rows made with another catalogue.
        """
        utterances, context = tables
        same_rows("context", context, "utterances", utterances)
        self._phrases, self._told = [], []
        histories = context.column("history").to_pylist()
        for row, history in zip(row_phrases(context, self._catalogue), histories, strict=True):
            texts = row.texts(self._catalogue)
            self._told.append(Told(texts, history))
            written = self._model.tokens.encode(texts)
            fits = [
                0 < len(ids) <= self._config.max_tokens and not self._model.tokens.unspellable(ids) for ids in written
            ]
            costs.name(UNWRITABLE, [one for one, fit in zip(texts, fits, strict=True) if not fit])
            usable = [tuple(ids.tolist()) for ids, fit in zip(written, fits, strict=True) if fit]
            self._phrases.append(list(dict.fromkeys(usable)))
        return super().__call__(utterances, costs=costs)

    def _search(self, rows: Sequence[int], heard: Sequence[Encoded], prompt: Int32, costs: Costs) -> list[Found]:
        from ctxasr_ray.search.phrase_copy import PhraseCopy

        phrases = [self._phrases[row] for row in rows]
        if not any(phrases) or self._copy.confidence == 1:
            return self._found(rows, heard, prompt, costs)
        head = self._head_on(phrases, heard, prompt)
        copy = PhraseCopy(head, phrases, confidence=self._copy.confidence, costs=costs)
        found = self._found(rows, heard, prompt, costs, copy)
        costs.count("phrases_copied", sum(len(h.copied) for one in found for h in one.hypotheses))
        return [self._with_record(one) for one in found]

    def _found(
        self,
        rows: Sequence[int],
        heard: Sequence[Encoded],
        prompt: Int32,
        costs: Costs,
        copy: "PhraseCopy | None" = None,
    ) -> list[Found]:
        if isinstance(self._find_with, FindFused):
            return self._find_with(heard, prompt, costs, copy, told=[self._told[row] for row in rows])
        return self._find_with(heard, prompt, costs, copy=copy)

    def _with_record(self, found: Found) -> Found:
        """The search's sum as a record beside the recogniser's own scores."""
        if found.scores:  # a fused search has its own record
            return found
        source = f"{self._config.source}_copy"
        sums = [(Score(source=source, kind="search", log_prob=h.score),) for h in found.hypotheses]
        return replace(found, scores=sums)

    def _head_on(self, phrases: "Sequence[Sequence[Phrase]]", heard: Sequence[Encoded], prompt: Int32) -> "PhraseHead":
        from ctxasr_ray.search.phrase_heads import ForcedPhrases, TrainedPhrases

        config = self._copy
        if self._head is not None:
            states = [one.states[0, : one.num_frames] for one in heard]
            return TrainedPhrases(self._head, states, phrases, config.temperature)
        return ForcedPhrases(
            model=self._model,
            prompt=prompt,
            phrases=phrases,
            ctc_weight=self._config.ctc_weight,
            temperature=config.temperature,
            reward=config.reward,
            first_within=config.first_within,
        )
