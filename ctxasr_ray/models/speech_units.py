"""Any layer of a speech encoder of transformers -> discrete units, by a k-means quantiser in one safetensors file.

Letters: F feature frames, M mel bins, T encoder frames, D width, K units, N training frames.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ctxasr_ray.models.checkpoint import Checkpoint, load_model
from ctxasr_ray.models.hub import made_by
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits

FORMAT: Final = "ctxasr speech units 1"
"""Stands in the header of every quantiser file."""
_PROBE_S: Final = (1.0, 11.0)
"""Noises whose difference is a whole number of frames for every stride in use."""

Floats = npt.NDArray[np.float32]
Units = npt.NDArray[np.int32]


class SpeechEncoder:
    """One layer of a speech encoder: HuBERT, WavLM, wav2vec 2.0, Whisper's encoder, Parakeet, ...

    Utterances are encoded one at a time, so their units do not depend on their neighbours.

    Attributes:
        sample_rate_hz: What `hidden` expects.
        frame_rate_hz: Encoder frames per second, derived at load.
        num_layers: Layers after the embedding, which is layer 0.
    """

    def __init__(self, checkpoint: Checkpoint, *, layer: int, dtype: str = "float32", device: str = "cpu") -> None:
        """Loads the weights and the feature extractor and hears two noises.

        Args:
            checkpoint: From `resolve`; with or without a head.
            layer: 0 is what goes into the first layer, `num_layers` what comes out of the last.
            dtype: float32, bfloat16 or float16; hidden states are float32 always.
            device: As torch writes it, for example "cuda:0".

        Raises:
            ValueError: no speech encoder, no feature extractor, or no such layer.
        """
        import torch
        from transformers import AutoFeatureExtractor, AutoModel

        self._torch, self._name, self.layer = torch, checkpoint.name, layer
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        model = load_model(AutoModel, checkpoint, dtype=self._dtype).to(self._device)
        self.model: Any = model.get_encoder() if model.config.is_encoder_decoder else model
        try:
            self.extractor: Any = AutoFeatureExtractor.from_pretrained(
                str(checkpoint.directory), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"encoder '{self._name}': no feature extractor can be read: {error}") from error
        self.sample_rate_hz = int(self.extractor.sampling_rate)
        self._window: int | None = getattr(self.extractor, "n_samples", None)
        self.num_layers, self.frame_rate_hz = self._probe()

    def limits(self, max_audio_s: float) -> Limits:
        """What can be heard where a config allows so many seconds: at least one frame (25 ms at the least)."""
        window_s = max_audio_s if self._window is None else self._window / self.sample_rate_hz
        shortest = max(0.025, 1 / self.frame_rate_hz)
        return Limits(
            self.sample_rate_hz, round(shortest * self.sample_rate_hz), min(max_audio_s, window_s), CUT_OR_RAISE
        )

    def hidden(self, samples: Floats) -> Floats:
        """Gives the layer's states of one utterance.

        Args:
            samples: (num_samples,) mono, [-1, 1], at `sample_rate_hz`.

        Returns:
            (T, D), without frames of padding; T is 0 where the audio is shorter than the encoder's first frame.
        """
        batch = self.extractor(
            [samples], sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
        )
        values = batch[self.extractor.model_input_names[0]]
        if self._window is None:
            if "attention_mask" in batch:
                values = values[:, : int(batch["attention_mask"].sum())]
            return self._outputs(values)[0]
        states_TD = self._outputs(values)[0]
        return states_TD[: -(-len(states_TD) * len(samples) // self._window)]

    def of_features(self, features_FM: Floats) -> tuple[Floats, Floats]:
        """Gives the layer's states and the head's outputs for log-mel features that were computed before.

        Args:
            features_FM: By this encoder's own extractor, without padding.

        Returns:
            (T, D) states and, for a model with a CTC head, its (T, V) logits; else (T, 0).
        """
        return self._outputs(self._torch.from_numpy(features_FM)[None])

    def _outputs(self, values: Any) -> tuple[Floats, Floats]:
        torch = self._torch
        values = values.to(self._device, self._dtype)
        options: dict[str, Any] = {"output_hidden_states": True}
        if self._window is None:
            options["attention_mask"] = torch.ones(values.shape[:2], dtype=torch.bool, device=self._device)
        with torch.inference_mode():
            outputs = self.model(values, **options)
        states = outputs.hidden_states
        if not states or not 0 <= self.layer < len(states):
            raise ValueError(
                f"encoder '{self._name}': layer {self.layer} is asked for, it has layers 0 to {len(states or ()) - 1}."
            )
        self._found = len(states) - 1
        logits = outputs.get("logits")
        states_TD = states[self.layer][0].float().cpu().numpy()
        if logits is None:
            return states_TD, np.zeros((len(states_TD), 0), np.float32)
        return states_TD, logits[0].float().cpu().numpy()

    def _probe(self) -> tuple[int, float]:
        rng = np.random.default_rng(0)
        short, long = (
            len(self.hidden((0.1 * rng.standard_normal(round(s * self.sample_rate_hz))).astype(np.float32)))
            for s in (_PROBE_S if self._window is None else (_PROBE_S[0], 2.0))
        )
        seconds = (_PROBE_S[1] if self._window is None else 2.0) - _PROBE_S[0]
        return self._found, (long - short) / seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiser:
    """K centroids in the space of one layer of one encoder, with where they come from.

    Reference:
        Lakhotia et al. 2021, On generative spoken language modeling from raw audio (2102.01192): k-means units; runs
        of equal units merged. The refusal of another encoder's states is ours.
    """

    centroids: Floats
    """(K, D)."""
    encoder: str
    """Digest of the encoder: "model" of `checkpoint.fingerprint`."""
    layer: int
    seed: int
    num_frames: int
    """Frames that it was fitted on."""

    @property
    def num_units(self) -> int:
        """K."""
        return len(self.centroids)

    @property
    def digest(self) -> str:
        """Sha256 of centroids, encoder and layer: units with equal digests mean the same."""
        whole = hashlib.sha256(f"{self.encoder} {self.layer} {self.centroids.shape}".encode())
        whole.update(np.ascontiguousarray(self.centroids, np.float32).tobytes())
        return f"sha256:{whole.hexdigest()}"

    def units(self, hidden_TD: Floats) -> Units:
        """Gives the nearest centroid of every frame.

        Raises:
            ValueError: states of another width.
        """
        if hidden_TD.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"the quantiser's centroids have width {self.centroids.shape[1]}, the states {hidden_TD.shape[1]}; "
                "use the encoder and layer that it was fitted on."
            )
        return _nearest(hidden_TD, self.centroids)[0].astype(np.int32)

    def check(self, fingerprint: Mapping[str, str], encoder: str) -> None:
        """Refuses another encoder than its own.

        Args:
            fingerprint: Of the encoder, by `checkpoint.fingerprint`.
            encoder: Its name, for the message.

        Raises:
            ValueError: the digests differ.
        """
        if fingerprint["model"] != self.encoder:
            raise ValueError(
                f"the quantiser was fitted on layer {self.layer} of an encoder with digest {self.encoder}, but "
                f"'{encoder}' has {fingerprint['model']}; units of one encoder mean nothing to another. Give the "
                "encoder that it was fitted on, or fit a quantiser for this one."
            )

    def save(self, path: Path) -> None:
        """Writes one safetensors file, the provenance in its header."""
        header = {
            "format": FORMAT,
            "encoder": self.encoder,
            "layer": str(self.layer),
            "seed": str(self.seed),
            "num_frames": str(self.num_frames),
        }
        save_file({"centroids": np.ascontiguousarray(self.centroids)}, path, metadata=header)
        path.chmod(0o644)  # safetensors writes for the owner alone


def load_quantiser(path: str | Path) -> Quantiser:
    """Reads a quantiser.

    Raises:
        ValueError: no such file, no safetensors file, or not a quantiser's; names it.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"no quantiser at {path}; give the units.safetensors that lies beside a speech-text LM.{made_by(str(path))}"
        )
    try:
        with safe_open(str(path), "np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is no quantiser of speech units: its header says format {header.get('format')!r}, "
                    f"expected {FORMAT!r}."
                )
            centroids = file.get_tensor("centroids")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}; copy the file again.") from error
    return Quantiser(
        centroids=centroids,
        encoder=header["encoder"],
        layer=int(header["layer"]),
        seed=int(header["seed"]),
        num_frames=int(header["num_frames"]),
    )


