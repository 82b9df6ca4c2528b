import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from real import real

from ctxasr_ray import audio, schema
from ctxasr_ray.corpora.lines import ManifestError
from ctxasr_ray.corpora.manifest import read_corpus


def recording(path, duration_s=1.0, num_channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((int(16000 * duration_s), num_channels), np.float32), 16000)
    return path


def manifest(folder, *lines, name="manifest.jsonl"):
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def refusal(path, corpus=None):
    with pytest.raises(ManifestError) as caught:
        read_corpus(path, corpus)
    return str(caught.value)


def table_or_refusal(path):
    try:
        return read_corpus(path)
    except ManifestError as error:
        return str(error)


def test_a_nemo_manifest_becomes_utterances(tmp_path):
    path = manifest(
        tmp_path,
        {"audio_filepath": "a/x.wav", "text": "hello", "offset": 1.5, "duration": 2, "lang": "en", "accent": "irish"},
        {"audio_filepath": "/abs/y.wav", "duration": 1.0},
        {"audio_filepath": "s3://bucket/z.wav", "duration": 1.0, "text": ""},
    )
    table = read_corpus(path, "mine")
    schema.conform(table, "utterances")
    first, second, third = table.to_pylist()
    assert first["utterance_id"] == "a/x@1.500"
    assert first["audio_uri"] == f"{tmp_path}/a/x.wav"
    assert (first["start_s"], first["duration_s"]) == (1.5, 2.0)
    assert (first["reference"], first["language"], first["corpus"]) == ("hello", "en", "mine")
    assert first["attributes"] == [("accent", "irish")]
    assert first["split"] == "test"
    assert (second["audio_uri"], second["reference"]) == ("/abs/y.wav", None)
    assert (third["audio_uri"], third["reference"]) == ("s3://bucket/z.wav", "")


def test_keys_named_like_columns_are_taken_as_they_are(tmp_path):
    line = {
        "utterance_id": "u1",
        "corpus": "c",
        "split": "dev",
        "speaker_id": "s",
        "session_id": "t",
        "recording_id": "r",
        "window_index": 3,
        "channel": -1,
        "audio_uri": "x.wav",
        "start_s": 0.5,
        "duration_s": 1.0,
        "reference": "ja",
        "language": "de",
        "keywords": ["a b", "c"],
        "attributes": {"snr_db": 5, "voice": "f2"},
    }
    row = read_corpus(manifest(tmp_path, line)).to_pylist()[0]
    attributes = dict(row.pop("attributes"))
    assert attributes == {"snr_db": "5", "voice": "f2"}
    assert row == {**{k: v for k, v in line.items() if k != "attributes"}, "audio_uri": f"{tmp_path}/x.wav"}


def test_corpus_names_that_cannot_stand_in_a_file_name_are_refused_or_mended(tmp_path):
    folder = tmp_path / "My recordings (2024)"
    folder.mkdir()
    path = manifest(folder, {"audio_filepath": "a.wav", "duration": 1.0})
    assert read_corpus(path)["corpus"].to_pylist() == ["My-recordings-2024"]
    assert "column 'corpus': got 'a/b'" in refusal(path, "a/b")
    path = manifest(folder, {"audio_filepath": "a.wav", "corpus": "../x"})
    assert "line 1, column 'corpus': got '../x'" in refusal(path)


def test_keywords_need_no_text(tmp_path):
    row = read_corpus(
        manifest(tmp_path, {"audio_filepath": "x.wav", "keywords": ["mocha"], "duration": 1})
    ).to_pylist()[0]
    assert (row["keywords"], row["reference"]) == (["mocha"], None)


def test_a_bom_crlf_and_blank_lines_are_simply_read(tmp_path):
    plain = manifest(tmp_path, {"audio_filepath": "a.wav"}, {"audio_filepath": "b.wav", "text": "x"})
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert read_corpus(plain, "c").equals(read_corpus(odd, "c"))


