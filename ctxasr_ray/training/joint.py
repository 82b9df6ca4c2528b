"""An attention recogniser with a CTC head on its encoder: Whisper architecture, both losses at once.

Letters of shapes: B utterances, M mel bins, F feature frames of the window, T encoder positions, N tokens.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import attention, checkpoint
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.augment import SpecAugment
from ctxasr_ray.training.dev_errors import error_rates
from ctxasr_ray.training.examples import pad_targets, pad_windows, usable
from ctxasr_ray.training.sources import SyntheticSpeech, TableSpeech

if TYPE_CHECKING:
    import torch

TEACHER_STRIDE = 2
"""Encoder positions (20 ms) per frame of a teacher with 4x subsampling (40 ms)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointTask:
    """Tokens by attention and by CTC, from one encoder, in the vocabulary of a given language model."""

    train: SyntheticSpeech | TableSpeech
    dev: SyntheticSpeech | TableSpeech
    tokenizer: str
    """Hugging Face directory whose tokenizer is used, with <s>, </s> and <pad>; the decoder starts from <s>, <pad> is
    the CTC blank."""
    hidden_size: int = 144
    num_encoder_layers: int = 4
    num_decoder_layers: int = 2
    num_heads: int = 3
    intermediate_size: int = 576
    window_s: int = 8
    """The encoder's fixed window; longer utterances are left out, shorter ones padded with silence."""
    max_tokens: int = 96
    """Longest text, <s> included."""
    num_mel_bins: int = 80
    dropout: float = 0.0
    """Zero where data is plenty and time is short: drawing it takes a seventh of a step on a CPU."""
    label_smoothing: float = 0.1
    ctc_weight: float = 0.3
    """Share of the head's loss, in [0, 1]."""
    teacher: str | None = None
    """Hugging Face directory of a character CTC model whose forced alignments tell the head where each token is
    spoken: the head then learns these frame labels in place of CTC. A head that starts at random otherwise stays long
    where it writes nothing but blanks."""
    initial: str | None = None
    """Hugging Face directory of an earlier training whose weights this one starts from; None starts at random."""
    augment: SpecAugment | None = field(default_factory=SpecAugment)
    features_directory: str | None = runtime_field(None)
    """Where the features lie; None keeps them in the run's directory. They take 16 kB per second of speech."""

    def build(self, directory: Path, num_processes: int) -> "JointTraining":
        """Computes the features of train and dev and makes a model with random weights."""
        return JointTraining(self, directory, num_processes)


