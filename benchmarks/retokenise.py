"""Token ids of growing word prefixes of a beam, word by word, against the tokenizers library on whole hypotheses.

The workload is what delayed fusion asks: sentences of 30 words, each searched with 16 hypotheses side by side that grow
by two words between triggers; a row inherits from one of the rows before (so rows share their beginnings) and writes
words of its own with probability 0.3. At each trigger all 16 prefixes need their ids. Ids are checked equal first.
The peer is `Tokenizer.encode_batch` of the 16 whole prefixes, one thread, no memory of earlier triggers. Our memory
of words starts empty and its filling is timed. Run it without arguments: `python benchmarks/retokenise.py`.
"""

import logging
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Figure, emit, interleaved, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import tokenizers  # noqa: E402
import transformers as tf  # noqa: E402

from ctxasr_ray.models.text_tokens import TextTokens  # noqa: E402
from ctxasr_ray.models.word_tokens import WordTokens  # noqa: E402

ASSETS = Path(__file__).parents[1] / "ctxasr_ray" / "assets"
NUM_SENTENCES, NUM_WORDS, WORDS_PER_TRIGGER, BEAM, CHANGED, SEED = 40, 30, 2, 16, 0.3, 7
Prefixes = list[tuple[str, ...]]


def vocabulary() -> list[str]:
    """5,000 words, most of them rare: those of the shipped word list, else made of syllables."""
    rng = random.Random(SEED)
    syllables = [a + b + c for a in "bdfgklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t", "ll")]
    words = {"".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3)))) for _ in range(20_000)}
    return sorted(words)[:5000]


def triggers(words: list[str]) -> Iterator[Prefixes]:
    """Per trigger the word-complete prefixes of a beam; common words are drawn more often (1/rank)."""
    rng = random.Random(SEED)
    weights = [1.0 / rank for rank in range(1, len(words) + 1)]
    for _ in range(NUM_SENTENCES):
        sentence = rng.choices(words, weights, k=NUM_WORDS)
        beam: Prefixes = [()] * BEAM
        for start in range(0, NUM_WORDS, WORDS_PER_TRIGGER):
            said = sentence[start : start + WORDS_PER_TRIGGER]
            beam = [
                (*rng.choice(beam), *(rng.choice(words) if rng.random() < CHANGED else word for word in said))
                for _ in range(BEAM)
            ]
            yield beam


def loaded(folder: Path) -> dict[str, Any]:
    """Tokenizers from wheels that the tests use, and the shipped language model's."""
    import shutil

    import mistral_common
    import whisper
    from transformers.convert_slow_tokenizer import TikTokenConverter

    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    ranks = Path(whisper.__file__).parent / "assets" / "gpt2.tiktoken"
    converted = TikTokenConverter(vocab_file=str(ranks), extra_special_tokens=["<|endoftext|>"]).converted()
    return {
        "mistral_sentencepiece": tf.AutoTokenizer.from_pretrained(folder),
        "gpt2_ranks": tf.PreTrainedTokenizerFast(tokenizer_object=converted, eos_token="<|endoftext|>"),
        "shipped_lm": tf.AutoTokenizer.from_pretrained(ASSETS / "lm"),
    }


def measured(name: str, tokenizer: Any, asked: list[Prefixes]) -> Figure:
    """One tokenizer's figure.

    Raises:
        SystemExit: ids differ.
    """
    tokens, backend = TextTokens(tokenizer), tokenizer.backend_tokenizer
    space, words = " " if tokens.leading_space else "", WordTokens(tokens)
    if not words.is_incremental:
        sys.exit(f"{name} is not tokenised word by word: {words.refusal}")

    def ours() -> None:
        words.forget()
        for beam in asked:
            for prefix in beam:
                words.extend(prefix)

    def theirs() -> list[Any]:
        return [
            [one.ids for one in backend.encode_batch([space + " ".join(p) for p in beam], add_special_tokens=False)]
            for beam in asked
        ]

    expected = theirs()
    for beam, ids in zip(asked, expected, strict=True):
        for prefix, own in zip(beam, ids, strict=True):
            if not np.array_equal(words.extend(prefix), own):
                sys.exit(f"{name}: other ids for {' '.join(prefix)!r}; a faster wrong answer is no figure")
    before = words.num_words, words.num_checked
    ours()
    work = {
        "prefixes": sum(map(len, asked)),
        "tokens": sum(len(ids) for beam in expected for ids in beam),
        "words_tokenised": words.num_words - before[0],
        "prefixes_checked": words.num_checked - before[1],
    }
    timed = interleaved(theirs, ours, rounds=5)
    return Figure(
        name=f"retokenise_{name}_over_encode_batch",
        value=timed.median,
        goal=">= 3.0",
        unit="x",
        peer=f"tokenizers {tokenizers.__version__} encode_batch",
        counters={**work, **timed.counters()},
    )


def main() -> None:
    """Prints the figures."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    asked = list(triggers(vocabulary()))
    with tempfile.TemporaryDirectory() as folder:
        emit([measured(name, tokenizer, asked) for name, tokenizer in loaded(Path(folder)).items()])


if __name__ == "__main__":
    main()
