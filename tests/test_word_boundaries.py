"""Which words of a label sequence are complete, for every convention that tokenizers have."""

import random
from pathlib import Path

import pytest
import tiny_seq2seq
import transformers as tf
from test_word_tokens import loaded
from tiny_ctc import LETTERS, save_letters

from ctxasr_ray.models import checkpoint
from ctxasr_ray.models.ctc_vocabulary import Vocabulary, vocabulary
from ctxasr_ray.models.seq2seq_tokens import Seq2SeqTokens
from ctxasr_ray.models.word_boundaries import WordBoundaries, join_words, segmentation_of, split_words


def of(*pieces: str, segmentation: str = "spaces") -> WordBoundaries:
    return WordBoundaries.of_ctc(Vocabulary(pieces=("", *pieces), blank_id=0, suppressed=()), segmentation=segmentation)


def test_characters_with_a_space_label() -> None:
    found = of(" ", "a", "b")
    assert found.completes.tolist() == [False, True, False, False]
    assert found.starts.tolist() == [False, False, False, False]
    assert found.ends.tolist() == [False, True, False, False]
    assert found.complete_words([2, 3]) == ((), "ab")
    assert found.complete_words([2, 3, 1]) == (("ab",), "")
    assert found.complete_words([1, 2, 3, 1, 1, 2]) == (("ab",), "a")
    assert found.complete_words([]) == ((), "")
    assert found.words([2, 3, 1, 2]) == ("ab", "a")


def test_word_start_pieces_are_one_word_late() -> None:
    found = of(" the", " ca", "t", " ")
    assert found.completes.tolist() == [False, True, True, False, True]
    assert found.starts.tolist() == [False, True, True, False, False]
    assert not found.ends[:4].any()
    assert found.complete_words([1, 2, 3]) == (("the",), "cat")
    assert found.complete_words([1, 2, 3, 1]) == (("the", "cat"), "the")
    assert found.complete_words([1, 2, 3, 4]) == (("the", "cat"), "")  # a lone word start writes no word itself


def test_word_end_pieces_are_not_late() -> None:
    found = of("the ", "ca", "t ")
    assert found.ends.tolist() == [False, True, False, True]
    assert not found.starts.any()
    assert found.complete_words([1, 2]) == (("the",), "ca")
    assert found.complete_words([1, 2, 3]) == (("the", "cat"), "")


def test_a_piece_of_two_words_completes_the_first() -> None:
    found = of(" of the", "m")
    assert found.completes.tolist() == [False, True, False]
    assert found.complete_words([1, 2]) == (("of",), "them")


def test_chinese_characters_are_words_and_latin_runs_end_before_them() -> None:
    found = of("\u4f60", "\u597d", "o", "k", " ", segmentation="characters")
    assert found.completes.tolist() == [False, True, True, False, False, True]
    assert found.ends.tolist() == [False, True, True, False, False, True]
    assert found.complete_words([1, 3]) == (("\u4f60",), "o")
    assert found.complete_words([1, 3, 4, 2]) == (("\u4f60", "ok", "\u597d"), "")
    assert found.complete_words([3, 4, 5, 4]) == (("ok",), " k")
    assert found.words([3, 4, 5, 4]) == ("ok", " k")


@pytest.mark.parametrize("segmentation", ["spaces", "characters"])
def test_joined_words_are_the_text(segmentation: str) -> None:
    text = "\u6211\u7528 iPhone 15\u6253\u7535\u8bdd \u3053\u308c\u306f OK fine \u3067\u3059\u3002"
    words = split_words(f"  {text}  ", segmentation)
    assert join_words(words, segmentation) == text
    assert len(words) == {"spaces": 7, "characters": 15}[segmentation]


def test_languages_name_their_segmentation() -> None:
    names = {language: segmentation_of(language) for language in ("en", None, "zh", "zh-CN", "ja_JP", "de", "ko")}
    assert names == {
        "en": "spaces",
        None: "spaces",
        "zh": "characters",
        "zh-CN": "characters",
        "ja_JP": "characters",
        "de": "spaces",
        "ko": "spaces",
    }
    with pytest.raises(ValueError, match="segmentation 'syllables' is unknown"):
        split_words("a b", "syllables")


