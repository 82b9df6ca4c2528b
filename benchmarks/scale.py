"""Many empty shards through the Ray executor: what one more shard costs, the driver's memory, and planning a resume.

One stage that does nothing on shards of one utterance, so that only bookkeeping is left: Ray's scheduling, reading,
committing, listing. The folder is in memory (/dev/shm) where there is one, because a disk's fsync is no part of it.
`python benchmarks/scale.py` takes 10,000 shards; `make scale` 100,000 in twenty waves.
"""

import random
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from figures import Figure, emit, pin_threads

pin_threads(1)

import pyarrow as pa  # noqa: E402  (the threads are pinned first)

from ctxasr_ray import schema  # noqa: E402
from ctxasr_ray.distributed.cluster import connected  # noqa: E402
from ctxasr_ray.distributed.pools import WAVE, run_ray  # noqa: E402
from ctxasr_ray.execution.planning import plan  # noqa: E402
from ctxasr_ray.stage import Costs, Resources, Stage, Step  # noqa: E402
from ctxasr_ray.storage.store import Shard, Store  # noqa: E402

NUM_SHARDS = 10_000
LEFT = 0.01
"""Share of the shards whose table is taken away again before the run is planned."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmptyConfig:
    """Hears nothing: an empty list per utterance."""

    NAME: ClassVar[str] = "empty"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("audio_uri",)}
    WRITES: ClassVar[str] = "hypotheses"
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing but the config."""
        return {}

    def build(self) -> Stage:
        """Nothing to load."""
        return self.work

    def work(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One empty list each."""
        rows = [{"utterance_id": each, "hypotheses": []} for each in tables[0]["utterance_id"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=schema.HYPOTHESES)


class CorpusConfig(EmptyConfig):
    """Stands for the corpus."""

    NAME: ClassVar[str] = "corpus"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    WRITES: ClassVar[str] = "utterances"


def prepared(root: Path, num_shards: int) -> tuple[Store, list[Shard]]:
    """A run folder with one utterance per shard."""
    rows = {
        "utterance_id": [f"u{i:06d}" for i in range(num_shards)],
        "corpus": ["scale"] * num_shards,
        "split": ["test"] * num_shards,
        "audio_uri": [f"{i}.wav" for i in range(num_shards)],
        "start_s": [0.0] * num_shards,
        "duration_s": [1.0] * num_shards,
    }
    columns = [
        pa.array(rows[each.name], each.type) if each.name in rows else pa.nulls(num_shards, each.type)
        for each in schema.UTTERANCES
    ]
    store = Store(root)
    return store, store.add_corpus(pa.table(columns, schema=schema.UTTERANCES), shard_audio_s=1.0, seed=1)


def take_away(store: Store, step: Step, shards: list[Shard]) -> int:
    """Deletes a share of the committed tables; returns how many."""
    store.snapshot()
    keys = [key for key in (store.locate(step, shard) for shard in shards) if key is not None]
    assert len(keys) == len(shards), "every shard is committed"
    chosen = random.Random(1).sample(keys, round(LEFT * len(keys)))
    for key in chosen:
        store.folder.delete(key)
    return len(chosen)


def main(num_shards: int) -> None:
    """Measures and prints."""
    corpus = Step(name="corpus", config=CorpusConfig())
    steps = (corpus, Step(name="first_pass", config=EmptyConfig(), inputs=(corpus,)))
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        start = time.perf_counter()
        store, shards = prepared(Path(folder), num_shards)
        cut_s = time.perf_counter() - start
        print(f"{len(shards)} shards cut in {cut_s:.0f} s", flush=True)
        with connected(None, 1):
            start = time.perf_counter()
            summary = run_ray(store, steps, shards)
            run_s = time.perf_counter() - start
        assert summary.done == num_shards
        print(f"run in {run_s:.0f} s", flush=True)
        memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        left = take_away(store, steps[1], shards)
        start = time.perf_counter()
        (row,) = plan(Store(folder), steps, shards)
        plan_s = time.perf_counter() - start
        assert row["num_pending"] == left
    counters: dict[str, int | float | str] = {"shards": num_shards, "waves": -(-num_shards // WAVE)}
    name = f"scale_{num_shards}"
    emit(
        [
            Figure(
                name=f"{name}_ms_per_shard",
                value=1000 * run_s / num_shards,
                unit="ms",
                counters={**counters, "cut_ms_per_shard": round(1000 * cut_s / num_shards, 3)},
            ),
            Figure(name=f"{name}_driver_memory", value=memory_gb, goal="<= 1.0", unit="GiB", counters=counters),
            Figure(
                name=f"{name}_planning",
                value=plan_s,
                goal="<= 60",
                unit="s",
                counters={**counters, "pending": left},
            ),
        ]
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_SHARDS)
