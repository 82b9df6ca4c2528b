"""Traps found in others' code, each one a test that names it; those of texts and metrics.

What was found where is in the notes on peers, section 7: NeMo, HyPoradise, NeMo-Skills, SLAM-LLM, sclite, WeNet...
"""

import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ctxasr_ray import align, text
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.score_files import json_rows, score_files
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, ContractError, conform
from ctxasr_ray.stage import Costs, StageConfig


def utterances(references: list[str | None], keywords: list[list[str]] | None = None) -> pa.Table:
    rows = [
        {
            "utterance_id": f"u{i}",
            "corpus": "c",
            "split": "test",
            "audio_uri": "",
            "start_s": 0.0,
            "reference": reference,
        }
        | ({"keywords": keywords[i]} if keywords else {})
        for i, reference in enumerate(references)
    ]
    return conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")


def transcripts(texts: list[str]) -> pa.Table:
    rows = [{"utterance_id": f"u{i}", "text": t, "words": [], "num_unscored": 0} for i, t in enumerate(texts)]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def lists(texts: list[list[str]]) -> pa.Table:
    return hypotheses_table(
        [NBest(utterance_id=f"u{i}", hypotheses=[Hypothesis(text=t) for t in own]) for i, own in enumerate(texts)]
    )


def run(config: StageConfig, *tables: pa.Table) -> list[Any]:
    return conform(config.build()(*tables, costs=Costs()), config.WRITES).to_pylist()


def rates(table: pa.Table, *errors: pa.Table, **options: Any) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        return run(SummaryConfig(num_replicates=10, **options), table, *errors)


def test_trap_01_empty_hypothesis_read_as_nan(tmp_path: Path) -> None:
    """pandas reads an empty field as NaN, which NeMo then scored as the word "nan"."""
    (tmp_path / "ref").write_text("u1\tyes\nu2\tnan\nu3\tnull\n")
    (tmp_path / "hyp").write_text("u1\t\nu2\tnan\nu3\tnull\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        rows = json_rows(score_files(tmp_path / "ref", [tmp_path / "hyp"], metrics=("wer",), num_replicates=10))
    assert (rows[0]["deletions"], rows[0]["substitutions"], rows[0]["hits"]) == (1, 0, 2)
    assert [text.words("", name) for name in text.NORMALISERS] == [[]] * len(text.NORMALISERS)
    assert [text.words("nan", name) for name in text.NORMALISERS] == [["nan"]] * len(text.NORMALISERS)


def test_trap_02_ragged_nbest() -> None:
    """Lists of 3, 0 and 1 hypotheses: none is cut, padded or moved to another utterance."""
    rows = run(
        NbestErrorsConfig(classes=(("word", "all"),)),
        lists([["a", "a b", "c c c"], [], ["z"]]),
        utterances(["a b", "x y", "z"]),
    )
    assert [row["counts"][0]["errors"] for row in rows] == [[1, 0, 3], [], [0]]
    assert [row["counts"][0]["num_units"] for row in rows] == [[1, 2, 3], [], [1]]


def test_trap_04_random_duplicates_as_padding() -> None:
    """HyPoradise fills short lists with random copies; copies stay rows of their own and change no oracle."""
    table = utterances(["a b", "c d"])
    short, padded = lists([["a", "a b"], ["c"]]), lists([["a", "a b", "a", "a"], ["c", "c", "c", "c"]])
    config = NbestErrorsConfig()
    counts = [run(config, own, table) for own in (short, padded)]
    assert counts[1][0]["counts"][0]["errors"] == [1, 0, 1, 1]
    oracles = [run(OracleConfig(), config.build()(own, table, costs=Costs())) for own in (short, padded)]
    assert oracles[0] == oracles[1]


def test_trap_05_mean_of_utterance_wers() -> None:
    """One word wrong of one and none of nine is 10 %, not the mean of 100 % and 0 % (HyPoradise, NeMo-Skills)."""
    table = utterances(["a", "b c d e f g h i j"])
    errors = ErrorCountsConfig(normaliser="none").build()(table, transcripts(["x", "b c d e f g h i j"]), costs=Costs())
    (wer, *_) = rates(table, errors, systems=("first_pass",))
    assert wer["value"] == pytest.approx(0.1)


def test_trap_06_join_by_line_number(tmp_path: Path) -> None:
    """SLAM-LLM, NeMo's beams and jiwer's command line pair line n with line n, whatever stands there."""
    (tmp_path / "ref").write_text("".join(f"u{i}\tword{i}\n" for i in range(20)))
    (tmp_path / "hyp").write_text("".join(f"u{i}\tword{i}\n" for i in reversed(range(20)) if i != 7))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        rows = json_rows(score_files(tmp_path / "ref", [tmp_path / "hyp"], metrics=("wer",), num_replicates=10))
    assert (rows[0]["hits"], rows[0]["deletions"], rows[0]["substitutions"]) == (19, 1, 0)
    shuffled = utterances(["a", "b"]).take(pa.array([1, 0]))
    with pytest.raises(ContractError, match="row 0: ids differ"):
        run(ErrorCountsConfig(), shuffled, transcripts(["a", "b"]))


def test_trap_13_missing_ids_silently_dropped() -> None:
    """sclite and WeNet score the ids that the hypotheses have; a crash halfway then looks like a gain."""
    table = utterances(["a b", "c d", "e f"])
    errors = ErrorCountsConfig(normaliser="none").build()(table, transcripts(["a b", "c d", "x"]), costs=Costs())
    (whole, *_) = rates(table, errors, systems=("first_pass",))
    (cut, *_) = rates(table, errors.slice(0, 2), systems=("first_pass",))
    assert whole["value"] == pytest.approx(2 / 6)
    assert cut["value"] == pytest.approx(2 / 6)
    assert dict(cut["counts"])["missing_utterances"] == 1


def test_trap_17_keyword_of_another_case_dropped() -> None:
    """gigastt 260 lost hotwords by case: phrases go through the normaliser of the texts."""
    table = utterances(["please call ZORP"], [["Zorp's", "zOrP"]])
    (row,) = run(ErrorCountsConfig(normaliser="librispeech"), table, transcripts(["please call sorp"]))
    counts = {entry["metric"]: entry for entry in row["counts"]}
    assert (counts["biased_wer"]["reference_length"], counts["biased_wer"]["substitutions"]) == (1, 1)
    assert counts["unbiased_wer"]["hits"] == 2


def test_trap_shown_alignment_and_counts_disagree() -> None:
    """kaldialign's PR 1; every cost scheme is tested at length in `test_align.py`."""
    reference, heard = ["a", "b", "c", "d"], ["b", "c", "x", "d", "d"]
    for scheme in align.ALIGNMENTS:
        pair = align.encode("word", [" ".join(reference)], [" ".join(heard)])
        counts = align.count(pair[0], pair[1], scheme)
        shown = [step.op for step in align.align(reference, heard, scheme)]
        assert shown.count("substitution") == counts.substitutions[0]
        assert shown.count("deletion") == counts.deletions[0]
        assert shown.count("insertion") == counts.insertions[0]


def test_trap_distractors_never_enter_the_biased_figures() -> None:
    """The published scorer reads the true words only; a false alarm is an insertion of U-WER, not of B-WER."""
    table = utterances(["call zorp"], [["zorp"]])
    (row,) = run(ErrorCountsConfig(), table, transcripts(["call zorp blimfax"]))
    counts = {entry["metric"]: entry["insertions"] for entry in row["counts"]}
    assert (counts["biased_wer"], counts["unbiased_wer"], counts["wer"]) == (0, 1, 1)
