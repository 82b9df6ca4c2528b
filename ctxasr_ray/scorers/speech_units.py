"""UTTERANCES -> UNITS: what was said as discrete units of a speech encoder, made once for every model that reads them.

It stands among the scorers because they are who reads UNITS; a UNITS table is no score and goes into no fusion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from ctxasr_ray.models.checkpoint import fingerprint, resolve
from ctxasr_ray.models.speech_lm import MADE_BY
from ctxasr_ray.recordings import COLUMNS, heard_ahead
from ctxasr_ray.schema import UNITS, conform
from ctxasr_ray.stage import Costs, Resources, runtime_field

if TYPE_CHECKING:
    from ctxasr_ray.models.speech_units import Quantiser, SpeechEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechUnitsConfig:
    """Units of any layer of a speech encoder, by a quantiser that was fitted on that very encoder."""

    NAME: ClassVar[str] = "speech_units"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS}
    WRITES: ClassVar[str] = "units"

    encoder: str = field(metadata={"identity": False})
    """Hugging Face directory or hub id of the encoder, with or without a head. Its fingerprint is in the hash."""
    quantiser: str = field(metadata={"identity": False})
    """Safetensors file of centroids; it knows its encoder and layer. Its digest is in the hash."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id."""
    merge_runs: bool = True
    """Write equal neighbours once, with the length of their run; otherwise every frame, in runs of one."""
    max_audio_s: float = 60.0
    """Longer audio is a `model_limit`; attention over it would take too much memory."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the encoder's weights."""
    device: str = runtime_field("cpu")
    """As torch writes it, for example cuda:0."""
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the encoder, its feature extractor and the centroids."""
        import hashlib
        from pathlib import Path

        from ctxasr_ray.models.speech_units import load_quantiser

        load_quantiser(self.quantiser)
        digest = hashlib.sha256(Path(self.quantiser).read_bytes()).hexdigest()
        own = fingerprint(self.encoder, self.revision)
        return {"quantiser": f"sha256:{digest}", **{k: v for k, v in own.items() if k in ("model", "preprocessor")}}

    def build(self) -> "SpeechUnitsStage":
        """Loads both and refuses a quantiser of another encoder."""
        from ctxasr_ray.models.speech_units import SpeechEncoder, load_quantiser

        quantiser = load_quantiser(self.quantiser)
        quantiser.check(fingerprint(self.encoder, self.revision), self.encoder)
        checkpoint = resolve(self.encoder, self.revision)
        encoder = SpeechEncoder(checkpoint, layer=quantiser.layer, dtype=self.dtype, device=self.device)
        return SpeechUnitsStage(self, encoder, quantiser)


class SpeechUnitsStage:
    """Built by `SpeechUnitsConfig`; one call per shard.

    Args:
        config: Of the stage.
        encoder: Loaded.
        quantiser: Of that encoder.
    """

    def __init__(self, config: SpeechUnitsConfig, encoder: "SpeechEncoder", quantiser: "Quantiser") -> None:
        self._config, self._encoder, self._quantiser = config, encoder, quantiser

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One UNITS row per utterance; what cannot be heard has no units and its reason.

        Raises:
            OSError: a fault of the disk or network while reading audio.
        """
        (utterances,) = tables
        costs.name(MADE_BY, [self._quantiser.digest])
        ids = utterances.column("utterance_id").to_pylist()
        rows = []
        for heard in heard_ahead(utterances, self._encoder.limits(self._config.max_audio_s), 2, costs):
            rows.append({"utterance_id": ids[heard.row], **self._row(heard.samples, heard.error, costs)})
        return conform(pa.Table.from_pylist(rows, schema=UNITS), "units")

    def _row(self, samples: Any, error: tuple[str, str] | None, costs: Costs) -> dict[str, Any]:
        from ctxasr_ray.models.speech_units import merge_runs

        units, runs = [], []
        if samples is not None:
            with costs.timed("model"):
                frames = self._quantiser.units(self._encoder.hidden(samples))
            costs.count("frames", len(frames))
            if not len(frames):
                error = ("model_limit", f"{len(samples)} samples of audio are shorter than one frame of the encoder")
            elif self._config.merge_runs:
                units, runs = (array.tolist() for array in merge_runs(frames))
            else:
                units, runs = frames.tolist(), [1] * len(frames)
            costs.count("units", len(units))
        error_type, message = error or (None, None)
        return {
            "units": units,
            "run_lengths": runs,
            "frame_rate_hz": self._encoder.frame_rate_hz,
            "error_type": error_type,
            "error": message,
        }
