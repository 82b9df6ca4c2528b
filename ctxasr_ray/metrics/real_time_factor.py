"""Receipts of steps -> RESULTS rows of metric `real_time_factor`: warm busy seconds / audio seconds, load apart."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from ctxasr_ray.schema import RESULTS, conform


def real_time_factors(results: pa.Table, costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> pa.Table:
    """One row per corpus, split and system whose steps have receipts.

    Args:
        results: RESULTS of the run; the number of utterances is taken over from it.
        costs: System -> receipts of every step that the system needs, over all shards, as `Store.costs` gives
            them: `step`, `corpus`, `split`, `audio_s`, `seconds` (busy: without loading), `device`.

    Returns:
        RESULTS rows. The value is the sum over the system's steps of busy seconds, whatever ran side by side,
        over the seconds of audio; below 1 is faster than real time on as many workers as one.
    """
    numbers = {
        (row["corpus"], row["split"]): row for row in results.select(["corpus", "split", "num_utterances"]).to_pylist()
    }
    rows = []
    for system, receipts in costs.items():
        for (corpus, split), row in numbers.items():
            own = [r for r in receipts if (r["corpus"], r["split"]) == (corpus, split)]
            audio_s = sum({r["shard"]: r["audio_s"] for r in own}.values())
            if audio_s <= 0:
                continue
            devices = "+".join(sorted({str(r["device"]) for r in own}))
            rows.append(
                {
                    "corpus": corpus,
                    "split": split,
                    "system": system,
                    "condition": [],
                    "metric": "real_time_factor",
                    "unit": "ratio",
                    "value": sum(r["seconds"]["busy"] for r in own) / audio_s,
                    "counts": [("audio_ms", round(audio_s * 1000))],
                    "num_utterances": row["num_utterances"],
                    "num_failed": 0,
                    "num_unscored": 0,
                    "num_configurations": 1,
                    "signature": f"real_time_factor|device:{devices}|steps:{len({r['step'] for r in own})}"
                    f"|split:{split}|v{version('ctxasr-ray')}",
                }
            )
    return conform(pa.Table.from_pylist(rows, schema=RESULTS), "results")
