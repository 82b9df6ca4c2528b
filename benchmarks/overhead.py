"""What the Ray executor costs over a plain loop: stages that sleep, so that only the executor can differ.

Three stages side by side on Ray, each in its own pool, against one of them in the plain loop: in steady state both
finish a shard per second of work and the rest is overhead. Tables are compared before times. Run it without
arguments: `python benchmarks/overhead.py`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from figures import Figure, emit, pin_threads

pin_threads(1)

import pyarrow as pa  # noqa: E402  (the threads are pinned first)

from ctxasr_ray import schema  # noqa: E402
from ctxasr_ray.distributed.cluster import connected, ray  # noqa: E402
from ctxasr_ray.distributed.pools import run_ray  # noqa: E402
from ctxasr_ray.execution.inline import run_inline  # noqa: E402
from ctxasr_ray.stage import Costs, Resources, Stage, Step, runtime_field  # noqa: E402
from ctxasr_ray.storage.store import Shard, Store  # noqa: E402

ROWS_PER_SHARD = 64
WORK_S = 1.0
SHARDS_AT_WORK, SHARDS_AT_REST = 14, 60
WARM_UP = 3
"""Shards at the start that do not count: pools fill, workers import."""
ROUNDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SleepConfig:
    """Sleeps a given time per shard and writes one hypothesis, score list or transcript per utterance."""

    NAME: ClassVar[str] = "sleep"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("audio_uri",)}
    WRITES: ClassVar[str] = "hypotheses"
    sleep_s: float = runtime_field(0.0)
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing but the config."""
        return {}

    def build(self) -> Stage:
        """Nothing to load."""
        return self.work

    def work(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """Sleeps, then writes."""
        time.sleep(self.sleep_s)
        return pa.Table.from_pylist([self.row(i) for i in tables[0]["utterance_id"].to_pylist()], schema=self.schema())

    def schema(self) -> pa.Schema:
        """Of what it writes."""
        return schema.TABLES[self.WRITES]

    def row(self, utterance_id: str) -> dict[str, object]:
        """One row."""
        hypotheses = [{"text": f"{utterance_id} {i}", "scores": [], "origin": "search"} for i in range(10)]
        return {"utterance_id": utterance_id, "hypotheses": hypotheses}


class ScoreConfig(SleepConfig):
    """The second stage."""

    NAME: ClassVar[str] = "sleep_scores"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "scores"

    def row(self, utterance_id: str) -> dict[str, object]:
        """One row."""
        source = {"source": "lm", "kind": "log_prob", "log_probs": [-1.0 * i for i in range(10)]}
        return {"utterance_id": utterance_id, "sources": [source]}


class FuseConfig(SleepConfig):
    """The third stage."""

    NAME: ClassVar[str] = "sleep_transcripts"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",), "scores": ("sources",)}
    WRITES: ClassVar[str] = "transcripts"

    def row(self, utterance_id: str) -> dict[str, object]:
        """One row."""
        return {"utterance_id": utterance_id, "text": utterance_id, "words": [], "num_unscored": 0}


class CorpusConfig(SleepConfig):
    """Stands for the corpus."""

    NAME: ClassVar[str] = "corpus"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    WRITES: ClassVar[str] = "utterances"


def line(sleep_s: float) -> tuple[Step, ...]:
    """Three stages in a row."""
    corpus = Step(name="corpus", config=CorpusConfig())
    first = Step(name="first_pass", config=SleepConfig(sleep_s=sleep_s), inputs=(corpus,))
    second = Step(name="scores", config=ScoreConfig(sleep_s=sleep_s), inputs=(first,))
    third = Step(name="transcripts", config=FuseConfig(sleep_s=sleep_s), inputs=(first, second))
    return corpus, first, second, third


def prepared(root: Path, num_shards: int) -> tuple[Store, list[Shard]]:
    """A run folder with shards of equal size."""
    rows = [
        {
            "utterance_id": f"u{i:05d}",
            "corpus": "sleep",
            "split": "test",
            "audio_uri": f"{i}.wav",
            "start_s": 0.0,
            "duration_s": 1.0,
        }
        for i in range(num_shards * ROWS_PER_SHARD)
    ]
    store = Store(root)
    table = pa.Table.from_pylist(rows, schema=schema.UTTERANCES)
    return store, store.add_corpus(table, shard_audio_s=float(ROWS_PER_SHARD), seed=1)


def period(store: Store, step: Step, shards: Sequence[Shard]) -> float:
    """Seconds from one commit of a step to the next, in steady state."""
    times = sorted(store.read_receipt(step, shard)["committed_at"] for shard in shards)[WARM_UP:]
    return float(times[-1] - times[0]) / (len(times) - 1)


def inline_period(sleep_s: float, num_shards: int, num_stages: int = 1) -> float:
    """Seconds per shard of the last of the first stages in the plain loop."""
    with tempfile.TemporaryDirectory() as root:
        store, shards = prepared(Path(root), num_shards)
        steps = line(sleep_s)[: num_stages + 1]
        run_inline(store, steps, shards)
        return period(store, steps[-1], shards)


def ray_period(sleep_s: float, num_shards: int) -> float:
    """Seconds per shard of the last stage on Ray, three pools side by side."""
    with tempfile.TemporaryDirectory() as root:
        store, shards = prepared(Path(root), num_shards)
        steps = line(sleep_s)
        run_ray(store, steps, shards)
        return period(store, steps[-1], shards)


def same_tables() -> None:
    """Both executors write the same files with the same rows.

    Raises:
        AssertionError: they do not; no time would mean anything.
    """
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        found = []
        executors: tuple[Callable[..., object], ...] = (run_inline, run_ray)
        for root, execute in zip((one, other), executors, strict=True):
            store, shards = prepared(Path(root), 4)
            execute(store, line(0.0), shards)
            found.append([store.gather(step, shards) for step in line(0.0)])
        assert all(a.equals(b) for a, b in zip(*found, strict=True))


def alternating(sleep_s: float, num_shards: int) -> tuple[list[float], list[float]]:
    """Periods of the plain loop and of Ray, A B B A per round."""
    inline, on_ray = [], []
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}, {sleep_s:g} s of work per shard and stage ...", flush=True)
        inline.append(inline_period(sleep_s, num_shards))
        on_ray += [ray_period(sleep_s, num_shards), ray_period(sleep_s, num_shards)]
        inline.append(inline_period(sleep_s, num_shards))
    return inline, on_ray


