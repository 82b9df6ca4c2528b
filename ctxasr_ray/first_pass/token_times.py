"""Texts of an attention recogniser -> when each token was spoken.

A model with a CTC head, as the shipped one, tells by the most probable alignment of the tokens with its frames: where
its cross-attention looks says nothing about when, since the CTC loss alone ties frames to tokens in a joint training.
Any other model tells by its cross-attention (`search/attention_alignment.py`), in one more pass over the kept texts,
which is as good as its heads follow the audio. Where neither is possible the times are null. Letters: T encoder
positions, D width, V vocabulary, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.seq2seq import Seq2SeqModel


@dataclass(frozen=True, slots=True)
class Encoded:
    """One utterance behind the encoder.

    Args:
        states: (1, T, D), the encoder's.
        num_frames: Positions that hear speech.
        ctc_log_probs: (T, V) of the CTC head, over `num_frames`; None without one.
    """

    states: "torch.Tensor"
    num_frames: int
    ctc_log_probs: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Span:
    """(L,) float64 seconds from the start of the utterance at which tokens begin and end."""

    start_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]


def token_times(model: "Seq2SeqModel", heard: Encoded, prompt: Int32, texts: Sequence[Int32]) -> list[Span | None]:
    """Gives the times of every text's tokens, or None.

    Args:
        model: The recogniser.
        heard: The utterance.
        prompt: (P,) before every text.
        texts: Token sequences without end.
    """
    step_s = model.frame_duration_s
    if heard.ctc_log_probs is not None:
        from ctxasr_ray.search.ctc_alignment import ctc_alignments

        found = ctc_alignments(heard.ctc_log_probs, texts, model.ctc_blank_id)
        return [None if one is None else _span(one.start_frame, one.end_frame, step_s) for one in found]
    from ctxasr_ray.search.attention_alignment import attention_spans

    weights = model.attention(heard.states, prompt, texts)
    if weights is None:
        return [None] * len(texts)
    spans = [attention_spans(own[:, :, : heard.num_frames]) for own in weights]
    return [_span(start, end, step_s) for start, end in spans]


def _span(start: npt.NDArray[np.integer], end: npt.NDArray[np.integer], step_s: float) -> Span:
    return Span(start.astype(np.float64) * step_s, end.astype(np.float64) * step_s)
