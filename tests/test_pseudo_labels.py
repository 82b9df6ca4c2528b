"""Pseudo-labels: what each filter takes, and a tiny real run whose manifest trains and evaluates."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_cli import SHIPPED
from test_export import transcripts, utterances

from ctxasr_ray.cli import main
from ctxasr_ray.corpora.manifest import read_corpus
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.recipes.evaluation import quickstart
from ctxasr_ray.training.pseudo_labels import LabelFilters, Yield, label
from ctxasr_ray.training.sources import TableSpeech

CAPTION = "take the second road on the left"
SAID: list[tuple[str | None, str, float]] = [
    (CAPTION, "Take the second road, on the left.", 5.0),
    (CAPTION, "take a second road on the left", 5.0),
    (CAPTION, "a word or two of something else", 5.0),
    ("Thanks.", "thanks", 1.0),
    (CAPTION, CAPTION, 20.5),
    (None, "nobody wrote a caption for this", 5.0),
    (CAPTION, "", 5.0),
    ("", "where nothing is said at all", 5.0),
]
"""(caption, transcript, seconds), in the order of the filters that take them; the first two pass."""


def made(*, failed: int | None = None) -> tuple[pa.Table, pa.Table]:
    rows = [
        {"utterance_id": f"u{i}", "reference": caption, "split": "train", "start_s": 0.0, "duration_s": seconds}
        for i, (caption, _, seconds) in enumerate(SAID)
    ]
    said = transcripts([text for _, text, _ in SAID], rows, timed=False)
    if failed is not None:
        errors = ["audio" if i == failed else None for i in range(len(rows))]
        said = said.set_column(said.schema.get_field_index("error_type"), "error_type", pa.array(errors, pa.string()))
    return utterances(rows), said


def labelled(filters: LabelFilters, **options: int) -> tuple[list[str], list[Yield]]:
    table, yields = label(*made(**options), filters, normaliser="whisper_english", labelled_by="a run")
    return table["utterance_id"].to_pylist(), yields


def test_each_filter_takes_what_it_is_for_and_says_how_much() -> None:
    kept, yields = labelled(LabelFilters(max_wer=0.3, min_distinct_words=4, max_duration_s=20.0))
    assert kept == ["u0", "u1"]
    assert [(y.name, y.num_seen, y.num_dropped, y.num_kept, y.kept_s) for y in yields] == [
        ("heard", 8, 1, 7, 46.5),
        ("caption", 7, 1, 6, 41.5),
        ("wer", 6, 2, 4, 31.5),
        ("simple", 4, 1, 3, 30.5),
        ("long", 3, 1, 2, 10.0),
    ]
    assert [y.num_dropped_alone for y in yields] == [1, 1, 3, 2, 1], "u6 is wrong and simple too, though unheard"


def test_limits_are_kept_at_their_value_and_captions_need_not_be_asked() -> None:
    assert labelled(LabelFilters(max_wer=1 / 7))[0] == ["u0", "u1"], "one word of seven"
    assert labelled(LabelFilters(max_wer=0.142))[0] == ["u0"]
    assert labelled(LabelFilters(max_duration_s=20.5))[0] == ["u0", "u1", "u4"]
    kept, yields = labelled(LabelFilters(max_wer=None, min_distinct_words=1, max_duration_s=60.0))
    assert kept == ["u0", "u1", "u2", "u3", "u4", "u5", "u7"]
    assert [y.name for y in yields] == ["heard", "simple", "long"]
    assert labelled(LabelFilters(), failed=0)[0] == ["u1"]


def test_the_transcript_is_the_label_and_the_caption_stays_beside_it() -> None:
    table, _ = label(*made(), LabelFilters(), normaliser="basic", labelled_by="first_pass of run")
    row = table.to_pylist()[1]
    assert row["reference"] == "take a second road on the left"
    assert dict(row["attributes"]) == {
        "snr_db": "5",
        "caption": CAPTION,
        "caption_wer": "0.1429",
        "labelled_by": "first_pass of run",
    }


def test_a_caption_of_a_whole_recording_is_none_of_its_windows() -> None:
    rows = [
        {"utterance_id": f"w{i}", "reference": None if i else CAPTION, "window_index": i, "start_s": 5.0 * i}
        for i in range(2)
    ]
    tables = utterances(rows), transcripts([CAPTION, CAPTION], rows, timed=False)
    kept, yields = label(*tables, LabelFilters(), normaliser="basic", labelled_by="x")
    assert (kept.num_rows, yields[1].name, yields[1].num_dropped) == (0, "caption", 2)
    assert label(*tables, LabelFilters(max_wer=None), normaliser="basic", labelled_by="x")[0].num_rows == 2


def test_limits_that_keep_nothing_and_tables_of_other_rows_are_refused() -> None:
    for limits in ({"max_wer": -0.1}, {"max_wer": math.nan}, {"max_duration_s": math.nan}, {"max_duration_s": -1.0}):
        with pytest.raises(ValueError, match="expected limits of 0 or more"):
            LabelFilters(**limits)
    heard, said = made()
    with pytest.raises(ValueError, match="not the same rows"):
        label(heard.slice(1), said, LabelFilters(), normaliser="basic", labelled_by="x")


def shipped_recogniser() -> Experiment:
    return replace(quickstart(), scorers=(), synthetic=None, executor="inline")


@SHIPPED
def test_a_run_labels_train_and_its_manifest_trains_and_evaluates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    sizes = ["--synthetic.num-train", "5", "--synthetic.num-dev", "2", "--synthetic.num-test", "1"]
    assert main(["prepare", "quickstart", "--directory", "corpus", *sizes]) == 0
    beam = ["--first-pass.beam-size", "4", "--first-pass.num-hypotheses", "2"]
    words = ["pseudo-label", "test_pseudo_labels:shipped_recogniser", "--manifest", "corpus", "--root", "run", *beam]
    capsys.readouterr()
    assert main([*words, "--directory", "labels", "--max-wer", "0.9", "--min-distinct-words", "2", "--json"]) == 0
    yields = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert yields == json.loads(Path("labels/yields.json").read_text())["yields"]
    assert (yields[0]["num_seen"], [y["name"] for y in yields]) == (5, ["heard", "caption", "wer", "simple", "long"])
    assert {p.name.split("-")[1] for p in Path("run/transcripts").glob("*/*.parquet")} == {"train"}
    kept = read_corpus("labels")
    assert kept.num_rows == yields[-1]["num_kept"] > 1
    heard = TableSpeech(path="labels")
    assert len(heard) == kept.num_rows
    assert heard.example(0).text == kept["reference"][0].as_py()
    assert np.abs(heard.example(0).samples).max() > 0

    shutil.copytree("labels", "none")
    assert main([*words, "--directory", "none", "--max-duration-s", "0.1"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "none of 5 utterances passes every filter" in said
    assert "none/manifest.jsonl of an earlier run is removed" in said
    assert not Path("none/manifest.jsonl").exists()

    steps = ["--num-steps", "1", "--num-threads", "1", "--num-processes", "0", "--precision", "float32"]
    paths = ["--task.train.path", "labels", "--task.dev.path", "corpus", "--directory", "trained"]
    assert main(["train", "ctc_own", *paths, *steps]) == 0
    assert Path("trained/model/model.safetensors").is_file()


def test_a_manifest_without_train_is_refused_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "so"}\n')
    words = ["pseudo-label", "test_pseudo_labels:shipped_recogniser", "--manifest", "m.jsonl", "--root", "run"]
    assert main(words) == 1
    assert 'no utterance of split train, only of test (no "split" means test)' in capsys.readouterr().err
    assert main([*words, "--system", "oracle"]) == 1
    assert "system 'oracle' has no transcripts; choose one of first_pass" in capsys.readouterr().err
