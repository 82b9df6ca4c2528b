import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions, catalogue, load
from ctxasr_ray.keywords.phrase_entries import Entry
from ctxasr_ray.keywords.phrase_files import format_of, read_entries, read_lists
from ctxasr_ray.report.odd_phrases import odd_phrases
from tests.real import real

PHRASES = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=30)


def _findings(found: Catalogue) -> dict[str, int]:
    return {finding.kind: finding.count for finding in found.findings}


def _written(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "format", "content"),
    [
        ("a.txt", None, "Zimbrato\r\nnew york\n"),
        ("a.tsv", None, "Zimbrato\t2.5\nnew york\t1\n"),
        ("a.conf", "nemo", "Zimbrato_zim brato_zimbratto\nnew york\t1\n"),
        ("a.conf", "sherpa", "Zimbrato :2.5\nnew york\n"),
        ("a.json", None, '["Zimbrato", {"phrase": "new york", "score": 1}]'),
        ("a.json", None, '{"Zimbrato": 2.5, "new york": null}'),
        ("a.jsonl", None, '"Zimbrato"\n{"phrase": "new york"}\n'),
        ("a.tsv", "is21", 'u1\tref\t[]\t["Zimbrato"]\nu2\tref\t[]\t["new york", "Zimbrato"]\n'),
        ("a.txt", None, "\ufeffZimbrato\nnew york"),
        ("a.txt", None, "Zimbrato\rnew york\r"),
        ("a.tsv", None, "Zimbrato\t2.5\rnew york\t1"),
        ("a.jsonl", None, '"Zimbrato"\r"new york"\r'),
    ],
)
def test_every_format_gives_the_same_two_phrases(tmp_path: Path, name: str, format: str | None, content: str) -> None:
    found = load(_written(tmp_path, name, content), format=format)
    assert set(found.phrases) == {"Zimbrato", "new york"}
    assert set(found.normalised) == {"zimbrato", "new york"}
    assert found.findings == ()


def test_scores_and_spellings_come_along(tmp_path: Path) -> None:
    scored = load(_written(tmp_path, "a.tsv", "zimbrato\t2.5\n"))
    assert scored.scores.tolist() == [2.5]
    nemo = load(_written(tmp_path, "b", "gpu_g p u_gee pee you\t3\n"), format="nemo")
    assert nemo.spellings == (("g p u", "gee pee you"),)
    assert nemo.scores.tolist() == [3.0]
    sherpa = load(_written(tmp_path, "c", "hello world :1.5\nplain\n"), format="sherpa")
    by_phrase = dict(zip(sherpa.phrases, sherpa.weights().tolist(), strict=True))
    assert by_phrase == {"hello world": 1.5, "plain": 1.0}


