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
        tokens are stored, or it is not stored which token belongs to which word.
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
    words = hypothesis["text"].split()
    mine = _tokens_of_words(hypothesis["token_words"], len(words))
    return [
        {
            "word": word,
            "start_s": _pick(hypothesis["token_start_s"], tokens, min),
            "end_s": _pick(hypothesis["token_end_s"], tokens, max),
            "confidence": _pick(hypothesis["token_log_probs"], tokens, lambda p: word_confidence(p, temperature)),
            "origin": hypothesis["origin"],
        }
        for word, tokens in zip(words, mine, strict=True)
    ]


def _tokens_of_words(token_words: Sequence[int] | None, num_words: int) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in range(num_words)]
    for token, word in enumerate(token_words or ()):
        if word >= 0:
            tokens[word].append(token)
    return tokens


def _pick(values: Sequence[float] | None, tokens: Sequence[int], reduce: Any) -> float | None:
    return None if values is None or not tokens else float(reduce([values[token] for token in tokens]))
