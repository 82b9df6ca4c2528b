import csv
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real import real

from ctxasr_ray.metrics.counts import errors_table, read_errors
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.metrics.word_classes import COMMON_ENGLISH, WordLists
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import FITS, NBEST_ERRORS, TRANSCRIPTS, UTTERANCES, ContractError, conform
from ctxasr_ray.stage import Costs, StageConfig

ALL_CLASSES = (("word", "all"), ("character", "all"), ("word", "biased"), ("word", "unbiased"), ("word", "rare"))
BIASED = ("biased_wer", "unbiased_wer")


def utterances(rows: list[dict[str, Any]]) -> pa.Table:
    default = {"corpus": "c", "split": "test", "audio_uri": "a.wav", "start_s": 0.0}
    full = [default | {"utterance_id": f"u{i}"} | row for i, row in enumerate(rows)]
    return conform(pa.Table.from_pylist(full, schema=UTTERANCES), "utterances")


def transcripts(texts: list[str], **columns: list[Any]) -> pa.Table:
    rows = [
        {"utterance_id": f"u{i}", "text": text, "words": [], "num_unscored": 0}
        | {name: values[i] for name, values in columns.items()}
        for i, text in enumerate(texts)
    ]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def hypotheses(lists: list[list[str]]) -> pa.Table:
    return hypotheses_table(
        [
            NBest(utterance_id=f"u{i}", hypotheses=[Hypothesis(text=text) for text in texts])
            for i, texts in enumerate(lists)
        ]
    )


def run(config: StageConfig, *tables: pa.Table) -> pa.Table:
    return conform(config.build()(*tables, costs=Costs()), config.WRITES)


def results(config: SummaryConfig, *tables: pa.Table) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = run(config, *tables).to_pylist()
    return {(r["split"], r["system"], r["metric"]): r | {"counts": dict(r["counts"])} for r in rows}


def counts(errors: pa.Table, row: int) -> dict[str, tuple[int, ...]]:
    names = ("hits", "substitutions", "deletions", "insertions", "reference_length")
    return {c["metric"]: tuple(c[n] for n in names) for c in errors.column("counts")[row].as_py()}


def biased(**lists: Any) -> ErrorCountsConfig:
    """B-WER and U-WER, no word common unless a list says so."""
    return ErrorCountsConfig(metrics=BIASED, word_lists=WordLists(**({"common_words": None} | lists)))


TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "Zorp's", "mat."]), max_size=6).map(" ".join)


# ERRORS


def test_a_failed_utterance_is_all_deletions_whatever_its_text_says() -> None:
    table = run(
        ErrorCountsConfig(),
        utterances([{"reference": "call Zorp now"}]),
        transcripts(["call Zorp"], error_type=["audio"]),
    )
    assert counts(table, 0) == {
        "wer": (0, 0, 3, 0, 3),
        "cer": (0, 0, 13, 0, 13),
        "orthographic_wer": (0, 0, 3, 0, 3),
        "rare_wer": (0, 0, 1, 0, 1),
    }


def test_an_utterance_without_reference_is_left_out_and_keeps_its_row() -> None:
    table = run(ErrorCountsConfig(), utterances([{"reference": None}, {"reference": "a"}]), transcripts(["x", "a"]))
    assert table.column("utterance_id").to_pylist() == ["u0", "u1"]
    assert counts(table, 0) == {}
    assert counts(table, 1)["wer"] == (1, 0, 0, 0, 1)


@pytest.mark.parametrize("reference", ["", "?!", "um", "[noise]"])
def test_a_reference_that_normalises_to_nothing_counts_insertions(reference: str) -> None:
    table = run(ErrorCountsConfig(), utterances([{"reference": reference}]), transcripts(["hello there"]))
    assert counts(table, 0)["wer"] == (0, 0, 0, 2, 0)