@pytest.mark.parametrize(
    ("name", "format", "content", "says"),
    [
        ("a.txt", None, "good\nzimbrato\t2.5\n", "line 2: 'zimbrato\\t2.5' holds the control character '\\t'"),
        ("a.txt", None, "good\rzimbrato\t2.5\r", "line 2: 'zimbrato\\t2.5' holds the control character '\\t'"),
        ("a.txt", "sherpa", "zimbrato\t2.5\n", "--catalogue-format scored"),
        ("a.txt", "sherpa", "good\n\u2581ZIM BRATO :2.5\n", "line 2: has #threshold, @name or \u2581"),
        ("a.txt", "nemo", "good\nzimbrato :2.0\n", "line 2: 'zimbrato :2.0' ends like a score of sherpa"),
        ("a.txt", "nemo", "good\n_zim_brato\n", "line 2: '_zim_brato' has no phrase before"),
        ("a.txt", None, "good\nzim\x01brato\n", "line 2: 'zim\\x01brato' holds the control character"),
        ("a.txt", None, b"good\nzim\0brato\n", "line 2: a NUL byte"),
        ("a.txt", None, "zimbrato\n".encode("utf-16-le"), "UTF-16"),
        ("a.json", None, '["zim\\nbrato"]', "control character"),
        ("a.json", None, '{"zim\\ud800": 1}', "surrogate"),
        ("a.json", None, '[{"phrase": "x", "spellings": ["\\ud800"]}]', "surrogate"),
        (
            "a.json",
            None,
            f'{{"zimbrato": 1{"0" * 400}}}',
            "score inf of 'zimbrato' is not a finite number up to 3.4e+38",
        ),
        ("a.json", None, f'["good", {{"phrase": "x", "score": 1{"0" * 5000}}}]', "score inf of 'x'"),
        ("a.json", None, '[{"phrase": "x", "phrase": "y"}]', "stands twice"),
        ("a.tsv", None, "good\t3e38\nzimbrato\t1e39\n", "line 2: score '1e39' of 'zimbrato' is not a finite number"),
        ("a.conf", "sherpa", "zimbrato :1e39\n", "line 1: score '1e39' of 'zimbrato'"),
        ("a.conf", "nemo", "zimbrato_zim\t-1e39\n", "line 1: score '-1e39' of 'zimbrato'"),
        ("a.txt", None, "zimbrato :2.5\n", "--catalogue-format sherpa"),
        ("a.tsv", None, "zimbrato\n", "1 column"),
        ("a.tsv", None, "good\t1\nzimbrato\tnan\n", "line 2: score 'nan' of 'zimbrato' is not a finite"),
        ("a.tsv", None, "zimbrato\tinf\n", "finite"),
        ("a.tsv", None, "zimbrato\thigh\n", "finite"),
        ("a.tsv", None, 'u1\tref\t[]\t["x"]\n', "format is21"),
        ("a.tsv", "is21", "zimbrato\t1\n", "expected 4"),
        ("a.tsv", "is21", "u\tref\t[]\tzimbrato\n", "line 1: is no JSON"),
        ("a.conf", "sherpa", "h e l l o :1.5 #0.25 @HELLO\n", "keyword spotter"),
        ("a.json", None, '["zimbrato", 3]', "3 is no phrase"),
        ("a.json", None, '{"u1": ["zimbrato"]}', "one list per utterance"),
        ("a.json", None, '[{"phrase": "x", "boost": 3}]', "unknown keys"),
        ("a.json", None, '[{"phrase": "x", "score": NaN}]', "finite"),
        ("a.json", None, '["\\ud800"]', "surrogate"),
        ("a.json", None, "[" * 100_000, "is no JSON"),
        ("a.jsonl", None, '"good"\n"bad\n', "line 2: is no JSON"),
        ("a.txt", None, b"good\nM\xfcller\n", "line 2: byte 0xfc"),
        ("a.txt", None, "zimbrato".encode("utf-16"), "UTF-16"),
        ("a.list", None, "zimbrato\n", "extension tells no format"),
        ("a.txt", "plain", "zimbrato\n", "format 'plain' is unknown"),
    ],
)
def test_a_broken_list_is_refused_with_line_and_remedy(
    tmp_path: Path, name: str, format: str | None, content: str | bytes, says: str
) -> None:
    with pytest.raises(ValueError, match="phrase list") as refused:
        load(_written(tmp_path, name, content), format=format)
    assert says in str(refused.value)


def test_a_missing_list_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load(str(tmp_path / "gone.txt"))


