import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from real import real
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from ctxasr_ray import text

CASES = [
    ("none", "\ufeffThe  Cat,\tsat\n", "The Cat, sat"),
    ("none", "nan", "nan"),
    ("basic", "Don't [noise] <unk> (aside) STOP!", "don t stop"),
    ("basic", "ｆｕｌｌ ｗｉｄｔｈ", "full width"),
    ("basic", "हिन्दी भाषा।", "हिन्दी भाषा"),
    ("basic", "\u200fשלום, עולם\u200f!", "שלום עולם"),
    ("basic", "می\u200cخواهم", "می\u200cخواهم"),
    ("basic", "สวัสดี", "สวัสดี"),
    ("whisper_english", "Mr. O'Neil can't pay twenty dollars for the colour theatre", None),
    ("librispeech", "Don’t STOP -- e.g. 'tis CAFÉ 12", "don't stop e g 'tis café 12"),
    ("mandarin", "我想喝Ｃｏｆｆｅｅ，don't 吗？", "我 想 喝 coffee don't 吗"),
    ("mandarin", "2020年", "2020 年"),
    ("mandarin", "こんにちは", "こ ん に ち は"),
]


@pytest.mark.parametrize(("normaliser", "raw", "expected"), [case for case in CASES if case[2] is not None])
def test_normalised_words(normaliser: str, raw: str, expected: str) -> None:
    assert text.normalise(raw, normaliser) == expected
    assert text.words(raw, normaliser) == expected.split()


