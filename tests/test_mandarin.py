"""The synthetic Mandarin corpus: sentences, names that sound alike, splits that share none, characters that suffice."""

import json
import random
from pathlib import Path

import pytest
from real import real

from ctxasr_ray.cli import main
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


def _evaluated(capsys: pytest.CaptureFixture[str], *options: str) -> dict[tuple[str, str], dict[str, object]]:
    """(system, metric) -> the record of test."""
    words = ["evaluate", "mandarin", "--root", "run", "--json", "--executor", "inline", "--num-replicates", "100"]
    assert main([*words, *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {(r["system"], r["metric"]): r for r in records if r["split"] == "test"}


def test_the_shipped_recogniser_writes_characters_and_a_list_tells_names_of_one_sound_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    found = _evaluated(capsys, "--synthetic.num-test", "12")
    plain, listed = (found[system, "wer"] for system in ("first_pass", "keyword_boost/list_100"))
    assert plain["value"] < 0.4
    assert listed["value"] < plain["value"]
    assert found["keyword_boost/list_100", "keyword_recall"]["value"] > 0.5
    said = [json.loads(row)["text"] for row in next((tmp_path / "runs").rglob("manifest.jsonl")).open(encoding="utf-8")]
    assert plain["counts"]["reference_length"] == sum(len(words(text, "mandarin")) for text in said)
    assert not any(metric == "rare_wer" for _, metric in found), "no list says which characters are rare"


def test_a_real_utterance_goes_the_whole_way_and_characters_beyond_the_recogniser_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = real("short")
    rows = [json.loads(row) for row in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    (row,) = [row for row in rows if row["utterance_id"] == "BAC009S0724W0121"]
    row |= {"audio_filepath": str(folder / row["audio_filepath"]), "keywords": ["广州市"]}
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    found = _evaluated(capsys, "--manifest", "one.jsonl")
    assert found["first_pass", "wer"]["counts"]["reference_length"] == len("广州市房地产中介协会分析")
    assert found["first_pass", "cer"]["num_failed"] == 0
    assert "'广州市'" in (tmp_path / "run" / "report" / "findings.json").read_text("utf-8")
