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
from rapidfuzz.distance import Levenshtein
from real import real

from ctxasr_ray import audio
from ctxasr_ray.cli import main
from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.models.pocketsphinx import find_model, hear, load, pronunciations
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table, read_nbest
from ctxasr_ray.schema import conform
from ctxasr_ray.scorers.pocketsphinx import PocketSphinxScorerConfig
from ctxasr_ray.stage import Costs, StageConfig, identity

pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (extra pocketsphinx)")
pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra speech-synthesis)")

SPOKEN = "please call zimbrato in the morning"
WEIGHT, PENALTY = 9.5, 9.5 / 6.5 * math.log(0.65)
"""The engine's own defaults: bestpathlw, and wip at that weight."""


@functools.cache
def spoken() -> npt.NDArray[np.float32]:
    """A made-up word in a sentence, by espeak-ng, at 16 kHz."""
    from ctxasr_ray.corpora.espeak import SAMPLE_RATE_HZ, Voice, say

    voice = Voice(accent="en-us", variant="m3", pitch=50, pitch_range=50, words_per_minute=140)
    samples = soxr.resample(say(SPOKEN, voice).astype(np.float32) / 32768, SAMPLE_RATE_HZ, 16000)
    return np.asarray(samples, np.float32)


def utterances(folder: Path, waves: dict[str, npt.NDArray[np.float32]]) -> pa.Table:
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
    return table.select(["utterance_id", *PocketSphinxConfig.READS["utterances"]])


@functools.cache
def stage(words: tuple[str, ...] = ()) -> Any:
    return PocketSphinxConfig(num_hypotheses=30, words=words).build()


def recognised(table: pa.Table, words: tuple[str, ...] = ()) -> tuple[list[NBest], Costs]:
    costs = Costs()
    return read_nbest(stage(words)(table, costs=costs)), costs


def test_a_made_up_word_is_recognised_after_its_pronunciation_is_added_and_not_before(tmp_path: Path) -> None:
    table = utterances(tmp_path, {"a": spoken()})
    (before,), _ = recognised(table)
    assert not any("zimbrato" in h.text.split() for h in before.hypotheses)
    (after,), _ = recognised(table, ("zimbrato",))
    assert "zimbrato" in after.hypotheses[0].text.split()


def test_scores_stand_apart_and_their_sum_with_the_recognisers_weights_is_the_order(tmp_path: Path) -> None:
    (nbest,), costs = recognised(utterances(tmp_path, {"a": spoken()}))
    assert 2 <= len(nbest.hypotheses) <= 30
    assert len({h.text for h in nbest.hypotheses}) == len(nbest.hypotheses)
    ranks = [h.search_score or 0.0 for h in nbest.hypotheses]
    assert ranks == sorted(ranks, reverse=True)
    decoder = stage()._decoder
    lm, to_ln = decoder.get_lm("_default"), decoder.logmath.log_to_ln
    for h in nbest.hypotheses:
        acoustic, language, eos = h.scores
        assert [(s.source, s.kind) for s in h.scores] == [
            ("pocketsphinx_acoustic", "opaque"),
            ("pocketsphinx_lm", "log_prob"),
            ("pocketsphinx_lm/eos", "log_prob"),
        ]
        words = ["<s>", *h.text.split(), "</s>"]
        exact = [to_ln(lm.prob(words[max(0, i - 2) : i + 1][::-1])) for i in range(1, len(words))]
        assert language.log_prob == pytest.approx(sum(exact[:-1]))
        assert eos.log_prob == pytest.approx(exact[-1])
        whole = acoustic.log_prob + WEIGHT * (language.log_prob + eos.log_prob) + PENALTY * len(exact)
        assert h.search_score == pytest.approx(whole)
        times = list(zip(h.token_start_s or (), h.token_end_s or (), strict=True))
        assert len(times) == len(h.text.split())
        assert all(0 <= start < end <= 2.2 for start, end in times)
    best = nbest.hypotheses[0]
    (words,) = LogLinearConfig().build()(hypotheses_table([nbest]), costs=Costs()).column("words").to_pylist()
    assert [word["word"] for word in words] == best.text.split()
    assert [(word["start_s"], word["end_s"]) for word in words] == list(
        zip(best.token_start_s or (), best.token_end_s or (), strict=True)
    )
    assert costs.counters["items"] > 0