class JointTraining:
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: JointTask, directory: Path, num_processes: int) -> None:
        """Prepares the features, the targets and the model.

        Args:
            config: The task.
            directory: Of the run.
            num_processes: For the features.
        """
        import torch
        from transformers import WhisperFeatureExtractor

        from ctxasr_ray.training import features

        self._config = config
        tokenizer = checkpoint.load_tokenizer(checkpoint.resolve(config.tokenizer))
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=config.window_s)
        whisper = _whisper(config, tokenizer, int(extractor.nb_max_frames))
        head = attention.make_head(whisper)
        if config.initial is not None:
            _start_from(config.initial, whisper, head)
        self.model: Any = torch.nn.ModuleDict({"whisper": whisper, "ctc_head": head})
        self._recogniser = attention.AttentionModel(whisper, head, tokenizer, extractor)
        parent = directory / "features" if config.features_directory is None else Path(config.features_directory)
        self._train = features.compute(config.train, extractor, parent / "train", num_processes=num_processes)
        self._dev = features.compute(config.dev, extractor, parent / "dev", num_processes=num_processes)
        self._examples, self.left_out = usable(
            self._train, self._encode, attention.ctc_frames, max_tokens=config.max_tokens - 1
        )
        self._frame_labels = self._aligned(parent, num_processes)
        # The window is padded to its full length whatever is said, so every example costs the same.
        self.lengths = np.full(len(self._examples), int(extractor.nb_max_frames), np.int64)

    def _encode(self, text: str) -> list[int]:
        tokenizer = self._recogniser.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids:
            raise ValueError(f"its text {text!r} has characters that the vocabulary lacks")
        return ids

    def _aligned(self, parent: Path, num_processes: int) -> dict[str, npt.NDArray[np.int16]]:
        """Frame labels by the teacher; none without one."""
        from transformers import AutoFeatureExtractor

        from ctxasr_ray.training import aligned, features

        config = self._config
        if config.teacher is None:
            return {}
        extractor = AutoFeatureExtractor.from_pretrained(config.teacher, local_files_only=True)
        heard = features.compute(config.train, extractor, parent / "teacher", num_processes=num_processes)
        targets = {self._train.names[e.index]: e.target for e in self._examples}
        return aligned.frame_labels(
            config.teacher, heard, targets, self._recogniser.tokenizer, TEACHER_STRIDE, parent / "alignments.npz"
        )

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids."""
        return [self._train.names[self._examples[i].index] for i in indices]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Fills the windows; hides blocks of the speech in them."""
        import torch

        from ctxasr_ray.training.objectives import IGNORED

        examples = [self._examples[i] for i in indices]
        frames = [int(self._train.lengths[e.index]) for e in examples]
        rows = [self._train[e.index] for e in examples]
        if self._config.augment is not None:
            for row, speech in zip(rows, frames, strict=True):
                self._config.augment(row[:speech], rng)
        lengths = [attention.ctc_frames(n) for n in frames]
        labels_BT = torch.full((len(rows), max(lengths)), IGNORED)
        for place, example in enumerate(examples):
            labels = self._frame_labels.get(self._train.names[example.index])
            if labels is not None:
                labels = labels[: lengths[place]]
                labels_BT[place, : len(labels)] = torch.from_numpy(labels.astype(np.int64))
        return {
            "features": self._windows(rows),
            "ctc_lengths": torch.tensor(lengths),
            "frame_labels": labels_BT,
            "targets": pad_targets([e.target for e in examples]),
        }

    def _windows(self, rows: Sequence[npt.NDArray[np.float32]]) -> "torch.Tensor":
        return pad_windows(rows, int(self._recogniser.extractor.nb_max_frames))

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives what each loss is summed over; the attention writes an end to each text."""
        from ctxasr_ray.training.objectives import num_targets

        targets_BN = batch["targets"]
        heard = batch["frame_labels"] if self._frame_labels else targets_BN
        return {"heard": num_targets(heard), "attended": num_targets(targets_BN) + len(targets_BN)}

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives the mixture of both losses, in nats per token."""
        import torch

        from ctxasr_ray.training import objectives

        recogniser, targets_BN = self._recogniser, batch["targets"]
        states_BTD = recogniser.encode(batch["features"])
        longest = int(batch["ctc_lengths"].max())
        logits_BTV = self.model["ctc_head"](states_BTD[:, :longest])
        if self._frame_labels:
            heard = objectives.cross_entropy(logits_BTV, batch["frame_labels"], count=counts["heard"])
        else:
            heard = objectives.ctc(
                logits_BTV, batch["ctc_lengths"], targets_BN, blank=recogniser.blank_id, count=counts["heard"]
            )
        start_B1 = torch.full_like(targets_BN[:, :1], recogniser.start_id)
        inputs_BN = torch.cat([start_B1, targets_BN.masked_fill(targets_BN < 0, recogniser.blank_id)], dim=1)
        wanted_BN = torch.cat([targets_BN, torch.full_like(start_B1, objectives.IGNORED)], dim=1)
        ends_B1 = (targets_BN != objectives.IGNORED).sum(1, keepdim=True)
        wanted_BN = wanted_BN.scatter(1, ends_B1, recogniser.eos_id)
        attended = objectives.cross_entropy(
            recogniser.decoder_logits(states_BTD, inputs_BN, use_cache=False).logits,
            wanted_BN,
            count=counts["attended"],
            label_smoothing=self._config.label_smoothing,
        )
        return objectives.joint(heard, attended, ctc_weight=self._config.ctc_weight)

    def evaluate(self) -> dict[str, float]:
        """Measures greedy error rates on dev, of the decoder and of the CTC head (`dev_ctc_wer`)."""
        attended: list[str] = []
        aligned: list[str] = []
        for start in range(0, len(self._dev), 16):
            indices = range(start, min(start + 16, len(self._dev)))
            states_BTD = self._recogniser.encode(self._windows([self._dev[i] for i in indices]).to(self._device))
            attended += greedy(self._recogniser, states_BTD, self._config.max_tokens)
            best_BT = self._recogniser.ctc_log_probs(states_BTD).argmax(-1).tolist()
            aligned += [self._collapse(row, int(self._dev.lengths[i])) for i, row in zip(indices, best_BT, strict=True)]
        wer, cer = error_rates(self._dev.texts, attended)
        return {"dev_wer": wer, "dev_cer": cer, "dev_ctc_wer": error_rates(self._dev.texts, aligned)[0]}

    @property
    def _device(self) -> "torch.device":
        device: torch.device = self._recogniser.model.device
        return device

    def _collapse(self, best_T: list[int], frames: int) -> str:
        best_T = best_T[: attention.ctc_frames(frames)]
        ids = [b for a, b in itertools.pairwise([-1, *best_T]) if b != a and b != self._recogniser.blank_id]
        return str(self._recogniser.tokenizer.decode(ids, skip_special_tokens=True))

    def publish(self, directory: Path) -> None:
        """Writes the Hugging Face directory, and the CTC head beside the model."""
        from ctxasr_ray.training.publish import publish

        recogniser = self._recogniser
        publish(recogniser.model, directory, tokenizer=recogniser.tokenizer, extractor=recogniser.extractor)
        attention.save_head(self.model["ctc_head"], directory / attention.CTC_HEAD)


