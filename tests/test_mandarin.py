"""The synthetic Mandarin corpus: sentences, names that sound alike, splits that share none, characters that suffice."""

import random

import pytest

from ctxasr_ray.corpora.mandarin import MAX_CHARACTERS, MIN_CHARACTERS, NAMES, MandarinConfig, characters, names
from ctxasr_ray.text import is_ideographic, words


def test_a_sentence_is_a_function_of_seed_split_and_index_and_holds_its_names_without_spaces() -> None:
    config, again, other = MandarinConfig(), MandarinConfig(), MandarinConfig(seed=8)
    sentences = [config.sentence("dev", index) for index in range(60)]
    assert sentences == [again.sentence("dev", index) for index in range(60)]
    assert sentences != [other.sentence("dev", index) for index in range(60)]
    for sentence in sentences:
        assert MIN_CHARACTERS <= len(sentence.text) <= MAX_CHARACTERS
        assert " " not in sentence.text
        assert sentence.keywords
        assert all(keyword in sentence.text for keyword in sentence.keywords)


@pytest.mark.parametrize("one", NAMES)
def test_names_of_a_split_stand_in_no_other_and_are_as_many_as_stated(one: str) -> None:
    own = MandarinConfig().rare_words(one)
    assert all(len(set(made)) == NAMES[one] for made in names(7)[one].values())
    assert not any(own & MandarinConfig().rare_words(other) for other in NAMES if other != one)


def test_a_recogniser_that_writes_the_listed_characters_can_write_every_sentence_and_every_phrase() -> None:
    known, config, rng = set(characters()), MandarinConfig(), random.Random(3)
    assert "".join(sorted(known)) == characters()
    for split in NAMES:
        assert all(set(config.sentence(split, index).text) <= known for index in range(40))
        assert all(set(config.phrase(rng, split)) <= known for _ in range(200))


def test_sentences_mix_ideographs_with_latin_words_which_stay_whole_in_mixed_error_rate() -> None:
    found = [words(MandarinConfig().sentence("test", index).text, "mandarin") for index in range(120)]
    latin = {word for sentence in found for word in sentence if not is_ideographic(word)}
    assert "email" in latin
    assert all(word.isascii() for word in latin)
    assert all(len(word) == 1 for sentence in found for word in sentence if word not in latin)
