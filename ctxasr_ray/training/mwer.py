"""Minimum word error rate: a speech-text LM learns, by low-rank updates, to choose from N-best lists as rescoring does.

Letters of shapes: B utterances, H hypotheses, R rows (every hypothesis and reference), N tokens, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint
from ctxasr_ray.models.speech_llm import written_place
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.training.committed_lists import CommittedLists, ListExample
from ctxasr_ray.training.left_out import refuse_nothing
from ctxasr_ray.training.trainable import Lora, save_lora

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class MwerTask:
    """Expected word errors of a list under recogniser and LM, P(text | units) by the LM, with a share of cross entropy.

    Reference:
        Shivakumar et al., 2409.16654: MWER over the N-best, with the score that rescoring ranks by.
    """

    train: CommittedLists
    dev: CommittedLists
    initial: str
    """Hugging Face directory of the speech-text LM."""
    lm_weight: float = 0.5
    """Weight of the LM's log_prob beside the recogniser's, which has 1: what rescoring fitted on dev."""
    length_bonus: float = 0.0
    """Nats per normalised word, fitted in the same way."""
    cross_entropy_share: float = 0.01
    """Of the cross entropy of the references behind their units, in nats per token."""
    lora: Lora = field(default_factory=Lora)
    """The updates that learn; the LM under them stays as it is."""

    def build(self, directory: Path, num_processes: int) -> "Mwer":
        """Reads the lists, writes them as tokens and loads the LM."""
        return Mwer(self)


@dataclass(frozen=True, slots=True)
class _List:
    """An utterance in tokens: <s> and what was heard, then every hypothesis, the reference last, each with </s>."""

    name: str
    heard: npt.NDArray[np.int32]
    texts: list[npt.NDArray[np.int32]]
    others: npt.NDArray[np.float32]
    """(H,) what the fused score has besides the LM's share."""
    errors: npt.NDArray[np.int64]
    reference_length: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return len(self.heard) + max(map(len, self.texts))


