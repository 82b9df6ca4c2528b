"""Long recordings in windows: what `prepare --segment` writes, and what it does with recordings that it cannot cut."""

import io
import itertools
import json

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import audio
from ctxasr_ray.cli import main
from ctxasr_ray.corpora import voice_activity
from ctxasr_ray.corpora.manifest import read_corpus
from ctxasr_ray.corpora.segmentation import PROBLEM, WindowConfig, fixed_windows, segment, speech_windows
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits, heard_ahead
from ctxasr_ray.stage import Costs
from ctxasr_ray.storage.shards import cut

RATE = 16000


def tone(duration_s, level_db=-20.0, rate=RATE):
    """Something that stands above noise as speech does: a buzz with energy in every band."""
    t = np.arange(round(duration_s * rate)) / rate
    buzz = np.sign(np.sin(2 * np.pi * 150 * t))
    return (10 ** (level_db / 20) * buzz).astype(np.float32)


def noise(duration_s, level_db=-60.0, rate=RATE, seed=0):
    drawn = np.random.default_rng(seed).standard_normal(round(duration_s * rate))
    return (10 ** (level_db / 20) * drawn).astype(np.float32)


def write(path, *channels, rate=RATE, **options):
    soundfile.write(path, np.stack(channels, axis=1), rate, **options)
    return path


def corpus(folder, *lines):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return read_corpus(path)


def spans(table):
    return [(row["start_s"], row["start_s"] + row["duration_s"]) for row in table.to_pylist()]


def turns():
    """Speech from 3 to 5 s, 5.4 to 6 s (a short pause), 12 to 14 s; 20 s in all."""
    samples = noise(20)
    for start, end in ((3, 5), (5.4, 6), (12, 14)):
        samples[round(start * RATE) : round(end * RATE)] += tone(end - start)
    return samples


def test_windows_stand_around_speech_and_only_address_the_audio(tmp_path):
    write(tmp_path / "a.wav", turns())
    config = WindowConfig(window_s=10, padding_s=0.25)
    made = segment(
        corpus(tmp_path, {"audio_filepath": "a.wav", "text": "all of it", "keywords": ["it"]}), "vad", config
    )
    rows = made.utterances.to_pylist()
    assert spans(made.utterances) == [pytest.approx((2.75, 6.25), abs=0.08), pytest.approx((11.75, 14.25), abs=0.08)]
    assert [row["window_index"] for row in rows] == [0, 1]
    assert [row["reference"] for row in rows] == ["all of it", None]
    assert [row["keywords"] for row in rows] == [["it"], None]
    assert {row["audio_uri"] for row in rows} == {str(tmp_path / "a.wav")}
    assert len({row["utterance_id"] for row in rows}) == 2
    assert len({row["recording_id"] for row in rows}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "manifest.jsonl"]


def test_pauses_that_are_short_share_a_window_and_long_ones_do_not(tmp_path):
    write(tmp_path / "a.wav", turns())
    table = corpus(tmp_path, {"audio_filepath": "a.wav"})
    together = segment(table, "vad", WindowConfig(window_s=15, max_pause_s=8)).utterances
    assert spans(together) == [pytest.approx((2.75, 14.25), abs=0.08)]
    apart = segment(
        table, "vad", WindowConfig(window_s=15, max_pause_s=0.1, min_silence_s=0.2, padding_s=0.05)
    ).utterances
    assert len(spans(apart)) == 3


def test_speech_longer_than_a_window_is_cut_at_its_quietest_place_with_an_overlap(tmp_path):
    samples = np.concatenate([noise(2), tone(13), noise(2)])
    quiet = slice(round(9.0 * RATE), round(9.3 * RATE))
    samples[quiet] = tone(0.3, level_db=-40)
    write(tmp_path / "a.wav", samples)
    config = WindowConfig(window_s=10, overlap_s=2)
    first, second = spans(segment(corpus(tmp_path, {"audio_filepath": "a.wav"}), "vad", config).utterances)
    assert (first[1] + second[0]) / 2 == pytest.approx(9.15, abs=0.1)
    assert first[1] - second[0] == pytest.approx(2.0, abs=0.002)
    assert first[0] < 2.0
    assert second[1] > 15.0