def test_the_recognisers_own_choice_comes_first(tmp_path: Path) -> None:
    (nbest,), costs = recognised(utterances(tmp_path, {"a": spoken()}))
    assert nbest.hypotheses[0].text == decoded(tmp_path / "a.wav")
    assert "one_best_outside_list" not in costs.counters


def test_what_was_heard_before_changes_nothing(tmp_path: Path) -> None:
    """Noise estimate and order of Gaussians would go on: silence was "dog" when it came first, and "it" after noise."""
    noise = np.random.default_rng(1).normal(0, 0.05, 16000).astype(np.float32)
    silence = np.zeros(8000, np.float32)
    waves = {"a": spoken(), "s": silence, "noise": noise, "s again": silence, "a again": spoken()}
    (first, still, _, still_again, again), _ = recognised(utterances(tmp_path, waves))
    assert first.hypotheses == again.hypotheses
    assert still.hypotheses == still_again.hypotheses


def test_speech_that_is_cut_off_silence_and_snippets_are_rows_of_their_own(tmp_path: Path) -> None:
    waves = {
        "cut": spoken()[:18000],
        "silence": np.zeros(8000, np.float32),
        "snippet": spoken()[:1000],
        "nothing": spoken()[:100],
        "long": spoken(),
        "broken": spoken(),
    }
    table = utterances(tmp_path, waves)
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    (cut, silence, snippet, nothing, _, broken), _ = recognised(table)
    assert cut.hypotheses[0].text == decoded(tmp_path / "cut.wav")
    assert len(silence.hypotheses) >= 1
    assert [h.text for h in snippet.hypotheses] == [""]
    assert [s.source for s in snippet.hypotheses[0].scores][-2:] == ["pocketsphinx_lm", "pocketsphinx_lm/eos"]
    assert (nothing.error_type, nothing.hypotheses) == ("model_limit", ())
    assert "nothing.wav: 6 ms of audio" in (nothing.error or "")
    assert broken.error_type == "audio"
    short = PocketSphinxConfig(max_audio_s=2.0).build()
    (long,) = read_nbest(short(table.slice(4, 1), costs=Costs()))
    assert long.error_type == "model_limit"
    assert "the limit is 2.0 s" in (long.error or "")


def decoded(path: Path) -> str:
    """What the engine itself says of a file of 16-bit samples."""
    decoder = stage()._decoder
    hear(decoder, audio.load(str(path)))
    return str(decoder.hyp().hypstr)


def test_forced_scores_prefer_the_truth_and_say_why_a_text_has_none(tmp_path: Path) -> None:
    texts = [SPOKEN, "please call in the", SPOKEN.upper(), "please call xqzt", "", " ".join([SPOKEN] * 8), "zimbrato"]
    lists = [
        NBest(utterance_id="a", hypotheses=[Hypothesis(text=text) for text in texts]),
        NBest(utterance_id="b", error_type="audio", error="not audio"),
    ]
    table = utterances(tmp_path, {"a": spoken(), "b": spoken()})
    scorer = PocketSphinxScorerConfig(words=("zimbrato",)).build()
    costs = Costs()
    row, failed = scorer(table, hypotheses_table(lists), costs=costs).to_pylist()
    (source,) = row["sources"]
    truth, missing, upper, unknown, empty, endless, alone = source["log_probs"]
    assert (source["source"], source["kind"]) == ("pocketsphinx_forced", "opaque")
    assert truth > missing
    assert truth > alone
    assert upper == truth
    assert (unknown, empty, endless) == (None, None, None)
    reasons = source["reasons"]
    assert [reason is None for reason in reasons] == [True, True, True, False, False, False, True]
    assert "xqzt" in reasons[3]
    assert "empty" in reasons[4]
    assert "cannot be said" in reasons[5]
    assert failed["sources"] == [{**source, "log_probs": [], "reasons": []}]
    assert (costs.counters["texts_with_unknown_words"], costs.counters["impossible_texts"]) == (1, 1)


