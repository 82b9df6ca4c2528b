"""A finished run -> findings: a seeded sample of it is done again in another way, and both are compared.

Twice: every stage alone on its committed inputs with another batch size, which names the stage that differs; and the
whole line from the audio on, up to the first fit, in the other executor and a folder of its own.
"""

import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import layout
from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.execution.stage_calls import build, call, read_inputs, some_rows
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.report.findings import Finding
from ctxasr_ray.stage import GATHERED, Costs, Step
from ctxasr_ray.storage.store import Shard, Store

TOLERANCE: Final = 1e-4
"""Of scores, in nats, and relative above 1: other batches round differently, other numbers do not."""
MAX_SHARDS: Final = 3
"""Shards that the sample is drawn from."""
_OTHER_BATCH: Final = (3, 2)
"""The first of these that a config does not have already."""

Rows = Mapping[str, Sequence[int]]
"""Shard name -> sampled rows."""


def audit(
    experiment: Experiment,
    store: Store,
    shards: Sequence[Shard],
    *,
    num_utterances: int = 8,
    seed: int = 7,
    address: str | None = None,
) -> list[Finding]:
    """Redoes a sample of a finished run with another batch size and in the other executor.

    Args:
        experiment: The experiment of the run.
        store: Its run folder; nothing is written to it.
        shards: Its shards.
        num_utterances: About so many; sessions stay whole.
        seed: Of the draw.
        address: Of a Ray cluster, where the other executor is Ray.

    Returns:
        An error per step that gives other texts, or scores that differ by more than 1e-4; last a note that says what
        was compared.

    Raises:
        StoreError: the run is not finished.
        RunError, ContractError: a stage fails where it did not before.
    """
    if experiment.executor == "ray":
        return audit_steps(store, layout.line(experiment).steps, shards, run_inline, num_utterances, seed)
    from ctxasr_ray.distributed.pools import run_ray

    def other(*arguments: Any) -> Any:
        return run_ray(*arguments, address=address)

    return audit_steps(store, layout.line(experiment).steps, shards, other, num_utterances, seed)


def audit_steps(
    store: Store,
    steps: Sequence[Step],
    shards: Sequence[Shard],
    other_executor: Callable[[Store, Sequence[Step], Sequence[Shard]], Any],
    num_utterances: int = 8,
    seed: int = 7,
) -> list[Finding]:
    """The same for any line of steps.

    Args:
        store: The run folder.
        steps: Every step of the run, parents first.
        shards: Shards of the run.
        other_executor: Runs steps on shards in a store, for example `run_inline`.
        num_utterances: About so many; sessions stay whole.
        seed: Of the draw.
    """
    store.resolve(steps, shards)
    own = [step for step in steps if step.config.WRITES not in (*GATHERED, "utterances")]
    rows = sample(store, own, shards, num_utterances, seed)
    chosen = [shard for shard in shards if rows.get(shard.name)]
    found: list[Finding] = []
    for step in own:
        found += _finding(step, "another batch size", list(_redone(store, step, chosen, rows)))
    before_fits = [step for step in own if not _needs_fit(step)]
    with tempfile.TemporaryDirectory(prefix="ctxasr-audit-") as folder:
        scratch = Store(folder)
        corpus = [store.read_key(store.key_of(shard)).take(rows[shard.name]) for shard in chosen]
        again = scratch.add_corpus(pa.concat_tables(corpus), shard_audio_s=1e9, seed=seed)
        names = {step.name for step in before_fits}
        other_executor(scratch, [step for step in steps if step.name in names or not step.inputs], again)
        for step in before_fits:
            old = pa.concat_tables([store.read(step, shard).take(rows[shard.name]) for shard in chosen])
            found += _finding(step, "the other executor", list(differences(old, scratch.gather(step, again))))
    number = sum(len(each) for each in rows.values())
    where = f"{number} utterances of {len(chosen)} shards, seed {seed}"
    return [*found, _summary(where, len(own), len(before_fits), len(found))]