@pytest.mark.parametrize("normaliser", text.NORMALISERS)
@given(raw=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_words_are_separated_by_one_space_with_none_around(normaliser: str, raw: str) -> None:
    normal = text.normalise(raw, normaliser)
    assert normal == " ".join(normal.split())


@pytest.mark.parametrize("normaliser", ["none", "basic", "librispeech", "mandarin"])
@given(raw=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_normalising_twice_changes_nothing(normaliser: str, raw: str) -> None:
    once = text.normalise(raw, normaliser)
    assert text.normalise(once, normaliser) == once


@pytest.mark.parametrize("normaliser", text.NORMALISERS)
def test_a_byte_order_mark_is_no_part_of_a_text(normaliser: str) -> None:
    assert text.normalise("\ufeffhello you", normaliser) == text.normalise("hello you", normaliser)


def test_characters_hold_the_space_between_words_but_not_the_spaces_that_mandarin_puts() -> None:
    assert text.characters("a  b\u0301", "none") == ["a", " ", "b", "\u0301"]
    assert text.characters("我 想喝ok", "mandarin") == ["我", "想", "喝", "o", "k"]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'whisper' is unknown; choose one of none, basic, whisper_english"):
        text.normalise("a", "whisper")
    with pytest.raises(ValueError, match="unit 'phone' is unknown; choose word or character"):
        text.units(["a"], "none", "phone")


def test_units_keep_order_and_repeats() -> None:
    assert text.units(["B", "a", "B"], "basic", "word") == ["b", "a", "b"]
    assert text.units(["\u00e9 \u2003x", "plain  one"], "none", "word") == ["\u00e9 x", "plain  one"]


ENGLISH = [
    "Mr. O'Neil can't pay $20 for the colour theatre, three hundred and five euros!",
    "She'd been to St. John's -- um, uh -- nineteen seventy-two; that's 50% more, isn't it?",
    "[laughter] (sighs) <unk> y'all gonna analyse the aeroplane's manoeuvre",
    "one oh one, double five seven, twenty-first century, the two hundred and first",
    "Dr. and Mrs. Müller's naïve café costs €3.50 or ¢99, 1,000,000 times",
    "minus twenty point five per cent and a half",
    "",
]


@pytest.mark.parametrize("raw", ENGLISH)
def test_whisper_english_equals_the_normaliser_of_the_whisper_package(raw: str) -> None:
    whisper = pytest.importorskip("whisper.normalizers")
    assert text.normalise(raw, "whisper_english") == " ".join(whisper.EnglishTextNormalizer()(raw).split())


_LINES = (
    "the a Mr. can't colour's centre twenty one two hundred thousand and half double point o'clock $5 3.5 50%",
    "analysed we'd been it's gone um hmm n't minus plus first ninth tenths per cent dollars cents pounds 1,000 café",
)
_ENGLISH_WORDS = st.lists(st.sampled_from([word for line in _LINES for word in line.split()]), max_size=12)


@given(words=_ENGLISH_WORDS)
@settings(max_examples=300, deadline=None)
def test_whisper_english_equals_whisper_on_random_english(words: list[str]) -> None:
    whisper = pytest.importorskip("whisper.normalizers")
    raw = " ".join(words)
    assert text.normalise(raw, "whisper_english") == " ".join(whisper.EnglishTextNormalizer()(raw).split())


_PLAIN_WORDS = st.sampled_from(
    [
        "and",
        "a",
        "half",
        "colour",
        "um",
        "mr",
        "st",
        "two",
        "oh",
        "o",
        "second",
        "per",
        "cent",
        "cats",
        "dont",
        "centre",
    ]
)


@given(words=st.lists(_PLAIN_WORDS | st.text("abcot ", max_size=5), max_size=8), upper=st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_short_cut_for_plain_words_changes_nothing(words: list[str], upper: bool) -> None:
    whisper = pytest.importorskip("whisper.normalizers")
    raw = " ".join(words).upper() if upper else " ".join(words)
    assert text.normalise(raw, "whisper_english") == " ".join(whisper.EnglishTextNormalizer()(raw).split())


_NAME_PARTS = "a1 1st 20 3.5 5% $4 mr one half and colour Café Jean-Luc i'ma n't um hmm be st 's (x) <m>r ½ É"
_NAMES = st.sampled_from(_NAME_PARTS.split(" "))


@given(words=st.lists(_NAMES | st.text("ab1'. é", max_size=5), max_size=8), joint=st.sampled_from([" ", "", "-", " '"]))
@settings(max_examples=600, deadline=None)
def test_the_short_cuts_for_names_change_nothing(words: list[str], joint: str) -> None:
    normalise = EnglishTextNormalizer(text.american_spellings())
    raw = joint.join(words)
    assert text.normalise(raw, "whisper_english") == " ".join(normalise(raw).split())


def test_the_short_cut_changes_no_librispeech_reference() -> None:
    whisper = pytest.importorskip("whisper.normalizers").EnglishTextNormalizer()
    for line in real("is21/ref/test-clean.biasing_100.tsv").read_text("utf-8").splitlines()[:600]:
        raw = line.split("\t")[1]
        assert text.normalise(raw, "whisper_english") == " ".join(whisper(raw).split())


def test_spellings_are_those_of_the_whisper_package_less_its_two_broken_entries() -> None:
    whisper = pytest.importorskip("whisper.normalizers.english")
    theirs = dict(whisper.EnglishSpellingNormalizer().mapping)
    assert theirs.pop("flyer / flier") == "flier / flyer"  # no word has spaces
    assert theirs.pop("archaeology") == "archeology</span>"  # a slip in the list that the package ships
    assert text.american_spellings() == theirs | {"archaeology": "archeology"}


@given(raw=st.text(st.characters(codec="ascii"), max_size=60))
@example("a(b)c [d e")
@settings(max_examples=200, deadline=None)
def test_basic_equals_whispers_basic_normaliser_on_ascii(raw: str) -> None:
    whisper = pytest.importorskip("whisper.normalizers")
    assert text.normalise(raw, "basic") == " ".join(whisper.BasicTextNormalizer()(raw).split())


def test_basic_keeps_marks_that_whispers_basic_normaliser_turns_into_spaces() -> None:
    """Whisper cuts Hindi words at every vowel sign, which makes their WER meaningless (openai/whisper#858)."""
    hindi = "हिन्दी"
    assert any(unicodedata.category(c).startswith("M") for c in hindi)
    assert text.words(hindi, "basic") == [hindi]


def test_the_spelling_asset_is_ascii_and_small() -> None:
    asset = Path(text.__file__).parent / "assets/text/british_spellings.txt"
    assert asset.read_bytes().isascii()
    assert len(text.american_spellings()) > 1700
