"""Texts -> the labels of a CTC model, by its own tokenizer and in its own case.

A vocabulary with letters of one case only takes every text in that case ("Call Anna" is CALL ANNA to a model of
capitals); one with both cases, or with a script that has none, takes a text as it stands. Spaces are single. What the
labels do not spell back letter by letter is no spelling: tokenizers drop or replace letters that they do not know.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctxasr_ray.models.ctc_vocabulary import Vocabulary
from ctxasr_ray.token_tree import Int32


class Spelling:
    """How one model writes texts.

    Args:
        tokenizer: Of the checkpoint.
        vocabulary: Its labels.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        letters = "".join(vocabulary.pieces)
        small, capital = letters.upper() != letters, letters.lower() != letters
        self._cased = str if small == capital else str.lower if small else str.upper
        self._unwritten = {vocabulary.blank_id, *vocabulary.suppressed}

    def text(self, text: str) -> str:
        """Gives the text as the model would write it: single spaces, its case."""
        return self._cased(" ".join(text.split()))

    def labels(self, texts: Sequence[str]) -> list[Int32 | None]:
        """Labels of each text, without blanks; none for an empty text, None where the model cannot spell it."""
        cased = [self.text(text) for text in texts]
        return [np.zeros(0, np.int32) if not one else self._labels(one) for one in cased]

    def _labels(self, text: str) -> Int32 | None:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if self._unwritten.intersection(ids) or self._vocabulary.text(ids) != text:
            return None
        return np.array(ids, np.int32)