def test_words_are_single_and_their_phones_are_the_models(tmp_path: Path) -> None:
    assert pronunciations(("Zimbrato", "read= R EH  D")) == [("zimbrato", "Z IH M B R AA T OW"), ("read", "R EH D")]
    with pytest.raises(ValueError, match="one by one"):
        pronunciations(("new york",))
    with pytest.raises(ValueError, match="refuses the phones 'Q X'"):
        load(find_model(None), ("zimbrato=Q X",), align=True)
    with pytest.raises(ValueError, match="num_hypotheses is 0"):
        PocketSphinxConfig(num_hypotheses=0)


def test_dictionary_words_that_the_language_model_lacks_can_be_recognised_once_they_are_named() -> None:
    decoder = load(find_model(None), ("'frisco", "read=R EH D Z", "zimbrato=Z IH M B R AA T OW"))
    lm, zero = decoder.get_lm("_default"), decoder.logmath.get_zero()
    assert lm.prob(["'frisco"]) > zero
    assert lm.prob(["'cuse"]) <= zero
    assert decoder.lookup_word("read(3)") == "R EH D Z"
    assert decoder.logmath.log_to_ln(lm.prob(["zimbrato"])) == pytest.approx(-11.19, abs=0.01)


def test_a_model_folder_is_described_by_its_files_and_refused_by_name(tmp_path: Path) -> None:
    plain, taught = PocketSphinxConfig(), PocketSphinxConfig(words=("zimbrato",))
    assert isinstance(plain, StageConfig)
    assert isinstance(PocketSphinxScorerConfig(), StageConfig)
    root = find_model(None).dictionary.parent
    assert identity(plain) == identity(PocketSphinxConfig(model=str(root)))
    assert plain.fingerprint() == PocketSphinxConfig(model=str(root)).fingerprint()
    assert set(taught.fingerprint()) - set(plain.fingerprint()) == {"words"}
    with pytest.raises(ValueError, match=r"expected one acoustic model \(a folder with mdef\), got none"):
        find_model(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        find_model(str(tmp_path / "nowhere"))


def test_recordings_without_transcripts_are_decoded_and_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", spoken(), 16000)
    (tmp_path / "manifest.jsonl").write_text(
        json.dumps({"utterance_id": "a", "audio_filepath": "a.wav", "duration": 2.1})
    )
    manifest, root = str(tmp_path / "manifest.jsonl"), str(tmp_path / "run")
    options = ["--manifest", manifest, "--root", root, "--executor", "inline", "--json"]
    assert main(["evaluate", "pocketsphinx", *options]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "No utterance has a reference" in told.err


@pytest.mark.slow
def test_the_lattice_holds_better_texts_than_the_engines_own_list_of_the_same_size() -> None:
    size = 50
    folder = real("short")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    english = [row for row in rows if row["text"].isascii()]
    assert len(english) == 15
    first_pass = PocketSphinxConfig(num_hypotheses=size).build()
    ours = theirs = words = 0
    for row in english:
        samples, rate = soundfile.read(folder / row["audio_filepath"], dtype="float32")
        assert rate == 16000
        table = pa.table(
            {
                "utterance_id": [row["utterance_id"]],
                "audio_uri": [str(folder / row["audio_filepath"])],
                "start_s": [0.0],
                "duration_s": pa.array([None], pa.float64()),
                "channel": pa.array([None], pa.int32()),
            }
        )
        (nbest,) = read_nbest(first_pass(table, costs=Costs()))
        decoder = first_pass._decoder
        hear(decoder, samples)
        peer = {decoder.hyp().hypstr: None}
        for candidate, _ in zip(decoder.nbest(), range(5000), strict=False):
            peer.setdefault(candidate.hypstr, None)
            if len(peer) == size:
                break
        reference = row["text"].split()
        words += len(reference)
        ours += min(Levenshtein.distance(reference, h.text.split()) for h in nbest.hypotheses)
        theirs += min(Levenshtein.distance(reference, text.split()) for text in peer)
    print(f"oracle WER over {words} words, {size} texts: ours {ours / words:.4f}, nbest() {theirs / words:.4f}")
    assert ours <= theirs
