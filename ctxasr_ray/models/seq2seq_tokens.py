"""What an attention decoder is started with, what it may write, and how its tokens are text.

The prompt is, unless spelled out: the text before (only where the model has a token for it), the start token, and where
the generation config knows them the language, the task and the token that asks for no timestamps.

Never written: `suppress_tokens` of the generation config, every special token but the end, timestamps, ids without a
token; and as the first token none of `begin_suppress_tokens` (for Whisper the end and a lone space, so that its text is
never empty).
"""

import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.models.token_words import token_words
from ctxasr_ray.token_tree import Int32

REMEMBERED: Final = 4096
"""Decoded beginnings of texts; those of an N-best list begin alike."""


class Seq2SeqTokens:
    """Tokens of one recogniser, for one task and one text before.

    Args:
        tokenizer: Of the checkpoint.
        generation: Its `GenerationConfig`.
        config: Its model config, for ids that the generation config lacks.
        num_outputs: V, rows of the LM head.
        task: As the model names it: transcribe or translate; ignored by a model without task tokens.
        before: Text that the decoder is told came before; needs a model with a token for it.
        prompt_tokens: Tokens in place of the rule above, as the tokenizer writes them.

    Raises:
        ValueError: no start or end token, or the model lacks what the prompt asks for; names it.
    """

    start_id: int
    eos_id: int
    suppressed: npt.NDArray[np.bool_]
    """(V,) tokens that are never written."""
    begin_suppressed: npt.NDArray[np.bool_]
    """(V,) further tokens that are not written first."""

    def __init__(
        self,
        tokenizer: Any,
        generation: Any,
        config: Any,
        num_outputs: int,
        *,
        task: str = "transcribe",
        before: str = "",
        prompt_tokens: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._generation = tokenizer, generation
        self._texts = TextTokens(tokenizer)
        self._decoded = functools.lru_cache(REMEMBERED)(self._decode)
        self.start_id = _first(generation.decoder_start_token_id, getattr(config, "decoder_start_token_id", None))
        self.eos_id = _first(generation.eos_token_id, getattr(config, "eos_token_id", None))
        self._languages: dict[str, int] = {
            name.strip("<|>"): index for name, index in (getattr(generation, "lang_to_id", None) or {}).items()
        }
        self.suppressed = self._never(num_outputs)
        self.begin_suppressed = np.zeros(num_outputs, np.bool_)
        self.begin_suppressed[list(generation.begin_suppress_tokens or ())] = True
        self._fixed = self._spelled(prompt_tokens)
        self._before = self._said_before(before)
        self._after_language = self._tail(task)

    def prompt(self, language: str | None) -> Int32:
        """(P,) tokens before the first one of a text.

        Args:
            language: Code such as "en"; None where the model has no language tokens.

        Raises:
            ValueError: the model lacks the language token, or needs one.
        """
        if self._fixed is not None:
            return self._fixed
        middle = self._language(language)
        return np.array([*self._before, self.start_id, *middle, *self._after_language], np.int32)

    def prompt_of(self, spoken: str | None, language: str | None) -> tuple[Int32 | None, tuple[str, str] | None]:
        """Gives the prompt of one utterance, or (error_type, message) where the model has none for it.

        Args:
            spoken: The utterance's own language; read only by a model that needs one.
            language: Of the config; holds for every utterance.
        """
        if language is None and self.is_multilingual:
            language = spoken
        try:
            return self.prompt(language), None
        except ValueError as error:
            return None, ("model_limit", str(error))

    @property
    def is_multilingual(self) -> bool:
        """Whether a prompt has to name a language."""
        return bool(self._languages) and self._fixed is None

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the model has a token for."""
        return list(self._languages)

    def encode(self, texts: Sequence[str]) -> list[Int32]:
        """Token ids of each text as the tokenizer spells it inside a sentence, without special tokens."""
        return self._texts.encode([text.strip() for text in texts])

    def unspellable(self, ids: Int32) -> bool:
        """Whether some of the text is unknown to the tokenizer, so that the model cannot have said it."""
        return self._texts.num_unknown(ids) > 0

    def text(self, ids: Sequence[int] | Int32) -> str:
        """Text of tokens, without special tokens and outer spaces."""
        return self._decoded(tuple(ids))

    def _decode(self, ids: tuple[int, ...]) -> str:
        decoded = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded).strip()

    def pieces(self, ids: Sequence[int] | Int32) -> list[str]:
        """Each token as the tokenizer writes it."""
        return list(self._tokenizer.convert_ids_to_tokens([int(token) for token in ids]))

    def words(self, ids: Sequence[int] | Int32) -> list[int] | None:
        """Index in `text(ids).split()` of each token's word, -1 for a space; None where tokens cross words."""
        tokens = [int(token) for token in ids]
        return token_words(tokens, self.text, self.pieces(tokens))

    def _language(self, language: str | None) -> list[int]:
        if not self._languages:
            if language is not None and not (language == "en" and self._is_english_only):
                raise ValueError(f"language '{language}': the model has no language tokens; leave the language out.")
            return []
        if language is None:
            raise ValueError(
                "the model has language tokens and no language is given; set it in the config or in the manifest, "
                f"for example to one of {', '.join(list(self._languages)[:8])}."
            )
        if language.strip("<|>").lower() not in self._languages:
            raise ValueError(
                f"language '{language}': the model has no token for it; it has {', '.join(sorted(self._languages))}."
            )
        return [self._languages[language.strip("<|>").lower()]]

    @property
    def _is_english_only(self) -> bool:
        return getattr(self._generation, "is_multilingual", None) is False

    def _tail(self, task: str) -> list[int]:
        tasks = getattr(self._generation, "task_to_id", None) or {}
        if tasks and task not in tasks:
            raise ValueError(f"task '{task}': the model has no token for it; it has {', '.join(sorted(tasks))}.")
        without_times = getattr(self._generation, "no_timestamps_token_id", None)
        return ([tasks[task]] if tasks and self._languages else []) + ([] if without_times is None else [without_times])

    def _said_before(self, text: str) -> list[int]:
        if not text.strip():
            return []
        mark = getattr(self._generation, "prev_sot_token_id", None)
        if mark is None:
            raise ValueError("the model has no token for text that came before; leave the prompt empty.")
        return [mark, *self._texts.encode([text.strip()])[0].tolist()]

    def _spelled(self, tokens: Sequence[str]) -> Int32 | None:
        if not tokens:
            return None
        vocabulary = self._tokenizer.get_vocab()
        lacking = [token for token in tokens if token not in vocabulary]
        if lacking:
            raise ValueError(f"prompt_tokens: the model has no token {lacking[0]!r}.")
        return np.array([vocabulary[token] for token in tokens], np.int32)

    def _never(self, num_outputs: int) -> npt.NDArray[np.bool_]:
        never = np.ones(num_outputs, np.bool_)
        never[[index for index in self._tokenizer.get_vocab().values() if index < num_outputs]] = False
        added = self._tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special} | set(self._tokenizer.all_special_ids)
        special |= {self.start_id, *(self._generation.suppress_tokens or ())}
        never[[index for index in special if 0 <= index < num_outputs]] = True
        without_times = getattr(self._generation, "no_timestamps_token_id", None)
        if without_times is not None:
            never[without_times:] = True
        never[self.eos_id] = False
        return never


def _first(*candidates: int | Sequence[int] | None) -> int:
    for ids in candidates:
        if isinstance(ids, int):
            return ids
        if ids:
            return int(ids[0])
    raise ValueError(
        "generation_config.json and config.json name no start or no end token; mend generation_config.json."
    )