def fit_centroids(hidden_ND: Floats, num_units: int, seed: int, *, num_iterations: int = 20) -> Floats:
    """Finds centroids by Lloyd's iterations from a seeded k-means++ start.

    A centroid that no frame is near moves to the frame that is farthest from its own.

    Args:
        hidden_ND: Frames to learn from.
        num_units: K, from 1 to N.
        seed: Of the start.
        num_iterations: Most iterations; fewer where nothing moves any more.

    Returns:
        (K, D) float32.

    Raises:
        ValueError: fewer frames than units, or frames that are not finite.

    Reference:
        Arthur and Vassilvitskii 2007, k-means++, section 2.2 (one candidate per centroid).
    """
    if len(hidden_ND) < num_units:
        raise ValueError(f"{num_units} units cannot be learnt from {len(hidden_ND)} frames; give more speech.")
    if not np.isfinite(hidden_ND).all():
        raise ValueError("the encoder's states are not finite; try dtype float32.")
    rng = np.random.default_rng(seed)
    centroids = np.empty((num_units, hidden_ND.shape[1]), np.float32)
    distances = np.full(len(hidden_ND), np.inf)
    for k in range(num_units):
        weights = distances / distances.sum() if k and distances.sum() > 0 else None
        centroids[k] = hidden_ND[rng.choice(len(hidden_ND), p=weights)]
        distances = np.minimum(distances, ((hidden_ND - centroids[k]) ** 2).sum(1, dtype=np.float64))
    owners = np.full(len(hidden_ND), -1)
    for _ in range(num_iterations):
        before, (owners, distances) = owners, _nearest(hidden_ND, centroids)
        if np.array_equal(before, owners):
            break
        counts = np.bincount(owners, minlength=num_units)
        order = np.argsort(owners, kind="stable")
        filled = counts > 0
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        sums = np.add.reduceat(hidden_ND[order], starts[filled], dtype=np.float64)
        centroids[filled] = sums / counts[filled, None]
        centroids[~filled] = hidden_ND[np.argsort(-distances, kind="stable")[: int((~filled).sum())]]
    return centroids


def merge_runs(units: Units) -> tuple[Units, Units]:
    """Merges equal neighbours: (units without repeats, how long each run was), both int32."""
    starts = np.flatnonzero(np.diff(units, prepend=np.int32(-1)) != 0)
    return units[starts].astype(np.int32), np.diff(starts, append=len(units)).astype(np.int32)


def _nearest(hidden_TD: Floats, centroids_KD: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Index of, and squared distance to, the nearest centroid; the first of equally near ones."""
    norms = (centroids_KD.astype(np.float64) ** 2).sum(1)
    owners, distances = np.empty(len(hidden_TD), np.int64), np.empty(len(hidden_TD))
    for start in range(0, len(hidden_TD), 8192):  # bounded memory
        block = hidden_TD[start : start + 8192]
        scores = norms - 2.0 * (block @ centroids_KD.T)
        nearest = scores.argmin(1)
        owners[start : start + 8192] = nearest
        distances[start : start + 8192] = scores[np.arange(len(block)), nearest] + (block**2).sum(1, dtype=np.float64)
    return owners, np.maximum(distances, 0.0)