def greedy(recogniser: attention.AttentionModel, states_BTD: "torch.Tensor", max_tokens: int) -> list[str]:
    """Writes the decoder's best token at every step, for all utterances of a batch at once.

    Args:
        recogniser: Model and tokenizer.
        states_BTD: Encoder states.
        max_tokens: Longest text, start token included.
    """
    import torch

    num = states_BTD.shape[0]
    last_B1 = torch.full((num, 1), recogniser.start_id, device=states_BTD.device)
    written: list[list[int]] = [[] for _ in range(num)]
    ended = [False] * num
    cache = None
    for _ in range(max_tokens - 1):
        outputs = recogniser.decoder_logits(states_BTD, last_B1, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        last_B1 = outputs.logits[:, -1:].argmax(-1)
        for row, token in enumerate(last_B1[:, 0].tolist()):
            ended[row] = ended[row] or token == recogniser.eos_id
            if not ended[row]:
                written[row].append(token)
        if all(ended):
            break
    return [str(recogniser.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]


def _start_from(directory: str, whisper: Any, head: Any) -> None:
    """Copies the weights of an earlier training.

    Raises:
        ValueError: it has another architecture or no CTC head.
    """
    earlier = attention.load(checkpoint.resolve(directory))
    if earlier.ctc_head is None:
        raise ValueError(f"'{directory}' has no {attention.CTC_HEAD}; give the model of a joint training.")
    try:
        whisper.load_state_dict(earlier.model.state_dict())
        head.load_state_dict(earlier.ctc_head.state_dict())
    except RuntimeError as error:
        raise ValueError(f"'{directory}' is not a model of this architecture: {error}") from error


def _whisper(config: JointTask, tokenizer: Any, window_frames: int) -> Any:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=config.num_mel_bins,
            d_model=config.hidden_size,
            encoder_layers=config.num_encoder_layers,
            decoder_layers=config.num_decoder_layers,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            encoder_ffn_dim=config.intermediate_size,
            decoder_ffn_dim=config.intermediate_size,
            max_source_positions=window_frames // 2,
            max_target_positions=config.max_tokens,
            dropout=config.dropout,
            # The default of 0.02 is made for widths of 400 and more: here what is heard would be 3 % of its position.
            init_std=config.hidden_size**-0.5,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **ids,
        )
    )
    # On a CPU, for such small heads, fused attention is slower than plain products: 0.47 against 0.35 s a step.
    whisper.set_attn_implementation("eager")
    # One language and no timestamps, so that `generate` asks for no token that this vocabulary lacks.
    whisper.generation_config = GenerationConfig(
        **ids, max_length=config.max_tokens, is_multilingual=False, return_timestamps=False
    )
    return whisper
