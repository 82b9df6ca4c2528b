"""What is exported reads back as what it was, in the words of each format."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxasr_ray.corpora.manifest import read_corpus
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.metrics.transcript_files import read_hypotheses, read_references
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table, read_nbest
from ctxasr_ray.report.export import export
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, conform
from ctxasr_ray.stage import Costs

ROWS = [
    {"utterance_id": "s2-b", "reference": "good bye", "speaker_id": "s2", "start_s": 4.0, "channel": 1},
    {"utterance_id": "s1-a", "reference": "hello  world", "speaker_id": "s1", "start_s": 0.5},
    {"utterance_id": "s1-c", "reference": None, "speaker_id": None, "start_s": 2.0},
    {"utterance_id": "s1-d", "reference": "", "speaker_id": "s1", "start_s": 3.0},
]
TEXTS = ["good buy", "<unk> world", "so", ""]


def utterances(rows: list[dict] = ROWS) -> pa.Table:
    filled = [
        {
            "corpus": "c",
            "split": "test",
            "recording_id": "talk",
            "audio_uri": "/data/talk.wav",
            "duration_s": 1.0,
            "keywords": ["hello"],
            "attributes": [("snr_db", "5")],
            **row,
        }
        for row in rows
    ]
    return conform(pa.Table.from_pylist(filled, schema=UTTERANCES), "utterances")


def transcripts(texts: list[str] = TEXTS, rows: list[dict] = ROWS, *, timed: bool = True) -> pa.Table:
    made = []
    for row, text in zip(rows, texts, strict=True):
        words = [
            {
                "word": word,
                "start_s": 0.25 * i if timed else None,
                "end_s": 0.25 * i + 0.2 if timed else None,
                "confidence": 0.5 if i else None,
                "origin": "search",
            }
            for i, word in enumerate(text.split())
        ]
        made.append({"utterance_id": row["utterance_id"], "text": text, "words": words, "num_unscored": 0})
    return conform(pa.Table.from_pylist(made, schema=TRANSCRIPTS), "transcripts")


BY_ID = {row["utterance_id"]: text for row, text in zip(ROWS, TEXTS, strict=True)}


@pytest.mark.parametrize("form", ["trn", "kaldi"])
def test_transcripts_read_back_by_id(tmp_path: Path, form: str) -> None:
    done = export(form, tmp_path / "new" / "hyp", utterances=utterances(), transcripts=transcripts().take([3, 1, 0, 2]))
    assert (done.num_written, done.left_out) == (4, ())
    assert read_hypotheses(done.path, form, ()) == BY_ID
    config = ImportedConfig(paths=(str(done.path),), format=form)
    rows = read_nbest(config.build()(utterances().select(["utterance_id"]), costs=Costs()))
    assert [row.hypotheses[0].text for row in rows] == TEXTS


@pytest.mark.parametrize("form", ["trn", "kaldi"])
def test_references_without_a_text_are_left_out_and_named(tmp_path: Path, form: str) -> None:
    done = export(form, tmp_path / "ref", utterances=utterances())
    assert (done.num_written, done.left_out) == (3, ("s1-c",))
    found = {s.utterance_id: s.text for s in read_references(done.path, form)}
    assert found == {"s2-b": "good bye", "s1-a": "hello world", "s1-d": ""}


def test_failed_utterances_are_written_as_empty_and_named(tmp_path: Path) -> None:
    table = transcripts()
    types = [None] * (table.num_rows - 1) + ["audio"]
    table = table.set_column(table.schema.get_field_index("error_type"), "error_type", pa.array(types, pa.string()))
    written = export("kaldi", tmp_path / "out", utterances=utterances(), transcripts=table)
    assert written.failed == (table["utterance_id"][-1].as_py(),)


def test_trn_is_what_sclite_documents_and_kaldi_text_is_sorted_in_c_order(tmp_path: Path) -> None:
    trn = export("trn", tmp_path / "x.trn", utterances=utterances(), transcripts=transcripts()).path.read_text()
    assert trn == "good buy (s2-b)\n<unk> world (s1-a)\nso (s1-c)\n (s1-d)\n"
    kaldi = export("kaldi", tmp_path / "text", utterances=utterances(), transcripts=transcripts()).path.read_text()
    assert kaldi == "s1-a <unk> world\ns1-c so\ns1-d\ns2-b good buy\n"


def test_stm_segments_and_ctm_words_meet_again(tmp_path: Path) -> None:
    stm = export("stm", tmp_path / "ref.stm", utterances=utterances())
    assert stm.path.read_text().splitlines() == [
        "talk 1 s1 0.500 1.500 hello world",
        "talk 1 unknown 2.000 3.000 ignore_time_segment_in_scoring",
        "talk 1 s1 3.000 4.000",
        "talk 2 s2 4.000 5.000 good bye",
    ]
    ctm = export("ctm", tmp_path / "hyp.ctm", utterances=utterances(), transcripts=transcripts())
    assert ctm.num_written == 5
    assert ctm.path.read_text().splitlines()[:2] == ["talk 1 0.500 0.200 <unk>", "talk 1 0.750 0.200 world 0.5000"]
    references = read_references(stm.path, "stm")
    assert [s.text for s in references] == ["hello world", None, "", "good bye"]
    heard = read_hypotheses(ctm.path, "stm", references)
    assert [heard[s.utterance_id] for s in references] == ["<unk> world", "so", "", "good buy"]


def test_an_stm_text_that_begins_like_a_label_keeps_its_first_word(tmp_path: Path) -> None:
    done = export("stm", tmp_path / "hyp.stm", utterances=utterances(), transcripts=transcripts())
    assert "<unk> world" in [s.text for s in read_references(done.path, "stm")]


def test_a_nemo_manifest_gives_the_same_utterances_again(tmp_path: Path) -> None:
    table = utterances([{**row, "recording_id": f"r{i}"} for i, row in enumerate(ROWS)])
    assert read_corpus(export("nemo", tmp_path / "ref.jsonl", utterances=table).path, None).num_rows == 4
    done = export("nemo", tmp_path / "hyp.jsonl", utterances=table, transcripts=transcripts())
    rows = read_corpus(done.path).to_pylist()
    for got, expected, text in zip(rows, table.to_pylist(), TEXTS, strict=True):
        assert dict(got.pop("attributes")) == {**dict(expected.pop("attributes")), "pred_text": text}
        assert got == expected
    assert read_hypotheses(done.path, "nemo", ()) == BY_ID


def test_references_alone_are_no_predictions_in_a_nemo_manifest(tmp_path: Path) -> None:
    done = export("nemo", tmp_path / "ref.jsonl", utterances=utterances())
    assert read_corpus(done.path).equals(utterances())


def test_nbest_lists_read_back_whole_with_kinds_tokens_and_errors(tmp_path: Path) -> None:
    hypothesis = Hypothesis(
        text="na\u00efve nan",
        token_ids=[1, 2],
        token_log_probs=[-0.1, -0.2],
        token_start_s=[0.0, 0.5],
        scores=[Score(source="ctc", kind="log_prob", log_prob=-1.25), Score(source="ps", kind="opaque", log_prob=3.0)],
        search_score=-1.5,
        origin="imported",
    )
    table = hypotheses_table(
        [
            NBest(utterance_id="s2-b", hypotheses=[hypothesis, hypothesis, Hypothesis(text="", origin="imported")]),
            NBest(utterance_id="s1-a", error_type="audio", error="talk.wav: truncated"),
            NBest(utterance_id="s1-c"),
            NBest(utterance_id="s1-d", hypotheses=[Hypothesis(text="nan", origin="imported")]),
        ]
    )
    done = export("nbest", tmp_path / "lists.jsonl", utterances=utterances(), hypotheses=table)
    config = ImportedConfig(paths=(str(done.path),), format="nbest")
    assert config.build()(utterances().select(["utterance_id"]), costs=Costs()).equals(table)
    assert all(json.loads(line)["utterance_id"] for line in done.path.read_text().splitlines())


@pytest.mark.parametrize(
    ("form", "row", "text", "message"),
    [
        ("trn", {"utterance_id": "a b"}, "x", "utterance 'a b': the name 'a b' holds white space"),
        ("trn", {"utterance_id": "a(1)"}, "x", "the name 'a(1)' holds white space or brackets"),
        ("trn", {}, "so (uh) yes", "'(uh)' is sclite markup"),
        ("kaldi", {"utterance_id": "a b"}, "x", "utterance 'a b'"),
        ("stm", {"recording_id": "a b"}, "x", "the name 'a b'"),
        ("stm", {"duration_s": None}, "x", "utterance 'u' has no duration_s"),
        ("stm", {}, "{ a / b }", "sclite markup"),
        ("ctm", {"recording_id": "a b"}, "x", "the name 'a b'"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_naming_the_utterance(
    tmp_path: Path, form: str, row: dict, text: str, message: str
) -> None:
    rows = [{"utterance_id": "u", "start_s": 0.0, **row}]
    with pytest.raises(ValueError, match="export") as caught:
        export(form, tmp_path / "out", utterances=utterances(rows), transcripts=transcripts([text], rows))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "a refused export leaves no file"


def test_words_without_times_and_tables_that_are_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="word 'good' has no time"):
        export("ctm", tmp_path / "x", utterances=utterances(), transcripts=transcripts(timed=False))
    with pytest.raises(ValueError, match="ctm needs TRANSCRIPTS"):
        export("ctm", tmp_path / "x", utterances=utterances())
    with pytest.raises(ValueError, match="nbest needs HYPOTHESES"):
        export("nbest", tmp_path / "x", utterances=utterances())
    with pytest.raises(ValueError, match="format 'xml' is unknown; choose one of trn, ctm"):
        export("xml", tmp_path / "x", utterances=utterances())
    with pytest.raises(ValueError, match=r"'s2-b' stands in utterances only \(1 such\)"):
        export("trn", tmp_path / "x", utterances=utterances(), transcripts=transcripts().slice(1))


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\ufeff(){}@"), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=4, max_size=4))
def test_any_text_reads_back_from_any_format(tmp_path: Path, texts: list[str]) -> None:
    said = transcripts(texts)
    ids = [row["utterance_id"] for row in ROWS]
    for form in ("trn", "kaldi"):
        done = export(form, tmp_path / "hyp", utterances=utterances(), transcripts=said)
        assert read_hypotheses(done.path, form, ()) == {i: " ".join(t.split()) for i, t in zip(ids, texts, strict=True)}
    done = export("nemo", tmp_path / "hyp.jsonl", utterances=utterances(), transcripts=said)
    assert read_hypotheses(done.path, "nemo", ()) == dict(zip(ids, texts, strict=True))
    lists = hypotheses_table(
        [
            NBest(utterance_id=i, hypotheses=[Hypothesis(text=t, origin="imported")])
            for i, t in zip(ids, texts, strict=True)
        ]
    )
    done = export("nbest", tmp_path / "nbest.jsonl", utterances=utterances(), hypotheses=lists)
    config = ImportedConfig(paths=(str(done.path),), format="nbest")
    assert config.build()(utterances().select(["utterance_id"]), costs=Costs()).equals(lists)