def test_a_recording_without_speech_is_one_window_where_it_is_loudest(tmp_path):
    samples = noise(40, level_db=-60)
    samples[30 * RATE : 31 * RATE] *= 1.2  # 1.6 dB: too little for speech
    write(tmp_path / "a.wav", samples)
    made = segment(corpus(tmp_path, {"audio_filepath": "a.wav", "text": "nothing"}), "vad", WindowConfig(window_s=10))
    (row,) = made.utterances.to_pylist()
    assert (row["window_index"], row["reference"], row["duration_s"]) == (0, "nothing", 10.0)
    assert row["start_s"] < 30.5 < row["start_s"] + 10


def test_digital_silence_is_one_window(tmp_path):
    write(tmp_path / "a.wav", np.zeros(15 * RATE, np.float32))
    made = segment(corpus(tmp_path, {"audio_filepath": "a.wav"}), "vad", WindowConfig(window_s=10))
    assert spans(made.utterances) == [(0.0, 10.0)]


def test_fixed_windows_follow_each_other_to_the_end(tmp_path):
    write(tmp_path / "a.wav", noise(25))
    made = segment(corpus(tmp_path, {"audio_filepath": "a.wav"}), "fixed", WindowConfig(window_s=10, overlap_s=2))
    assert spans(made.utterances) == [(0, 10), (8, 18), (16, 25)]


