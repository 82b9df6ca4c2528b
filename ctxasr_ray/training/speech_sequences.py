"""Texts and units as the sequences that a speech-text LM learns from, and its loss on them.

Letters of shapes: B sequences, N tokens, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.speech_lm import QUANTISER, SpeechTokens

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.speech_units import Quantiser

Tokens = npt.NDArray[np.int32]
Frames = npt.NDArray[np.int16]
"""(T,) units, one per frame."""
SPAN_WORDS: Final = 3
"""Longest span of the alternating sequences, in words."""


class SpeechSequences:
    """The layouts of `models.speech_lm`, each with its <s> and </s>; runs of a unit are written once.

    Args:
        tokenizer: After `extend_vocabulary`, or of a speech-text LM.
        unit_weight: Weight of a unit or mark in the loss; a piece of text weighs 1.
    """

    def __init__(self, tokenizer: Any, unit_weight: float) -> None:
        self.tokenizer, self.speech, self._unit_weight = tokenizer, SpeechTokens(tokenizer), unit_weight

    def text(self, text: str) -> Tokens:
        """Text alone."""
        return self._join(self._pieces(text))

    def units(self, units: Frames) -> Tokens:
        """Speech alone."""
        return self._join(self._spoken(units))

    def heard_text(self, units: Frames, text: str) -> Tokens:
        """Speech, then text."""
        return self._join(self._spoken(units), [self.speech.text], self._pieces(text))

    def spoken_text(self, text: str, units: Frames) -> Tokens:
        """Text, then speech."""
        return self._join(self._pieces(text), self._spoken(units))

    def alternating(self, units: Frames, text: str, ends: Frames, rng: np.random.Generator) -> Tokens:
        """Spans of 1 to `SPAN_WORDS` words, each spoken and then written.

        Args:
            units: Of the utterance.
            text: What is said in it.
            ends: (W,) the frame after each word.
            rng: Draws the spans.
        """
        words, first = text.split(), 0
        parts: list[Sequence[int] | Tokens] = []
        while first < len(words):
            last = min(first + int(rng.integers(1, SPAN_WORDS + 1)), len(words))
            begin = int(ends[first - 1]) if first else 0
            parts += [self._spoken(units[begin : ends[last - 1]]), [self.speech.text]]
            parts.append(self._pieces(" ".join(words[first:last])))
            first = last
        return self._join(*parts)

    def collate(self, rows: Sequence[Tokens]) -> "dict[str, torch.Tensor]":
        """Pads sequences to the longest: (B, N) `input_ids` and `weights`, which are 0 in the padding."""
        import torch

        ids_BN = np.zeros((len(rows), max(map(len, rows))), np.int64)
        weights_BN = np.zeros(ids_BN.shape, np.float32)
        for ids, weights, row in zip(ids_BN, weights_BN, rows, strict=True):
            ids[: len(row)] = row
            # Marks and units were appended to the vocabulary, the first mark before all others.
            weights[: len(row)] = np.where(row >= self.speech.speech, self._unit_weight, 1.0)
        return {"input_ids": torch.from_numpy(ids_BN), "weights": torch.from_numpy(weights_BN)}

    def _pieces(self, text: str) -> Sequence[int]:
        pieces: Sequence[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return pieces

    def _spoken(self, units: Frames) -> Tokens:
        from ctxasr_ray.models.speech_units import merge_runs

        return self.speech.spoken(merge_runs(units.astype(np.int32))[0])

    def _join(self, *parts: Sequence[int] | Tokens) -> Tokens:
        ids = np.concatenate([[self.tokenizer.bos_token_id], *parts, [self.tokenizer.eos_token_id]])
        return np.asarray(ids, np.int32)


class SequenceTraining:
    """A built task on written sequences: what does not depend on where they come from."""

    model: Any
    """A causal LM that knows units."""
    quantiser: "Quantiser"
    """Of these units."""
    _written: "SpeechSequences"
    _names: list[str]
    _sequences: list[Tokens]

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids and numbers of sentences."""
        return [self._names[index] for index in indices.tolist()]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Pads sequences to the longest."""
        return self._written.collate([self._sequences[i] for i in indices])

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives the weight of all tokens that are predicted."""
        return weight(batch)

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives the weighted mean negative log-probability per token."""
        return weighted_nats(self.model, batch, counts)

    def publish(self, directory: Path) -> None:
        """Writes the Hugging Face directory and the quantiser beside it."""
        from ctxasr_ray.training.publish import publish

        publish(self.model, directory, tokenizer=self._written.tokenizer)
        self.quantiser.save(directory / QUANTISER)


def weight(batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
    """The weight of all tokens of a batch that are predicted: what its loss is divided by."""
    return {"weight": float(batch["weights"][:, 1:].sum())}


def weighted_nats(model: Any, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
    """The weighted mean negative log-probability per token."""
    nats_BN, weights_BN = nats(model, batch)
    return (nats_BN * weights_BN).sum() / counts["weight"]


def nats(model: Any, batch: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
    """(B, N - 1) negative log-probability of every token but the first, and its weight."""
    from torch.nn import functional

    # No mask goes in: rows are padded on the right, which a causal model cannot see from the left.
    logits_BNV = model(input_ids=batch["input_ids"][:, :-1], use_cache=False).logits
    nats_BN = functional.cross_entropy(logits_BNV.float().transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    return nats_BN, batch["weights"][:, 1:]


def word_perplexity(model: Any, written: SpeechSequences, rows: Sequence[Tokens], texts: Sequence[str]) -> float:
    """Perplexity per word of texts, ends of sequence included, whatever stands before them.

    Args:
        model: In evaluation mode, inside `torch.inference_mode`.
        written: What wrote the rows.
        rows: Sequences that end with a text.
        texts: These texts.
    """
    total = 0.0
    for start in range(0, len(rows), 32):
        batch = written.collate(rows[start : start + 32])
        nats_BN, weights_BN = nats(model, batch)
        is_text_BN = (batch["input_ids"][:, 1:] < written.speech.speech) & (weights_BN > 0)
        total += float(nats_BN[is_text_BN].sum())
    return math.exp(total / sum(len(text.split()) + 1 for text in texts))
