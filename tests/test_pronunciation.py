import ctypes
import random
import threading
from pathlib import Path

import pytest

from ctxasr_ray.keywords.pronunciation import ARPABET, IPA_TO_ARPABET, arpabet, phonemes

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra speech-synthesis)")


def test_a_made_up_word_is_spelt_in_arpabet() -> None:
    assert arpabet("zimbrato") == "Z IH M B R AA T OW"
    assert arpabet("Quixby-Jones") == "K W IH K S B IY JH OW N Z"
    assert arpabet("covid 19") == "K AA V IH D N AY N T IY N"


def test_the_table_uses_the_phones_of_the_cmu_dictionary_and_no_others() -> None:
    assert {phone for phones in IPA_TO_ARPABET.values() for phone in phones.split()} == ARPABET


def test_another_library_handle_in_the_process_changes_nothing() -> None:
    import espeakng_loader

    assert phonemes("go") == ("ɡ", "oʊ")
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    assert library.espeak_SetVoiceByName(b"en+f4") == 0
    assert phonemes("go") == ("ɡ", "oʊ")


def test_text_after_a_full_stop_is_not_lost_and_stress_marks_are() -> None:
    assert phonemes("go. go") == ("ɡ", "oʊ", "ɡ", "oʊ")
    assert phonemes("") == ()


def test_a_language_switch_inside_a_line_leaves_no_flag() -> None:
    assert not [phone for phone in phonemes("我爱 Berlin", "cmn") if "(" in phone or phone == "en"]


@pytest.mark.parametrize("word", ["北京", "Москва", "...", ""])
def test_what_cannot_be_pronounced_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"Latin letters|nothing to pronounce"):
        arpabet(word)


def test_an_unknown_voice_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="'xx-nowhere'"):
        phonemes("go", "xx-nowhere")


def test_threads_wait_for_each_other() -> None:
    expected = arpabet("perambulation")
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda: got.extend(arpabet("perambulation") for _ in range(50))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 200


def test_pronunciations_are_near_those_of_the_cmu_dictionary() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (its dictionary is read)")
    from rapidfuzz.distance import Levenshtein

    lines = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    spoken = {word: phones for word, *phones in map(str.split, lines) if word.isalpha()}
    words = random.Random(3).sample(sorted(spoken), 1000)
    ours = {word: arpabet(word).split() for word in words}
    errors = sum(Levenshtein.distance(ours[word], spoken[word]) for word in words)
    assert errors / sum(len(spoken[word]) for word in words) < 0.12
    assert sum(ours[word] == spoken[word] for word in words) > 500