def test_each_channel_of_a_call_is_a_stream_of_its_own(tmp_path):
    quiet = noise(20, seed=1)
    write(tmp_path / "a.wav", turns(), quiet)
    unknown = segment(corpus(tmp_path, {"audio_filepath": "a.wav"}), "vad", WindowConfig(window_s=10))
    rows = unknown.utterances.to_pylist()
    assert [(row["channel"], row["window_index"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]
    assert len({row["utterance_id"] for row in rows}) == 3
    lines = [{"audio_filepath": "a.wav", "channel": c, "text": t} for c, t in ((0, "me"), (1, "you"))]
    own = segment(corpus(tmp_path, *lines), "vad", WindowConfig(window_s=10)).utterances.to_pylist()
    assert [(row["channel"], row["reference"]) for row in own] == [(0, "me"), (0, None), (1, "you")]
    assert {row["recording_id"] for row in own} == {"a.wav"}


def test_one_reference_for_two_channels_is_not_cut_and_says_why(tmp_path):
    write(tmp_path / "a.wav", noise(20), noise(20))
    made = segment(corpus(tmp_path, {"audio_filepath": "a.wav", "text": "both"}), "vad", WindowConfig(window_s=10))
    (row,) = made.utterances.to_pylist()
    assert row["window_index"] is None
    assert row["reference"] == "both"
    assert "one line per channel" in dict(row["attributes"])[PROBLEM]
    assert "one line per channel" in str(made)
    mixed = corpus(tmp_path, {"audio_filepath": "a.wav", "text": "both", "channel": -1})
    assert segment(mixed, "fixed", WindowConfig(window_s=10, overlap_s=0)).num_windows == 2


def test_recordings_that_cannot_be_cut_keep_their_row_and_their_reason(tmp_path):
    write(tmp_path / "good.wav", turns())
    (tmp_path / "empty.wav").write_bytes(b"")
    whole = write(tmp_path / "whole.flac", turns())
    (tmp_path / "broken.flac").write_bytes(whole.read_bytes()[:20000])
    lines = [{"audio_filepath": f"{name}", "duration": 20.0} for name in ("empty.wav", "broken.flac", "no.wav")]
    lines += [{"audio_filepath": "good.wav", "channel": 2}, {"audio_filepath": "good.wav", "channel": 0}]
    lines += [{"audio_filepath": "whole.flac", "duration": 60.0}]
    for method in ("vad", "fixed"):
        made = segment(corpus(tmp_path, *lines), method, WindowConfig(window_s=10))
        whole_rows = {
            row["audio_uri"].rpartition("/")[2]: row for row in made.utterances.to_pylist() if row["attributes"]
        }
        reasons = {name: dict(row["attributes"])[PROBLEM] for name, row in whole_rows.items()}
        assert "empty (0 bytes)" in reasons["empty.wav"]
        assert "does not exist" in reasons["no.wav"]
        assert "numbered from 0; got 2" in reasons["good.wav"]
        assert "ends 40.00 s before" in reasons["whole.flac"]
        if method == "vad":
            assert "broken.flac" in reasons
        assert made.num_cut == 1 + (method == "fixed")
        for row in whole_rows.values():
            with pytest.raises(audio.AudioError):
                audio.load(row["audio_uri"], duration_s=row["duration_s"], channel=row["channel"])


def test_segments_of_one_recording_are_cut_inside_their_borders(tmp_path):
    write(tmp_path / "a.wav", noise(60))
    lines = [
        {"audio_filepath": "a.wav", "offset": start, "duration": duration, "text": f"from {start}"}
        for start, duration in ((0, 8), (8, 22), (30, 25))
    ]
    made = segment(corpus(tmp_path, *lines), "fixed", WindowConfig(window_s=10, overlap_s=0)).utterances
    assert spans(made) == [(0, 8), (8, 18), (18, 28), (28, 30), (30, 40), (40, 50), (50, 55)]
    rows = made.to_pylist()
    assert [row["reference"] for row in rows] == ["from 0", "from 8", None, None, "from 30", None, None]
    assert [row["window_index"] for row in rows] == [None, 0, 1, 2, 0, 1, 2]
    assert len({row["recording_id"] for row in rows}) == 3
    assert {row["session_id"] for row in rows[1:]} == {"a.wav"}


def test_windows_of_a_recording_lie_in_one_shard(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.wav", noise(60, seed=ord(name)), noise(60))
    lines = [{"audio_filepath": f"{name}.wav", "channel": c, "text": "x"} for name in "abc" for c in (0, 1)]
    made = segment(corpus(tmp_path, *lines), "fixed", WindowConfig(window_s=5, overlap_s=1)).utterances
    shards = list(*cut(made, shard_audio_s=60, seed=1).values())
    homes = {}
    for number, (table, _) in enumerate(shards):
        for recording in table["recording_id"].to_pylist():
            homes.setdefault(recording, set()).add(number)
    assert len(shards) > 1
    assert all(len(places) == 1 for places in homes.values())


@settings(deadline=None)
@given(duration_s=st.floats(0.5, 5000), window_s=st.floats(1, 60), share=st.floats(0, 0.5))
def test_fixed_windows_cover_everything_and_fit(duration_s, window_s, share):
    config = WindowConfig(window_s=window_s, overlap_s=share * window_s)
    windows = fixed_windows(duration_s, config)
    assert windows[0][0] == 0
    assert windows[-1][1] == pytest.approx(duration_s)
    assert all(end - start <= window_s + 1e-6 and end > start for start, end in windows)
    for (_, end), (start, _) in itertools.pairwise(windows):
        assert end - start == pytest.approx(config.overlap_s, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_windows_around_speech_hold_all_of_it_and_fit(data):
    gaps = data.draw(st.lists(st.tuples(st.floats(0.5, 20), st.floats(0.1, 90)), min_size=1, max_size=12))
    speech, at = [], 0.0
    for gap, length in gaps:
        speech.append((at + gap, at + gap + length))
        at += gap + length
    duration_s = at + data.draw(st.floats(0, 5))
    config = WindowConfig(window_s=data.draw(st.floats(4, 40)), overlap_s=data.draw(st.floats(0, 2)))
    above = np.random.default_rng(0).random(int(duration_s * 100)).astype(np.float32)
    windows = speech_windows(speech, above, duration_s, config)
    assert all(0 <= start < end <= duration_s and end - start <= config.window_s + 1e-6 for start, end in windows)
    assert windows == sorted(windows)
    for start, end in speech:
        for second in np.linspace(start, end, 50):
            assert any(a - 1e-6 <= second <= b + 1e-6 for a, b in windows)


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_speech_is_found_at_any_sample_rate(tmp_path, rate):
    samples = np.concatenate([noise(4, rate=rate), tone(2, rate=rate), noise(4, rate=rate, seed=1)])
    write(tmp_path / "a.wav", samples, rate=rate)
    above = voice_activity.speech_levels(voice_activity.band_levels(str(tmp_path / "a.wav")))
    (run,) = voice_activity.speech_runs(above, speech_db=8, min_speech_s=0.1, min_silence_s=0.5)
    assert run == pytest.approx((4, 6), abs=0.08)


def test_levels_do_not_depend_on_how_the_file_is_read(tmp_path):
    """Of a file with four channels a quarter as much time is decoded at once."""
    samples, other = np.tile(turns(), 5), np.zeros(100 * RATE, np.float32)
    alone, beside = tmp_path / "alone.wav", tmp_path / "beside.wav"
    write(alone, samples)
    write(beside, other, samples, other, other)
    sizes = [[len(b) for b in audio.blocks(str(path), channel=c)] for path, c in ((alone, 0), (beside, 1))]
    assert sizes[0] != sizes[1]
    expected = voice_activity.band_levels(str(alone))
    assert np.array_equal(voice_activity.band_levels(str(beside), channel=1), expected)


def test_the_command_writes_a_manifest_that_reads_back(tmp_path, capsys):
    write(tmp_path / "a.wav", turns())
    corpus(tmp_path, {"audio_filepath": "a.wav", "text": "all of it"})
    words = ["prepare", "nemo", "--source", str(tmp_path), "--directory", str(tmp_path / "cut"), "--segment", "vad"]
    assert main([*words, "--window-s", "10"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "cut" / "manifest.jsonl")
    assert "1 long recordings or channels" in said.err
    assert "2 windows" in said.err
    table = read_corpus(tmp_path / "cut")
    assert [row["window_index"] for row in table.to_pylist()] == [0, 1]
    assert table["reference"].to_pylist() == ["all of it", None]


def test_an_overlap_that_is_no_overlap_is_refused(tmp_path, capsys):
    write(tmp_path / "a.wav", turns())
    corpus(tmp_path, {"audio_filepath": "a.wav"})
    words = [
        "prepare",
        "nemo",
        "--source",
        str(tmp_path),
        "--segment",
        "fixed",
        "--window-s",
        "10",
        "--overlap-s",
        "10",
    ]
    assert main(words) != 0
    assert "expected an overlap from 0 to half a window (5 s)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"), [("window_s", 0.5), ("overlap_s", -1.0), ("padding_s", -0.1), ("speech_db", 0.0)]
)
def test_windows_that_cannot_be_cut_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        WindowConfig(**{field: value})


def test_a_window_longer_than_the_recording_leaves_it_whole(tmp_path):
    write(tmp_path / "a.wav", turns())
    table = corpus(tmp_path, {"audio_filepath": "a.wav", "text": "x"})
    made = segment(table, "fixed", WindowConfig(window_s=60))
    assert made.utterances.equals(table)
    assert made.num_cut == 0


def test_audio_that_is_longer_than_the_model_hears_names_the_command_that_cuts_it(tmp_path):
    write(tmp_path / "a.wav", turns())
    limits = Limits(sample_rate_hz=RATE, min_samples=1, max_s=10.0, remedy=CUT_OR_RAISE)
    (row,) = heard_ahead(corpus(tmp_path, {"audio_filepath": "a.wav"}), limits, 1, Costs())
    assert row.error is not None
    assert row.error[0] == "model_limit"
    assert "20.00 s of audio, the limit is 10 s; cut it into windows (`ctxasr prepare --segment`)" in row.error[1]


class CountedFile(io.FileIO):
    """A local file that notes how much of it was read."""

    num_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        CountedFile.num_bytes += len(data)
        return data


class CountedFiles(fsspec.AbstractFileSystem):
    protocol = "counted"

    def _open(self, path, mode="rb", **_):
        return CountedFile(path, mode)


@pytest.mark.parametrize("form", ["FLAC", "WAV", "OGG"])
def test_a_late_window_is_read_by_seeking(tmp_path, form):
    """Bytes are counted, not seconds: a window near the end needs little of the file before it."""
    fsspec.register_implementation("counted", CountedFiles, clobber=True)
    path = tmp_path / f"a.{form.lower()}"
    second = noise(1, level_db=-20)
    with soundfile.SoundFile(path, "w", RATE, 1, format=form) as file:
        for _ in range(600):
            file.write(second)
    for start_s in (20.0, 570.0):
        CountedFile.num_bytes = 0
        samples = audio.load(f"counted://{path}", start_s=start_s, duration_s=10)
        assert len(samples) == 10 * RATE
        assert 0 < CountedFile.num_bytes < path.stat().st_size / 5
