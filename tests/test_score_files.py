"""`ctxasr score` on files alone: every format, and every rule for input that is not as it should be."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import pytest
from real import real

from ctxasr_ray.metrics.score_files import json_rows, score_files


@pytest.fixture(autouse=True)
def _without_the_warning_that_speakers_are_unknown() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        yield


def scored(
    folder: Path, references: str, hypotheses: str, form: str = "tsv", **options: Any
) -> dict[str, dict[str, Any]]:
    (folder / "ref").write_bytes(references.encode())
    (folder / "hyp").write_bytes(hypotheses.encode())
    table = score_files(folder / "ref", [folder / "hyp"], form=form, num_replicates=20, **options)
    return {row["metric"]: row for row in json_rows(table) if not row["condition"]}


def sdi(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["substitutions"], row["deletions"], row["insertions"], row["reference_length"]


@pytest.mark.parametrize(
    ("form", "references", "hypotheses"),
    [
        ("tsv", "u1\tthe cat sat\nu2\tyes\n", "u2\tyes\nu1\tthe bat sat on\n"),
        (
            "tsv",
            "utterance_id\tspeaker_id\treference\nu1\ts\tthe cat sat\nu2\ts\tyes\n",
            "u2\tyes\nu1\tthe bat sat on\n",
        ),
        ("kaldi", "u1 the cat sat\nu2 yes\n", "u2 yes\nu1  the bat  sat on\n"),
        ("trn", "the cat sat (s-u1)\nyes (s-u2)\n", "yes (s-u2)\nthe bat sat on (s-u1)\n"),
        (
            "nemo",
            '{"audio_filepath": "a.wav", "text": "the cat sat"}\n{"audio_filepath": "b.wav", "text": "yes"}\n',
            '{"audio_filepath": "b.wav", "text": "!", "pred_text": "yes"}\n'
            '{"audio_filepath": "a.wav", "pred_text": "the bat sat on"}\n',
        ),
        (
            "stm",
            ";; comment\nf 1 spk 0 2 <o,f0> the cat sat\nf 1 spk 2.0 3.0 yes\n",
            "f 1 0.1 0.2 the\nf 1 0.5 0.2 bat 0.9\nf 1 2.2 0.4 yes\nf 1 1.0 0.2 sat\nf 1 1.8 0.3 on NA\n",
        ),
        ("is21", 'u1\tthe cat sat\t["cat"]\t["cat", "dog"]\nu2\tyes\t[]\n', "u2\tyes\nu1\tthe bat sat on\n"),
    ],
)
def test_every_format_is_joined_by_id(tmp_path: Path, form: str, references: str, hypotheses: str) -> None:
    assert sdi(scored(tmp_path, references, hypotheses, form)["wer"]) == (1, 0, 1, 4)


@pytest.mark.parametrize("name", ["b1.rnnt_baseline", "s5.s3+db-nnlm.biasing_1000"])
def test_is21_files_give_the_published_lines(name: str) -> None:
    table = score_files(
        real("is21/ref/test-clean.biasing_100.tsv"),
        [real(f"is21/hyp/test-clean.{name}.tsv")],
        form="is21",
        alignment="nist",
        metrics=("wer",),
        num_replicates=50,
    )
    rows = {row["metric"]: row for row in json_rows(table)}
    published = real(f"is21/results/test-clean.{name}.tsv.result").read_text("utf-8").split("\n")[:3]
    for line, metric in zip(published, ("wer", "unbiased_wer", "biased_wer"), strict=True):
        expected = {k: float(v) for k, v in (pair.split("=") for pair in line.split(": ")[1].split(", "))}
        row = rows[metric]
        assert sdi(row) == tuple(int(expected[k]) for k in ("subs", "dels", "ins", "ref_words"))
        assert row["value"] == pytest.approx(expected["error_rate"] / 100, rel=1e-12)
        assert row["num_blocks"] == 40  # LibriSpeech ids name their speaker


def test_many_systems_are_compared_with_the_first_in_pairs(tmp_path: Path) -> None:
    (tmp_path / "ref.txt").write_text("".join(f"u{i}\ta b c d\n" for i in range(30)))
    (tmp_path / "one.txt").write_text("".join(f"u{i}\ta x x d\n" for i in range(30)))
    (tmp_path / "two.txt").write_text("".join(f"u{i}\ta b c {'x' if i % 5 else 'd'}\n" for i in range(30)))
    table = score_files(
        tmp_path / "ref.txt",
        [tmp_path / "one.txt", f"better={tmp_path / 'two.txt'}"],
        metrics=("wer",),
        num_replicates=500,
    )
    one, two = json_rows(table)
    assert (one["system"], one["baseline"], one["value"]) == ("one", None, 0.5)
    assert (two["system"], two["baseline"], two["delta"]) == ("better", "one", pytest.approx(0.2 - 0.5))
    assert two["delta_ci_high"] < 0
    assert two["p_value"] < 0.01


def test_groups_add_up_to_the_whole(tmp_path: Path) -> None:
    rows = [("u1", "10", "a b"), ("u2", "5", "a"), ("u3", "10", "c d e"), ("u4", "", "x y z u v w")]
    header = "utterance_id\tsnr_db\ttext\n"
    (tmp_path / "ref").write_text(header + "".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "hyp").write_text("u1\ta\nu2\ta\nu3\td e\n")
    table = score_files(tmp_path / "ref", [tmp_path / "hyp"], metrics=("wer",), group_by="snr_db", num_replicates=20)
    found = [(row["condition"].get("snr_db"), sdi(row), row["missing_utterances"]) for row in json_rows(table)]
    assert found[0] == (None, (0, 8, 0, 12), 1)
    assert found[1:] == [("5", (0, 0, 0, 1), 0), ("10", (0, 2, 0, 5), 0), ("unknown", (0, 6, 0, 6), 1)]
    table = score_files(tmp_path / "ref", [tmp_path / "hyp"], metrics=("wer",), group_by="length", num_replicates=20)
    assert [row["condition"].get("length") for row in json_rows(table)] == [None, "1-5", "6-10"]
    with pytest.raises(ValueError, match=r"group_by 'accent': no reference has it; there are .*'snr_db'"):
        score_files(tmp_path / "ref", [tmp_path / "hyp"], group_by="accent")


# ids


def test_ids_of_one_side_only_are_charged_or_counted(tmp_path: Path) -> None:
    row = scored(tmp_path, "u1\ta b\nu2\tc d e\n", "u1\ta b\nu9\tz z z\n")["wer"]
    assert sdi(row) == (0, 3, 0, 5)
    assert (row["missing_utterances"], row["extra_utterances"]) == (1, 1)


def test_ids_of_one_side_only_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    references = "".join(f"u{i}\ta b\n" for i in range(9))
    scored(tmp_path, references, "u0\ta b\nu9\tz z z\n")
    assert [record.getMessage() for record in caplog.records] == [
        "system 'hyp': 8 utterances it leaves out, charged as all deleted: 'u1', 'u2', 'u3', 'u4', 'u5', ...",
        "system 'hyp': 1 utterances without a reference, not counted: 'u9'",
    ]


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("tsv", "u1\ta\nu2\tb\nu1\tc\n", r"ref, line 3, column 'utterance_id': 'u1' stands in line 1 already"),
        ("tsv", "u1 a\nu2\tb\n", r"line 1: got 1 columns, expected 2 \(utterance_id, text\)"),
        ("tsv", "utterance_id\tspeaker\nu1\ts\n", r"line 1: got columns .*, expected utterance_id and one text"),
        ("trn", "a b c\n", "line 1: does not end with an id in parentheses"),
        ("trn", "a { b / c } (s-1)\n", r"line 1: '\{' is sclite markup"),
        ("trn", "a (uh) b (s-1)\n", r"line 1: '\(uh\)' is sclite markup"),
        ("is21", "u1\ta\n", "line 1: got 2 columns, expected id, text, rare words"),
        ("is21", "u1\ta\t[1]\n", r"line 1, column 3: got \[1\], expected a JSON list of strings"),
        ("is21", "u1\ta\t[a]\n", "line 1, column 3: broken JSON"),
        ("nemo", '{"text": "a"}\n', "line 1: names no utterance"),
        ("nemo", '{"audio_filepath": "a", "text": 3}\n', "line 1, column 'text': got 3, expected a string"),
        ("nemo", '{"audio_filepath": "a", "text": NaN}\n', "line 1: NaN is no JSON"),
        ("nemo", '{"audio_filepath": "a", "text": "\\ud800"}\n', "line 1: broken JSON: .*surrogates not allowed"),
        ("nemo", "[]\n", "line 1: got a list, expected one object"),
        ("stm", "f 1 s 0 x a\n", "line 1: got 'x', expected seconds"),
        ("stm", "f 1 s nan 1 a\n", "line 1: got 'nan', expected seconds"),
        ("kaldi", "\n \n", "is empty; write one line per utterance"),
    ],
)
def test_a_reference_file_that_is_broken_is_refused_with_its_line(
    tmp_path: Path, form: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scored(tmp_path, text, "u1\ta\n", form)


@pytest.mark.parametrize(
    ("form", "references", "text", "message"),
    [
        ("tsv", "u1\ta\n", "u1\ta\nu1\tb\n", "hyp, line 2, column 'utterance_id': 'u1' stands in line 1 already"),
        ("is21", "u1\ta\t[]\n", "u1\ta\t[]\n", "hyp, line 1: got 3 columns, expected id"),
        (
            "nemo",
            '{"audio_filepath": "a", "text": "x"}\n',
            '{"audio_filepath": "a"}\n',
            "hyp, line 1, column 'text': is missing",
        ),
        ("stm", "f 1 s 0 1 a\n", "f 1 0.0 0.5 a nan\n", "hyp, line 1: got 'nan', expected seconds"),
        ("stm", "f 1 s 0 1 a\n", "f 1 0.0 a\n", "hyp, line 1: expected: file channel start duration word"),
        ("tsv", "u1\ta\n", "v1\ta\n", "hyp: shares no utterance id with .*ref; for example 'v1' there and 'u1' here"),
    ],
)
def test_a_hypothesis_file_that_is_broken_is_refused_with_its_line(
    tmp_path: Path, form: str, references: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scored(tmp_path, references, text, form)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ref").write_bytes(b"u1\tcaf\xe9\n")
    with pytest.raises(ValueError, match="ref, line 1, column 7: byte 0xe9 is not UTF-8"):
        score_files(tmp_path / "ref", [tmp_path / "ref"])


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("u1\ta\n")
    path = tmp_path / "a.txt"
    with pytest.raises(ValueError, match="format 'sclite' is unknown; choose one of is21, kaldi, trn, stm, nemo, tsv"):
        score_files(path, [path], form="sclite")
    with pytest.raises(ValueError, match=r"system 'a' is .* and .*; give one of them a name"):
        score_files(path, [path, path])
    with pytest.raises(ValueError, match=r"baseline 'b' is not among the systems \['a'\]"):
        score_files(path, [path], baseline="b")
    with pytest.raises(ValueError, match="no hypothesis file is given"):
        score_files(path, [])
    with pytest.raises(ValueError, match="metric 'ser' is unknown"):
        score_files(path, [path], metrics=("ser",))


# texts


def test_a_bom_and_crlf_are_read_over(tmp_path: Path) -> None:
    row = scored(tmp_path, "\ufeffu1\ta b\r\nu2\tc\r\n", "\ufeffu1\ta b\r\nu2\tc\r\n")["wer"]
    assert (sdi(row), row["missing_utterances"]) == ((0, 0, 0, 3), 0)


@pytest.mark.parametrize(
    ("form", "empty"), [("tsv", "u1\t"), ("tsv", "u1"), ("kaldi", "u1"), ("trn", "(u1)"), ("is21", "u1")]
)
def test_an_empty_hypothesis_is_all_deletions_and_not_missing(tmp_path: Path, form: str, empty: str) -> None:
    references = {"tsv": "u1\ta b\n", "kaldi": "u1 a b\n", "trn": "a b (u1)\n", "is21": "u1\ta b\t[]\n"}[form]
    row = scored(tmp_path, references, empty + "\n", form)["wer"]
    assert (sdi(row), row["missing_utterances"]) == ((0, 2, 0, 2), 0)


def test_an_empty_reference_counts_insertions_and_is_counted(tmp_path: Path) -> None:
    row = scored(tmp_path, "u1\t\nu2\tc\n", "u1\ta b\nu2\tc\n")["wer"]
    assert (sdi(row), row["empty_references"]) == ((0, 0, 2, 1), 1)


def test_references_that_normalise_to_nothing_are_counted(tmp_path: Path) -> None:
    row = scored(tmp_path, "u1\t[noise]\nu2\tc\n", "u1\t\nu2\tc\n", normaliser="basic")["wer"]
    assert (sdi(row), row["empty_references"]) == ((0, 0, 0, 1), 1)


def test_an_unknown_reference_is_left_out_and_counted(tmp_path: Path) -> None:
    references = '{"utterance_id": "u1", "text": null}\n{"utterance_id": "u2", "text": "c"}\n'
    hypotheses = '{"utterance_id": "u1", "text": "a"}\n{"utterance_id": "u2", "text": "c"}\n'
    row = scored(tmp_path, references, hypotheses, "nemo")["wer"]
    assert (sdi(row), row["unreferenced_utterances"], row["num_utterances"]) == ((0, 0, 0, 1), 1, 1)


def test_an_ignored_stm_segment_takes_its_words_with_it(tmp_path: Path) -> None:
    references = "f 1 s 0 1 a\nf 1 s 1 2 IGNORE_TIME_SEGMENT_IN_SCORING\n"
    row = scored(tmp_path, references, "f 1 0.2 0.1 a\nf 1 1.2 0.1 z\n", "stm")["wer"]
    assert (sdi(row), row["unreferenced_utterances"]) == ((0, 0, 0, 1), 1)


def test_ctm_words_outside_every_segment_count_where_they_are_nearest(tmp_path: Path) -> None:
    references = "f 1 s 1 2 a\nf 1 s 5 6 b\n"
    rows = scored(
        tmp_path, references, "f 1 0.2 0.1 x\nf 1 1.2 0.1 a\nf 1 3.9 0.1 y\nf 1 5.2 0.1 b\ng 1 0 1 z\n", "stm"
    )
    assert sdi(rows["wer"]) == (0, 0, 2, 2)
    assert rows["wer"]["extra_utterances"] == 1


@pytest.mark.parametrize(
    ("reference", "heard", "expected"),
    [
        ("שלום עולם", "שלום עולמ", (1, 0, 0, 2)),
        ("नमस्ते दुनिया", "नमस्ते दुनिया", (0, 0, 0, 2)),
        ("cafe\u0301", "caf\u00e9", (0, 0, 0, 1)),
        ("\u202bשלום\u202c", "שלום", (0, 0, 0, 1)),
    ],
)
def test_right_to_left_and_combining_scripts(
    tmp_path: Path, reference: str, heard: str, expected: tuple[int, ...]
) -> None:
    row = scored(tmp_path, f"u1\t{reference}\n", f"u1\t{heard}\n", normaliser="basic")["wer"]
    assert sdi(row) == expected


def test_files_are_scored_as_they_are_unless_a_normaliser_is_asked_for(tmp_path: Path) -> None:
    files = "u1\tThe cat, sat.\n", "u1\tthe cat sat\n"
    raw, normal = scored(tmp_path, *files)["wer"], scored(tmp_path, *files, normaliser="whisper_english")["wer"]
    assert (sdi(raw)[0], sdi(normal)[0]) == (3, 0)
    assert "|norm:none.v1|" in raw["signature"]
    assert "|norm:whisper_english.v1|" in normal["signature"]


def test_rows_are_json_objects_with_the_counts_at_the_top(tmp_path: Path) -> None:
    row = scored(tmp_path, "u1\ta b\n", "u1\ta\n")["wer"]
    assert json.loads(json.dumps(row)) == row
    keys = {"metric", "value", "reference_length", "substitutions", "insertions", "deletions"}
    assert keys <= row.keys()
    assert row["value"] == 0.5


# sclite

SCLITE = """
the cat sat on the mat (spk1-001) | the bat sat on mat (spk1-001) | 4 1 1 0
a b c d e (spk1-002) | b c d x e f (spk1-002) | 4 0 1 2
a b (spk2-001) | b c (spk2-001) | 1 0 1 1
call zorp now please (spk2-002) | (spk2-002) | 0 0 4 0
one two three four five six (spk3_1) | one one two three for five six seven (spk3_1) | 5 1 0 2
"""
"""Reference, hypothesis, and `Scores: (#C #S #D #I)` as sclite 2.4.10 of Debian prints them."""


def test_trn_with_nist_costs_equals_what_sclite_prints(tmp_path: Path) -> None:
    for line in SCLITE.strip().splitlines():
        reference, heard, expected = line.split(" | ")
        row = scored(tmp_path, reference + "\n", heard + "\n", "trn", alignment="nist")["wer"]
        assert " ".join(str(row[k]) for k in ("hits", "substitutions", "deletions", "insertions")) == expected


def test_trn_with_nist_costs_equals_sclite_on_random_pairs(tmp_path: Path) -> None:
    found = shutil.which("sclite") or shutil.which("sclite", path="/usr/lib/sctk/bin")
    if found is None:
        pytest.skip("sclite is not installed (apt-get install sctk)")
    rng = random.Random(3)
    lines: dict[str, list[str]] = {"ref": [], "hyp": []}
    for i in range(300):
        words = rng.choices([f"w{k}" for k in range(12)], k=rng.randint(1, 12))
        heard = [w for w in words if rng.random() > 0.2 for w in rng.choice(([w], [w], ["w1"], [w, "w2"]))]
        lines["ref"].append(f"{' '.join(words)} (s{i % 5}-{i:04d})\n")
        lines["hyp"].append(f"{' '.join(heard)} (s{i % 5}-{i:04d})\n")
    row = scored(tmp_path, "".join(lines["ref"]), "".join(lines["hyp"]), "trn", alignment="nist")["wer"]
    command = [
        found,
        "-r",
        str(tmp_path / "ref"),
        "trn",
        "-h",
        str(tmp_path / "hyp"),
        "trn",
        "-i",
        "rm",
        "-o",
        "pra",
        "stdout",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    scores = re.findall(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", printed)
    totals = [sum(int(score[k]) for score in scores) for k in range(4)]
    assert len(scores) == 300
    assert [row[k] for k in ("hits", "substitutions", "deletions", "insertions")] == totals


@pytest.mark.slow
def test_a_million_utterances(tmp_path: Path) -> None:
    count = 1_000_000
    lines = [f"u{i}\tword{i} and number {i % 97} of many" for i in range(count)]
    (tmp_path / "ref").write_text("\n".join(lines) + "\n")
    heard = [line if i % 10 else line.replace(" and", "") for i, line in enumerate(lines)]
    (tmp_path / "hyp").write_text("\n".join(reversed(heard)) + "\n")
    words = ["score", "--format", "tsv", "--references", "ref", "--hypotheses", "hyp", "--metrics", "wer", "--json"]
    command = [sys.executable, "-m", "ctxasr_ray.cli", *words, "--num-replicates", "1000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        (row,) = map(json.loads, process.stdout.read().splitlines())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert used.ru_utime + used.ru_stime < 100, "seconds of one core"
    assert used.ru_maxrss < 4_000_000, "KiB"
    assert sdi(row) == (0, count // 10, 0, count * 6)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["value"] == pytest.approx(
        jiwer.wer([line.split("\t")[1] for line in lines[:1000]], [line.split("\t")[1] for line in heard[:1000]])
    )
