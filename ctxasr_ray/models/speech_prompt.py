r"""The instruction of an LLM recogniser as a template: text around the place where the speech stands.

`{speech}` stands in it once; `{keywords}` and `{history}` where the model is told what may be said, or what was said
before. A chat model's marks are written out, for example
"<|im_start|>user\n{speech}\nTranscribe the speech.<|im_end|>\n<|im_start|>assistant\n".
"""

from collections.abc import Sequence
from typing import Any, Final

SPEECH: Final = "{speech}"
KEYWORDS: Final = "{keywords}"
HISTORY: Final = "{history}"
SEPARATOR: Final = ", "
"""Between keywords."""


def filled(template: str, keywords: Sequence[str], history: str) -> str:
    """A template with what is told in its places; what it has no place for is left out."""
    return template.replace(KEYWORDS, SEPARATOR.join(keywords)).replace(HISTORY, history)


class Prompt:
    """A template and the tokenizer that writes it.

    Attributes:
        after: Text behind the speech, for the tokenizer's spelling of a first word.
        takes_keywords: Whether it has a place for keywords.
        takes_history: Whether it has a place for what was said before.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Checks the template.

        Args:
            tokenizer: Of the LLM; its own first tokens (BOS) stand before the template.
            template: With `{speech}` once.

        Raises:
            ValueError: no place for the speech, or more than one, or one for something unknown.
        """
        if template.count(SPEECH) != 1:
            raise ValueError(
                f"prompt {template!r} must hold {SPEECH} once; it stands there {template.count(SPEECH)} times."
            )
        self._tokenizer, self._template = tokenizer, template
        self._before, self.after = template.split(SPEECH)
        self.takes_keywords, self.takes_history = KEYWORDS in template, HISTORY in template

    def around(self, keywords: Sequence[str] = (), history: str | None = None) -> tuple[list[int], list[int]]:
        """Token ids before and behind the speech.

        Args:
            keywords: Phrases that may be said; none leaves their place empty.
            history: What was said before; None or "" leaves its place empty.

        Raises:
            ValueError: the template has no place for what is given.
        """
        for given, takes, place in (
            (bool(keywords), self.takes_keywords, KEYWORDS),
            (bool(history), self.takes_history, HISTORY),
        ):
            if given and not takes:
                raise ValueError(f"prompt {self._template!r} has no {place}, but the utterance brings some; add it.")
        before, after = (filled(text, keywords, history or "") for text in (self._before, self.after))
        first = list(self._tokenizer("")["input_ids"])  # BOS, where the tokenizer writes one
        if (eos := self._tokenizer.eos_token_id) is not None and first[-1:] == [eos]:
            first = first[:-1]
        return first + self._ids(before), self._ids(after)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids
