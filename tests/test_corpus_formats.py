"""Every kind of corpus becomes the same UTTERANCES, or is refused with its place; small documented examples."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ctxasr_ray import audio
from ctxasr_ray.corpora.lines import ManifestError, read_lines, split_of
from ctxasr_ray.corpora.manifest import KINDS, kind_of, prepare, read_corpus


def encoded(duration_s: float = 1.0, form: str = "WAV", level: float = 0.0, num_channels: int = 1) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full((int(16000 * duration_s), num_channels), level, np.float32), 16000, format=form)
    return stream.getvalue()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        read_corpus(path, **options)
    return str(caught.value)


def by_id(path: Path, **options: Any) -> dict[str, dict[str, Any]]:
    return {row["utterance_id"]: row for row in read_corpus(path, **options).to_pylist()}


def heard(row: dict[str, Any]) -> float:
    """The level of a recording, read through the row as a first pass reads it."""
    samples = audio.load(row["audio_uri"], start_s=row["start_s"], duration_s=row["duration_s"], channel=row["channel"])
    assert len(samples) == round(row["duration_s"] * 16000)
    return float(samples.mean())


# Kaldi


def kaldi(folder: Path, **files: str) -> Path:
    put(folder.parent / "wavs" / "call.wav", encoded(10.0, level=0.25))
    put(folder / "wav.scp", f"call {folder.parent}/wavs/call.wav\nother ../wavs/call.wav\n")
    put(folder / "segments", "u1 call 0.5 2.5\nu2 call 9.0 -1\nu3 other 1 2\n")
    put(folder / "text", "u1 hello  world\nu2\n")
    put(folder / "utt2spk", "u1 anna\nu2 bob\nu3 bob\n")
    for name, content in files.items():
        put(folder / name, content)
    return folder


def test_a_kaldi_directory_with_segments(tmp_path: Path) -> None:
    rows = by_id(kaldi(tmp_path / "dev_clean"))
    assert list(rows) == ["u1", "u2", "u3"]
    first = rows["u1"]
    assert (first["start_s"], first["duration_s"], first["reference"]) == (0.5, 2.0, "hello  world")
    assert (first["speaker_id"], first["recording_id"], first["split"]) == ("anna", "call", "dev")
    assert (rows["u2"]["duration_s"], rows["u2"]["reference"]) == (1.0, "")
    assert rows["u3"]["reference"] is None
    assert heard(first) == heard(rows["u3"]) == pytest.approx(0.25, abs=1e-3)


def test_a_kaldi_directory_of_whole_recordings_with_sides_and_spk2utt(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    put(folder / "call.wav", encoded(2.0, num_channels=2))
    put(folder / "wav.scp", "c-A call.wav\nc-B call.wav\n")
    put(folder / "reco2file_and_channel", "c-A call A\nc-B call B\n")
    put(folder / "spk2utt", "anna c-A\nbob c-B\n")
    put(folder / "utt2lang", "c-A en\nc-B de\n")
    rows = by_id(folder, corpus="calls")
    found = [(r["channel"], r["speaker_id"], r["language"], r["duration_s"], r["corpus"]) for r in rows.values()]
    assert found == [(0, "anna", "en", 2.0, "calls"), (1, "bob", "de", 2.0, "calls")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav.scp": "call flac -c -d -s x.flac |\n"}, "wav.scp, line 1: is a command ('flac -c -d -s x.flac |')"),
        ({"wav.scp": "call x.ark:123\n"}, "wav.scp, line 1: 'x.ark:123' is no recording of its own"),
        ({"wav.scp": "call\n"}, "wav.scp, line 1: names a recording and no file"),
        ({"wav.scp": "call a.wav\ncall b.wav\n"}, "wav.scp, line 2, column 'utterance_id': 'call' stands in line 1"),
        ({"segments": "u1 gone 0 1\n"}, "segments, line 1: recording 'gone' is not in wav.scp"),
        ({"segments": "u1 call 0\n"}, "segments, line 1: expected: utterance, recording, start, end"),
        ({"segments": "u1 call 2 1\n"}, "segments, line 1: 2.0 to 1.0 s is no window"),
        ({"segments": "u1 call x 1\n"}, "segments, line 1: got 'x', expected seconds"),
        (
            {"reco2dur": "call 10.0\n", "segments": "u1 call 0 10.1\nu2 call 3 12\n"},
            "segments, line 2: 3.0 to 12.0 s lies outside recording 'call' of 10.0 s (reco2dur)",
        ),
        ({"text": "u1 a\nu9 b\n"}, "text, line 2: 'u9' is not in segments"),
        ({"utt2spk": "u9 b\n"}, "utt2spk, line 1: 'u9' is not in segments"),
    ],
)
def test_broken_kaldi_directories_are_refused_with_file_and_line(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    assert message in refusal(kaldi(tmp_path / "data", **files))


def test_a_segment_outside_its_recording_is_named_when_it_is_read(tmp_path: Path) -> None:
    rows = by_id(kaldi(tmp_path / "data", segments="u1 call 8 14\n", text="u1 a\n", utt2spk="u1 s\n"))
    with pytest.raises(audio.AudioError, match=r"ends at 10.000 s, but 8.000 to 14.000 s were asked for"):
        heard(rows["u1"])


# LibriSpeech


def test_a_librispeech_tree(tmp_path: Path) -> None:
    for subset in ("dev-clean", "test-other"):
        chapter = tmp_path / "LibriSpeech" / subset / "84" / ("121" if subset == "dev-clean" else "122")
        stem = f"84-{chapter.name}"
        put(chapter / f"{stem}-0000.flac", encoded(1.5, "FLAC", 0.5))
        put(chapter / f"{stem}-0002.flac", encoded(1.0, "FLAC"))
        put(chapter / f"{stem}.trans.txt", f"{stem}-0000 GO DO YOU HEAR\n{stem}-0001 LOST\n")
    rows = by_id(tmp_path / "LibriSpeech")
    first = rows["84-121-0000"]
    assert (first["split"], first["speaker_id"], first["session_id"]) == ("dev", "84", "84-121")
    assert (first["reference"], first["duration_s"], first["attributes"]) == (
        "GO DO YOU HEAR",
        1.5,
        [("subset", "dev-clean")],
    )
    assert heard(first) == pytest.approx(0.5, abs=1e-3)
    assert rows["84-122-0002"]["reference"] is None
    lost = rows["84-122-0001"]
    assert (lost["split"], lost["reference"], lost["duration_s"]) == ("test", "LOST", None)
    with pytest.raises(audio.AudioError, match=r"84-122-0001\.flac: does not exist"):
        audio.load(lost["audio_uri"])
    assert len(by_id(tmp_path / "LibriSpeech" / "dev-clean" / "84")) == 3, "any folder of the tree will do"
    assert "no SPEAKER-CHAPTER.trans.txt" in refusal(put(tmp_path / "e" / "x.wav", b"").parent, kind="librispeech")


# STM


TED = """;; a comment
Al_1 1 Al 0.00 2.50 <o,f0,male> i was offered a position
Al_1 1 inter_segment_gap 2.50 3.00 <o,f0,> ignore_time_segment_in_scoring
Al_1 1 Al 3.00 4.00
"""


def test_a_ted_lium_split_finds_its_sphere_files(tmp_path: Path) -> None:
    put(tmp_path / "dev" / "stm" / "Al_1.stm", TED)
    put(tmp_path / "dev" / "sph" / "Al_1.sph", encoded(4.0, "NIST", 0.5))
    table = read_corpus(tmp_path / "dev")
    first, gap, silent = table.to_pylist()
    assert first["utterance_id"] == "Al_1-1-0.000-2.500"
    assert (first["speaker_id"], first["recording_id"], first["split"]) == ("Al", "Al_1", "dev")
    assert (first["reference"], gap["reference"], silent["reference"]) == ("i was offered a position", None, "")
    assert heard(first) == pytest.approx(0.5, abs=1e-3)
    assert by_id(tmp_path / "dev" / "stm" / "Al_1.stm").keys() == by_id(tmp_path / "dev").keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 1 s 0 1 x\na 1 s 0 1 y\n", "line 2: the same segment stands in"),
        ("a 1 s 2 1 x\n", "line 1: segment ends at 1.0 s"),
        ("a 9 s 0 1 x\n", "line 1: channel '9' is unknown"),
        ("a 1 s 0\n", "line 1: expected: file channel speaker start end"),
    ],
)
def test_broken_stm_is_refused(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(put(tmp_path / "x.stm", line))


# Common Voice


HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\n"


def test_common_voice_takes_its_official_splits(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        put(tmp_path / "en" / "clips" / f"{name}.mp3", encoded(1.0))
        put(tmp_path / "en" / f"{name}.tsv", f'{HEADER}spk\t{name}.mp3\t"Quoted", he said.\t2\t0\t\t\t\ten\n')
    put(tmp_path / "en" / "validated.tsv", HEADER + "spk\ttrain.mp3\tx\t2\t0\t\t\t\ten\n")
    put(tmp_path / "en" / "clip_durations.tsv", "clip\tduration[ms]\ntrain.mp3\t4321\n")
    rows = by_id(tmp_path / "en")
    assert {i: r["split"] for i, r in rows.items()} == {"train": "train", "dev": "dev", "test": "test"}
    row = rows["train"]
    assert (row["reference"], row["speaker_id"], row["language"]) == ('"Quoted", he said.', "spk", "en")
    assert (row["duration_s"], rows["dev"]["duration_s"]) == (4.321, 1.0)
    assert dict(row["attributes"])["up_votes"] == "2"
    assert by_id(tmp_path / "en" / "dev.tsv")["dev"]["split"] == "dev"
    put(tmp_path / "en" / "dev.tsv", (tmp_path / "en" / "train.tsv").read_text())
    assert "'train' stands in" in refusal(tmp_path / "en")


# Lhotse


def cuts(folder: Path) -> Any:
    lhotse = pytest.importorskip("lhotse")
    put(folder / "talk.wav", encoded(8.0, level=0.25))
    recording = lhotse.Recording.from_file(folder / "talk.wav", recording_id="talk")
    made = []
    for name, start, texts in (("c1", 1.0, ["hello", "world"]), ("c2", 4.0, [])):
        said = [
            lhotse.SupervisionSegment(
                id=f"{name}-{i}", recording_id="talk", start=float(i), duration=1.0, text=text, speaker="anna",
                language="en", custom={"accent": "irish"},
            )
            for i, text in enumerate(texts)
        ]  # fmt: skip
        made.append(
            lhotse.MonoCut(
                id=name, start=start, duration=2.0, channel=0, supervisions=said[::-1], recording=recording,
                custom={"snr": 5},
            )
        )  # fmt: skip
    return lhotse.CutSet.from_cuts(made)


@pytest.mark.parametrize("name", ["cuts_dev.jsonl.gz", "cuts_dev.jsonl"])
def test_lhotse_cuts_written_by_lhotse(tmp_path: Path, name: str) -> None:
    cuts(tmp_path).to_file(tmp_path / name)
    rows = by_id(tmp_path / name)
    first = rows["c1"]
    assert (first["start_s"], first["duration_s"], first["recording_id"]) == (1.0, 2.0, "talk")
    assert (first["reference"], first["speaker_id"], first["language"]) == ("hello world", "anna", "en")
    assert (first["split"], rows["c2"]["reference"]) == ("dev", None)
    assert dict(first["attributes"]) == {"snr": "5", "accent": "irish"}
    assert heard(first) == pytest.approx(0.25, abs=1e-3)


def test_a_shar_folder_written_by_lhotse_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "shar").mkdir()
    cuts(tmp_path).to_shar(tmp_path / "shar", fields={"recording": "wav"}, shard_size=1)
    rows = by_id(tmp_path / "shar")
    assert set(rows) == {"c1", "c2"}
    assert rows["c2"]["audio_uri"].endswith("recording.000001.tar#c2.wav")
    assert heard(rows["c1"]) == pytest.approx(0.25, abs=1e-3)
    (tmp_path / "shar" / "recording.000001.tar").unlink()
    assert "has no recording.000001.tar beside it" in refusal(tmp_path / "shar")


def cut_line(**fields: Any) -> str:
    source = {"type": "file", "channels": [0], "source": "x.wav"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    cut = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "supervisions": [], "recording": recording}
    return json.dumps({**cut, **fields, "recording": {**recording, **fields.get("recording", {})}}) + "\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (cut_line(type="MixedCut"), "line 1: 'c' is a MixedCut"),
        (cut_line(duration=3.0), "line 1: 'c': 0.0 to 3.0 s lies outside its recording of 1.0 s"),
        (
            cut_line(recording={"sources": [{"type": "command", "channels": [0], "source": "cat x |"}]}),
            "source of type 'command'; expected a file or a URL (commands are not run)",
        ),
        (cut_line(channel=3), "'c': no source with that channel"),
        (cut_line(recording={"transforms": [{"name": "Speed", "kwargs": {}}]}), "'c' is changed by Speed"),
        (cut_line(type="MultiCut", channel=[0, 1]), "'c' has channels [0, 1] in several files"),
        (cut_line() + cut_line(), "'c' stands in line 1 already"),
        (cut_line(id=""), "column 'id': is no cut"),
        (cut_line(recording={"sources": None}), "'c' is no cut of a recording"),
    ],
)
def test_cuts_that_point_nowhere_are_named(tmp_path: Path, lines: str, message: str) -> None:
    assert message in refusal(put(tmp_path / "cuts.jsonl", lines))


def test_a_broken_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(cut_line().encode())
    assert "is no whole gzip file" in refusal(put(tmp_path / "cuts.jsonl.gz", whole[:-9]), kind="lhotse")
    assert "is no whole gzip file" in refusal(put(tmp_path / "cuts.jsonl.gz", b"no gzip"), kind="lhotse")


# WebDataset


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_webdataset_tars_are_read_in_place(tmp_path: Path) -> None:
    described = {"text": "from json", "duration": 1.0, "speaker": "anna", "audio_filepath": "/old/b.wav", "offset": 7}
    tar(
        tmp_path / "wds" / "dev-000000.tar",
        {
            "a/x.wav": encoded(level=0.5),
            "a/x.txt": "\ufeffhello\n".encode(),
            "b.flac": encoded(form="FLAC"),
            "b.json": json.dumps(described).encode(),
        },
    )
    tar(tmp_path / "wds" / "dev-000001.tar", {"c.wav": encoded(2.0)})
    rows = by_id(tmp_path / "wds")
    assert list(rows) == ["a/x", "b", "c"]
    assert (rows["a/x"]["reference"], rows["a/x"]["split"]) == ("hello", "dev")
    assert (rows["b"]["reference"], rows["b"]["speaker_id"], rows["b"]["start_s"]) == ("from json", "anna", 0.0)
    assert dict(rows["b"]["attributes"]) == {"original_audio_filepath": "/old/b.wav", "original_offset": "7"}
    assert (rows["c"]["reference"], rows["c"]["duration_s"]) == (None, 2.0)
    assert heard(rows["a/x"]) == pytest.approx(0.5, abs=1e-3)
    assert by_id(tmp_path / "wds" / "dev-000001.tar").keys() == {"c"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../x.wav": b"x"}, "member '../x.wav' would lie outside"),
        ({"/x.wav": b"x"}, "member '/x.wav' would lie outside"),
        ({"x.wav": b"x", "x.flac": b"x"}, "'x.wav' and 'x.flac' have one key"),
        ({"x.wav": b"x", "y.txt": b"x"}, "'y.txt' has no recording of its key"),
        ({"x.wav": b"x", "x.txt": b"\xff"}, "x.txt: is not UTF-8"),
        ({"x.wav": b"x", "x.json": b"{"}, "x.json, line 1, column 2: broken JSON"),
        ({"x.wav": b"x", "x.json": b'{"duration": "3"}'}, "column 'duration': got \"3\""),
        ({"x.npy": b"x"}, "holds no recording"),
    ],
)
def test_tars_that_cannot_be_taken_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    assert message in refusal(tar(tmp_path / "x.tar", members))


def test_tars_with_a_manifest_beside_them_are_not_read_without_it(tmp_path: Path) -> None:
    tar(tmp_path / "audio_0.tar", {"x.wav": encoded()})
    put(tmp_path / "tarred_audio_manifest.json", '{"audio_filepath": "x.wav", "shard_id": 0, "text": "a"}\n')
    assert "holds tars and tarred_audio_manifest.json; name that file" in refusal(tmp_path)
    assert by_id(tmp_path / "tarred_audio_manifest.json")["x"]["reference"] == "a"


# Parquet, prepare


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "audio"}
    pq.write_table(pa.table({**columns, "audio": pa.array([row["audio"] for row in rows], sound)}), path)
    return path


def test_parquet_with_audio_inside_is_extracted_once(tmp_path: Path) -> None:
    flac = encoded(1.0, "FLAC", 0.5)
    rows = [
        {"id": "84-1", "sentence": "hello", "speaker_id": 84, "audio": {"bytes": flac, "path": None}},
        {"id": "84-2", "sentence": None, "speaker_id": 84, "audio": {"bytes": encoded(2.0), "path": "x.wav"}},
        {"id": "84-3", "sentence": "lost", "speaker_id": 85, "audio": None},
    ]
    source = parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows)
    assert "ctxasr prepare hf_dataset" in refusal(source)
    assert "ctxasr prepare hf_dataset" in refusal(source.parent)
    made, _ = prepare("hf_dataset", tmp_path / "data", tmp_path / "out", "mine")
    found = by_id(made)
    assert list(found) == ["84-1", "84-2", "84-3"]
    first = found["84-1"]
    assert (first["reference"], first["speaker_id"], first["split"], first["corpus"]) == ("hello", "84", "dev", "mine")
    assert first["audio_uri"].endswith("000000.flac")
    assert heard(first) == pytest.approx(0.5, abs=1e-3)
    assert (found["84-2"]["reference"], found["84-2"]["duration_s"]) == (None, 2.0)
    assert found["84-3"]["duration_s"] is None
    with pytest.raises(ManifestError, match="is no Parquet file"):
        prepare("hf_dataset", put(tmp_path / "x.parquet", "no"), tmp_path / "out")
    twice = parquet(tmp_path / "t.parquet", [rows[0], rows[0]])
    with pytest.raises(ManifestError, match="has 2 rows and 1 ids"):
        prepare("hf_dataset", twice, tmp_path / "out2")


def test_a_prepared_manifest_gives_the_same_utterances(tmp_path: Path) -> None:
    source = kaldi(tmp_path / "dev")
    made, _ = prepare("kaldi", source, tmp_path / "out")
    assert read_corpus(made).equals(read_corpus(source))
    assert read_corpus(tmp_path / "out").equals(read_corpus(source)), "the folder stands for its manifest"
    assert read_corpus(source, kind="kaldi").equals(read_corpus(source))
    assert "kind 'tape' is unknown; choose one of nemo" in refusal(source, kind="tape")
    assert set(KINDS) >= {"kaldi", "lhotse", "librispeech", "hf_dataset", "webdataset", "stm", "common_voice"}


def test_kinds_are_told_by_what_a_path_holds(tmp_path: Path) -> None:
    put(tmp_path / "wavs" / "a.wav", encoded())
    assert kind_of(tmp_path / "wavs") == "folder"
    assert kind_of("s3://bucket/m.jsonl") == "nemo"
    assert kind_of(put(tmp_path / "m.json", '{"audio_filepath": "a.wav", "start": 1}\n')) == "nemo"


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-clean-100", "train"), ("dev_other", "dev"), ("validation", "dev"), ("test", "test"), ("training", "test")],
)
def test_splits_are_named_by_a_whole_word(name: str, split: str) -> None:
    assert split_of(name) == split


def test_packed_text_reads_like_plain_text(tmp_path: Path) -> None:
    plain, packed = put(tmp_path / "a.txt", "x\r\n\r\ny"), put(tmp_path / "a.txt.gz", gzip.compress(b"x\r\n\r\ny"))
    assert list(read_lines(plain)) == list(read_lines(packed)) == [(1, "x"), (3, "y")]
