"""What a training is, before any framework is loaded: a task, an optimiser, a number of steps, a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.adaptation import AdaptationTask
from ctxasr_ray.training.copy import CopyTask
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.joint import JointTask
from ctxasr_ray.training.language import LanguageModelTask
from ctxasr_ray.training.mwer import MwerTask
from ctxasr_ray.training.speech_llm import SpeechLlmTask
from ctxasr_ray.training.speech_text import SpeechTextTask

if TYPE_CHECKING:
    import torch


class Task(Protocol):
    """A built task: a model, examples, and what is asked of the model on them."""

    model: Any
    """A `torch.nn.Module`, on the CPU."""
    lengths: npt.NDArray[np.int64]
    """(N,) cost of each example in frames or tokens; batches are cut by it."""
    left_out: Mapping[str, str]
    """Example -> why it is not trained on; nothing is dropped in silence."""

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives the ids of examples, for messages."""
        ...

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Collates examples, padded; `rng` is for augmentation."""
        ...

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives what the loss divides sums by (tokens, utterances); those of a batch are the sums over its parts."""
        ...

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives the scalar that is minimised; with the counts of a whole batch, the losses of its parts add up."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Measures the model on dev, for example {"dev_wer": 0.2}; the model is in evaluation mode."""
        ...

    def publish(self, directory: Path) -> None:
        """Writes the model as a Hugging Face directory."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimiser:
    """AdamW with a linear warm-up and a cosine decay to zero."""

    learning_rate: float = 1e-3
    """At the end of the warm-up."""
    warm_up_steps: int = 100
    weight_decay: float = 0.01
    """On matrices; never on biases, norms and other vectors."""
    beta_2: float = 0.98
    clip_norm: float = 1.0
    """Longest gradient, over all weights."""

    def __post_init__(self) -> None:
        """Refuses what moves nothing, or nowhere.

        Raises:
            ValueError: names the field.
        """
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"optimiser: {name} is {getattr(self, name)}; expected more than 0, and finite")
        if self.warm_up_steps < 0 or not 0 <= self.weight_decay < float("inf") or not 0 <= self.beta_2 < 1:
            raise ValueError(
                f"optimiser: warm_up_steps is {self.warm_up_steps}, weight_decay {self.weight_decay} and beta_2 "
                f"{self.beta_2}; expected at least 0, at least 0, and 0 or more and less than 1"
            )

    def rate(self, step: int, num_steps: int) -> float:
        """Gives the learning rate of a step, counted from 0."""
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        done = (step - self.warm_up_steps) / max(1, num_steps - self.warm_up_steps)
        return float(self.learning_rate * 0.5 * (1 + np.cos(np.pi * done)))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """A training run: `training.loop.run` turns it into a Hugging Face directory."""

    name: str
    """Of the recipe; stands in messages and in training.json."""
    task: (
        CtcTask | LanguageModelTask | JointTask | SpeechTextTask | AdaptationTask | MwerTask | SpeechLlmTask | CopyTask
    )
    """What is learnt, from what."""
    num_steps: int
    """Optimiser steps; the data is repeated as often as they need."""
    batch_size: int
    """Most frames (speech) or tokens (text) of a batch, padding included."""
    seed: int = 1
    """Of the weights, the batches, dropout and augmentation."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    num_parts: int = 1
    """Parts that each batch is cut into, with draws (dropout, augmentation) of their own; their gradients are added up.
    More parts need less memory; several workers share them."""
    precision: str = "float32"
    """"float32", or "bfloat16": matrix products in bfloat16 (twice as fast where the CPU has avx512_bf16)."""
    device: str = runtime_field("cpu")
    """Where the model is trained: "cpu", "cuda"."""
    gradient_checkpointing: bool = runtime_field(False)
    """Keep only the inputs of layers and compute the rest again for the gradient: less memory, a third more work."""
    sharded: bool = runtime_field(False)
    """Cut weights, gradients and moments over the workers (FSDP2) instead of giving each a copy (DDP)."""
    num_threads: int = runtime_field(2)
    """Threads of torch."""
    num_processes: int = runtime_field(2)
    """Processes that compute features; 0 computes them in this one."""
    log_every: int = runtime_field(20)
    """Steps whose mean loss is one line of log.jsonl."""
    checkpoint_every: int = runtime_field(200)
    """Steps between checkpoints."""
    evaluate_every: int = runtime_field(500)
    """Steps between measurements on dev; they change no weights."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision '{self.precision}' is unknown; use one of {PRECISIONS}")
        if min(self.num_steps, self.batch_size, self.num_parts) < 1:
            raise ValueError(
                f"num_steps is {self.num_steps}, batch_size {self.batch_size} and num_parts {self.num_parts}; each "
                "must be at least 1"
            )
        if min(self.log_every, self.checkpoint_every, self.evaluate_every) < 1:
            raise ValueError(
                f"log_every is {self.log_every}, checkpoint_every {self.checkpoint_every} and evaluate_every "
                f"{self.evaluate_every} steps; each must be at least 1. For never give more than num_steps, "
                f"{self.num_steps}: what comes at the end comes anyway"
            )


PRECISIONS: Sequence[str] = ("float32", "bfloat16")
