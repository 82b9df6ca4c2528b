"""What a language model in a search is told of an utterance before it reads texts: phrases, and what was said before.

The template is text with `{keywords}` and `{history}`; it stands in the place of the LM's fixed prompt.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from ctxasr_ray.models.speech_prompt import HISTORY, KEYWORDS, filled
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.stage import Costs
from ctxasr_ray.token_tree import Int32


class Told(NamedTuple):
    """What an LM may be told of one utterance."""

    phrases: Sequence[str] = ()
    history: str | None = None


def check_template(template: str) -> None:
    """Refuses a template that tells nothing.

    Raises:
        ValueError: it has no place for phrases, nor for what was said before.
    """
    if KEYWORDS not in template and HISTORY not in template:
        raise ValueError(
            f"lm_prompt {template!r} has neither {KEYWORDS} nor {HISTORY}; add one, or set lm.prompt for a fixed text."
        )


class LmPrompt:
    """A template, in the tokens of an LM.

    Args:
        texts: The LM's tokenizer and its fixed prefix, which stands where there is nothing to tell.
        template: With a place for phrases, or for what was said before.
        room: Tokens that a prefix may have; None is no limit.
    """

    def __init__(self, texts: TextTokens, template: str, room: int | None) -> None:
        self._texts, self._template, self._room = texts, template, room

    def prefix(self, told: Told, costs: Costs) -> Int32:
        """(P,) tokens before every text of an utterance; the oldest words of its history go where it does not fit.

        Args:
            told: Of the utterance; what the template has no place for is not told.
            costs: Counts `context_slides`, prefixes that lost words.
        """
        phrases = told.phrases if KEYWORDS in self._template else ()
        words = (told.history or "").split() if HISTORY in self._template else []
        if not phrases and not words:
            return self._texts.prefix

        def without(first: int) -> Int32:
            return self._texts.behind(filled(self._template, phrases, " ".join(words[first:])))

        def fits(first: int) -> bool:
            return self._room is None or len(without(first)) <= self._room

        first = bisect.bisect_left(range(len(words)), True, key=fits)
        costs.count("context_slides", first > 0)
        return without(first)
