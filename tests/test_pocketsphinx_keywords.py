import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import soundfile
import soxr

from ctxasr_ray.cli import main
from ctxasr_ray.first_pass.pocketsphinx_keywords import PocketSphinxKeywordsConfig
from ctxasr_ray.keywords.catalogue import catalogue
from ctxasr_ray.keywords.phrase_entries import Entry
from ctxasr_ray.models.pocketsphinx_keywords import searchable
from ctxasr_ray.nbest import NBest, read_nbest
from ctxasr_ray.schema import conform
from ctxasr_ray.stage import Costs, StageConfig, identity

pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (extra pocketsphinx)")
pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra speech-synthesis)")

SPOKEN = "please call zimbrato in the morning"
PHRASES = ["zimbrato", "in the morning", "in the evening", "morning", "Peter Zimbrowski", "twenty ounce"]


@functools.cache
def spoken(text: str = SPOKEN, words_per_minute: int = 140) -> npt.NDArray[np.float32]:
    from ctxasr_ray.corpora.espeak import SAMPLE_RATE_HZ, Voice, say

    voice = Voice(accent="en-us", variant="m3", pitch=50, pitch_range=50, words_per_minute=words_per_minute)
    samples = soxr.resample(say(text, voice).astype(np.float32) / 32768, SAMPLE_RATE_HZ, 16000)
    return np.asarray(samples, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keywords")


@pytest.fixture(scope="module")
def stage(folder: Path) -> Any:
    path = folder / "phrases.tsv"
    odd = ["\N{HOT BEVERAGE}", "\u0430\u043d\u043d\u0430", "la " * 200, "q", "coffee \N{HOT BEVERAGE}"]
    scores = {"zimbrato": 1.0}
    path.write_text("".join(f"{phrase}\t{scores.get(phrase, 0.0)}\n" for phrase in [*PHRASES, *odd]))
    return PocketSphinxKeywordsConfig(catalogue=str(path), num_hypotheses=8).build()


@pytest.fixture(scope="module")
def recognised(folder: Path, stage: Any) -> tuple[list[NBest], Costs]:
    waves = {"a": spoken(), "silence": np.zeros(8000, np.float32), "snippet": spoken()[:1000], "nothing": spoken()[:90]}
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, 16000)
    rows = [
        {
            "utterance_id": name,
            "corpus": "made",
            "split": "test",
            "audio_uri": str(folder / f"{name}.wav"),
            "start_s": 0.0,
        }
        for name in waves
    ]
    table = conform(pa.Table.from_pylist(rows), "utterances")
    costs = Costs()
    read = ["utterance_id", *PocketSphinxKeywordsConfig.READS["utterances"]]
    return read_nbest(stage(table.select(read), costs=costs)), costs


def test_phrases_that_the_recogniser_never_heard_of_are_found(recognised: tuple[list[NBest], Costs]) -> None:
    best = recognised[0][0].hypotheses[0].text
    assert "zimbrato" in best.split()
    assert best.endswith("in the morning")


def test_lists_hold_distinct_texts_best_first_with_scores_and_times_of_every_word(
    recognised: tuple[list[NBest], Costs], stage: Any
) -> None:
    (nbest, *_), _ = recognised
    assert len(nbest.hypotheses) == 8
    assert len({h.text for h in nbest.hypotheses}) == 8
    ranks = [h.search_score or 0.0 for h in nbest.hypotheses]
    assert ranks == sorted(ranks, reverse=True)
    for h in nbest.hypotheses:
        words = h.text.split()
        assert [s.source for s in h.scores] == [
            "pocketsphinx_acoustic",
            "pocketsphinx_lm",
            "pocketsphinx_lm/eos",
            "pocketsphinx_search_lm",
            "pocketsphinx_search_lm/eos",
        ]
        assert not any("keyword/" in word for word in words)
        starts, ends = list(h.token_start_s or ()), list(h.token_end_s or ())
        assert list(h.token_words or ()) == list(range(len(words)))
        assert len(starts) == len(ends) == len(words)
        assert all(start < end for start, end in zip(starts, ends, strict=True))
        assert starts == sorted(starts)
        assert all(s.log_prob < 0 for s in h.scores)
        lm = stage._search.language_model.sentence(words)
        assert [s.log_prob for s in h.scores[1:3]] == pytest.approx(list(lm))


def test_the_search_model_gives_keywords_their_share_and_scores_are_nats_between_them(stage: Any) -> None:
    search = stage._search
    prob = {" ".join(e.words): np.exp(search.search_model.log_prob(n, ("<s>",))) for n, e in search.phrases.items()}
    assert sum(prob.values()) == pytest.approx(0.5, rel=1e-3)
    assert prob["zimbrato"] / prob["morning"] == pytest.approx(np.e, rel=1e-3)
    assert prob["twenty ounce"] == pytest.approx(prob["morning"], rel=1e-3)
    assert all(search.search_model.log_prob(word, ("<s>",)) > -7 for word in ("the", "</s>", "and"))


def test_a_phrase_shares_its_time_out_among_its_words_by_their_phones(stage: Any) -> None:
    (name,) = (name for name, e in stage._search.phrases.items() if e.words == ("twenty", "ounce"))
    sizes = stage._search.phrases[name].num_phones
    assert sizes in ((6, 3), (5, 3))  # T W EH N (T) IY, AW N S
    words, start_s, end_s = stage._search.written(["the", name], [0.0, 0.2], [0.2, 0.8])
    assert words == ("the", "twenty", "ounce")
    assert start_s[:2] == (0.0, 0.2)
    assert start_s[2] == end_s[1] == pytest.approx(0.2 + 0.6 * sizes[0] / sum(sizes))
    assert (end_s[0], end_s[2]) == (0.2, 0.8)


