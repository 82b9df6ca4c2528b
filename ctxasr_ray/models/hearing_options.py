"""What every language model that hears is asked to be: fields that its first pass and its scorer share.

Nothing here loads torch before `load`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ctxasr_ray.models import checkpoint, speech_llm
from ctxasr_ray.models.recogniser import RecogniserOptions
from ctxasr_ray.models.text_tokens import TEXT_FORMS_VERSION

if TYPE_CHECKING:
    from ctxasr_ray.models.audio_lm import AudioLm


@dataclass(frozen=True, kw_only=True, slots=True)
class HearingOptions(RecogniserOptions):
    """An LLM recogniser of ours, or an audio-language model of transformers (Qwen2-Audio, Voxtral, Granite Speech)."""

    DTYPES: ClassVar[tuple[str, ...]] = (*RecogniserOptions.DTYPES, "int8")

    prompt: str | None = None
    """Instruction around `{speech}`; None is the model's own. Ours also knows `{keywords}` and `{history}`."""
    max_audio_s: float = 60.0
    """Longer audio is a `model_limit`; so is audio beyond the feature extractor's window."""

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of all parts, and the version of the text forms."""
        return {**self._digests(), "text_forms": TEXT_FORMS_VERSION}

    def load(self) -> "AudioLm":
        """Loads the model and checks that texts behind a sound are a token tree.

        Raises:
            ValueError: as `audio_lm.load_audio_lm`.
        """
        from ctxasr_ray.models.audio_lm import load_audio_lm

        resolved = checkpoint.resolve(self.model, self.revision)
        return load_audio_lm(resolved, dtype=self.dtype, device=self.device, prompt=self.prompt)

    def _digests(self) -> dict[str, str]:
        resolved = checkpoint.resolve(self.model, self.revision)
        if speech_llm.is_ours(resolved):
            return speech_llm.fingerprint(self.model, self.revision)
        return checkpoint.fingerprint(self.model, self.revision)