def test_durations_that_are_missing_come_from_the_header(tmp_path):
    recording(tmp_path / "a.wav", 2.5)
    path = manifest(
        tmp_path,
        {"audio_filepath": "a.wav"},
        {"audio_filepath": "a.wav", "offset": 1.0},
        {"audio_filepath": "none.wav"},
        {"audio_filepath": "given.wav", "duration": 7.0},
    )
    assert read_corpus(path)["duration_s"].to_pylist() == [2.5, 1.5, None, 7.0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"audio_filepath": "a.wav"', "{}"], "line 1, column 27: broken JSON"),
        (['{"audio_filepath": "a.wav"}', "", "not json"], "line 3, column 1: broken JSON"),
        (['["a.wav"]'], "got a list, expected one object per line"),
        (['{"text": "x"}'], "line 1, column 'audio_filepath': is missing"),
        (['{"audio_filepath": ""}'], "line 1, column 'audio_filepath': is missing"),
        (['{"audio_filepath": 5}'], "column 'audio_filepath': got 5, expected a string"),
        (
            ['{"audio_filepath": "a.wav", "duration": "3"}'],
            "column 'duration': got \"3\", expected a number of seconds",
        ),
        (['{"audio_filepath": "a.wav", "offset": -1}'], "column 'offset': got -1"),
        (['{"audio_filepath": "a.wav", "duration": NaN}'], "line 1: NaN is no JSON"),
        (['{"audio_filepath": "a.wav", "duration": 1e999}'], "column 'duration': got Infinity"),
        (['{"audio_filepath": "a.wav", "channel": true}'], "column 'channel': got true, expected a whole number"),
        (['{"audio_filepath": "a.wav", "channel": 99999999999}'], "column 'channel': got 99999999999"),
        (['{"audio_filepath": "a.wav", "keywords": "x"}'], "column 'keywords': got \"x\", expected a list of strings"),
        (
            ['{"audio_filepath": "a.wav", "split": "eval"}'],
            "column 'split': got 'eval', expected one of train, dev, test",
        ),
        (['{"audio_filepath": "a.wav", "text": "x", "reference": "y"}'], "column 'reference': stands twice"),
        (['{"audio_filepath": "a.wav", "utterance_id": ""}'], "column 'utterance_id': is empty"),
        (['{"audio_filepath": "a.wav", "text": "\\ud800"}'], "line 1: holds half of a surrogate pair"),
        (["[" * 100_000], "line 1: broken JSON"),
        (['{"audio_filepath": "a.wav", "x": ' + "9" * 5000 + "}"], "line 1: broken JSON"),
        (
            ['{"audio_filepath": "a.wav"}', '{"audio_filepath": "a.wav"}'],
            "line 2, column 'utterance_id': 'a' stands in line 1",
        ),
        (
            ['{"audio_filepath": "a.wav", "utterance_id": "u"}', '{"audio_filepath": "b.wav", "utterance_id": "u"}'],
            "give every line an id of its own",
        ),
        ([""], "is empty"),
    ],
)
def test_a_broken_manifest_is_refused_with_file_line_and_column(tmp_path, lines, expected):
    path = manifest(tmp_path, *lines)
    message = refusal(path)
    assert message.startswith(str(path))
    assert expected in message


