"""PriMock57, LibriHeavy, AISHELL-1 with AISHELL-NER and Kincaid46: made in their layouts, PriMock57 also real."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from real import real
from test_corpus_formats import by_id, encoded, heard, put, refusal

from ctxasr_ray.cli import main
from ctxasr_ray.corpora.manifest import kind_of, prepare, read_corpus
from ctxasr_ray.corpora.praat import read_tiers

# TextGrid


def grid(*tiers: tuple[str, list[tuple[float, float, str]]]) -> str:
    """A long TextGrid as Praat writes it."""
    end_s = max(end for _, intervals in tiers for _, end, _ in intervals)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {end_s} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for index, (name, intervals) in enumerate(tiers, start=1):
        lines += [f"    item [{index}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += ["        xmin = 0 ", f"        xmax = {end_s} ", f"        intervals: size = {len(intervals)} "]
        for place, (start_s, stop_s, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start_s} ",
                f"            xmax = {stop_s} ",
            ]
            lines += [f'            text = "{quoted}" ']
    return "\r\n".join(lines) + "\r\n"


SHORT = """File type = "ooTextFile"
"TextGrid"

0
2
<exists>
1
"IntervalTier"
"A ""b"" 1"
0
2
2
0
1.5
""
1.5
2
"x 3"
"""


def consultation(folder: Path, doctor: list[tuple[float, float, str]]) -> Path:
    for role, level, intervals in (("doctor", 0.5, doctor), ("patient", 0.25, [(0.5, 2.0, "My <UNSURE>toe</UNSURE>")])):
        put(folder / "transcripts" / f"day1_consultation01_{role}.TextGrid", grid(("Speaker", intervals)))
        put(folder / "audio" / f"day1_consultation01_{role}.wav", encoded(4.0, level=level))
    return folder


def test_two_channels_of_a_consultation_are_two_speakers_of_one_session(tmp_path: Path) -> None:
    said = [(0.0, 1.0, ""), (1.0, 2.5, 'He said "oh"  <UNIN/> once'), (2.5, 3.0, "<INAUDIBLE_SPEECH/>")]
    rows = by_id(consultation(tmp_path / "primock57", said))
    assert list(rows) == [
        "day1_consultation01_doctor-1.000-2.500",
        "day1_consultation01_doctor-2.500-3.000",
        "day1_consultation01_patient-0.500-2.000",
    ]
    spoken, lost, patient = rows.values()
    assert (spoken["reference"], lost["reference"], patient["reference"]) == ('He said "oh" once', None, "My toe")
    assert spoken["session_id"] == patient["session_id"] == "day1_consultation01"
    assert (spoken["speaker_id"], spoken["corpus"]) == ("day1_consultation01_doctor", "primock57")
    assert dict(spoken["attributes"]) == {"role": "doctor", "unintelligible": "1"}
    assert dict(patient["attributes"]) == {"role": "patient", "unsure": "1"}
    assert (heard(spoken), heard(patient)) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.25, abs=1e-3))


def test_tiers_of_one_recording_are_its_speakers(tmp_path: Path) -> None:
    put(tmp_path / "talk.wav", encoded(4.0))
    tiers = ("anna", [(0.0, 1.0, "hello"), (1.0, 3.0, "")]), ("bob", [(1.0, 2.0, "hi")])
    first, second = read_corpus(put(tmp_path / "talk.TextGrid", grid(*tiers))).to_pylist()
    assert (first["utterance_id"], first["speaker_id"], first["session_id"]) == (
        "talk-anna-0.000-1.000",
        "talk-anna",
        "talk",
    )
    assert (second["reference"], dict(second["attributes"])) == ("hi", {"role": "bob"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_short_and_long_textgrids_in_every_encoding_are_the_same_tiers(tmp_path: Path, encoding: str) -> None:
    long = grid(('A "b" 1'.replace('"', '""'), [(0, 1.5, ""), (1.5, 2, "x 3")]))
    one, other = (read_tiers(put(tmp_path / f"{i}", t.encode(encoding))) for i, t in enumerate((SHORT, long)))
    assert [(t.name, [(i.start_s, i.end_s, i.text) for i in t.intervals]) for t in one] == [
        ('A "b" 1', [(0.0, 1.5, ""), (1.5, 2.0, "x 3")])
    ]
    assert [t.name for t in other] == [t.name for t in one]
    assert [i.text for i in other[0].intervals] == ["", "x 3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (grid(("A", [(0, 1, "a <LAUGH/> b")])), "line 18: tag '<LAUGH/>' is unknown, expected <UNSURE>..."),
        (grid(("A", [(0, 1, "a < b")])), "tag '<' is unknown"),
        (grid(("A", [(0, 1, "<UNSURE>a")])), "line 18: <UNSURE> and </UNSURE> do not alternate"),
        (grid(("A", [(0, 1, "a")]), ("B", [(0.5, 2, "b")])), "line 28: 'B' speaks from 0.5 s on, while 'A'"),
        (grid(("A", [(0, 1, "a"), (0.5, 2, "b")])), "line 22: the interval starts at 0.5 s, before"),
        (grid(("A", [(1, 1, "a")])), "line 18: the interval ends at 1.0 s"),
        (grid(("A", [(0, 1, "a")])).replace('"a" ', '"a '), "line 18: got a quotation mark that is never closed"),
        (grid(("A", [(0, 1, "a"), (1, 2, "b")]))[:-60], "ends where a number was expected; copy it again"),
        (grid(("A", [(-5, 1, "a")])), "line 18: the interval starts at -5.0 s, expected 0 or more"),
        (grid(("A", [(0, 1, "a")])).replace("ls: size = 1", "ls: size = -1"), "line 14: says that it has -1 intervals"),
        (grid(("A", [(0, 1, "a")])).replace("ls: size = 1", "ls: size = 1.5"), "1.5 intervals, expected a"),
        (grid(("A", [(0, 1, "a")])).replace("\nsize = 1", "\nsize = 1e400"), "line 7: says that it has 1e400 tiers"),
        (grid(("A", [(0, 1, ""), (1, 2, " ")])), "no interval of its 1 TextGrid(s) has a label"),
        (SHORT.replace("IntervalTier", "TextTier"), "is a TextTier, which says when and not from when to when"),
        (SHORT.replace("<exists>", "<absent>"), "has no tiers"),
        (SHORT.replace('"TextGrid"', '"PitchTier"'), "is a 'PitchTier', expected a TextGrid"),
        (b"\xff\xfe\x00", "is no utf-16 text"),
        (b"File \xe9", "is no utf-8-sig text"),
    ],
)  # fmt: skip
def test_transcripts_with_unknown_tags_or_overlaps_are_named(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    assert message in refusal(put(tmp_path / "x.TextGrid", content))


def test_a_recording_that_is_missing_costs_its_own_rows_only(tmp_path: Path) -> None:
    folder = consultation(tmp_path / "p", [(0, 1, "yes")])
    (folder / "audio" / "day1_consultation01_doctor.wav").unlink()
    lost, found = read_corpus(folder).to_pylist()
    assert lost["audio_uri"] == str(folder / "audio" / "day1_consultation01_doctor.wav")
    assert heard(found) == pytest.approx(0.25, abs=1e-3)


def test_prepare_says_what_it_found_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = consultation(tmp_path / "p", [(0, 1, "yes"), (1, 2, "no")])
    words = ["prepare", "textgrid", "--source", str(folder), "--directory", str(tmp_path / "made")]
    assert main(words) == 0
    written, said = capsys.readouterr()
    assert written == f"{tmp_path / 'made' / 'manifest.jsonl'}\n"
    assert said == "3 utterances, 1 sessions, 0.00 h\n"
    lost = folder / "audio" / "day1_consultation01_doctor.wav"
    lost.unlink()
    assert main(words) == 0
    assert f"; 1 of 2 recordings are missing, first {lost}" in capsys.readouterr().err


def test_the_real_consultations_are_read() -> None:
    rows = read_corpus(real("primock57")).to_pylist()
    assert len({row["session_id"] for row in rows}) == 6
    assert Counter(dict(row["attributes"])["role"] for row in rows).keys() == {"doctor", "patient"}
    assert all(row["audio_uri"].endswith(f"primock57/audio/{row['recording_id']}.wav") for row in rows)
    marks: Counter[str] = Counter()
    for row in rows:
        marks.update({name: int(count) for name, count in row["attributes"] if name != "role"})
    assert marks == {"unsure": 113, "unintelligible": 166 + 79}, "every tag that grep finds in the files"
    assert not any(set(row["reference"] or "") & {"<", ">"} for row in rows)


# LibriHeavy


def heavy(folder: Path, subset: str, **supervision: Any) -> Path:
    audio = "download/librilight/small/100/sea/01_sea.flac"
    put(folder / audio, encoded(4.0, "FLAC", 0.5))
    told = {
        "texts": ["“Don’t dive,” she  said: never!", "DON'T DIVE SHE SAID NEVER"],
        "pre_texts": ["Before.", "BEFORE"],
    }
    sources = [{"type": "file", "channels": [0], "source": audio}]
    cut = {
        "id": "small/100/sea/01_sea_0", "start": 1.5, "duration": 2.0, "channel": 0, "type": "MonoCut",
        "supervisions": [
            {"id": "x", "recording_id": "r", "start": 0, "duration": 2.0, "channel": 0, "language": "English",
             "speaker": "100", "custom": {**told, "begin_byte": 4993}, **supervision}
        ],
        "recording": {"id": "small/100/sea/01_sea", "sources": sources, "sampling_rate": 16000, "num_samples": 64000,
                      "duration": 4.0, "channel_ids": [0]},
        "custom": {"text_path": "download/librilight_text/Sea/text.txt"},
    }  # fmt: skip
    return put(folder / f"libriheavy_cuts_{subset}.jsonl.gz", gzip.compress(json.dumps(cut).encode() + b"\n"))


def test_libriheavy_has_its_text_with_case_and_without(tmp_path: Path) -> None:
    path = heavy(tmp_path, "small")
    assert kind_of(path) == "libriheavy"
    row = read_corpus(path).to_pylist()[0]
    assert (row["reference"], row["split"], row["language"]) == ("“Don’t dive,” she  said: never!", "train", "en")
    assert dict(row["attributes"])["asr_text"] == "DON'T DIVE SHE SAID NEVER"
    assert (row["recording_id"], row["speaker_id"]) == ("small/100/sea/01_sea", "100")
    assert heard(row) == pytest.approx(0.5, abs=1e-3)
    made, _ = prepare("libriheavy_normalised", path, tmp_path / "out")
    assert read_corpus(made)["reference"].to_pylist() == ["DON'T DIVE SHE SAID NEVER"]


def test_libriheavy_as_its_scripts_extract_it(tmp_path: Path) -> None:
    for subset, split in (("dev", "dev"), ("test_other_large", "test"), ("large", "train")):
        path = heavy(tmp_path / subset, subset, text="Never!", custom=None)
        row = read_corpus(path).to_pylist()[0]
        assert (row["reference"], row["split"]) == ("Never!", split)
        assert read_corpus(path, kind="libriheavy_normalised")["reference"].to_pylist() == ["NEVER"]
    assert "has neither a text nor custom.texts" in refusal(heavy(tmp_path, "small", custom={"texts": "x"}))


# AISHELL-1


def aishell(
    home: Path, ner: str = "BAC009S0764W0121 (广州)的[杨丙卿]在<中金公司<资产部>>\nBAC009S0764W0122 没有\n"
) -> Path:
    for split, speaker in (("train", "S0002"), ("test", "S0764")):
        for number in (121, 122):
            name = f"BAC009{speaker}W0{number}.wav"
            put(home / "wav" / split / speaker / name, encoded(1.0, level=0.5 if speaker == "S0764" else 0.0))
    (home / "wav" / "train" / "S0002" / "BAC009S0002W0122.wav").unlink()
    put(
        home / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0121 而 对 楼市\nBAC009S0002W0122 丢 了\nBAC009S0764W0121 广州 的 杨丙卿 在 中金公司 资产部\n",
    )
    put(home / "transcript" / "aishell_ner_transcript.test.txt", ner)
    return home


def test_aishell_with_its_named_entities(tmp_path: Path) -> None:
    home = aishell(tmp_path / "data_aishell")
    assert kind_of(home) == "aishell"
    rows = by_id(home)
    assert [i.removeprefix("BAC009") for i in rows] == ["S0002W0121", "S0002W0122", "S0764W0121", "S0764W0122"]
    plain, lost, named, nameless = rows.values()
    assert (plain["reference"], plain["keywords"], plain["split"]) == ("而对楼市", None, "train")
    assert (lost["reference"], lost["duration_s"]) == ("丢了", None)
    assert named["reference"] == "广州的杨丙卿在中金公司资产部"
    assert named["keywords"] == ["广州", "杨丙卿", "资产部", "中金公司资产部"]
    kinds = {"person": "杨丙卿", "place": "广州", "organisation": "资产部|中金公司资产部"}
    assert dict(named["attributes"]) == kinds
    assert (nameless["reference"], nameless["keywords"], nameless["speaker_id"]) == ("没有", [], "S0764")
    assert heard(named) == pytest.approx(0.5, abs=1e-3)
    part = by_id(home / "wav" / "test", kind="aishell")
    assert list(part) == ["BAC009S0764W0121", "BAC009S0764W0122"]


def test_another_reading_of_the_entity_transcript_is_kept(tmp_path: Path) -> None:
    row = by_id(aishell(tmp_path, "BAC009S0764W0121 (广州)得\n"))["BAC009S0764W0121"]
    assert row["reference"] == "广州的杨丙卿在中金公司资产部"
    assert dict(row["attributes"])["ner_text"] == "广州得"


@pytest.mark.parametrize(
    ("ner", "message"),
    [
        ("BAC009S0764W0121 (广州\n", "line 1: '(' is never closed in '(广州'"),
        ("BAC009S0764W0121 广]州\n", "line 1: ']' closes nothing"),
        ("BAC009S0764W0121 (广]州\n", "line 1: ']' closes nothing"),
        ("hello (广)\n", "line 1: 'hello' is no id of AISHELL"),
        ("BAC009S0764W0121 (广)\nBAC009S0764W0121 州\n", "line 2, column 'utterance_id': 'BAC009"),
        ("BAC009S0999W0121 (广)\n", "has no folder of 1 speakers of the transcript (S0999, ...); unpack wav/S"),
    ],
)  # fmt: skip
def test_broken_aishell_is_refused(tmp_path: Path, ner: str, message: str) -> None:
    assert message in refusal(aishell(tmp_path, ner))


# Kincaid46


def test_kincaid46_from_an_exported_table_and_from_whispers2t(tmp_path: Path) -> None:
    for folder in (tmp_path / "csv", tmp_path / "KINCAID46"):
        put(folder / "audio" / "1.wav", encoded(2.0, level=0.5))
        put(folder / "audio" / "two.wav", encoded(3.0))
    exported = (
        "Ref ID,Title,Audio File,Reference Transcript,YouTube captions\r\n"
        '1,Palace,1.wav (https://dl.airtable.com/x/1.wav),"Let\'s bring in Phil,\r\n\r\nwho is here.",bring in fill\r\n'
        "2,Two,two.wav,Hello,\r\n"
    )
    put(tmp_path / "csv" / "table.csv", exported)
    rows = by_id(tmp_path / "csv", kind="kincaid46", corpus="kincaid46")
    first, second = rows["1"], rows["2"]
    assert first["reference"] == "Let's bring in Phil, who is here."
    assert dict(first["attributes"]) == {"Title": "Palace", "YouTube captions": "bring in fill"}
    assert (first["split"], first["duration_s"], second["duration_s"]) == ("test", 2.0, 3.0)
    assert heard(first) == pytest.approx(0.5, abs=1e-3)
    manifest = "audio_path\traw_text\ndata/KINCAID46/audio/1.wav\tLet's\ndata/KINCAID46/audio/two.wav\tHello\n"
    put(tmp_path / "KINCAID46" / "manifest_wav.tsv", manifest)
    other = read_corpus(tmp_path / "KINCAID46", kind="kincaid46").to_pylist()
    assert [(row["utterance_id"], row["reference"], row["duration_s"]) for row in other] == [
        ("1", "Let's", 2.0),
        ("two", "Hello", 3.0),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,audio\n1,a.wav\n", "line 1: has no column raw_text or reference transcript or"),
        ("id,text\n1,x\n", "line 1: has no column audio_path or audio or"),
        ("audio,text\n", "has a header and no line below it"),
        ("audio,text\na.wav,x,y\n", "line 2: got 3 cells, expected 2 (audio_uri, reference)"),
        ("id,audio,text\n1,a.wav,x\n\n1,b.wav,y\n", "line 4, column 'utterance_id': '1' stands in line 2"),
        ("audio,text\n,x\n", "line 2, column 'audio_uri': is empty"),
    ],
)
def test_broken_tables_of_kincaid46_are_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in refusal(put(tmp_path / "t.csv", content), kind="kincaid46")
    put(tmp_path / "u.tsv", "x")
    assert "holds 2 tables" in refusal(tmp_path, kind="kincaid46")
