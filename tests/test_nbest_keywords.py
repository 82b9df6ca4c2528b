"""Keyword matches in NBEST_ERRORS: as counted in transcripts, one by one, and weights fitted on their F1."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import layout
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.keywords import KeywordCountsConfig
from ctxasr_ray.metrics.nbest_errors import KEYWORDS, NbestErrorsConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, conform
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, StageConfig

PHRASES = ["oat milk", "latte", "oat milk latte", "decaf", "Zorp"]
TEXTS = st.lists(st.sampled_from(["oat", "milk", "latte", "decaf", "Zorp's", "a"]), max_size=6).map(" ".join)
KEYWORDS_OF = st.none() | st.lists(st.sampled_from([*PHRASES, "flat white"]), max_size=3)


def utterances(rows: Sequence[tuple[str | None, Sequence[str] | None]]) -> pa.Table:
    full = [
        {
            "utterance_id": f"u{i}",
            "corpus": "made",
            "split": "dev",
            "audio_uri": "",
            "start_s": 0.0,
            "reference": reference,
            "keywords": keywords,
            "speaker_id": f"s{i % 12}",
        }
        for i, (reference, keywords) in enumerate(rows)
    ]
    return conform(pa.Table.from_pylist(full, schema=UTTERANCES), "utterances")


def transcripts(texts: Sequence[str]) -> pa.Table:
    rows = [{"utterance_id": f"u{i}", "text": t, "words": [], "num_unscored": 0} for i, t in enumerate(texts)]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def run(config: StageConfig, *tables: pa.Table) -> pa.Table:
    return conform(config.build()(*tables, costs=Costs()), config.WRITES)


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("catalogue") / "phrases.txt"
    path.write_text("\n".join(PHRASES) + "\n")
    return str(path)


@pytest.mark.parametrize("shown", ["none", "some", "all"])
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | TEXTS, KEYWORDS_OF, st.lists(TEXTS, max_size=4)), min_size=1, max_size=4))
def test_matches_of_a_list_are_those_of_its_texts_one_by_one(
    phrases: str, shown: str, rows: list[tuple[str | None, list[str] | None, list[str]]]
) -> None:
    table = utterances([(reference, keywords) for reference, keywords, _ in rows])
    lists = hypotheses_table(
        [NBest(utterance_id=f"u{i}", hypotheses=[Hypothesis(text=t) for t in own]) for i, (*_, own) in enumerate(rows)]
    )
    num_distractors = {"none": None, "some": 2, "all": len(PHRASES)}[shown]
    context = run(ContextConfig(catalogue=phrases, num_distractors=num_distractors), table)
    known = [] if shown == "none" else [context]
    found = run(NbestErrorsConfig(classes=(KEYWORDS,), catalogue=phrases), lists, table, *known)["counts"].to_pylist()
    for rank in range(4):
        texts = [(own + [""] * 4)[rank] for *_, own in rows]
        expected = run(KeywordCountsConfig(catalogue=phrases), table, transcripts(texts), *known)["counts"].to_pylist()
        for row, (_, keywords, own) in enumerate(rows):
            (entry,) = found[row]
            if keywords is None:
                assert (entry["reference_length"], entry["true_positives"]) == (None, None)
                continue
            counts = next(c for c in expected[row] if c["metric"] == "keyword")
            assert entry["reference_length"] == counts["hits"] + counts["deletions"]
            if rank < len(own):
                assert entry["true_positives"][rank] == counts["hits"]
                assert entry["false_negatives"][rank] == counts["deletions"]
                assert entry["false_positives"][rank] == counts["insertions"]


def test_windows_of_a_recording_have_no_list_of_their_own() -> None:
    table = utterances([("a latte and a decaf", ["latte", "decaf"]), (None, None)])
    columns = {"recording_id": pa.array(["r", "r"]), "window_index": pa.array([0, 1], pa.int32())}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), UTTERANCES.field(name), values)
    lists = hypotheses_table([NBest(utterance_id=f"u{i}", hypotheses=[Hypothesis(text="latte")]) for i in range(2)])
    found = run(NbestErrorsConfig(classes=(KEYWORDS,)), lists, table)["counts"].to_pylist()
    assert [entry["reference_length"] for (entry,) in found] == [None, None]


def made(seed: int = 0, num: int = 80) -> tuple[pa.Table, pa.Table, pa.Table]:
    """UTTERANCES, HYPOTHESES and SCORES in which a second scorer knows the phrases and not the other words."""
    random = np.random.default_rng(seed)
    rows, lists, scores = [], [], []
    for u in range(num):
        phrase = PHRASES[u % len(PHRASES)]
        reference = f"i would like {phrase} please thanks so much mate"
        rows.append((reference, [phrase]))
        texts = [
            f"i would like {said} please {end}"
            for said in (phrase, "a lot", "decaf")
            for end in ("thanks so much mate", "tanks to mud mat")
        ]
        texts = [texts[i] for i in random.permutation(len(texts))]
        ctc = [-3.0 * ("thanks" not in t) - 2.0 * (phrase in t) + random.normal() for t in texts]
        known = [2.0 * (phrase in t) - 3.0 * ("thanks" in t) + random.normal() for t in texts]
        lists.append(
            NBest(
                utterance_id=f"u{u}",
                hypotheses=[
                    Hypothesis(text=t, scores=[Score(source="ctc", kind="log_prob", log_prob=float(p))])
                    for t, p in zip(texts, ctc, strict=True)
                ],
            )
        )
        scores.append([SourceScores(source="lm", log_probs=known)])
    return utterances(rows), hypotheses_table(lists), scores_table([f"u{u}" for u in range(num)], scores)


def f1(table: pa.Table, said: pa.Table) -> float:
    counts = [c for row in run(KeywordCountsConfig(), table, said)["counts"].to_pylist() for c in row]
    hits, missed, extra = (
        sum(c[name] for c in counts if c["metric"] == "keyword") for name in ("hits", "deletions", "insertions")
    )
    return float(2 * hits / (2 * hits + missed + extra))


def rate(metric: str, table: pa.Table, said: pa.Table) -> float:
    counts = [c for row in run(ErrorCountsConfig(metrics=(metric,)), table, said)["counts"].to_pylist() for c in row]
    errors = sum(c[name] for c in counts for name in ("substitutions", "deletions", "insertions"))
    return float(errors / sum(c["reference_length"] for c in counts))


@pytest.mark.parametrize(
    "objective", ["wer", "biased_wer", "unbiased_wer", "keyword_f1_loss", "0.5*wer + 2*keyword_f1_loss"]
)
def test_weights_are_fitted_on_what_is_reported(objective: str) -> None:
    table, lists, scores = made()
    classes = (("word", "all"), ("word", "biased"), ("word", "unbiased"), KEYWORDS)
    errors = run(NbestErrorsConfig(classes=classes), lists, table)

    def measured(said: pa.Table) -> float:
        figures: dict[str, float] = {name: rate(name, table, said) for name in ("wer", "biased_wer", "unbiased_wer")}
        figures["keyword_f1_loss"] = 1 - f1(table, said)
        return figures.get(objective, 0.5 * figures["wer"] + 2 * figures["keyword_f1_loss"])

    fits = run(WeightsConfig(objective=objective, num_bootstrap=0), lists, scores, errors, table)
    promised = fits.to_pylist()[0]["objective_value"]
    assert measured(run(LogLinearConfig(), lists, scores, fits)) == pytest.approx(promised, abs=1e-12)
    for weight in np.linspace(0.0, 4.0, 21):
        fixed = LogLinearConfig(weights={"ctc": 1.0, "lm": float(weight)})
        assert measured(run(fixed, lists, scores)) >= promised - 1e-12


def test_an_objective_of_keywords_gives_up_words_for_phrases() -> None:
    table, lists, scores = made()
    errors = run(NbestErrorsConfig(classes=(("word", "all"), KEYWORDS)), lists, table)
    said = {}
    for objective in ("wer", "keyword_f1_loss"):
        fits = run(WeightsConfig(objective=objective, num_bootstrap=0), lists, scores, errors, table)
        said[objective] = run(LogLinearConfig(), lists, scores, fits)
    assert f1(table, said["keyword_f1_loss"]) > f1(table, said["wer"])
    assert rate("wer", table, said["keyword_f1_loss"]) > rate("wer", table, said["wer"])


def test_a_run_counts_in_each_list_what_its_fits_minimise(phrases: str) -> None:
    lm, ctc = CausalLmConfig(model=asset("lm")), CtcConfig(model=asset("ctc"))
    on_phrases = WeightsConfig(objective="0.5*wer + 0.5*keyword_f1_loss")
    other = Branch(nbest=replace(ctc, source="other"), rescorings={"other/lm": Rescoring(scorers=(lm,))})
    experiment = Experiment(
        first_pass=ctc,
        rescorings={"lm/phrases": Rescoring(scorers=(lm,), weights=on_phrases)},
        branches={"other": other},
        catalogue=phrases,
    )
    laid = layout.line(experiment)
    counted = {step.name: step for step in laid.steps if step.config.WRITES == "nbest_errors"}
    first: Any = counted["nbest_errors"]
    assert first.config.classes == (("word", "all"), ("character", "all"), KEYWORDS)
    assert first.config.catalogue == phrases
    assert [step.config.WRITES for step in first.inputs] == ["hypotheses", "utterances", "context"]
    second: Any = counted["nbest_errors_of_other"]
    assert second.config.classes == (("word", "all"), ("character", "all"))
    assert [step.config.WRITES for step in second.inputs] == ["hypotheses", "utterances"]


def test_another_catalogue_is_another_table_only_where_phrases_are_counted(phrases: str, tmp_path: Path) -> None:
    longer = tmp_path / "longer.txt"
    longer.write_text("\n".join([*PHRASES, "flat white"]))
    for classes, same in (((KEYWORDS,), False), ((("word", "all"),), True)):
        prints = [NbestErrorsConfig(classes=classes, catalogue=path).fingerprint() for path in (phrases, str(longer))]
        assert (prints[0] == prints[1]) == same
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"absent\.txt"):
        NbestErrorsConfig(classes=(KEYWORDS,), catalogue=str(tmp_path / "absent.txt")).fingerprint()