def test_lists_per_utterance_are_read_and_checked(tmp_path: Path) -> None:
    assert format_of("lists.tsv", None, lists=True) == "is21"
    data = json.dumps({"u1": ["zimbrato", {"phrase": "x", "score": 2}], "u2": []}).encode()
    lists = read_lists(data, "a.json", "json")
    assert lists == {"u1": [Entry(0, "zimbrato"), Entry(0, "x", 2.0)], "u2": []}
    lines = b'{"utterance_id": "u1", "phrases": ["a"]}\n{"utterance_id": "u1", "phrases": []}\n'
    with pytest.raises(ValueError, match="line 2: utterance_id 'u1' stands twice"):
        read_lists(lines, "a.jsonl", "json")
    with pytest.raises(ValueError, match="'u1' stands twice"):
        read_lists(b'{"u1": ["a"], "u1": ["b"]}', "a.json", "json")
    with pytest.raises(ValueError, match="surrogate"):
        read_lists(b'{"u\\ud800": ["a"]}', "a.json", "json")
    with pytest.raises(ValueError, match="has one list"):
        format_of("lists.txt", "lines", lists=True)


def test_odd_entries_are_named_counted_and_treated_as_stated() -> None:
    given = [
        *("", "  ", "\U0001f600", "!!!", "Zimbrato", "zimbrato.", "new york", "newyork", "new-york", "the", "x"),
        *("\u043f\u0440\u0438\u0432\u0435\u0442 you", "\u6771\u4eac\u30bf\u30ef\u30fc", " ".join(["word"] * 200)),
    ]
    found = catalogue(given, "basic", common_words=["The"])
    assert _findings(found) == {
        "blank": 2,
        "lost_in_normalising": 2,
        "duplicate": 2,  # zimbrato and new-york
        "near_duplicate": 1,
        "common_word": 1,
        "one_character": 1,
        "long": 1,
        "mixed_scripts": 1,
    }
    assert len(found) == len(given) - 2 - 2 - 2
    assert {"the", "x", "newyork"} <= set(found.normalised)
    assert "Zimbrato" in found.phrases
    assert "zimbrato." not in found.phrases
    assert str(next(f for f in found.findings if f.kind == "duplicate")) == "duplicate: 2 ('zimbrato.', 'new-york')"


@pytest.mark.parametrize(
    ("name", "format", "content"),
    [
        ("a.json", None, '{"Zimbrato": 2.5, "Zimbrato": 9, "x y": 1}'),
        ("a.tsv", "is21", 'u1\tr\t[]\t[{"phrase": "Zimbrato", "score": 1}, "x y"]\n'
         'u2\tr\t[]\t["x y", {"phrase": "Zimbrato", "score": 9}]\n'),
    ],
)  # fmt: skip
def test_a_phrase_with_two_scores_in_one_file_is_counted(
    tmp_path: Path, name: str, format: str | None, content: str
) -> None:
    found = load(_written(tmp_path, name, content), format=format)
    assert _findings(found) == {"conflicting_scores": 1, "duplicate": 1}
    assert found.scores[found.id_of("zimbrato")] == 9.0


def test_a_list_of_nemo_read_as_lines_is_reported(tmp_path: Path) -> None:
    path = _written(tmp_path, "a.txt", "mocha_moka_mocka\nlatte\n")
    assert _findings(load(path)) == {"looks_like_nemo": 1}
    (shown,) = odd_phrases([CatalogueOptions(catalogue=path)])
    assert "mocha_moka_mocka" in shown.where
    assert "--catalogue-format nemo" in shown.remedy
    assert load(path, format="nemo").findings == ()


def test_of_duplicates_with_different_scores_the_highest_is_carried() -> None:
    entries = [Entry(1, "Zimbrato", 1.0), Entry(2, "zimbrato", 3.0, ("zim",)), Entry(3, "zimbrato"), Entry(4, "x", 2.0)]
    for shuffled in (entries, entries[::-1]):
        found = catalogue(shuffled)
        assert found.scores[found.id_of("ZIMBRATO")] == 3.0
        assert found.spellings[found.id_of("zimbrato")] == ("zim",)
        assert _findings(found)["conflicting_scores"] == 1


def test_an_empty_list_is_a_catalogue_without_phrases(tmp_path: Path) -> None:
    found = load(_written(tmp_path, "a.txt", ""))
    assert len(found) == 0
    assert _findings(found)["no_phrases"] == 1