def sample(store: Store, steps: Sequence[Step], shards: Sequence[Shard], num_utterances: int, seed: int) -> Rows:
    """Rows to do again: whole sessions (without one, whole recordings) of a few shards, none that was quarantined.

    Args:
        store: The run folder.
        steps: Per-shard steps, whose quarantined rows are left out: they would kill this process.
        shards: To draw from.
        num_utterances: The draw ends with the session that reaches it.
        seed: Of the draw.
    """
    rng = random.Random(seed)
    chosen = rng.sample(sorted(shards, key=lambda shard: shard.name), min(MAX_SHARDS, len(shards)))
    found: dict[str, list[int]] = {}
    for place, shard in enumerate(chosen):
        bad: set[str] = set()
        for step in steps:
            table = store.read(step, shard)
            if "error_type" in table.column_names:
                pairs = zip(table["utterance_id"].to_pylist(), table["error_type"].to_pylist(), strict=True)
                bad |= {id_ for id_, reason in pairs if reason == "quarantined"}
        groups: dict[str, list[int]] = {}
        utterances = store.read_key(store.key_of(shard))
        names = ("utterance_id", "session_id", "recording_id")
        for row, (id_, session, recording) in enumerate(zip(*(utterances[n].to_pylist() for n in names), strict=True)):
            groups.setdefault(str(session or recording or id_), []).append(row if id_ not in bad else -1)
        whole = [rows for rows in groups.values() if -1 not in rows]
        rng.shuffle(whole)
        share = (num_utterances * (place + 1)) // len(chosen) - sum(map(len, found.values()))
        own: list[int] = []
        for rows in whole:
            if len(own) >= share:
                break
            own += rows
        found[shard.name] = sorted(own)
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that came out otherwise."""

    utterance_id: str
    column: str
    before: Any
    after: Any


def _redone(store: Store, step: Step, shards: Sequence[Shard], rows: Rows) -> Iterator[Difference]:
    """What one stage alone makes of its committed inputs, in other batches."""
    again = dataclasses.replace(step, config=other_batches(step.config))
    stage, _ = build(again)
    for shard in shards:
        inputs = read_inputs(store, step, [[key] for key in store.inputs(step, shard) or []])
        tables = [some_rows(table, rows[shard.name]) for table in inputs]
        new = call(again, stage, tables, Costs())
        yield from differences(store.read(step, shard).take(rows[shard.name]), new)


def other_batches(config: Any) -> Any:
    """The config with other batch sizes: every whole-number runtime field (`batch_size`, `utterances_per_forward`)."""
    changed = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if not each.metadata.get("identity", True) and isinstance(value, int) and not isinstance(value, bool):
            changed[each.name] = next(number for number in _OTHER_BATCH if number != value)
    return dataclasses.replace(config, **changed)


def differences(before: pa.Table, after: pa.Table) -> Iterator[Difference]:
    """Values of the same utterances that differ: floats by more than the tolerance, everything else at all.

    Args:
        before: A per-utterance table.
        after: The same utterances in any order.
    """
    found = {row["utterance_id"]: row for row in after.to_pylist()}
    for row in before.to_pylist():
        other = found.get(row["utterance_id"])
        if other is None:
            yield Difference(row["utterance_id"], "utterance_id", row["utterance_id"], None)
            continue
        for column, value in row.items():
            for path, old, new in _unequal(value, other[column], column):
                yield Difference(row["utterance_id"], path, old, new)


def _unequal(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old:
            yield from _unequal(old[name], new[name], f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _unequal(a, b, f"{path}[{index}]")
    elif isinstance(old, float) and isinstance(new, float):
        if abs(old - new) > TOLERANCE * max(1.0, abs(old)):
            yield path, old, new
    elif old != new:
        yield path, old, new


def _needs_fit(step: Step) -> bool:
    return any(parent.config.WRITES in GATHERED or _needs_fit(parent) for parent in step.inputs)


def _finding(step: Step, way: str, unequal: Sequence[Difference]) -> list[Finding]:
    if not unequal:
        return []
    first = unequal[0]
    number = len({each.utterance_id for each in unequal})
    return [
        Finding(
            severity="error",
            name="audit",
            what=f"Done again with {way}, step '{step.name}' gives other values",
            where=f"step '{step.name}' ({step.config.NAME}), {number} utterances, first '{first.utterance_id}'",
            got=f"{first.column} = {_short(first.after)}",
            expected=f"{_short(first.before)}, as committed",
            remedy="Numbers depend on how the work was cut: look for padding, dropout or state between utterances in "
            "this stage, and compare package versions in provenance.json with those installed now.",
        )
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _summary(where: str, num_steps: int, num_executed: int, num_faults: int) -> Finding:
    got = (
        f"differences in {num_faults} of {num_steps + num_executed} comparisons"
        if num_faults
        else "equal texts, and scores within 1e-4"
    )
    return Finding(
        severity="note",
        name="audit",
        what=f"{num_steps} steps were done again with another batch size, {num_executed} in the other executor",
        where=where,
        got=got,
        expected="equal texts, and scores within 1e-4",
        remedy="See the errors above." if num_faults else "Nothing to do.",
    )
