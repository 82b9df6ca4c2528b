"""The words of chosen hypotheses, with times and confidence where the recogniser's tokens can be laid over them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.schema import WORD


def read_words(hypotheses: pa.StructArray, winner_U: npt.NDArray[np.int64], temperature: float) -> pa.Array:
    """Raw words, separated at white space, of one hypothesis per utterance.

    Args:
        hypotheses: All hypotheses of the shard in one line.
        winner_U: (U,) position of the chosen one, -1 for none.
        temperature: Above 0; divides the logit of a word's probability.

    Returns:
        (U,) lists of `schema.WORD`; empty where nothing was chosen. Times and confidence are null where no
        tokens are stored or it is not certain which token belongs to which word.
    """
    rows = hypotheses.take(pa.array(winner_U, mask=winner_U < 0)).to_pylist()
    return pa.array([[] if row is None else _words(row, temperature) for row in rows], pa.list_(WORD))


def word_confidence(token_log_probs: Sequence[float], temperature: float) -> float:
    """sigmoid(logit(p) / temperature), p the smallest token probability of a word.

    Args:
        token_log_probs: At least one, in nats, at most 0.
        temperature: Above 0; 1 gives p itself.
    """
    log_prob = min(*token_log_probs, 0.0)
    if log_prob == 0.0:
        return 1.0
    logit = log_prob - math.log(-math.expm1(log_prob))
    return 0.5 * (1.0 + math.tanh(logit / temperature / 2.0))


def _words(hypothesis: Mapping[str, Any], temperature: float) -> list[dict[str, Any]]:
    text: str = hypothesis["text"]
    one_to_one = _tokens_are_characters(text, hypothesis["token_ids"])
    whole_words = _tokens_are_words(text, hypothesis)
    words, position = [], 0
    for index, word in enumerate(text.split()):
        start = text.index(word, position)
        position = start + len(word)
        mine = slice(start, position) if one_to_one else slice(index, index + 1) if whole_words else None
        words.append(
            {
                "word": word,
                "start_s": _pick(hypothesis["token_start_s"], mine, min),
                "end_s": _pick(hypothesis["token_end_s"], mine, max),
                "confidence": _pick(hypothesis["token_log_probs"], mine, lambda p: word_confidence(p, temperature)),
                "origin": hypothesis["origin"],
            }
        )
    return words


def _pick(values: Sequence[float] | None, mine: slice | None, reduce: Any) -> float | None:
    return None if values is None or mine is None else float(reduce(values[mine]))


def _tokens_are_words(text: str, hypothesis: Mapping[str, Any]) -> bool:
    """Whether a recogniser without tokens (no ids) gave the time of each word."""
    starts = hypothesis["token_start_s"]
    return hypothesis["token_ids"] is None and starts is not None and len(starts) == len(text.split())


def _tokens_are_characters(text: str, token_ids: Sequence[int] | None) -> bool:
    """Whether token i is character i: as many of both, and each character always has the same token of its own.

    Subword tokens need their tokenizer to be laid over words; tables hold ids only, so those words have no times.
    """
    if token_ids is None or len(token_ids) != len(text):
        return False
    pairs = set(zip(text, token_ids, strict=True))
    return len(pairs) == len(set(text)) == len(set(token_ids))
