"""A causal language model from sentences: byte-pair pieces or characters, Llama architecture, cross entropy.

Letters of shapes: B sentences, N tokens, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.training.left_out import refuse_nothing
from ctxasr_ray.training.sources import SyntheticText, TextFile

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelTask:
    """Next-token prediction on `<s> sentence </s>`, one sentence per row, full attention."""

    train: SyntheticText | TextFile
    dev: SyntheticText | TextFile
    vocabulary_size: int = 500
    """Byte-pair pieces."""
    characters: str | None = None
    """What it writes besides the space, each letter a token, as a character CTC recogniser does: then both share one
    vocabulary. None learns byte-pair pieces."""
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 512
    dropout: float = 0.0
    """Of the attention weights; the only dropout that the Llama architecture has."""
    num_tokenizer_sentences: int = 50_000
    """Sentences, evenly spaced in the training text, that the byte-pair pieces are learnt from."""

    def build(self, directory: Path, num_processes: int) -> "LanguageModel":
        """Learns the tokenizer, encodes the text, makes a model with random weights."""
        return LanguageModel(self, directory)


class LanguageModel:
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: LanguageModelTask, directory: Path) -> None:
        """Prepares the tokenizer, the token ids and the model.

        Args:
            config: The task.
            directory: Of the run; unused, as everything is made again in seconds.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        from ctxasr_ray.training.vocabulary import character_lm_tokenizer, train_bpe

        sentences = list(config.train.sentences())
        if config.characters is None:
            spacing = max(1, len(sentences) // config.num_tokenizer_sentences)
            self.tokenizer = train_bpe(sentences[::spacing], config.vocabulary_size)
        else:
            self.tokenizer = character_lm_tokenizer(config.characters)
        self.left_out = {}
        self._train = self._encode(sentences)
        self._dev_sentences = list(config.dev.sentences())
        refuse_nothing(self._dev_sentences, f"sentence of {config.dev}", {}, "give a source with some")
        self._dev = self._encode(self._dev_sentences)
        self.lengths = np.asarray([len(ids) for ids in self._train], np.int64)
        settings = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            attention_dropout=config.dropout,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        self.model: Any = LlamaForCausalLM(settings)

    def _encode(self, sentences: list[str]) -> list[npt.NDArray[np.int16]]:
        """`<s> tokens </s>` of each sentence."""
        eos = self.tokenizer.eos_token_id
        encoded: list[npt.NDArray[np.int16]] = []
        for start in range(0, len(sentences), 10_000):  # a batch of all would hold gigabytes of encodings
            ids = self.tokenizer(sentences[start : start + 10_000], return_attention_mask=False)["input_ids"]
            encoded += [np.asarray([*row, eos], np.int16) for row in ids]
        return encoded

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives the line numbers of sentences, from 0."""
        return [f"sentence {index}" for index in indices.tolist()]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Pads sentences to the longest."""
        return self._collate([self._train[i] for i in indices])

    def _collate(self, rows: list[npt.NDArray[np.int16]]) -> "dict[str, torch.Tensor]":
        import torch

        longest = max(len(row) for row in rows)
        ids_BN = np.full((len(rows), longest), self.tokenizer.pad_token_id, np.int64)
        mask_BN = np.zeros((len(rows), longest), np.int64)
        for ids, mask, row in zip(ids_BN, mask_BN, rows, strict=True):
            ids[: len(row)] = row
            mask[: len(row)] = 1
        return {"input_ids": torch.from_numpy(ids_BN), "attention_mask": torch.from_numpy(mask_BN)}

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives the tokens that are predicted."""
        return {"tokens": int(batch["attention_mask"][:, 1:].sum())}

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives the mean negative log-probability per token, </s> included."""
        from ctxasr_ray.training.objectives import IGNORED, cross_entropy

        # No mask goes in: rows are padded on the right, which a causal model cannot see from the left.
        logits_BNV = self.model(input_ids=batch["input_ids"][:, :-1], use_cache=False).logits
        targets_BN = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)[:, 1:]
        return cross_entropy(logits_BNV, targets_BN, count=counts["tokens"])

    def evaluate(self) -> dict[str, float]:
        """Measures the perplexity of dev per token and per word, </s> counted as one of either."""
        nats, tokens = 0.0, 0
        order = sorted(range(len(self._dev)), key=lambda i: len(self._dev[i]))
        for start in range(0, len(order), 64):
            rows = [self._dev[i] for i in order[start : start + 64]]
            nats += float(self.loss(self._collate(rows), {"tokens": 1.0}))
            tokens += sum(len(row) - 1 for row in rows)
        words = sum(len(s.split()) + 1 for s in self._dev_sentences)
        return {"dev_perplexity": math.exp(nats / tokens), "dev_word_perplexity": math.exp(nats / words)}

    def publish(self, directory: Path) -> None:
        """Writes the Hugging Face directory."""
        from ctxasr_ray.training.publish import publish

        publish(self.model, directory, tokenizer=self.tokenizer)