def assert_masks_tell_the_truth(found: WordBoundaries, rng: random.Random, written: list[int], text: object) -> None:
    """The masks against the words, and the words against the text, on label sequences that grow."""
    for _ in range(20):
        ids: list[int] = []
        for token in rng.choices(written, k=12):
            before, rest = found.complete_words(ids)
            ids.append(token)
            after, open_word = found.complete_words(ids)
            assert after[: len(before)] == before
            if len(after) > len(before):
                assert found.completes[token] or found.ends[token]
            if found.completes[token] and rest.strip() and found.decode is None:
                assert len(after) > len(before)
            if found.ends[token] and found.decode is None:
                assert open_word == ""
            joined = join_words(found.words(ids), found.segmentation)
            assert joined == " ".join(text(ids).split())  # type: ignore[operator]


def place(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(name="t", directory=folder, commit=None, weight_files=(), tokenizer_files=())


@pytest.mark.parametrize("segmentation", ["spaces", "characters"])
@pytest.mark.parametrize("name", ["shipped_lm", "byte_level_bpe", "mistral_sentencepiece"])
def test_real_vocabularies_agree_with_their_decoders(name: str, segmentation: str, tmp_path: Path) -> None:
    tokenizer = loaded(name)
    num_labels, rng = len(tokenizer), random.Random(3)
    labels = vocabulary(place(tmp_path), tokenizer, num_labels, blank_id=0)
    found = WordBoundaries.of_ctc(labels, segmentation)
    written = [v for v in range(1, num_labels) if v not in labels.suppressed]
    assert_masks_tell_the_truth(found, rng, rng.sample(written, min(60, len(written))), labels.text)


def test_a_word_delimiter_ends_words(tmp_path: Path) -> None:
    save_letters(tmp_path)
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
    labels = vocabulary(place(tmp_path), tokenizer, len(LETTERS), blank_id=0)
    found = WordBoundaries.of_ctc(labels)
    assert [LETTERS[v] for v in found.ends.nonzero()[0]] == ["|"]
    ids = [LETTERS.index(letter) for letter in "it's|all"]
    assert found.complete_words(ids) == (("it's",), "all")


@pytest.mark.parametrize("name", ["characters_with_spaces", "whisper_multilingual_ranks"])
def test_attention_decoders_have_the_boundaries_of_their_texts(name: str) -> None:
    tokenizer = tiny_seq2seq.tokenizer() if name == "characters_with_spaces" else loaded(name)
    end = tokenizer.eos_token_id
    generation = tf.GenerationConfig(decoder_start_token_id=end, eos_token_id=end)
    tokens = Seq2SeqTokens(tokenizer, generation, tf.PreTrainedConfig(), len(tokenizer))
    found = WordBoundaries.of_attention(tokens)
    assert found.pieces[end] == ""
    ids = [
        int(token)
        for text in ("on", " a", " map", " ")
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    assert found.complete_words(ids[:-1]) == (("on", "a"), "map")
    assert found.complete_words(ids) == (("on", "a", "map"), "")
    assert "".join(found.pieces[token] for token in ids) == "on a map "
    written = [v for v in range(len(tokenizer)) if not tokens.suppressed[v] and v != end]
    rng = random.Random(4)
    assert_masks_tell_the_truth(found, rng, rng.sample(written, min(60, len(written))), tokens.text)


def test_bytes_of_a_character_may_complete_it(tmp_path: Path) -> None:
    tokenizer = loaded("byte_level_bpe")
    labels = vocabulary(place(tmp_path), tokenizer, len(tokenizer), blank_id=0)
    found = WordBoundaries.of_ctc(labels, segmentation="characters")
    ids = tokenizer("\u4f60\u597d", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert found.complete_words(ids) == (("\u4f60", "\u597d"), "")
    assert found.complete_words(ids[:5])[0] == ("\u4f60",)
    assert found.completes[ids].all()
    assert found.ends[ids].all()
