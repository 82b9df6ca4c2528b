"""An audit finds a stage whose rows depend on their batch or on their process, and is content with all others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from fakes import line, utterances

from ctxasr_ray.audit import audit_steps, differences, other_batches, sample
from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.experiment import CorpusConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.stage import Costs, Resources, Stage, Step, runtime_field
from ctxasr_ray.storage.store import Shard, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedConfig:
    """A recogniser that may let the longest text of a batch change the scores of the others."""

    NAME: ClassVar[str] = "padded"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("reference",)}
    WRITES: ClassVar[str] = "hypotheses"

    leak: float = 0.0
    """Nats per character of padding that a masked model would not see."""
    batch_size: int = runtime_field(8)
    device: str = runtime_field("cpu")
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def build(self) -> Stage:
        return _Padded(self)


@dataclass(frozen=True)
class _Padded:
    config: PaddedConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        ids, texts = tables[0]["utterance_id"].to_pylist(), tables[0]["reference"].to_pylist()
        found = []
        for start in range(0, len(texts), self.config.batch_size):
            batch = texts[start : start + self.config.batch_size]
            longest = max(map(len, batch))
            for id_, said in zip(ids[start:], batch, strict=False):
                score = -1.5 * len(said) - self.config.leak * (longest - len(said))
                own = Hypothesis(text=said, scores=[Score(source="ctc", kind="log_prob", log_prob=score)])
                found.append(NBest(utterance_id=id_, hypotheses=[own]))
        return hypotheses_table(found)


def finished(root: Path, config: PaddedConfig) -> tuple[Store, tuple[Step, ...], list[Shard]]:
    corpus = Step(name="utterances", config=CorpusConfig())
    steps = (corpus, Step(name="first_pass", config=config, inputs=(corpus,)))
    store = Store(root)
    rows = utterances(24).to_pylist()
    for index, row in enumerate(rows):
        row["reference"] = "word " * (1 + index % 7)
    table = pa.Table.from_pylist(rows, schema=utterances(1).schema)
    shards = store.add_corpus(table, shard_audio_s=60, seed=1)
    run_inline(store, steps, shards)
    return store, steps, shards


def test_a_run_that_does_not_depend_on_its_batches_passes(tmp_path: Path) -> None:
    store, steps, shards = finished(tmp_path, PaddedConfig())
    (note,) = audit_steps(store, steps, shards, run_inline, 6)
    assert (note.severity, note.got) == ("note", "equal texts, and scores within 1e-4")
    assert note.what == "1 steps were done again with another batch size, 1 in the other executor"


def test_a_stage_whose_scores_depend_on_padding_is_named_with_its_value(tmp_path: Path) -> None:
    store, steps, shards = finished(tmp_path, PaddedConfig(leak=0.01))
    found = audit_steps(store, steps, shards, run_inline, 8)
    assert found[0].severity == "error"
    assert "another batch size, step 'first_pass'" in found[0].what
    assert found[0].got.startswith("hypotheses[0].scores[0].log_prob = -")
    assert found[-1].got == "differences in 2 of 2 comparisons"


def test_a_whole_line_with_a_fit_is_audited_up_to_the_fit_and_alone_behind_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    table = pa.concat_tables([utterances(18, split="dev"), utterances(18, split="test", corpus="other")])
    shards = store.add_corpus(table, shard_audio_s=40, seed=1)
    steps = line()
    run_inline(store, steps, shards)
    before = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    (note,) = audit_steps(store, steps, shards, run_inline, 6)
    assert note.severity == "note", note
    assert "5 steps were done again with another batch size, 3 in the other executor" in note.what
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == before


def test_an_executor_that_gives_other_tables_is_found(tmp_path: Path) -> None:
    store, steps, shards = finished(tmp_path, PaddedConfig())

    def crooked(scratch: Store, steps: Any, shards: Any) -> None:
        other = Step(name="first_pass", config=PaddedConfig(leak=0.5), inputs=steps[1].inputs)
        scratch._known_hashes["first_pass"] = scratch.stage_hash(steps[1])
        run_inline(scratch, (steps[0], other), shards)

    (error, _) = audit_steps(store, steps, shards, crooked, 12)
    assert "with the other executor, step 'first_pass'" in error.what


def test_the_sample_is_seeded_and_keeps_sessions_whole(tmp_path: Path) -> None:
    rows = utterances(30).to_pylist()
    for index, row in enumerate(rows):
        row["session_id"] = f"session-{index // 5}"
    store = Store(tmp_path)
    shards = store.add_corpus(pa.Table.from_pylist(rows, schema=utterances(1).schema), shard_audio_s=30, seed=1)
    first, again, other = (sample(store, [], shards, 10, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    for shard in shards:
        sessions = store.read_key(store.key_of(shard))["session_id"].to_pylist()
        own = [sessions[row] for row in first.get(shard.name, ())]
        assert all(own.count(session) == sessions.count(session) for session in own)


def test_small_rounding_is_no_difference_and_a_missing_score_is_one() -> None:
    schema = pa.schema([("utterance_id", pa.string()), ("values", pa.list_(pa.float64()))])
    old = pa.table([["a", "b"], [[-10.0, None], [0.0]]], schema=schema)
    assert not list(differences(old, pa.table([["b", "a"], [[0.00005], [-10.0009, None]]], schema=schema)))
    found = list(differences(old, pa.table([["b", "a"], [[0.001], [-10.0, 0.0]]], schema=schema)))
    assert [(each.utterance_id, each.column) for each in found] == [("a", "values[1]"), ("b", "values[0]")]
    (missing,) = differences(old.slice(0, 1), old.slice(1))
    assert (missing.utterance_id, missing.after) == ("a", None)


@pytest.mark.parametrize(("size", "expected"), [(8, 3), (0, 3), (3, 2)])
def test_only_runtime_numbers_change(size: int, expected: int) -> None:
    config = PaddedConfig(batch_size=size, leak=0.25)
    assert other_batches(config) == PaddedConfig(batch_size=expected, leak=0.25)
