"""HYPOTHESES, UNITS -> SCORES: log-probabilities of a language model that is given the sound as discrete units.

The scorer `causal_lm` on the same model asks for text alone, which shows what speech taught the text side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ctxasr_ray.models.checkpoint import ADAPTER, check_vocabulary, fingerprint, load_tokenizer, resolve
from ctxasr_ray.models.speech_lm import refuse_other_units
from ctxasr_ray.models.text_tokens import TEXT_FORMS_VERSION, TextTokens
from ctxasr_ray.nbest import SourceScores, flatten, scores_table
from ctxasr_ray.scorers.causal_lm import source_scores
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.stage import Costs, Resources, StageConfig, runtime_field
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.models.causal_lm import CausalLm
    from ctxasr_ray.models.speech_lm import SpeechTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLmConfig:
    """Rescoring with a speech-text LM, speech first or text first.

    Reference:
        Shivakumar et al., Speech recognition rescoring with large speech-text foundation models, 2409.16654 (the two
        orders); the weights of their own for the parts of text-first are ours.
    """

    NAME: ClassVar[str] = "speech_lm"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses",),
        "units": ("units", "error_type", "error"),
    }
    WRITES: ClassVar[str] = "scores"

    model: str = field(metadata={"identity": False})
    """Hugging Face directory or hub id of an extended causal LM; see `models.speech_lm`."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id."""
    adapter: str | None = field(default=None, metadata={"identity": False})
    """PEFT adapter on top, such as `ctxasr train speech_lm_mwer` writes: directory or hub id."""
    order: Literal["speech_first", "text_first"] = "speech_first"
    """speech_first: log P(text | units), one source; log P(units) is equal for all hypotheses and left out.
    text_first: log P(text) and log P(units | text) as two sources, "<source>_text" and "<source>_units"."""
    source: str = "speech_lm"
    """Name of the scores; fusion weights are found per source."""
    text_form: Literal["raw", "spaced", "lower", "upper", "sentence"] = "raw"
    """How hypotheses are written for the LM; see `models.text_tokens.TEXT_FORMS`."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Of the weights when they are loaded; int8 is for CPUs and multiplies in float32 (`models.int8_linear`)."""
    device: str = runtime_field("auto")
    """cpu, cuda, cuda:1, ...; auto is the first accelerator, or else the CPU."""
    utterances_per_forward: int = runtime_field(0)
    """Trees in one forward pass; 0 is up to 16 on an accelerator, on a CPU one or a few small ones."""
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model, its tokenizer and the adapter, and the version of the text forms."""
        digests = {**fingerprint(self.model, self.revision), "text_forms": TEXT_FORMS_VERSION}
        if self.adapter is not None:
            adapter = fingerprint(self.adapter, stem=ADAPTER)
            digests |= {f"adapter_{part}": digest for part, digest in adapter.items()}
        return digests

    def build(self) -> "SpeechLmScorer":
        """Loads model and tokenizer and checks that they know units and that the tree is exact."""
        from ctxasr_ray.models.causal_lm import load_causal_lm
        from ctxasr_ray.models.speech_lm import SpeechTokens

        checkpoint = resolve(self.model, self.revision)
        tokenizer = load_tokenizer(checkpoint)
        speech = SpeechTokens(tokenizer)
        tokens = TextTokens(tokenizer, text_form=self.text_form)
        lm = load_causal_lm(
            checkpoint,
            adapter=None if self.adapter is None else resolve(self.adapter, stem=ADAPTER),
            dtype=self.dtype,
            device=self.device,
            eos_token_id=tokens.eos_token_id,
            special_ids=tokens.special_ids,
            utterances_per_forward=self.utterances_per_forward,
        )
        check_vocabulary(checkpoint, tokenizer, lm.head.num_outputs)
        return SpeechLmScorer(self, lm, tokens, speech)


def units_for(reader: str, hears: StageConfig, units: SpeechUnitsConfig | None) -> SpeechUnitsConfig:
    """The units that a scorer is to hear.

    Args:
        reader: Name of its step.
        hears: Its config.
        units: What its rescoring says of them.

    Raises:
        ValueError: nothing, or another quantiser than the one beside the scorer's speech-text LM.
    """
    if units is None:
        raise ValueError(
            f"'{reader}' hears speech units, and its rescoring says nothing of them. Set `units` of the rescoring "
            "to a SpeechUnitsConfig: the encoder, and the units.safetensors that lies beside the speech-text LM."
        )
    if isinstance(hears, SpeechLmConfig) and Path(hears.model).is_dir():
        from ctxasr_ray.models.speech_units import load_quantiser

        refuse_other_units(hears.model, load_quantiser(units.quantiser).digest, units.quantiser)
    return units


class SpeechLmScorer:
    """The built stage.

    Args:
        config: Of the stage.
        lm: The model.
        tokens: Its tokenizer's text side.
        speech: Its tokenizer's marks and units.
    """

    def __init__(self, config: SpeechLmConfig, lm: "CausalLm", tokens: TextTokens, speech: "SpeechTokens") -> None:
        self._config, self.lm, self.tokens, self.speech = config, lm, tokens, speech

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One SCORES row per HYPOTHESES row; an utterance without units has null scores and the reason.

        Raises:
            ValueError: units that the model does not know.
        """
        hypotheses, units = tables
        flat = flatten(hypotheses)
        with costs.timed("tokenise"):
            ids = self.tokens.encode(flat.texts)
        heard = units.to_pylist()
        rows, errors = [], []
        for row, (start, stop) in enumerate(flat.bounds()):
            error_type, message = heard[row]["error_type"], heard[row]["error"]
            if error_type is None:
                with costs.timed("llm"):
                    own = self._scores(np.asarray(heard[row]["units"], np.int32), ids[start:stop], costs)
            else:
                own = self._unscored(stop - start, f"{error_type}: {message}")
                costs.count("utterances_without_units")
            rows.append(own)
            errors.append(None if error_type is None else (error_type, message))
        return scores_table(flat.utterance_ids, rows, errors)

    def _scores(self, units: Int32, texts: Sequence[Int32], costs: Costs) -> list[SourceScores]:
        from ctxasr_ray.models.list_trees import ScoreRequest

        if self._config.order == "speech_first":
            prefix = np.concatenate([self.tokens.prefix, self.speech.heard(units)])
            (scores,) = self.lm.score([ScoreRequest(prefix, texts)], costs)
            return [source_scores(self._config.source, scores, texts, scores.reasons, has_end=True)]
        spoken = self.speech.spoken(units)
        (alone,) = self.lm.score([ScoreRequest(self.tokens.prefix, texts)], costs)
        # A text cannot be a shared prefix of its units: the tree shares what the texts share.
        (both,) = self.lm.score([ScoreRequest(self.tokens.prefix, [np.append(t, spoken) for t in texts])], costs)
        known = [reason is None for reason in both.reasons]
        behind = [
            float(whole - text) if k else None
            for whole, text, k in zip(both.log_probs, alone.log_probs, known, strict=True)
        ]
        named = self._config.source
        second = SourceScores(
            source=f"{named}_units", log_probs=behind, num_tokens=[len(spoken)] * len(texts), reasons=both.reasons
        )
        return [source_scores(f"{named}_text", alone, texts, alone.reasons, has_end=True), second]

    def _unscored(self, num_hypotheses: int, reason: str) -> list[SourceScores]:
        name = self._config.source
        names = [name] if self._config.order == "speech_first" else [f"{name}_text", f"{name}_units"]
        nothing = [None] * num_hypotheses
        return [SourceScores(source=n, log_probs=nothing, reasons=[reason] * num_hypotheses) for n in names]
