"""What was said before: the nearest earlier 1-bests of a session, told to a branch that has a prompt for them."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from ctxasr_ray import layout, pipeline
from ctxasr_ray.candidates.history import HistoryConfig
from ctxasr_ray.corpora import synthetic
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.opening import open_run
from ctxasr_ray.schema import ContractError, conform
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs

ROWS = [
    # utterance, session, recording, start, what was heard
    ("d", "one", "left", 4.0, "the fourth"),
    ("a", "one", "left", 0.0, "the first words"),
    ("b", "one", "right", 1.0, ""),
    ("c", "one", "right", 2.0, "the third"),
    ("z", None, "alone", 9.0, "later"),
    ("y", None, "alone", 3.0, "sooner"),
    ("x", None, None, 0.0, "nowhere"),
    ("one", "alone", None, 0.0, "a session of a recording's name"),
]


def _history(config: HistoryConfig) -> tuple[dict[str, str | None], Costs]:
    ids = [row[0] for row in ROWS]
    columns = {"utterance_id": ids, "session_id": [r[1] for r in ROWS], "recording_id": [r[2] for r in ROWS]}
    utterances = pa.table({**columns, "start_s": [row[3] for row in ROWS]})
    lists = [NBest(utterance_id=r[0], hypotheses=[Hypothesis(text=r[4])] if r[4] else []) for r in ROWS]
    context = conform(pa.Table.from_pylist([{"utterance_id": id_, "phrases": [id_]} for id_ in ids]), "context")
    costs = Costs()
    made = config.build()(utterances, hypotheses_table(lists), context, costs=costs)
    assert made.drop_columns("history").equals(context.drop_columns("history")), "nothing else is touched"
    return dict(zip(made["utterance_id"].to_pylist(), made["history"].to_pylist(), strict=True)), costs


def test_history_is_what_was_heard_earlier_in_the_session_in_the_order_of_time() -> None:
    found, costs = _history(HistoryConfig())
    assert found == {
        **{"a": None, "b": "the first words", "c": "the first words", "d": "the first words the third"},
        **{"y": None, "z": "sooner", "x": None, "one": None},
    }
    assert costs.counters == {"utterances_without_session": 1, "utterances_with_history": 4}


def test_the_oldest_utterances_and_words_go_first() -> None:
    assert _history(HistoryConfig(num_utterances=1))[0]["d"] == "the third"
    assert _history(HistoryConfig(max_words=3))[0]["d"] == "words the third"
    with pytest.raises(ValueError, match="num_utterances is 0"):
        HistoryConfig(num_utterances=0)


def test_other_rows_are_refused() -> None:
    context = conform(pa.Table.from_pylist([{"utterance_id": "b"}]), "context")
    utterances = pa.table({"utterance_id": ["a"], "session_id": ["s"], "recording_id": ["r"], "start_s": [0.0]})
    lists = hypotheses_table([NBest(utterance_id="a", hypotheses=[])])
    with pytest.raises(ContractError, match="context"):
        HistoryConfig().build()(utterances, lists, context, costs=Costs())


def test_a_branch_is_told_what_the_first_pass_heard(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    spoken = synthetic.prepare(SyntheticConfig(num_train=0, num_dev=0, num_test=4), tmp_path / "spoken")
    rows = [json.loads(row) for row in spoken.read_text("utf-8").splitlines()]
    for place, row in enumerate(rows):
        row |= {"session_id": f"talk {place % 2}", "audio_filepath": str(spoken.parent / row["audio_filepath"])}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    search = AttentionConfig(model=asset("attention"), beam_size=2, num_hypotheses=2)
    fused = AttentionFusedConfig(first_pass=search, lm=CausalLmConfig(model=asset("lm")), lm_prompt="{history} ")
    copied = PhraseCopyConfig(search=fused, confidence=1.0)
    told = Branch(nbest=copied, of=("first_pass",), history=HistoryConfig())
    untold = Branch(nbest=copied, context=ContextConfig(true_keywords=True))
    experiment = Experiment(
        first_pass=search,
        branches={"told": told, "untold": untold},
        executor="inline",
        shard_audio_s=1e3,
        num_replicates=100,
    )
    with pytest.raises(ValueError, match="no list to make it of"):
        replace(experiment, branches={"told": replace(told, of=())}).lists()
    store, shards = open_run(experiment, str(tmp_path / "run"), manifest)
    pipeline.run(experiment, store, shards)
    line = layout.line(experiment)
    heard = {
        row["utterance_id"]: row["text"] for row in store.gather(line.transcripts["first_pass"], shards).to_pylist()
    }
    context = store.gather(line.contexts["told"], shards).to_pylist()
    ids = sorted(heard)
    known = {row["utterance_id"]: row["history"] for row in context}
    assert [known[id_] for id_ in ids] == [None, None, heard[ids[0]], heard[ids[1]]]
    lists = [
        {row["utterance_id"]: row["hypotheses"] for row in store.gather(line.lists[system], shards).to_pylist()}
        for system in ("told", "untold")
    ]
    assert [lists[0][id_] == lists[1][id_] for id_ in ids] == [True, True, False, False]
