"""UTTERANCES on dev -> FITS: the temperature at which an attention recogniser is as sure of its tokens as it is right.

The recogniser reads each reference token by token; its best token is right or wrong, and its confidence is that
token's probability. The fitted value is what `AttentionFusedConfig.temperature` takes.

Reference:
    Chen et al. 2024, UADF, arXiv:2402.05457: each model's temperature is where mean confidence equals accuracy, looked
    for between 0.1 and 10. A grid with interpolation, so that no logits are kept, and teacher forcing are ours.

Letters: L tokens, V vocabulary, G temperatures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.recordings import COLUMNS, heard_ahead
from ctxasr_ray.schema import FITS, conform
from ctxasr_ray.stage import Costs, Resources, check_fit_splits, refuse_other_splits
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.seq2seq import Seq2SeqModel

TEMPERATURES: Final = np.geomspace(0.1, 10.0, 121)
"""(G,) looked at; between two of them confidence is interpolated."""
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTemperatureConfig:
    """Fits the temperature of an attention recogniser, so that mean confidence equals accuracy."""

    NAME: ClassVar[str] = "gate_temperature"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": (*COLUMNS, "language", "reference", "split")}
    WRITES: ClassVar[str] = "fits"

    first_pass: AttentionConfig
    """The recogniser; its search plays no part."""
    splits: tuple[str, ...] = ("dev",)
    """Where to fit: dev or train. Test is refused."""
    fit_name: str = "gate_temperature"
    """Name of the fit."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses to fit on what is reported."""
        check_fit_splits("gate_temperature", self.splits)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the recogniser."""
        return self.first_pass.fingerprint()

    def build(self) -> "GateTemperature":
        """Loads the recogniser."""
        return GateTemperature(self, self.first_pass.load())


class GateTemperature:
    """Built by `GateTemperatureConfig`, a barrier: all shards of its splits at once.

    Args:
        config: The config.
        model: The recogniser.
    """

    def __init__(self, config: GateTemperatureConfig, model: "Seq2SeqModel") -> None:
        self._config, self._model = config, model

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, FITS with one value `temperature` out.

        Args:
            tables: UTTERANCES of the splits.
            costs: Counts `tokens`, and `utterances_left_out`: unusable audio, no reference, or one that the recogniser
                cannot write.

        Raises:
            ValueError: rows of other splits, or no usable one.
        """
        (utterances,) = tables
        config, model = self._config, self._model
        refuse_other_splits("gate_temperature", utterances, config.splits)
        references, languages = (utterances.column(name).to_pylist() for name in ("reference", "language"))
        confidence_G, num_right, num_tokens = np.zeros(len(TEMPERATURES)), 0, 0
        for heard in heard_ahead(utterances, model.limits(config.first_pass.max_audio_s), 2, costs):
            text = references[heard.row]
            prompt, _ = model.tokens.prompt_of(languages[heard.row], config.first_pass.language)
            tokens = model.tokens.encode([text or ""])[0]
            if heard.samples is None or prompt is None or text is None or not self._writable(tokens, len(prompt)):
                costs.count("utterances_left_out")
                continue
            logits_LV = forced_logits(model, model.encode([heard.samples])[0], prompt, tokens)
            written = np.append(tokens, model.tokens.eos_id)
            confidence_G += confidences(logits_LV).sum(axis=0)
            num_right += int((logits_LV.argmax(-1).cpu().numpy() == written).sum())
            num_tokens += len(written)
        costs.count("tokens", num_tokens)
        if not num_tokens:
            raise ValueError("gate_temperature: no utterance has usable audio and a reference that can be written.")
        accuracy = num_right / num_tokens
        temperature = balanced(confidence_G / num_tokens, accuracy)
        fit = {
            "name": config.fit_name,
            "values": [("temperature", temperature), ("accuracy", accuracy)],
            "interval": [],
            "objective": "mean confidence equals accuracy|token",
            "objective_value": float(np.interp(np.log(temperature), np.log(TEMPERATURES), confidence_G / num_tokens)),
            "split": "+".join(config.splits),
            "parents": ["utterances"],
            "num_configurations": 1,
        }
        return conform(pa.Table.from_pylist([fit], schema=FITS), "fits")

    def _writable(self, tokens: Int32, num_prompt: int) -> bool:
        fits = num_prompt + len(tokens) <= self._model.max_positions
        return fits and not self._model.tokens.unspellable(tokens)


def forced_logits(model: "Seq2SeqModel", states_1TD: "torch.Tensor", prompt: Int32, tokens: Int32) -> "torch.Tensor":
    """(L + 1, V) logits before each token of a text and before its end, step by step as in a search."""
    import torch

    with torch.inference_mode():
        decoding = model.decode(states_1TD)
        before = torch.from_numpy(prompt.astype(np.int64))[None].to(states_1TD.device)
        logits = [decoding.start(before)]
        above = torch.zeros((1, 1), dtype=torch.int64, device=states_1TD.device)
        for token in tokens.tolist():
            logits.append(decoding.advance(torch.full_like(above, token), above)[:, 0])
        return torch.cat(logits)


def confidences(logits_LV: "torch.Tensor") -> Float:
    """(L, G) probability of the best token at each of `TEMPERATURES`."""
    below_LV = (logits_LV - logits_LV.amax(-1, keepdim=True)).double()
    per_temperature = [1 / (below_LV / temperature).exp().sum(-1) for temperature in TEMPERATURES]
    found: Float = np.stack([one.cpu().numpy() for one in per_temperature], axis=1)
    return found


def balanced(confidence_G: Float, accuracy: float) -> float:
    """The temperature at which confidence, which falls with it, is the accuracy; the nearest end if there is none.

    Args:
        confidence_G: (G,) mean confidence at each of `TEMPERATURES`.
        accuracy: Share of tokens that are right.
    """
    return float(np.exp(np.interp(-accuracy, -confidence_G, np.log(TEMPERATURES))))