def main() -> None:
    """Measures and prints."""
    with connected(None, 3):
        same_tables()
        inline, on_ray = alternating(WORK_S, SHARDS_AT_WORK)
        idle_inline, idle_ray = alternating(0.0, SHARDS_AT_REST)
        fraction = statistics.median(on_ray) / statistics.median(inline) - 1
        fixed_s = (statistics.median(idle_ray) - statistics.median(idle_inline)) / 3
        emit(
            [
                Figure(
                    name="ray_overhead_at_1s",
                    value=fraction,
                    goal="<= 0.05",
                    unit="fraction",
                    peer="plain loop",
                    counters={
                        "shards": SHARDS_AT_WORK - WARM_UP,
                        "inline_s_per_shard": round(statistics.median(inline), 4),
                        "ray_s_per_shard": round(statistics.median(on_ray), 4),
                        "ray_s_per_shard_min": round(min(on_ray), 4),
                        "ray_s_per_shard_max": round(max(on_ray), 4),
                    },
                ),
                Figure(
                    name="ray_fixed_cost_per_shard_and_stage",
                    value=1000 * fixed_s,
                    goal="<= 10",
                    unit="ms",
                    peer="plain loop",
                    counters={
                        "shards": SHARDS_AT_REST - WARM_UP,
                        "inline_ms_per_shard_one_stage": round(1000 * statistics.median(idle_inline), 2),
                        "ray_ms_per_shard_three_stages": round(1000 * statistics.median(idle_ray), 2),
                        "ray_version": ray.__version__,
                    },
                ),
            ]
        )


if __name__ == "__main__":
    main()
