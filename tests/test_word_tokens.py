"""Words are tokenised one by one, and the ids are those of the whole text, with every tokenizer."""

import functools
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf
from real import real
from test_scorer_causal_lm import bpe, characters, mistral_data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.models.word_boundaries import join_words, split_words
from ctxasr_ray.models.word_tokens import WordTokens

ASSETS = Path(__file__).parents[1] / "ctxasr_ray" / "assets"
TEXT = (
    "where's the caf\u00e9 in K\u00f6ln it is 7 o'clock and 30 minutes Mr. O'Neill isn't well-known - is he? of the "
    "lot a lot \u4f60\u597d \u043c\u0438\u0440 supercalifragilistic </s> <unk> e.g. & so on x"
)
WORDS = TEXT.split()
TWO_WORDS_IN_ONE = ["of the town", "a lot of the time", "of the lot", "the end of the town"] * 20


def sentencepiece(folder: Path) -> Any:
    shutil.copy(mistral_data("tokenizer.model.v1"), folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return tf.AutoTokenizer.from_pretrained(folder)


def tekken(folder: Path) -> Any:
    shutil.copy(mistral_data("tekken_240718.json"), folder / "tekken.json")
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    return tf.AutoTokenizer.from_pretrained(folder)


def whisper_ranks(name: str) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        import whisper
        from transformers.convert_slow_tokenizer import TikTokenConverter

        ranks = Path(whisper.__file__).parent / "assets" / f"{name}.tiktoken"
        converted = TikTokenConverter(vocab_file=str(ranks), extra_special_tokens=["<|endoftext|>"]).converted()
        return tf.PreTrainedTokenizerFast(tokenizer_object=converted, eos_token="<|endoftext|>")

    return load


def across_spaces() -> Any:
    """Merges letters of two words, because nothing splits its texts at spaces: "of the" is one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TWO_WORDS_IN_ONE, trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>"]))
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "mistral_sentencepiece": sentencepiece,
    "mistral_tekken": tekken,
    "whisper_gpt2_ranks": whisper_ranks("gpt2"),
    "whisper_multilingual_ranks": whisper_ranks("multilingual"),
    "shipped_lm": lambda _: tf.AutoTokenizer.from_pretrained(ASSETS / "lm"),
    "stories260K": lambda _: tf.AutoTokenizer.from_pretrained(real("stories260K")),
    "byte_level_bpe": lambda _: bpe(),
    "byte_level_bpe_with_bos": lambda _: bpe(bos="<s>", own_bos=True),
    "characters": lambda _: characters(),
}


@functools.cache
def loaded(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return LOADERS[name](Path(folder))


@pytest.mark.parametrize("name", LOADERS)
def test_growing_prefixes_have_the_ids_of_their_whole_texts(name: str) -> None:
    tokens = TextTokens(loaded(name))
    words = WordTokens(tokens)
    assert words.is_incremental, words.refusal
    rng = random.Random(1)
    asked = 0
    for _ in range(20):
        prefix: tuple[str, ...] = ()
        assert not len(words.extend(prefix))
        for word in rng.choices(WORDS, k=12):
            shorter, prefix = words.extend(prefix), (*prefix, word)
            ids = words.extend(prefix)
            np.testing.assert_array_equal(ids, tokens.encode([" ".join(prefix)])[0])
            np.testing.assert_array_equal(ids, np.concatenate([shorter, words.chunk(word, first=len(prefix) == 1)]))
            asked += 1
    assert ids.dtype == np.int32
    assert words.num_words <= 200  # of the 240 that were asked for, and those of the check on load
    assert words.num_checked < asked / 10
    assert words.num_unequal == 0


@pytest.mark.parametrize("form", ["raw", "spaced", "lower", "upper"])
def test_text_forms_of_words_are_those_of_texts(form: str) -> None:
    tokens = TextTokens(loaded("mistral_sentencepiece"), text_form=form, prompt="Said before:")
    words = WordTokens(tokens)
    assert words.is_incremental
    np.testing.assert_array_equal(words.extend(tuple(WORDS)), tokens.encode([" ".join(WORDS)])[0])


def test_a_form_that_closes_sentences_takes_whole_prefixes() -> None:
    tokens = TextTokens(bpe(), text_form="sentence")
    words = WordTokens(tokens)
    assert not words.is_incremental
    assert "otherwise than word by word" in words.refusal
    np.testing.assert_array_equal(words.extend(("a", "girl")), tokens.tokenizer(" A girl.")["input_ids"])


def test_a_tokenizer_that_merges_across_spaces_takes_whole_prefixes() -> None:
    tokenizer = across_spaces()
    tokens = TextTokens(tokenizer)
    words = WordTokens(tokens)
    assert not words.is_incremental
    assert "holds parts of two words" in words.refusal
    of, of_the = words.extend(("of",)), words.extend(("of", "the"))
    np.testing.assert_array_equal(of_the, tokens.encode(["of the"])[0])
    assert list(of_the[: len(of)]) != list(of)  # what was scored for "of" is no prefix of "of the"


def test_ids_that_are_unequal_in_use_are_replaced_and_counted() -> None:
    """A normaliser that reads two words as one: neither the vocabulary nor the probes of the check on load show it."""
    tokenizer = bpe()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("girl town", "girltown")
    tokens = TextTokens(tokenizer)
    words = WordTokens(tokens)
    assert words.is_incremental
    rng = random.Random(2)
    prefixes = [(*rng.choices(["once", "upon", "met", "of"], k=6), "girl", "town") for _ in range(600)]
    equal = [list(words.extend(p)) == tokens.encode([" ".join(p)])[0].tolist() for p in prefixes]
    assert words.num_unequal == words.num_checked == sum(equal) > 0
    again = WordTokens(tokens)
    for prefix in reversed(prefixes):  # which prefixes are drawn does not depend on the order
        np.testing.assert_array_equal(words.extend(prefix), again.extend(prefix))


def test_a_word_that_merges_with_the_one_before_has_no_ids_of_its_own() -> None:
    tokenizer = bpe()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a girl", "agirl")
    tokens = TextTokens(tokenizer)
    words = WordTokens(tokens)
    assert words.is_incremental
    np.testing.assert_array_equal(words.extend(("a", "girl")), tokens.encode(["a girl"])[0])


@pytest.mark.parametrize("name", ["shipped_lm", "mistral_sentencepiece", "whisper_multilingual_ranks"])
def test_chinese_and_japanese_prefixes_grow_by_characters(name: str) -> None:
    tokens = TextTokens(loaded(name))
    words = WordTokens(tokens, segmentation="characters")
    units = split_words("\u6211\u7528 iPhone\u6253\u7535\u8bdd \u3053\u308c\u306f OK \u3067\u3059", "characters")
    for end in range(1, len(units) + 1):
        text = join_words(units[:end], "characters")
        np.testing.assert_array_equal(words.extend(units[:end]), tokens.encode([text])[0])
    assert words.is_incremental == (name == "shipped_lm")


def test_unknown_segmentations_are_refused() -> None:
    with pytest.raises(ValueError, match="segmentation 'syllables' is unknown; choose one of spaces, characters"):
        WordTokens(TextTokens(bpe()), segmentation="syllables")