def test_odd_phrases_are_left_out_with_their_reason_and_counted(
    recognised: tuple[list[NBest], Costs], stage: Any
) -> None:
    _, costs = recognised
    assert costs.counters["peak_phrases_searched"] == len(PHRASES) + 2  # q and coffee
    named = list(costs.named["unwritable_phrases"])
    assert sorted(one.rsplit(" (", 1)[1] for one in named) == ["too_long)", "unpronounceable)"]
    spoken = {" ".join(e.words) for e in stage._search.phrases.values()}
    assert "coffee" in spoken  # the emoji beside it cannot be said
    reasons = {out.reason: out for out in stage._search.left_out}
    assert "Latin" in reasons["unpronounceable"].message
    assert "expected 1 to 150" in reasons["too_long"].message


def test_a_phrase_is_said_as_its_words_its_other_spellings_or_as_one_says_oneself() -> None:
    entries = [Entry(1, "Dr. Read", None, ("doctor read",)), Entry(2, "zimbrato")]
    dictionary = {"read": ["R EH D", "R IY D"], "dr": ["D R"], "doctor": ["D AA K T ER"]}
    made = searchable(catalogue(entries), dictionary, ("zimbrato=Z IH M",))
    phones = {" ".join(e.words): e.phones for e in made.entries}
    assert phones["zimbrato"] == ("Z IH M",)
    assert phones["dr read"] == ("D R R EH D", "D R R IY D", "D AA K T ER R EH D", "D AA K T ER R IY D")
    assert sum(math.exp(e.log_prior) for e in made.entries) == pytest.approx(1.0)
    assert (len(made.entries), made.left_out) == (2, ())


def test_silence_snippets_and_audio_without_a_frame_are_rows_of_their_own(
    recognised: tuple[list[NBest], Costs],
) -> None:
    _, silence, snippet, nothing = recognised[0]
    assert len(silence.hypotheses) >= 1
    assert len(snippet.hypotheses) == 1
    assert nothing.error_type == "model_limit"


def test_settings_and_lists_that_cannot_work_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("\u0430\u043d\u043d\u0430\n")
    with pytest.raises(ValueError, match="no phrase of the catalogue can be searched"):
        PocketSphinxKeywordsConfig(catalogue=str(path)).fingerprint()
    path.write_text("\U0001f600\n\u2615\n")
    with pytest.raises(ValueError, match=r"phrases.txt': 0 phrases are left of 2 lines, lost_in_normalising: 2 \("):
        PocketSphinxKeywordsConfig(catalogue=str(path)).fingerprint()
    with pytest.raises(ValueError, match="--catalogue"):
        PocketSphinxKeywordsConfig().fingerprint()
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="keyword_share"):
            PocketSphinxKeywordsConfig(keyword_share=share)
    with pytest.raises(ValueError, match="background_words is 0"):
        PocketSphinxKeywordsConfig(background_words=0)
    path = tmp_path / "scored.tsv"
    path.write_text("coffee\tnan\n")
    with pytest.raises(ValueError, match="line 1"):
        PocketSphinxKeywordsConfig(catalogue=str(path)).fingerprint()
    path.write_text("zimbrato\t1.0\n")
    with pytest.raises(ValueError, match="refuses the phones"):
        PocketSphinxKeywordsConfig(catalogue=str(path), words=("zimbrato=Q X",)).build()


def test_the_catalogue_is_in_the_fingerprint_and_its_path_is_not(tmp_path: Path) -> None:
    one, same, other = tmp_path / "one.txt", tmp_path / "same.txt", tmp_path / "other.txt"
    one.write_text("coffee\ntea\n")
    same.write_text("tea\ncoffee\n")
    other.write_text("coffee\n")
    configs = [PocketSphinxKeywordsConfig(catalogue=str(path)) for path in (one, same, other)]
    assert isinstance(configs[0], StageConfig)
    assert len({str(identity(config)) for config in configs}) == 1
    prints = [config.fingerprint() for config in configs]
    assert prints[0] == prints[1]
    assert prints[0]["catalogue"] != prints[2]["catalogue"]


def test_candidates_by_sound_find_a_phrase_in_the_lists_of_a_recogniser_that_knows_no_phrases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "move the printer from the bathroom to the garage and check it with water"  # heard as "... with walter"
    soundfile.write(tmp_path / "a.wav", spoken(said, 120), 16000)
    manifest, phrases = tmp_path / "m.jsonl", tmp_path / "phrases.txt"
    manifest.write_text(json.dumps({"audio_filepath": "a.wav", "keywords": ["bathroom", "with water"]}) + "\n")
    phrases.write_text("bathroom\nwith water\nkitchen\nevery evening\nten bags\n")
    command = ["evaluate", "pocketsphinx_candidates", "--manifest", str(manifest), "--root", str(tmp_path / "run")]
    assert main([*command, "--executor", "inline"]) == 1
    assert "--catalogue FILE" in capsys.readouterr().err
    assert main([*command, "--executor", "inline", "--catalogue", str(phrases), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(row["system"], row["metric"]): row["value"] for row in rows}
    assert (found["first_pass", "keyword_recall"], found["keyword_candidates", "keyword_recall"]) == (0.5, 1.0)
    assert found["keyword_candidates", "keyword_precision"] == 1.0