@settings(deadline=None)
@given(PHRASES, st.randoms(use_true_random=False))
def test_order_depends_on_the_phrases_alone(phrases: list[str], rng: random.Random) -> None:
    found = catalogue(phrases, "basic")
    shuffled = phrases.copy()
    rng.shuffle(shuffled)
    assert catalogue(shuffled, "basic").normalised == found.normalised
    fewer = [phrase for phrase in phrases if rng.random() < 0.5]
    chosen = set(catalogue(fewer, "basic").normalised)
    assert tuple(phrase for phrase in found.normalised if phrase in chosen) == catalogue(fewer, "basic").normalised


@settings(deadline=None)
@given(PHRASES)
def test_nothing_is_dropped_without_a_finding(phrases: list[str]) -> None:
    found = catalogue(phrases, "whisper_english")
    left_out = sum(_findings(found).get(kind, 0) for kind in ("blank", "lost_in_normalising", "duplicate"))
    assert len(found) + left_out == len(phrases)
    assert all(found.normalised)
    assert [found.id_of(phrase) for phrase in found.phrases] == list(range(len(found)))


def test_digest_names_phrases_scores_spellings_and_normaliser() -> None:
    base = catalogue(["a b", "c"])
    assert catalogue(["c", "a b"]).digest == base.digest
    others = [
        catalogue(["a b"]),
        catalogue(["a", "b", "c"]),
        catalogue([Entry(0, "a b", 1.0), "c"]),
        catalogue([Entry(0, "a b", None, ("x",)), "c"]),
        catalogue(["a b", "c"], "basic"),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6


def test_a_list_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = _written(tmp_path, "a.txt", "zimbrato\n")
    first = load(path)
    assert load(path) is first
    _written(tmp_path, "a.txt", "zimbrato\nother\n")
    assert len(load(path)) == 2


def test_rare_words_of_librispeech_lose_nothing_in_silence() -> None:
    path = real("is21/words/all_rare_words.txt")
    lines = path.read_text().split("\n")[:20_000]
    found = catalogue(lines, "librispeech")
    left_out = sum(_findings(found).get(kind, 0) for kind in ("blank", "lost_in_normalising", "duplicate"))
    assert len(found) + left_out == len(lines)


def test_published_lists_hold_a_hundred_distractors_each() -> None:
    path = real("is21/ref/test-clean.biasing_100.tsv")
    lists = read_lists(path.read_bytes(), str(path), "is21")
    assert len(lists) == 2620
    assert min(len(phrases) for phrases in lists.values()) >= 100
    union = read_entries(path.read_bytes(), str(path), "is21")
    assert len(union) == len({entry.phrase for phrases in lists.values() for entry in phrases})


def _calls(num_lines: int) -> int:
    """Python calls that reading so many lines takes, of a kind that no cache knows."""
    lines = "".join(f"{chr(97 + n % 26)}{num_lines + n} Name\n" for n in range(num_lines)).encode()
    entries = read_entries(lines, "a.txt", "lines")
    count = 0

    def counted(frame: object, event: str, _: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        catalogue(entries)
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_with_the_lines_and_few_calls_are_made_for_each() -> None:
    catalogue(["warm 1"])
    few, many = _calls(1_000), _calls(8_000)
    assert many / few < 8.2
    assert many / 8_000 < 100, "Whisper's normaliser alone makes 200 for a name with a digit"


@pytest.mark.slow
def test_a_million_lines_are_read_and_every_one_is_accounted_for(tmp_path: Path) -> None:
    path = _written(tmp_path, "a.txt", "".join(f"phrase {np.base_repr(n, 26).lower()}\n" for n in range(1_000_000)))
    found = load(path, normaliser="basic")
    left_out = sum(_findings(found).get(kind, 0) for kind in ("blank", "lost_in_normalising", "duplicate"))
    assert len(found) + left_out == 1_000_000