class Mwer:
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: MwerTask) -> None:
        """Prepares lists and model.

        Args:
            config: The task.

        Raises:
            ValueError: the LM knows no units, or other ones; the run's tables are not there.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from ctxasr_ray.models.speech_lm import SpeechTokens

        self._config = config
        source = checkpoint.resolve(config.initial)
        for lists in (config.train, config.dev):
            lists.refuse_other_units(str(source.directory))
        self._tokenizer = checkpoint.load_tokenizer(source)
        self._tokens, self._speech = TextTokens(self._tokenizer), SpeechTokens(self._tokenizer)
        base = checkpoint.load_model(AutoModelForCausalLM, source, dtype=torch.float32)
        self.model: Any = config.lora.around(base)
        limit = getattr(base.config, "max_position_embeddings", None) or math.inf
        self._train, self.left_out = self._fitting(config.train, limit)
        self._dev, unlike = self._fitting(config.dev, limit)
        remedy = "give a run with more utterances of the split, or raise num_hypotheses"
        where = f"list of split '{config.dev.split}' of run folder {config.dev.root}"
        refuse_nothing(self._dev, where, unlike, remedy)
        self.lengths = np.asarray([len(one.texts) * one.longest for one in self._train], np.int64)

    def _fitting(self, lists: CommittedLists, limit: float) -> "tuple[list[_List], dict[str, str]]":
        """The lists whose rows the model can read, and why others are left out."""
        examples, left_out = lists.read()
        kept = []
        for example in examples:
            written = self._written(example)
            if written.longest > limit:
                left_out[example.name] = f"a row of its list has {written.longest} tokens, the model takes {limit}"
            else:
                kept.append(written)
        return kept, left_out

    def _written(self, example: ListExample) -> _List:
        assert self._tokens.eos_token_id is not None, "an LM that ends texts"
        texts = self._tokens.encode([*example.texts, example.reference])
        ends = np.int32(self._tokens.eos_token_id)
        return _List(
            name=example.name,
            heard=np.concatenate([self._tokens.prefix, self._speech.heard(example.units)]),
            texts=[np.append(ids, ends) for ids in texts],
            others=(example.scores + self._config.length_bonus * example.num_words).astype(np.float32),
            errors=example.errors,
            reference_length=example.reference_length,
        )

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids."""
        return [self._train[index].name for index in indices.tolist()]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Pads rows to the longest and lists to the longest."""
        return self._collate([self._train[i] for i in indices])

    def _collate(self, lists: Sequence[_List]) -> "dict[str, torch.Tensor]":
        import torch

        rows = [np.concatenate([one.heard, text]) for one in lists for text in one.texts]
        texts = [len(text) for one in lists for text in one.texts]
        ids_RN = np.zeros((len(rows), max(map(len, rows))), np.int64)
        written_RN = np.zeros(ids_RN.shape, np.bool_)
        for ids, written, row, length in zip(ids_RN, written_RN, rows, texts, strict=True):
            ids[: len(row)] = row
            written[len(row) - length : len(row)] = True
        sizes = [len(one.errors) for one in lists]
        mask_BH = np.arange(max(sizes)) < np.asarray(sizes)[:, None]
        others_BH, errors_BH = np.zeros(mask_BH.shape, np.float32), np.zeros(mask_BH.shape, np.int64)
        others_BH[mask_BH] = np.concatenate([one.others for one in lists])
        errors_BH[mask_BH] = np.concatenate([one.errors for one in lists])
        is_reference_R = np.concatenate([np.arange(size + 1) == size for size in sizes])
        arrays = {
            "input_ids": ids_RN,
            "written": written_RN,
            "is_reference": is_reference_R,
            "mask": mask_BH,
            "others": others_BH,
            "errors": errors_BH,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives the utterances and the tokens of their references."""
        written = batch["written"][batch["is_reference"]]
        return {"utterances": len(batch["mask"]), "tokens": int(written.sum())}

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives expected word errors per utterance plus the share of cross entropy."""
        from ctxasr_ray.training.objectives import expected_word_errors, mwer

        log_probs_RN, fused_BH = self._scores(batch)
        expected = expected_word_errors(fused_BH, batch["errors"], batch["mask"], count=counts["utterances"])
        nats = -log_probs_RN[batch["is_reference"]].sum() / counts["tokens"]
        return mwer(expected, nats, cross_entropy_share=self._config.cross_entropy_share)

    def _scores(self, batch: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
        """Log-probs of the written tokens of every row, 0 elsewhere, and the fused score of every hypothesis."""
        import torch

        # No mask goes in: rows are padded on the right, which a causal model cannot see from the left.
        written_RN, ids_RN = batch["written"][:, 1:], batch["input_ids"][:, 1:]
        logits_RNV = self.model(input_ids=batch["input_ids"][:, :-1], use_cache=False).logits
        own = logits_RNV[written_RN].float().log_softmax(-1).gather(-1, ids_RN[written_RN][:, None])[:, 0]
        log_probs_RN = torch.zeros(ids_RN.shape, device=own.device).masked_scatter(written_RN, own)
        said = log_probs_RN.sum(-1)[~batch["is_reference"]]
        lm_BH = torch.zeros_like(batch["others"]).masked_scatter(batch["mask"], said)
        return log_probs_RN, batch["others"] + self._config.lm_weight * lm_BH

    def evaluate(self) -> dict[str, float]:
        """Measures dev: word errors that are expected per utterance, and the WER of the best fused scores.

        Lists from which nothing can be learnt are no part of it: whatever is chosen there makes the same errors.
        """
        from ctxasr_ray.training.objectives import expected_word_errors

        device = next(self.model.parameters()).device
        expected, wrong, words = 0.0, 0, 0
        for start in range(0, len(self._dev), 8):
            lists = self._dev[start : start + 8]
            batch = {name: tensor.to(device) for name, tensor in self._collate(lists).items()}
            fused_BH = self._scores(batch)[1].masked_fill(~batch["mask"], -float("inf"))
            expected += float(expected_word_errors(fused_BH, batch["errors"], batch["mask"], count=1))
            wrong += int(batch["errors"].gather(1, fused_BH.argmax(-1, keepdim=True)).sum())
            words += sum(one.reference_length for one in lists)
        return {"dev_expected_errors": expected / len(self._dev), "dev_wer_of_movable": wrong / words}

    def publish(self, directory: Path) -> None:
        """Writes the updates as a PEFT directory, for the scorers' `adapter`."""
        save_lora(self.model, directory, written_base=written_place(self._config.initial))