def test_the_alignment_and_the_normaliser_stand_in_every_count() -> None:
    config = ErrorCountsConfig(normaliser="none", alignment="nist", metrics=("wer",))
    (entry,) = run(config, utterances([{"reference": "A b"}]), transcripts(["b c"])).column("counts")[0].as_py()
    assert (entry["normaliser"], entry["alignment"]) == ("none", "nist")
    assert (entry["substitutions"], entry["deletions"], entry["insertions"]) == (0, 1, 1)


@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_error_counts_add_up_and_are_zero_only_where_texts_are_equal(pairs: list[tuple[str, str]]) -> None:
    config = ErrorCountsConfig(normaliser="none")
    table = run(config, utterances([{"reference": r} for r, _ in pairs]), transcripts([h for _, h in pairs]))
    for row, (reference, heard) in enumerate(pairs):
        hits, substitutions, deletions, insertions, length = counts(table, row)["wer"]
        assert hits + substitutions + deletions == length == len(reference.split())
        assert hits + substitutions + insertions == len(heard.split())
        assert (substitutions + deletions + insertions == 0) == (reference == heard)


def test_errors_survive_the_way_through_arrow() -> None:
    table = run(ErrorCountsConfig(), utterances([{"reference": None}, {"reference": "a b"}]), transcripts(["", "a"]))
    again = errors_table(table.column("utterance_id").to_pylist(), read_errors(table))
    assert again.equals(table)
    assert errors_table(["x"], []).to_pylist() == [{"utterance_id": "x", "counts": []}]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ErrorCountsConfig(metrics=("wer", "ser")), r"metrics: \['ser'\] are unknown"),
        (ErrorCountsConfig(normaliser="english"), "normaliser 'english' is unknown"),
        (ErrorCountsConfig(alignment="kaldi"), "alignment 'kaldi' is unknown"),
        (NbestErrorsConfig(classes=(("character", "rare"),)), r"classes: \[\('character', 'rare'\)\] are unknown"),
        (biased(common_words="/nowhere/words.txt"), "common_words '/nowhere/words.txt': no such file"),
        (biased(rare_words="/nowhere/rare.txt"), "rare_words '/nowhere/rare.txt': no such file"),
        (SummaryConfig(systems=("a",)), r"baseline: \['first_pass'\] are not among systems \['a'\]"),
        (SummaryConfig(systems=("first_pass",), num_replicates=0), "num_replicates is 0; expected at least 1"),
    ],
)
def test_wrong_configs_are_refused_before_any_work(config: StageConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build()


def test_tables_of_other_utterances_are_refused() -> None:
    with pytest.raises(ContractError, match="transcripts, row 1: ids differ from utterances"):
        run(ErrorCountsConfig(), utterances([{}, {"utterance_id": "other"}]), transcripts(["a", "b"]))


# NBEST_ERRORS and the oracle


def test_every_hypothesis_is_counted_and_an_empty_list_keeps_its_row() -> None:
    table = run(
        NbestErrorsConfig(),
        hypotheses([["a cat sat", "the cat sat"], [], ["hm"]]),
        utterances([{"reference": "The cat sat."}, {"reference": "yes"}, {"reference": None}]),
    )
    words = [row[0] for row in table.column("counts").to_pylist()]
    assert [w["errors"] for w in words] == [[1, 0], [], None]
    assert [w["num_units"] for w in words] == [[3, 3], [], [1]]
    assert [w["reference_length"] for w in words] == [3, 1, None]


@given(
    lists=st.lists(st.tuples(st.none() | TEXTS, st.lists(TEXTS, max_size=4)), min_size=1, max_size=5),
    alignment=st.sampled_from(["unit", "nist"]),
)
@settings(max_examples=60, deadline=None)
def test_nbest_errors_equal_counting_one_hypothesis_at_a_time(
    lists: list[tuple[str | None, list[str]]], alignment: str
) -> None:
    rows = [{"reference": r, "keywords": ["Zorp's mat"]} for r, _ in lists]
    config = NbestErrorsConfig(classes=ALL_CLASSES, alignment=alignment)
    table = run(config, hypotheses([texts for _, texts in lists]), utterances(rows)).column("counts").to_pylist()
    names = {"wer": 0, "cer": 1, "biased_wer": 2, "unbiased_wer": 3, "rare_wer": 4}
    for row, (reference, texts) in enumerate(lists):
        for rank, text in enumerate(texts):
            pair = utterances([rows[row]]), transcripts([text])
            found = counts(run(ErrorCountsConfig(alignment=alignment, metrics=tuple(names)), *pair), 0)
            assert bool(found) == (reference is not None)
            for metric, (hits, substitutions, deletions, insertions, length) in found.items():
                entry = table[row][names[metric]]
                assert entry["errors"][rank] == substitutions + deletions + insertions
                if entry["substitutions"][rank] is not None:
                    assert entry["substitutions"][rank] == substitutions
                assert entry["num_units"][rank] == hits + substitutions + insertions
                assert entry["reference_length"] == length


def test_a_sliced_batch_gives_the_rows_of_the_whole() -> None:
    lists, rows = [["a", "b c"], [], ["a b"], ["d"]], [{"reference": r} for r in ("a", "b", None, "d e")]
    whole = run(NbestErrorsConfig(), hypotheses(lists), utterances(rows))
    part = run(NbestErrorsConfig(), hypotheses(lists).slice(1, 2), utterances(rows).slice(1, 2))
    assert part.equals(whole.slice(1, 2))
    assert run(OracleConfig(), whole.slice(1, 3)).equals(run(OracleConfig(), whole).slice(1, 3))
    empty = run(NbestErrorsConfig(), hypotheses(lists).slice(0, 0), utterances(rows).slice(0, 0))
    assert run(OracleConfig(), empty).num_rows == 0


@given(lists=st.lists(st.tuples(st.none() | TEXTS, st.lists(TEXTS, max_size=4)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_oracle_is_the_best_transcript_that_any_choice_could_give(
    lists: list[tuple[str | None, list[str]]],
) -> None:
    rows = [{"reference": r} for r, _ in lists]
    config = NbestErrorsConfig(normaliser="none")
    oracle = run(OracleConfig(), run(config, hypotheses([texts for _, texts in lists]), utterances(rows)))
    for row, (reference, texts) in enumerate(lists):
        found = counts(oracle, row)
        if reference is None:
            assert found == {}
            continue
        choices = [
            counts(run(ErrorCountsConfig(normaliser="none"), utterances([rows[row]]), transcripts([text])), 0)
            for text in texts or [""]
        ]
        for metric in ("wer", "cer"):
            assert found[metric] in [choice[metric] for choice in choices]
            assert sum(found[metric][1:4]) == min(sum(choice[metric][1:4]) for choice in choices)


def test_the_oracle_refuses_totals_that_it_cannot_split() -> None:
    entry = {"unit": "word", "normaliser": "none", "word_class": "all", "reference_length": 1, "errors": [1]}
    rows = [{"utterance_id": "u0", "counts": [entry]}]
    with pytest.raises(ContractError, match="utterance 'u0', word of all: substitutions or num_units are null"):
        run(OracleConfig(), pa.Table.from_pylist(rows, schema=NBEST_ERRORS))


# B-WER and U-WER


def test_biased_words_are_those_of_the_true_phrases_outside_the_common_words(tmp_path: Any) -> None:
    (tmp_path / "common.txt").write_bytes(b"\xef\xbb\xbfNew\r\nthe\r\n")
    config = biased(common_words=str(tmp_path / "common.txt"))
    table = run(
        config,
        utterances([{"reference": "the New Zorp York", "keywords": ["New York", "Zorp"]}]),
        transcripts(["the knew zorp yolk"]),
    )
    assert counts(table, 0) == {"biased_wer": (1, 1, 0, 0, 2), "unbiased_wer": (1, 1, 0, 0, 2)}


def test_an_inserted_word_is_biased_only_if_it_is_one_of_that_utterances_true_words() -> None:
    table = run(
        biased(),
        utterances([{"reference": "call zorp", "keywords": ["zorp"]}, {"reference": "call zorp", "keywords": []}]),
        transcripts(["call zorp zorp blim", "call zorp zorp blim"]),
    )
    assert counts(table, 0) == {"biased_wer": (1, 0, 0, 1, 1), "unbiased_wer": (1, 0, 0, 1, 1)}
    assert counts(table, 1) == {"biased_wer": (0, 0, 0, 0, 0), "unbiased_wer": (2, 0, 0, 2, 2)}


def test_unknown_keywords_leave_the_utterance_out_of_biased_metrics() -> None:
    table = run(biased(), utterances([{"reference": "call zorp", "keywords": None}]), transcripts(["call"]))
    assert counts(table, 0) == {}


# O-WER, MER, R-WER


def test_orthographic_errors_are_counted_on_raw_words() -> None:
    config = ErrorCountsConfig(metrics=("wer", "orthographic_wer"))
    table = run(config, utterances([{"reference": "The cat, sat."}]), transcripts(["the cat sat"]))
    assert counts(table, 0) == {"wer": (3, 0, 0, 0, 3), "orthographic_wer": (0, 3, 0, 0, 3)}
    entries = table.column("counts")[0].as_py()
    assert [entry["normaliser"] for entry in entries] == ["whisper_english", "none"]


def test_the_mixed_error_rate_counts_han_characters_and_latin_words() -> None:
    config = ErrorCountsConfig(metrics=("mer", "cer"), normaliser="mandarin")
    table = run(config, utterances([{"reference": "我爱 Deep Learning。"}]), transcripts(["我哎deep Learning"]))
    assert counts(table, 0)["mer"] == (3, 1, 0, 0, 4)
    assert counts(table, 0)["cer"] == (13, 1, 0, 0, 14)


def rare(table: pa.Table, heard: str, **lists: Any) -> tuple[int, ...]:
    config = ErrorCountsConfig(metrics=("rare_wer",), word_lists=WordLists(**lists))
    return counts(run(config, table, transcripts([heard])), 0)["rare_wer"]


def test_rare_words_are_listed_or_not_common_or_seldom_in_a_training_text(tmp_path: Any) -> None:
    table = utterances([{"reference": "Call the Zorp at 5 o'clock in Lima"}])
    assert rare(table, "call the sorp at 5 o'clock in lima blimfax") == (1, 1, 0, 1, 2)  # zorp, lima; a number is not
    (tmp_path / "list").write_text("o'clock\nZORP\n")
    assert rare(table, "call the sorp at five o'clock", rare_words=str(tmp_path / "list")) == (1, 1, 0, 0, 2)
    (tmp_path / "train").write_text("call the zorp at o'clock\n" * 2 + "in lima\n")
    given = {"training_text": str(tmp_path / "train"), "min_count": 2}
    assert rare(table, "call the sorp at five o'clock", **given) == (0, 0, 2, 0, 2)  # in, lima
    with pytest.raises(ValueError, match="rare words come from one of them"):
        WordLists(rare_words="a", training_text="b")
    with pytest.raises(ValueError, match="rare_wer: no word list is given"):
        rare(table, "", common_words=None)


def test_the_shipped_common_words_are_the_likeliest_of_the_pocketsphinx_model() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx")
    folder = Path(pocketsphinx.get_model_path())
    folder = folder if (folder / "en-us.lm.bin").exists() else folder / "en-us"
    model = pocketsphinx.NGramModel.readfile(str(folder / "en-us.lm.bin"))
    words = Path(COMMON_ENGLISH).read_text("ascii").split()
    log_probs = [model.prob([word]) for word in words]
    assert len(set(words)) == 5000
    assert log_probs == sorted(log_probs, reverse=True)
    assert model.prob(["zurich"]) < log_probs[-1]


IS21 = (
    "b1.rnnt_baseline",
    "b2.b1+nnlm",
    "s1.b1+db-rnnt.biasing_100",
    "s5.s3+db-nnlm.biasing_100",
    "s5.s3+db-nnlm.biasing_1000",
)


@pytest.mark.parametrize("name", IS21)
def test_published_is21_figures_exactly(name: str) -> None:
    with real("is21/ref/test-clean.biasing_100.tsv").open(encoding="utf-8") as file:
        references = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    lines = real(f"is21/hyp/test-clean.{name}.tsv").read_text("utf-8").splitlines()
    heard = {line.split("\t")[0]: [*line.split("\t"), ""][1] for line in lines}
    pair = (
        utterances([{"reference": row[1], "keywords": json.loads(row[2])} for row in references]),
        transcripts([heard[row[0]] for row in references]),
    )
    tables = (
        run(ErrorCountsConfig(normaliser="none", alignment="nist", metrics=("wer",)), *pair),
        run(replace(biased(), normaliser="none", alignment="nist"), *pair),
    )
    config = SummaryConfig(systems=("first_pass", "first_pass"), num_replicates=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no speakers here
        found = results(config, pair[0], *tables)
    published = real(f"is21/results/test-clean.{name}.tsv.result").read_text("utf-8")
    metrics = {"WER": "wer", "U-WER": "unbiased_wer", "B-WER": "biased_wer"}
    checked = 0
    for line in published.split("\n"):
        if not line.strip():
            continue
        label, fields = line.split(": ")
        expected = {key: float(value) for key, value in (field.split("=") for field in fields.split(", "))}
        row = found["test", "first_pass", metrics[label]]
        assert row["value"] == pytest.approx(expected["error_rate"] / 100, rel=1e-12)
        keys = {"ref_words": "reference_length", "subs": "substitutions", "ins": "insertions", "dels": "deletions"}
        assert {k: row["counts"][c] for k, c in keys.items()} == {k: expected[k] for k in keys}
        checked += 1
    assert checked == 3


# RESULTS


def corpus(num: int = 60, num_speakers: int = 11) -> pa.Table:
    rng = np.random.default_rng(5)
    words = [f"w{i}" for i in range(30)]
    return utterances(
        [
            {
                "reference": " ".join(rng.choice(words, size=rng.integers(3, 12))),
                "speaker_id": f"s{i % num_speakers}",
                "split": "dev" if i % 3 == 0 else "test",
            }
            for i in range(num)
        ]
    )


def noisy(table: pa.Table, rate: float, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(word if rng.random() > rate else "err" for word in reference.split())
        for reference in table.column("reference").to_pylist()
    ]


def two_systems() -> tuple[pa.Table, list[str], list[str], tuple[pa.Table, pa.Table]]:
    table = corpus()
    first, second = noisy(table, 0.4, 1), noisy(table, 0.1, 2)
    config = ErrorCountsConfig(normaliser="none")
    return table, first, second, (run(config, table, transcripts(first)), run(config, table, transcripts(second)))


def test_rates_are_sums_over_sums_and_equal_jiwer() -> None:
    table, first, _, errors = two_systems()
    found = results(SummaryConfig(systems=("first_pass", "lm_rescoring"), num_replicates=200), table, *errors)
    for split in ("dev", "test"):
        rows = [i for i, s in enumerate(table.column("split").to_pylist()) if s == split]
        references = [table.column("reference")[i].as_py() for i in rows]
        row = found[split, "first_pass", "wer"]
        assert row["value"] == pytest.approx(jiwer.wer(references, [first[i] for i in rows]), abs=1e-12)
        assert found[split, "first_pass", "cer"]["value"] == pytest.approx(
            jiwer.cer(references, [first[i] for i in rows]), abs=1e-12
        )
        assert row["num_utterances"] == len(rows)


def test_a_row_carries_interval_difference_blocks_and_signature() -> None:
    table, _, _, errors = two_systems()
    config = SummaryConfig(
        systems=("first_pass", "lm_rescoring"), num_replicates=500, condition={"snr_db": "10"}, splits=("test",)
    )
    found = results(config, table, *errors)
    assert {key[0] for key in found} == {"test"}
    row, base = found["test", "lm_rescoring", "wer"], found["test", "first_pass", "wer"]
    assert row["delta"] == pytest.approx(row["value"] - base["value"])
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["delta_ci_low"] < row["delta"] < row["delta_ci_high"] < 0
    assert row["p_value"] < 0.01
    assert row["baseline"] == "first_pass"
    assert [base[key] for key in ("baseline", "delta", "delta_ci_low", "delta_ci_high", "p_value")] == [None] * 5
    assert dict(row["condition"]) == {"snr_db": "10"}
    assert row["num_blocks"] == 11
    assert row["signature"].startswith("wer|norm:none.v1|align:unit|boot:500,seed:7|block:speaker|split:test|n:40|v")


def test_a_system_against_itself_differs_by_nothing() -> None:
    table, _, _, (errors, _) = two_systems()
    found = results(SummaryConfig(systems=("first_pass", "copy"), num_replicates=300), table, errors, errors)
    row = found["test", "copy", "wer"]
    assert (row["delta"], row["delta_ci_low"], row["delta_ci_high"], row["p_value"]) == (0.0, 0.0, 0.0, 1.0)


def test_failed_unscored_and_configurations_are_counted_per_split() -> None:
    table, first, _, (errors, other) = two_systems()
    is_dev = [s == "dev" for s in table.column("split").to_pylist()]
    said = transcripts(
        first,
        num_unscored=[int(i < 10) for i in range(60)],
        error_type=["audio" if i in (1, 2, 3) else None for i in range(60)],
    )
    fit = {"name": "w", "values": [], "interval": [], "objective": "wer", "split": "dev", "parents": []}
    fits = pa.Table.from_pylist([fit | {"num_configurations": 40}], schema=FITS)
    config = SummaryConfig(
        systems=("first_pass", "lm_rescoring"),
        systems_with_transcripts=("lm_rescoring",),
        systems_with_fits=("lm_rescoring",),
        num_replicates=10,
    )
    found = results(config, table, errors, other, said, fits)
    row = found["dev", "lm_rescoring", "wer"]
    assert (row["num_failed"], row["num_unscored"], row["num_configurations"]) == (1, sum(is_dev[:10]), 40)
    assert found["test", "lm_rescoring", "wer"]["num_failed"] == 2
    assert found["test", "first_pass", "wer"]["num_configurations"] == 1


def test_missing_ids_are_charged_as_deletions_and_extra_ids_are_counted() -> None:
    """sclite and WeNet score only the ids that the hypothesis file happens to have."""
    table, first, _, (errors, _) = two_systems()
    kept = [i for i in range(60) if i not in (1, 2)]
    extra = errors.slice(0, 1).set_column(0, errors.schema.field(0), pa.array(["nobody"]))
    partial = pa.concat_tables([extra, errors.take(pa.array(kept[::-1]))])
    found = results(SummaryConfig(systems=("first_pass", "partial"), num_replicates=10), table, errors, partial)
    full = run(
        ErrorCountsConfig(normaliser="none"),
        table,
        transcripts(["" if i in (1, 2) else text for i, text in enumerate(first)]),
    )
    expected = results(SummaryConfig(systems=("first_pass",), num_replicates=10), table, full)
    for metric in ("wer", "cer"):
        row = found["test", "partial", metric]
        assert row["value"] == expected["test", "first_pass", metric]["value"]
        assert (row["counts"]["missing_utterances"], row["counts"]["extra_utterances"]) == (2, 1)
        assert row["num_utterances"] == 40


def test_single_utterances_as_blocks_are_said_once_with_every_split_that_has_them() -> None:
    table = utterances([{"reference": "a b", "split": split} for split in ("dev", "test", "test")])
    errors = run(ErrorCountsConfig(), table, transcripts(["a", "b", "a b"]))
    config = SummaryConfig(systems=("first_pass", "again"), splits=("dev", "test"), num_replicates=10)
    with pytest.warns(UserWarning, match="1 single utterances of c, dev and 2 single utterances of c, test") as said:
        results(config, table, errors, errors)
    assert len(said) == 1


def test_missing_ids_are_charged_to_the_word_class_of_each_word() -> None:
    table = utterances([{"reference": "call Zorp now", "keywords": ["Zorp"]}, {"reference": "a", "keywords": []}])
    errors = run(biased(), table, transcripts(["call zorp now", "a"]))
    with pytest.warns(UserWarning, match="fewer than 10 speakers"):
        found = results(SummaryConfig(systems=("first_pass",), num_replicates=10), table, errors.slice(1, 1))
    assert found["test", "first_pass", "biased_wer"]["counts"]["deletions"] == 1
    assert found["test", "first_pass", "unbiased_wer"]["counts"]["deletions"] == 2


def test_utterances_without_reference_and_empty_references_are_counted() -> None:
    table = utterances([{"reference": None}, {"reference": "?!"}, {"reference": "yes"}])
    errors = run(ErrorCountsConfig(), table, transcripts(["a", "b", "yes"]))
    with pytest.warns(UserWarning, match="fewer than 10 speakers"):
        row = results(SummaryConfig(systems=("first_pass",), num_replicates=10), table, errors)[
            "test", "first_pass", "wer"
        ]
    assert (row["counts"]["unreferenced_utterances"], row["counts"]["empty_references"]) == (1, 1)
    assert (row["num_utterances"], row["value"]) == (2, 1.0)


def test_no_words_at_all_give_no_rate() -> None:
    table = utterances([{"reference": "?!"}] * 2)
    with pytest.warns(UserWarning, match="fewer than 10 speakers"):
        row = results(
            SummaryConfig(systems=("first_pass",), num_replicates=10),
            table,
            run(ErrorCountsConfig(), table, transcripts(["a", ""])),
        )["test", "first_pass", "wer"]
    assert (row["value"], row["ci_low"], row["counts"]["insertions"]) == (None, None, 1)


def test_the_oracle_is_a_system_with_the_metric_wer() -> None:
    table, first, second, (errors, _) = two_systems()
    lists = [list(pair) for pair in zip(first, second, strict=True)]
    oracle = run(OracleConfig(), run(NbestErrorsConfig(normaliser="none"), hypotheses(lists), table))
    found = results(SummaryConfig(systems=("first_pass", "oracle"), num_replicates=50), table, errors, oracle)
    assert found["test", "oracle", "wer"]["delta"] < 0
    assert not math.isnan(found["test", "oracle", "cer"]["value"])


def test_counts_made_in_different_ways_are_not_compared() -> None:
    table, first, _, (errors, _) = two_systems()
    other = run(ErrorCountsConfig(normaliser="basic"), table, transcripts(first))
    with pytest.raises(ContractError, match=r"counted as .*none.* for 'first_pass' and as .*basic.* for 'x'"):
        results(SummaryConfig(systems=("first_pass", "x"), num_replicates=10), table, errors, other)
    with pytest.raises(ContractError, match="metric 'wer' stands in two tables"):
        results(SummaryConfig(systems=("first_pass", "first_pass"), num_replicates=10), table, errors, errors)
    with pytest.raises(ContractError, match="got 1 tables after UTTERANCES, expected 2"):
        results(SummaryConfig(systems=("first_pass", "x"), num_replicates=10), table, errors)
