from typing import Any

import pyarrow as pa

from ctxasr_ray.metrics.confident_errors import ConfidentErrorsConfig
from ctxasr_ray.metrics.shortlist_recall import ShortlistRecallConfig
from ctxasr_ray.schema import CONTEXT, HYPOTHESES, TRANSCRIPTS, UTTERANCES, conform
from ctxasr_ray.stage import Costs


def _table(name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return conform(pa.Table.from_pylist(rows, schema=schema), name)


def _utterances(rows: list[tuple[str | None, list[str] | None]]) -> pa.Table:
    plain = {"corpus": "made", "split": "test", "audio_uri": "x.wav", "start_s": 0.0}
    made = [{"utterance_id": f"u{n}", "reference": r, "keywords": k, **plain} for n, (r, k) in enumerate(rows)]
    return _table("utterances", UTTERANCES, made)


def _said(texts: list[tuple[str, list[float]]]) -> pa.Table:
    rows = [
        {
            "utterance_id": f"u{n}",
            "text": said,
            "hypothesis_index": 0,
            "num_unscored": 0,
            "words": [
                {"word": w, "confidence": c, "origin": "search"} for w, c in zip(said.split(), sure, strict=True)
            ],
        }
        for n, (said, sure) in enumerate(texts)
    ]
    return _table("transcripts", TRANSCRIPTS, rows)


def _counts(errors: pa.Table) -> list[dict[str, tuple[int, int]]]:
    return [{c["metric"]: (c["hits"], c["deletions"]) for c in row} for row in errors["counts"].to_pylist()]


def test_a_list_can_repair_what_one_of_its_texts_has_right_and_a_sure_token_locks_the_gate() -> None:
    utterances = _utterances([("call anna now", None), ("stop", None), (None, None)])
    said = _said([("call hannah now so", [0.99, 0.95, 0.99, 0.92]), ("stop", [0.99]), ("x", [0.99])])
    lists = [["call hannah now so", "call anna now so"], ["stop"], ["x"]]
    tokens = {"token_words": [0, 1, 1, 2, 3], "token_entropies": [0.0, 0.1, 0.3, 0.0, 0.1]}
    rows = [
        {
            "utterance_id": f"u{n}",
            "hypotheses": [{"text": t, "scores": [], "origin": "search", **(tokens if n == 0 else {})} for t in own],
        }
        for n, own in enumerate(lists)
    ]
    hypotheses = _table("hypotheses", HYPOTHESES, rows)
    made = ConfidentErrorsConfig().build()(utterances, said, said, hypotheses, costs=Costs())
    first, second, third = _counts(conform(made, "errors"))
    # hannah is repaired by the second text, the inserted word stands in both; one token of each is sure
    assert first == {"confidently_wrong_repairable": (1, 1), "gate_lockout": (2, 1)}
    assert second == {"confidently_wrong_repairable": (0, 0)}
    assert third == {}


def test_recall_counts_distinct_true_phrases_among_the_first_of_a_shortlist() -> None:
    utterances = _utterances([("x", ["Anna", "anna", "Bob"]), ("x", None), ("x", [])])
    listed = ["x", "anna", *[f"n{n}" for n in range(62)], "bob"]
    rows = [{"utterance_id": f"u{n}", "phrases": listed} for n in range(3)]
    made = ShortlistRecallConfig(normaliser="basic").build()(
        utterances, _table("context", CONTEXT, rows), costs=Costs()
    )
    first, second, third = _counts(conform(made, "errors"))
    assert first == {"recall@1": (0, 2), "recall@8": (1, 1), "recall@64": (1, 1)}
    assert second == {}
    assert third == {"recall@1": (0, 0), "recall@8": (0, 0), "recall@64": (0, 0)}
