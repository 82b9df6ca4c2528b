"""UTTERANCES -> HYPOTHESES with a language model that hears: beam search on the token tree behind embedded speech.

With CONTEXT beside UTTERANCES (`SpeechLlmKeywordsConfig`) each utterance's phrases and history stand in the prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray.first_pass.lists import check_list_size, failed, not_finite
from ctxasr_ray.models.hearing_options import HearingOptions
from ctxasr_ray.models.token_words import token_words
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.recordings import COLUMNS, heard_ahead
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.audio_lm import AudioLm
    from ctxasr_ray.search.label_beam import LabelHypothesis


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLlmConfig(HearingOptions):
    """First pass with an LLM recogniser of ours or an audio-language model of transformers.

    Reference:
        Wang et al., 2502.16142: beam 8, no run of 6 tokens twice.
    """

    NAME: ClassVar[str] = "speech_llm"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS}
    WRITES: ClassVar[str] = "hypotheses"

    source: str = "speech_llm"
    """Name of the text's score in `scores`; that of its end is `<source>/eos`."""
    beam_size: int = 8
    """Hypotheses that go on at each step."""
    num_hypotheses: int = 8
    """Longest N-best list; texts in it are distinct. At most `beam_size`."""
    max_tokens: int = 224
    """Longest text."""
    no_repeat: int = 6
    """No run of so many tokens is written twice in a text; 0 lets everything repeat."""
    length_penalty: float = 0.0
    """Hypotheses are ranked by their sum over length ** this."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        self.check()
        check_list_size(self.num_hypotheses, self.beam_size)
        if self.max_tokens < 1 or self.no_repeat < 0 or self.length_penalty < 0:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, no_repeat {self.no_repeat}, length_penalty {self.length_penalty}; "
                "expected at least 1, 0 and 0."
            )

    def build(self) -> "SpeechLlmFirstPass":
        """Loads the model and checks that it can be searched."""
        return SpeechLlmFirstPass(self, self.load())


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLlmKeywordsConfig(SpeechLlmConfig):
    """The same with CONTEXT: phrases and history of each utterance in the prompt, which must have a place for them."""

    NAME: ClassVar[str] = "speech_llm_keywords"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS, "context": ("phrases", "history")}


class SpeechLlmFirstPass:
    """Built by the configs above; one call per shard.

    Args:
        config: Of the stage.
        model: Loaded.
    """

    def __init__(self, config: SpeechLlmConfig, model: "AudioLm") -> None:
        from ctxasr_ray.models.prefix_decoding import Writer
        from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch

        self._config, self._model = config, model
        self._search = LabelSynchronousSearch(
            Writer(model),
            beam_size=config.beam_size,
            max_tokens=config.max_tokens,
            length_penalty=config.length_penalty,
            no_repeat=config.no_repeat,
        )

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES (and CONTEXT) in, HYPOTHESES out: same rows, same order, each list best first by search score.

        Raises:
            OSError: a fault of the disk or network while reading audio; faults of the audio itself are rows.
        """
        utterances = tables[0]
        ids = utterances.column("utterance_id").to_pylist()
        known: list[dict[str, Any]] = [{}] * len(ids) if len(tables) == 1 else tables[1].to_pylist()
        nbests = []
        for heard in heard_ahead(utterances, self._model.limits(self._config.max_audio_s), 2, costs):
            if heard.samples is None:
                nbests.append(failed(ids[heard.row], heard.error))
                continue
            own = known[heard.row]
            with costs.timed("encoder"):
                prefix_PD = self._model.prefix(heard.samples, own.get("phrases") or (), own.get("history"))
            nbests.append(self._found(ids[heard.row], prefix_PD, costs))
        return hypotheses_table(nbests)

    def _found(self, utterance_id: str, prefix_PD: "torch.Tensor", costs: Costs) -> NBest:
        if reason := self._model.lm.limit_reason(len(prefix_PD) + 1):
            return failed(utterance_id, ("model_limit", reason))
        before = self._search.steps
        with costs.timed("search"):
            (found,) = self._search.search(prefix_PD[None], np.zeros(len(prefix_PD), np.int32))
        costs.count("decoder_steps", self._search.steps - before)
        if not found:
            return failed(utterance_id, ("model_limit", not_finite(self._config.dtype)))
        distinct: dict[str, LabelHypothesis] = {}
        for one in found:
            distinct.setdefault(self._text(one.token_ids.tolist()), one)
        kept = list(distinct.items())[: self._config.num_hypotheses]
        costs.count("hypotheses", len(kept))
        costs.count("unended", sum(not one.ended for _, one in kept))
        costs.count("labellings_of_equal_text", len(found) - len(distinct))
        return NBest(utterance_id=utterance_id, hypotheses=[self._hypothesis(text, one) for text, one in kept])

    def _text(self, ids: list[int]) -> str:
        return str(self._model.tokens.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _hypothesis(self, text: str, found: "LabelHypothesis") -> Hypothesis:
        source, ids = self._config.source, found.token_ids.tolist()
        spelled = self._model.tokens.tokenizer.convert_ids_to_tokens(ids)
        return Hypothesis(
            text=text,
            token_ids=ids,
            token_log_probs=found.token_log_probs.tolist(),
            token_entropies=found.token_entropies.tolist(),
            token_words=token_words(ids, self._text, spelled),
            scores=(
                Score(source=source, kind="log_prob", log_prob=float(found.token_log_probs.sum())),
                Score(source=f"{source}/eos", kind="log_prob", log_prob=found.eos_log_prob),
            ),
            search_score=found.score,
        )
