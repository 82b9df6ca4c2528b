"""The console script as a user meets it: help, mistakes, and a small run whose every promise is checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ctxasr_ray import cli, text
from ctxasr_ray.cli import main
from ctxasr_ray.experiment import Experiment, asset
from ctxasr_ray.recipes.evaluation import quickstart

SHIPPED = pytest.mark.skipif(
    not (Path(asset("ctc")) / "model.safetensors").is_file(), reason="the tiny models are not in assets/"
)
SMALL = [
    *("--executor", "inline", "--shard-audio-s", "20", "--num-replicates", "200", "--weights.num-bootstrap", "0"),
    *("--first-pass.beam-size", "8", "--first-pass.num-hypotheses", "4"),
    *("--synthetic.num-dev", "5", "--synthetic.num-test", "5"),
]


def without_a_corpus() -> Experiment:
    return replace(quickstart(), synthetic=None)


def test_help_names_every_command_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("quickstart", "evaluate", "plan", "status", "report", "prepare", "train", "score", "ctc"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evalute"], "command 'evalute' is unknown"),
        (["evaluate"], "expected a recipe: ctxasr evaluate RECIPE"),
        (["evaluate", "quickstrat"], "Did you mean 'quickstart'?"),
        (["evaluate", "nowhere:recipe"], "expected an importable module:function"),
        (["evaluate", "ctc"], "name one: --manifest FILE"),
        (["evaluate", "ctc", "--manifest", "/no/such/manifest.jsonl"], "/no/such/manifest.jsonl"),
        (
            ["plan", "ctc", "--manifest", "http://127.0.0.1:1/m.jsonl"],
            "http://127.0.0.1:1/m.jsonl: Cannot connect to host",
        ),
        (["prepare", "ctc"], "makes no corpus"),
    ],
)
def test_a_mistake_gets_one_clear_message(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) != 0
    assert said in capsys.readouterr().err


def test_an_unknown_field_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "quickstart", "--first-pas.beam-size", "3"])
    assert stopped.value.code == 2
    assert "--first-pass.beam-size" in "".join(capsys.readouterr())


def test_weights_that_must_be_fitted_ask_for_dev(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "so"}\n')
    assert main(["evaluate", "test_cli:without_a_corpus", "--manifest", "m.jsonl", "--root", "run"]) == 1
    assert "no utterance has split 'dev'" in capsys.readouterr().err


@SHIPPED
def test_a_run_gives_its_results_once_and_then_again_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--root", "run", "--json", *SMALL]) == 0
    first = capsys.readouterr()
    records = [json.loads(line) for line in first.out.splitlines()]
    assert records == json.loads(Path("run/report/results.json").read_text())
    assert {r["system"] for r in records} == {"first_pass", "lm_rescoring", "oracle", "oracle/compositional"}
    assert {r["split"] for r in records} == {"dev", "test"}
    wer = {(r["split"], r["system"]): r for r in records if r["metric"] == "wer"}
    assert all(r["ci_low"] <= r["value"] <= r["ci_high"] and r["signature"] for r in wer.values())
    assert wer["dev", "oracle"]["value"] <= wer["dev", "lm_rescoring"]["value"] <= wer["dev", "first_pass"]["value"]
    assert main(["quickstart", "--root", "run", "--json", *SMALL]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "0 tables made" in again.err


@SHIPPED
def test_a_mended_reference_leaves_the_models_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "quickstart", "--directory", "corpus", *SMALL]) == 0
    manifest = tmp_path / "corpus" / "manifest.jsonl"
    words = ["evaluate", "quickstart", "--manifest", str(manifest), "--root", "run", *SMALL]
    assert main(words) == 0
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[-1]["text"] += " please"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["plan", *words[1:], "--json"]) == 0
    steps = {row["step"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert steps["first_pass"]["num_pending"] == steps["scores_causal_lm"]["num_pending"] == 0
    assert steps["nbest_errors"]["num_pending"] == 1


@SHIPPED
def test_a_bad_recording_is_a_row_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "quickstart", "--directory", "corpus", *SMALL]) == 0
    manifest = tmp_path / "corpus" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    broken = next(row for row in rows if row["split"] == "test")
    (manifest.parent / broken["audio_filepath"]).write_bytes(b"not audio")
    capsys.readouterr()
    words = ["evaluate", "quickstart", "--manifest", str(manifest), "--root", "run", "--json", *SMALL]
    assert main(words) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = {(r["split"], r["system"]): r for r in records if r["metric"] == "wer"}
    assert failed["test", "first_pass"]["num_failed"] == 1
    lost = len(text.words(broken["text"], "whisper_english"))
    assert failed["test", "first_pass"]["counts"]["deletions"] >= lost
    assert failed["dev", "first_pass"]["num_failed"] == 0


def test_the_status_of_a_run_that_is_not_there_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", "quickstart", "--root", "runs/absent"]) != 0
    assert "there is no run at 'runs/absent'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_that_nothing_is_lost_and_how_to_go_on() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        full.write_text("x")
    assert cli._how_to_go_on(caught.value).endswith("then run the same command again.")
    assert cli._how_to_go_on(FileNotFoundError(2, "no such file")) == ""


@SHIPPED
def test_rare_words_are_those_of_the_list_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rare.txt").write_text("the\na\nto\n", "utf-8")
    words = ["evaluate", "quickstart", "--root", "run", "--json", *SMALL]

    def rare(*options: str) -> list[int]:
        assert main([*words, *options]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        counted = [r["counts"] for r in records if r["metric"] == "rare_wer" and r["system"] == "lm_rescoring"]
        return [each["reference_length"] for each in counted]

    assert rare() != []
    manifest = next((tmp_path / "runs").rglob("manifest.jsonl"))
    corpus = [json.loads(row) for row in manifest.read_text("utf-8").splitlines()]
    said = {
        split: [w for row in corpus if row["split"] == split for w in row["text"].split()] for split in ("dev", "test")
    }
    listed = rare("--word-lists.rare-words", "rare.txt")
    assert listed == [sum(word in ("the", "a", "to") for word in own) for own in said.values()]
    assert rare("--word-lists.common-words", "None") == []