def test_text_that_is_not_utf_8_is_refused_at_its_place(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"audio_filepath": "a.wav"}\n{"text": "größe '.encode() + b'\xe9"}\n')
    assert "line 2, column 17: byte 0xe9 is not UTF-8; save the file as UTF-8" in refusal(path)
    path.write_bytes('{"audio_filepath": "a.wav"}'.encode("utf-16"))
    assert "UTF-16" in refusal(path)


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_read_or_refused_never_a_crash(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.jsonl", "any.tsv"):
        (folder / name).write_bytes(content)
        outcome = table_or_refusal(folder / name)
        if isinstance(outcome, str):
            assert outcome.startswith(str(folder / name))
        else:
            schema.conform(outcome, "utterances")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
json_keys = st.sampled_from(
    [*schema.UTTERANCES.names, "audio_filepath", "text", "offset", "duration", "lang", "speaker", "x"]
)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.dictionaries(json_keys, json_values, max_size=6), min_size=1, max_size=4))
@example(rows=[{"start_s": 2**53 + 1}])  # an integer without a float64
@example(rows=[{"duration": 10**400}])
def test_any_json_objects_are_read_whole_or_refused(tmp_path_factory, rows):
    path = manifest(
        tmp_path_factory.getbasetemp(), *({"audio_filepath": f"/none/{i}", **row} for i, row in enumerate(rows))
    )
    outcome = table_or_refusal(path)
    if isinstance(outcome, str):
        assert outcome.startswith(str(path))
    else:
        assert outcome.num_rows == len(rows)


