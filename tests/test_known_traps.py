"""Traps found in others' code, each one a test that names it; those of texts, scores and metrics stand here.

What was found where is in the notes on peers, section 7: NeMo, HyPoradise, NeMo-Skills, SLAM-LLM, sclite, WeNet...
`ELSEWHERE` names the tests of traps that need a model, a store or a cluster.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ctxasr_ray import align, text
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.score_files import json_rows, score_files
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, ContractError, conform
from ctxasr_ray.stage import Costs, StageConfig

ELSEWHERE = {
    "08 tokenizer without BOS, pad id below eos (SpeechBrain)": (
        "test_scorer_causal_lm.py::test_a_tokenizer_without_bos_scores_from_eos_only_when_asked",
        "test_scorer_causal_lm.py::test_a_low_pad_id_below_eos_takes_no_probability_away",
    ),
    "09 natural log against log10 (KenLM, SRILM)": (
        "test_imported.py::test_natural_log_and_log10_come_in_as_nats_and_acoustic_scores_stay_apart",
        "test_imported.py::test_scores_of_unknown_base_and_other_undeclared_things_are_refused",
    ),
    "10 beam scores of another row (transformers 32246)": (
        "test_nbest.py::test_scores_of_other_rows_are_refused",
        "test_causal_lm.py::test_no_batching_and_no_order_changes_a_score",
    ),
    "11 results overwritten inside a grid (icefall)": (
        "test_execution.py::test_a_changed_scorer_leaves_the_first_pass_alone",
        "test_store.py::test_a_different_table_is_kept_beside_and_changes_nothing",
    ),
    "12 tuned on test (icefall, NeMo)": ("test_execution.py::test_a_fit_on_test_is_refused_before_any_work",),
    "14 final manifest deleted on resume (Curator 1967)": (
        "test_execution.py::test_a_driver_killed_at_any_point_of_the_commit_goes_on_where_it_was",
        "test_execution.py::test_success_stands_only_beside_complete_tables",
    ),
    "15 retried on the same dead engine (Ray 60088)": (
        "test_chaos.py::test_a_poison_utterance_ends_quarantined_and_not_in_a_loop",
        "test_scorer_vllm.py::test_the_engine_gives_the_scores_of_transformers_and_a_dead_one_ends_its_actor",
        "test_execution.py::test_a_stage_that_dies_while_it_is_built_blames_no_utterance",
    ),
    "18 stale cached log-probs (vLLM 42019)": (
        "test_tree_sessions.py::test_sessions_that_share_a_cache_may_be_extended_apart_and_closed_one_by_one",
        "test_tree_sessions.py::test_sessions_dropped_for_memory_are_replayed_without_a_change",
    ),
}


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


SCORED = NBest(
    utterance_id="u0",
    hypotheses=[
        Hypothesis(text="a b", scores=[Score(source="ctc", kind="log_prob", log_prob=-3.0)]),
        Hypothesis(text="a c", scores=[Score(source="ctc", kind="log_prob", log_prob=-4.0)]),
    ],
)


def lm(*log_probs: float | None) -> pa.Table:
    reasons = [None if p is not None else "too long" for p in log_probs]
    return scores_table(["u0"], [[SourceScores(source="lm", log_probs=log_probs, reasons=reasons)]])


def test_trap_03_missing_score_treated_as_0() -> None:
    """SRILM writes 0 for a missing score, the best log-prob there is; here the first pass is kept and it is said."""
    fusion = LogLinearConfig(weights={"ctc": 1.0, "lm": 1.0})
    (row,) = run(fusion, hypotheses_table([SCORED]), lm(-5.0, None))
    assert (row["text"], row["num_unscored"]) == ("a b", 1)
    (row,) = run(fusion, hypotheses_table([SCORED]), lm(-5.0, -1.0))
    assert (row["text"], row["num_unscored"]) == ("a c", 0)


def test_trap_07_shallow_copied_scores_mutated() -> None:
    """SpeechBrain's rescorer adds its weights into the caller's scores; a second fusion would then see other ones."""
    lists_of_it, scores = hypotheses_table([SCORED]), lm(-5.0, -1.0)
    before = lists_of_it.to_pylist(), scores.to_pylist()
    fusion = LogLinearConfig(weights={"ctc": 1.0, "lm": 0.7})
    first = run(fusion, lists_of_it, scores)
    assert (lists_of_it.to_pylist(), scores.to_pylist()) == before
    assert run(fusion, lists_of_it, scores) == first


def test_trap_16_boost_counted_twice() -> None:
    """sherpa-onnx 3895 adds a hotword's boost in the search and again in the path score: one source, one weight."""
    again = scores_table(["u0"], [[SourceScores(source="ctc", log_probs=(-3.0, -4.0))]])
    with pytest.raises(ContractError, match="source 'ctc' stands in the recogniser's own scores; it would be added"):
        run(LogLinearConfig(weights={"ctc": 1.0}), hypotheses_table([SCORED]), again)
    boosted = Score(source="boosted", kind="search", log_prob=-1.0)
    record = NBest(utterance_id="u0", hypotheses=[Hypothesis(text="z", scores=[boosted])])
    with pytest.raises(ContractError, match="weights are given for"):  # a sum of the search is a record, no source
        run(LogLinearConfig(weights={"boosted": 1.0}), hypotheses_table([record]))


def test_every_trap_of_the_list_is_a_test() -> None:
    folder = Path(__file__).parent
    here = {int(number) for number in re.findall(r"def test_trap_(\d+)", Path(__file__).read_text("utf-8"))}
    assert here | {int(name[:2]) for name in ELSEWHERE} == set(range(1, 19))
    for tests in ELSEWHERE.values():
        for name in tests:
            file, test = name.split("::")
            assert f"def {test}(" in (folder / file).read_text("utf-8"), name