def add(tar, name, samples):
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, format="WAV")
    info = tarfile.TarInfo(name)
    info.size = len(stream.getvalue())
    tar.addfile(info, io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("below", ["", "sharded_manifests"])
def test_a_tarred_nemo_manifest_reads_members_and_their_further_windows(tmp_path, below):
    with tarfile.open(tmp_path / "audio_0.tar", "w") as tar:
        add(tar, "a.wav", np.linspace(0, 0.5, 32000, dtype=np.float32))
    (tmp_path / below).mkdir(exist_ok=True)
    path = manifest(
        tmp_path / below,
        {"audio_filepath": "a.wav", "shard_id": 0, "duration": 1.0, "offset": 0.0},
        {"audio_filepath": "a-sub1.wav", "shard_id": 0, "duration": 1.0, "offset": 1.0},
        name="manifest_0.json",
    )
    rows = read_corpus(path).to_pylist()
    assert [row["audio_uri"] for row in rows] == [f"{tmp_path}/audio_0.tar#a.wav"] * 2
    assert [row["utterance_id"] for row in rows] == ["a", "a-sub1@1.000"]
    samples = [audio.load(r["audio_uri"], start_s=r["start_s"], duration_s=r["duration_s"]) for r in rows]
    assert samples[1][0] > samples[0][-1] > 0


def test_a_manifest_with_an_unsafe_archive_is_refused_before_any_work(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "../../evil.wav", np.zeros(100, np.float32))
    message = refusal(manifest(tmp_path, {"audio_filepath": "a.tar#x.wav", "duration": 1.0}))
    assert "../../evil.wav" in message
    assert not (tmp_path.parent.parent / "evil.wav").exists()


def test_a_missing_archive_costs_its_own_rows_only(tmp_path):
    table = read_corpus(manifest(tmp_path, {"audio_filepath": "none.tar#x.wav", "duration": 1.0}))
    with pytest.raises(audio.AudioError, match="does not exist"):
        audio.load(table["audio_uri"][0].as_py())


def test_a_folder_with_one_text_per_recording(tmp_path):
    recording(tmp_path / "train" / "b.flac", 1.5)
    recording(tmp_path / "a.wav")
    recording(tmp_path / "c.MP3".lower())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\r\nworld\r\n")
    (tmp_path / "train" / "b.txt").write_text("\n")
    (tmp_path / "README.txt").write_text("about this corpus")
    rows = read_corpus(tmp_path).to_pylist()
    assert [row["utterance_id"] for row in rows] == ["a", "c", "train/b"]
    assert [row["reference"] for row in rows] == ["hello world", None, ""]
    assert [row["split"] for row in rows] == ["test", "test", "train"]
    assert rows[2]["duration_s"] == 1.5
    assert rows[0]["corpus"] == tmp_path.name


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    assert "holds no recording" in refusal(tmp_path)
    recording(tmp_path / "a.wav")
    recording(tmp_path / "a.flac")
    assert "'a.flac' and 'a.wav' have one name" in refusal(tmp_path)
    (tmp_path / "a.flac").unlink()
    (tmp_path / "lost.txt").write_text("nobody said this")
    assert "lost.txt: has no recording" in refusal(tmp_path)


def test_a_tsv_with_named_columns(tmp_path):
    recording(tmp_path / "clips" / "a.mp3", 1.0)
    (tmp_path / "test.tsv").write_text(
        "client_id\tpath\tsentence\tlocale\tkeywords\tduration\tage\n"
        "s1\ta.mp3\tIt's \"so\"\ten\tit's| so \t\ttwenties\n"
        "s2\tb.mp3\t\ten\t\t2.5\t\n"
    )
    first, second = read_corpus(tmp_path).to_pylist()
    assert (first["audio_uri"], first["speaker_id"]) == (f"{tmp_path}/clips/a.mp3", "s1")
    assert (first["reference"], first["language"]) == ('It\'s "so"', "en")
    assert first["keywords"] == ["it's", "so"]
    assert first["attributes"] == [("age", "twenties")]
    assert first["duration_s"] == pytest.approx(1.0, abs=0.1)
    assert (second["reference"], second["keywords"], second["duration_s"]) == ("", [], 2.5)


def test_a_tsv_without_a_header_is_recording_and_text(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_bytes(b"\xef\xbb\xbfa.wav\thello\r\nb.wav\tworld\r\n")
    assert read_corpus(path).select(["utterance_id", "reference"]).to_pylist() == [
        {"utterance_id": "a", "reference": "hello"},
        {"utterance_id": "b", "reference": "world"},
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.wav\thello\nb.wav\n", "line 2, column 2: got 1 columns, expected 2"),
        ("path\ttext\na.wav\thel\tlo\n", "line 2, column 3: got 3 columns, expected 2 (audio_uri, reference)"),
        ("path\tduration\na.wav\tlong\n", "line 2, column 'duration_s': got 'long', expected a number"),
        ("path\tduration\na.wav\tnan\n", "line 2, column 'duration_s': got 'nan'"),
        ("path\tsplit\na.wav\tvalid\n", "line 2, column 'split': got 'valid'"),
        ("path\ttext\n\thello\n", "line 2, column 'audio_uri': is empty"),
        ("path\ttext\na.wav\tx\na.wav\ty\n", "line 3, column 'utterance_id': 'a' stands in line 2 already"),
        ("path\ttext\n", "has a header and no line below it"),
        ("path\ttext\ttext\na.wav\tx\ty\n", "line 1, column 3: column 'reference' stands twice"),
        ("hello\tworld\n", "line 1, column 1: no column for the recording"),
        ("", "is empty"),
    ],
)
def test_a_broken_tsv_is_refused_with_file_line_and_column(tmp_path, content, expected):
    path = tmp_path / "list.tsv"
    path.write_text(content)
    message = refusal(path)
    assert message.startswith(str(path))
    assert expected in message


def test_what_is_no_corpus_is_refused_with_the_kinds_that_are(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.jsonl")
    recording(tmp_path / "a.wav")
    assert "is no kind of corpus" in refusal(tmp_path / "a.wav")
    (tmp_path / "x.tsv").write_text("a.wav\tx\n")
    (tmp_path / "y.tsv").write_text("a.wav\tx\n")
    assert "2 TSV files (x.tsv, y.tsv" in refusal(tmp_path)


def test_real_manifests_and_their_recordings_are_read():
    short, barista = read_corpus(real("short/manifest.jsonl")), read_corpus(real("barista"))
    assert (short.num_rows, barista.num_rows) == (16, 150)
    assert barista["reference"].null_count == 150
    assert barista["keywords"].null_count == 0
    for row in [*short.to_pylist(), *barista.slice(0, 10).to_pylist()]:
        samples = audio.load(row["audio_uri"], start_s=row["start_s"], duration_s=row["duration_s"])
        assert len(samples) == pytest.approx(16000 * row["duration_s"], abs=16000 * audio.SHORTFALL_S)
        assert np.abs(samples).max() > 0.01
