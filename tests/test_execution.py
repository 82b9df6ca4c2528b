"""The plain executor: what it makes, what it does not make again, and what it says when it must stop."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from fakes import (
    POINTS,
    Behaviour,
    ErrorCountsConfig,
    FirstPassConfig,
    ScorerConfig,
    SummaryConfig,
    Trap,
    WeightsConfig,
    folder_in_memory,
    line,
    utterances,
)

from ctxasr_ray.execution.inline import Progress, plan, run_inline, segments, status
from ctxasr_ray.execution.stage_calls import RunError
from ctxasr_ray.execution.worker import Worker
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import GATHERED, Step
from ctxasr_ray.storage import processes
from ctxasr_ray.storage.attempts import Attempts
from ctxasr_ray.storage.store import Shard, Store, StoreError

tmp_path = pytest.fixture(folder_in_memory)


def corpus(num: int = 24, **options: Any) -> pa.Table:
    return pa.concat_tables([utterances(num, split=split, **options) for split in ("dev", "test")])


def prepared(root: Path, table: pa.Table | None = None) -> tuple[Store, list[Shard]]:
    store = Store(root)
    return store, store.add_corpus(corpus() if table is None else table, shard_audio_s=40, seed=1)


def tables(store: Store, steps: tuple[Step, ...], shards: list[Shard]) -> dict[str, pa.Table]:
    return {step.name: store.gather(step, shards) for step in steps}


def calls(log: Path) -> collections.Counter[str]:
    """Stage -> number of calls, over all processes; calls on the same rows are told apart."""
    return collections.Counter(name.split(".")[0] for name in os.listdir(log))


def logged(log: Path, **others: Behaviour) -> tuple[Step, ...]:
    log.mkdir(exist_ok=True)
    behaviour = Behaviour(log=str(log))
    names = ("first_pass", "lm_scores", "nbest_errors", "fused", "errors")
    return line(**{name: others.get(name, behaviour) for name in names})


# -- one run after another


def test_a_run_makes_every_table_once(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = logged(tmp_path / "log")
    seen: list[Progress] = []
    summary = run_inline(store, steps, shards, on_progress=seen.append)
    assert (summary.done, summary.skipped, summary.redone) == (5 * len(shards) + 2, 0, 0)
    assert [each.done for each in seen] == list(range(1, seen[-1].total + 1))
    for step in steps:
        if step.config.WRITES not in GATHERED:
            assert store.gather(step, shards)["utterance_id"].equals(store.gather(steps[0], shards)["utterance_id"])
    again = run_inline(Store(tmp_path / "run"), steps, shards)
    assert (again.done, again.skipped) == (0, summary.done)
    assert set(calls(tmp_path / "log").values()) == {len(shards)}


def test_a_mended_reference_recomputes_metrics_only(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    run_inline(store, logged(tmp_path / "before"), shards)
    mended = corpus(references="play {} mended")
    shards = store.add_corpus(mended, shard_audio_s=40, seed=1)
    run_inline(store, logged(tmp_path / "after"), shards)
    done = calls(tmp_path / "after")
    assert done["fake_first_pass"] == done["fake_scorer"] == 0
    assert done["fake_nbest_errors"] == done["fake_error_counts"] == len(shards)
    fresh_store, fresh = prepared(tmp_path / "fresh", mended)
    run_inline(fresh_store, line(), fresh)
    assert tables(store, line(), shards) == tables(fresh_store, line(), fresh)


def test_an_added_corpus_computes_its_own_shards_only(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    run_inline(store, logged(tmp_path / "before"), shards)
    added = store.add_corpus(utterances(12, corpus="other"), shard_audio_s=40, seed=1)
    summary = run_inline(store, logged(tmp_path / "after"), [*shards, *added])
    assert set(calls(tmp_path / "after").values()) == {len(added)}
    assert summary.done == 5 * len(added) + 1  # the fit reads dev only, so it stays; the results do not


def test_a_changed_scorer_leaves_the_first_pass_alone(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = logged(tmp_path / "before")
    run_inline(store, steps, shards)
    changed = ScorerConfig(flavour="other")
    rebuilt: list[Step] = []
    for step in logged(tmp_path / "after"):
        new = dataclasses.replace(step, inputs=tuple(next(r for r in rebuilt if r.name == i.name) for i in step.inputs))
        rebuilt.append(dataclasses.replace(new, config=changed) if step.name == "lm_scores" else new)
    run_inline(store, rebuilt, shards)
    done = calls(tmp_path / "after")
    assert done["fake_first_pass"] == done["fake_nbest_errors"] == 0
    assert done["fake_fusion"] == len(shards)


def test_a_fit_that_changes_its_mind_changes_its_children(tmp_path: Path) -> None:
    """The artefact's digest, not its name, is in the identity of what was made with it."""
    store, shards = prepared(tmp_path / "run")
    run_inline(store, line(), shards)
    before = [store.locate(line()[5], shard) for shard in shards]
    more = store.add_corpus(utterances(6, corpus="more", split="dev"), shard_audio_s=40, seed=1)
    run_inline(store, line(), [*shards, *more])
    assert not set(before) & {store.locate(line()[5], shard) for shard in shards}


# -- order, barriers, refusals


def test_steps_fall_into_as_few_segments_as_barriers_allow() -> None:
    found = [([s.name for s in each.per_shard], [s.name for s in each.gathered]) for each in segments(line())]
    assert found == [
        (["first_pass", "lm_scores", "nbest_errors"], ["weights"]),
        (["fused", "errors"], ["summary"]),
    ]


def test_steps_out_of_order_or_of_one_name_are_refused() -> None:
    steps = line()
    with pytest.raises(ValueError, match="'lm_scores' reads 'first_pass', which does not stand before it"):
        segments([steps[2], steps[1]])
    with pytest.raises(ValueError, match="two steps are named 'first_pass'"):
        segments([steps[1], steps[1]])


def test_a_fit_on_test_is_refused_before_any_work(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = logged(tmp_path / "log")
    bad = Step(name="weights", config=WeightsConfig(splits=("dev", "test")), inputs=steps[4].inputs)
    with pytest.raises(ValueError, match="a fit that reads a test row is refused"):
        run_inline(store, [*steps[:4], bad], shards)
    assert not calls(tmp_path / "log")


def test_a_fit_without_its_split_is_refused_before_any_work(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run", utterances(8))
    with pytest.raises(ValueError, match="'weights' reads splits dev, but the run has only test"):
        run_inline(store, logged(tmp_path / "log"), shards)
    assert not calls(tmp_path / "log")


def test_a_run_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shards"):
        run_inline(Store(tmp_path), line(), [])


class UnreadConfig(ErrorCountsConfig):
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"transcripts": ("text",)}


def test_an_input_that_a_stage_does_not_declare_is_refused(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line()
    bad = Step(name="errors", config=UnreadConfig(), inputs=steps[6].inputs)
    with pytest.raises(ValueError, match=r"'errors'.*has 'corpus' as input.*expected an entry for utterances"):
        run_inline(store, [*steps[:6], bad], shards)


class DropsRowsConfig(FirstPassConfig):
    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        return FirstPassConfig.rows(self, *tables)[1:]


class WorldConfig(FirstPassConfig):
    """Raises a fault of the world as often as the token file is short of `flavour` characters."""

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        token = Path(self.behaviour.log) / "token"
        text = token.read_text() if token.exists() else ""
        if len(text) < int(self.flavour):
            token.write_text(text + "x")
            raise OSError("the disk is on holiday")
        return FirstPassConfig.rows(self, *tables)


def test_a_stage_that_drops_a_row_is_stopped(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    with pytest.raises(ContractError, match=r"shard tiny-dev-00000.*expected exactly the rows of the shard"):
        run_inline(store, [Step(name="first_pass", config=DropsRowsConfig(), inputs=line()[:1])], shards)


def test_a_fault_of_the_world_is_tried_again(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run", utterances(4))
    config = WorldConfig(flavour="1", behaviour=Behaviour(log=str(tmp_path)))
    assert run_inline(store, [Step(name="first_pass", config=config, inputs=line()[:1])], shards).done == len(shards)


def test_a_lasting_fault_stops_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run", utterances(4))
    step = Step(
        name="first_pass", config=WorldConfig(flavour="3", behaviour=Behaviour(log=str(tmp_path))), inputs=line()[:1]
    )
    with pytest.raises(RunError, match=r"OSError: the disk is on holiday\n.*run the same command again"):
        run_inline(store, [step], shards)
    assert run_inline(store, [step], shards).done == len(shards)


def test_a_damaged_input_stops_the_run_until_it_is_removed(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line()
    run_inline(store, steps[:2], shards)
    key = store.locate(steps[1], shards[0])
    path = tmp_path / "run" / str(key)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises((RunError, StoreError), match="Remove it and run the same command again"):
        run_inline(Store(tmp_path / "run"), steps, shards)
    path.unlink()
    run_inline(Store(tmp_path / "run"), steps, shards)
    fresh_store, fresh = prepared(tmp_path / "fresh")
    run_inline(fresh_store, steps, fresh)
    assert tables(store, steps, shards) == tables(fresh_store, steps, fresh)


# -- what a run leaves for people


def test_success_stands_only_beside_complete_tables(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line()
    run_inline(store, steps[:2], shards)
    (success,) = (tmp_path / "run").rglob("_SUCCESS")
    assert success.parent.parent.name == "hypotheses"
    assert len(json.loads(success.read_text())) == len(shards)
    run_inline(store, steps, shards)
    assert len(list((tmp_path / "run").rglob("_SUCCESS"))) == len(steps) - 1


def test_success_goes_while_a_table_is_incomplete(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run", utterances(4))
    steps = line()[:2]
    run_inline(store, steps, shards)
    more = store.add_corpus(utterances(4, corpus="more"), shard_audio_s=40, seed=1)
    broken = Step(name="first_pass", config=FirstPassConfig(behaviour=Behaviour(log="/nonexistent")), inputs=steps[:1])
    with pytest.raises(RunError):
        run_inline(store, [broken], [*shards, *more])
    assert not list((tmp_path / "run").rglob("_SUCCESS"))


def test_receipts_carry_costs_outside_of_identity(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line(first_pass=Behaviour(sleep_s=0.02))
    run_inline(store, steps, shards)
    rows = [row for row in store.costs(steps, shards) if row["step"] == "first_pass"]
    assert [row["shard"] for row in rows] == [shard.name for shard in shards]
    for row, shard in zip(rows, shards, strict=True):
        assert row["counters"] == {"rows": shard.num_rows}
        ids = store.read(steps[1], shard)["utterance_id"].to_pylist()
        assert row["utterances"] == {"letters": [len(one) for one in ids]}
        assert row["seconds"]["busy"] >= 0.02 > row["cpu_seconds"]["busy"] > 0  # it sleeps
        assert row["seconds"]["work"] > 0
        assert (row["rows"], row["failures"], row["attempt"]) == (shard.num_rows, 0, 1)
        assert row["peak_host_bytes"] > 1e7
        assert row["versions"]["pyarrow"] == pa.__version__
    other, others = prepared(tmp_path / "other")
    run_inline(other, line(), others)
    assert [store.locate(steps[6], s) for s in shards] == [other.locate(steps[6], s) for s in others]


def test_provenance_names_configs_commit_versions_and_counts(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    run_inline(store, line(), shards)
    found = json.loads((tmp_path / "run" / "provenance.json").read_text())
    first_pass = next(step for step in found["steps"] if step["name"] == "first_pass")
    assert first_pass["config"] == {"type": "FirstPassConfig", "flavour": ""}
    assert first_pass["inputs"] == ["corpus"]
    assert found["versions"]["ctxasr-ray"]
    assert found["summary"]["done"] == 5 * len(shards) + 2
    assert [shard["name"] for shard in found["shards"]] == [shard.name for shard in shards]


def test_plan_knows_what_is_committed_and_touches_nothing(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line()

    def counts() -> dict[str, tuple[int, int, int]]:
        rows = plan(store, steps, shards)
        return {row["step"]: (row["num_committed"], row["num_pending"], row["num_unknown"]) for row in rows}

    n = len(shards)
    before = sorted((tmp_path / "run").rglob("*"))
    found = counts()
    assert (found["first_pass"], found["lm_scores"], found["weights"]) == ((0, n, 0), (0, 0, n), (0, 0, 1))
    assert sorted((tmp_path / "run").rglob("*")) == before
    run_inline(store, steps[:2], shards)
    assert counts()["first_pass"] == (n, 0, 0)
    assert counts()["lm_scores"] == (0, n, 0)
    run_inline(store, steps, shards)
    assert {pending + unknown for _, pending, unknown in counts().values()} == {0}
    assert plan(store, steps, shards)[0]["resources"]["num_actors"] == 1
    assert plan(store, steps, shards)[0]["lm_pool"] is None
    assert store.read(steps[5], shards[0]).num_rows == shards[0].num_rows  # plan leaves the fits resolved


def test_status_tells_what_a_run_in_progress_has_done(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line()
    seen: list[dict[str, Any]] = []

    def look(progress: Progress) -> None:
        if progress.done == 2:
            seen.extend(status(Store(tmp_path / "run"), steps, shards))

    run_inline(store, steps, shards, on_progress=look)
    first = next(row for row in seen if row["step"] == "first_pass")
    assert (first["num_committed"], first["num_pending"]) == (2, len(shards) - 2)
    assert first["rows"] == shards[0].num_rows + shards[1].num_rows
    assert first["writer"] == processes.this_process()
    assert time.time() - first["last_commit"] < 60
    done = {row["step"]: row for row in status(store, steps, shards)}
    assert done["errors"]["num_committed"] == len(shards)
    assert done["errors"]["writer"] is None


def test_reading_before_the_run_says_what_to_do(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    with pytest.raises(
        StoreError, match=r"'first_pass', shard tiny-dev-00000: not committed.*run the evaluation first"
    ):
        store.read(line()[1], shards[0])
    run_inline(store, line(), shards)
    with pytest.raises(StoreError, match="call `resolve` with all shards"):
        Store(tmp_path / "run").read(line()[5], shards[0])
    fresh = Store(tmp_path / "run")
    fresh.resolve(line(), shards)
    assert fresh.read(line()[5], shards[0]).num_rows == shards[0].num_rows


# -- errors in rows


def with_broken_audio() -> pa.Table:
    table = utterances(6)
    uris = table["audio_uri"].to_pylist()
    uris[2] = "broken/2.wav"
    return table.set_column(table.schema.get_field_index("audio_uri"), table.schema.field("audio_uri"), pa.array(uris))


class MendedConfig(FirstPassConfig):
    """As FirstPassConfig, but the broken file can be read once the file `mended` lies in the log folder."""

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        if (Path(self.behaviour.log) / "mended").exists():
            uris = [uri.replace("broken", "whole") for uri in tables[0]["audio_uri"].to_pylist()]
            tables = (tables[0].set_column(1, "audio_uri", pa.array(uris)),)
        return FirstPassConfig.rows(self, *tables)


def test_retrying_errors_redoes_only_rows_with_errors(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run", with_broken_audio())
    (tmp_path / "log").mkdir()
    first_pass = Step(
        name="first_pass", config=MendedConfig(behaviour=Behaviour(log=str(tmp_path / "log"))), inputs=line()[:1]
    )
    steps = [first_pass, Step(name="scores", config=ScorerConfig(), inputs=(first_pass,))]
    summary = run_inline(store, steps, shards)
    assert summary.failures == 1
    assert run_inline(store, steps, shards).skipped == 2
    before = store.gather(first_pass, shards)

    futile = run_inline(store, steps, shards, retry_errors=True)
    assert (futile.redone, futile.failures) == (1, 1)  # the same error again: no further attempt is committed
    assert store.read_receipt(first_pass, shards[0])["attempt"] == 1

    (tmp_path / "log" / "mended").touch()
    mended = run_inline(store, steps, shards, retry_errors=True)
    assert (mended.redone, mended.done, mended.failures) == (1, 1, 0)  # the scores have another parent now
    key = store.locate(first_pass, shards[0])
    assert key is not None
    assert key.endswith(".2.parquet")
    assert store.read_receipt(first_pass, shards[0])["attempt"] == 2
    after = store.gather(first_pass, shards)
    changed = [a != b for a, b in zip(before.to_pylist(), after.to_pylist(), strict=True)]
    assert sum(changed) == 1
    assert sorted(int(name.split(".")[1]) for name in os.listdir(tmp_path / "log") if "." in name) == [1, 1, 6]
    assert run_inline(store, steps, shards, retry_errors=True).skipped == 2


# -- killed at every point, without Ray

KILLED = """
import sys
from pathlib import Path
import test_execution as t
root, point, tokens, where = sys.argv[1:]
trap = t.Trap(point=point, utterance_id="tiny-test-0003", tokens=tokens)
behaviour = t.Behaviour(traps=(trap,), log=tokens + "/log")
store, shards = t.prepared(Path(root))
t.run_inline(store, t.line(**{where: behaviour}), shards)
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_at_any_point_of_the_commit_goes_on_where_it_was(tmp_path: Path, point: str) -> None:
    (tmp_path / "tokens" / "log").mkdir(parents=True)
    where = "lm_scores" if POINTS.index(point) % 2 else "fused"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), point, str(tmp_path / "tokens"), where]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == -9, first.stderr
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    store, shards = prepared(tmp_path / "run")
    fresh_store, fresh = prepared(tmp_path / "fresh")
    run_inline(fresh_store, line(), fresh)
    assert tables(store, line(), shards) == tables(fresh_store, line(), fresh)
    committed_at_kill = point in ("after_link", "after_unlink")
    assert len(os.listdir(tmp_path / "tokens" / "log")) == len(shards) + (not committed_at_kill)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".tmp")]


# -- quarantine, with deaths as a later worker sees them


def dies(store: Store, step: Step, shard: Shard, behaviour: Behaviour, run: str = "r") -> bool:
    """One worker in a process of its own; whether it died of the stage."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            attempts = Attempts(store.folder, run=run, node="n", is_alive=lambda node: node == "n")
            config = dataclasses.replace(step.config, behaviour=behaviour)  # type: ignore[type-var]
            Worker(Store(store.root), dataclasses.replace(step, config=config), attempts).process(shard)
            code = 0
        except RunError as error:
            Path(store.root, "refusal").write_text(str(error))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -9)
    return code == -9


def test_a_poison_utterance_is_found_by_halving_and_quarantined(tmp_path: Path) -> None:
    pa.set_cpu_count(1)
    store, (shard,) = prepared(tmp_path / "run", utterances(9))
    step = line()[1]
    deaths = 0
    while dies(store, step, shard, Behaviour(poison="tiny-test-0004")):
        deaths += 1
        assert deaths < 12
    table = store.gather(step, [shard])
    bad = [row for row in table.to_pylist() if row["error_type"]]
    assert [(row["utterance_id"], row["error_type"], row["hypotheses"]) for row in bad] == [
        ("tiny-test-0004", "quarantined", [])
    ]
    assert "died 2 times on this utterance alone" in bad[0]["error"]
    other, (whole,) = prepared(tmp_path / "other", utterances(9))
    run_inline(other, [step], [whole])
    good = [row for row in other.gather(step, [whole]).to_pylist() if row["utterance_id"] != "tiny-test-0004"]
    assert [row for row in table.to_pylist() if not row["error_type"]] == good
    assert store.read_receipt(step, shard)["failures"] == 1
    assert not [path for path in (tmp_path / "run" / ".run").rglob("*") if path.is_file()]


def test_preemptions_are_not_attempts(tmp_path: Path) -> None:
    pa.set_cpu_count(1)
    store, (shard,) = prepared(tmp_path / "run", utterances(4))
    step = line()[1]
    for number in range(4):
        assert dies(store, step, shard, Behaviour(poison="0001"), run=f"driver {number} died too")
    gone = Attempts(store.folder, run="driver 3 died too", node="n", is_alive=lambda node: False)
    assert Worker(store, step, gone).process(shard).outcome == "done"
    assert store.gather(step, [shard])["error_type"].null_count == 4


def test_a_table_without_error_columns_refuses_quarantine_and_names_the_utterance(tmp_path: Path) -> None:
    pa.set_cpu_count(1)
    store, (shard,) = prepared(tmp_path / "run", utterances(2))
    steps = line()
    run_inline(store, steps[:2], [shard])
    deaths = 0
    attempts = Attempts(store.folder, run="r", node="n", is_alive=lambda node: True)
    while deaths < 4:
        assert dies(store, steps[3], shard, Behaviour(poison="0001"))
        deaths += 1
    with pytest.raises(RunError, match=r"utterance 'tiny-test-0001'.*nbest_errors has no column for an error"):
        Worker(store, steps[3], attempts).process(shard)


def test_a_stage_that_dies_while_it_is_built_blames_no_utterance(tmp_path: Path) -> None:
    pa.set_cpu_count(1)
    store, (shard,) = prepared(tmp_path / "run", utterances(4))
    step = line()[1]
    for _ in range(3):
        assert dies(store, step, shard, Behaviour(lethal_to_build=True))
    assert not dies(store, step, shard, Behaviour(lethal_to_build=True))
    assert "3 workers have died while they built the stage" in (tmp_path / "run" / "refusal").read_text()
    assert not dies(store, step, shard, Behaviour())
    assert store.read_receipt(step, shard)["failures"] == 0


def test_a_stage_that_kills_on_every_row_stops_the_run_instead_of_emptying_it(tmp_path: Path) -> None:
    pa.set_cpu_count(1)
    store, (shard,) = prepared(tmp_path / "run", utterances(12))
    step = line()[1]
    deaths = 0
    while dies(store, step, shard, Behaviour(poison="tiny")):
        deaths += 1
        assert deaths < 60
    assert "stage or the machine (memory) is at fault" in (tmp_path / "run" / "refusal").read_text()
    assert store.locate(step, shard) is None
    assert not dies(store, step, shard, Behaviour(), run="later, with the cause mended")
    assert store.read_receipt(step, shard)["failures"] == 0


def test_summary_reads_every_split_it_names(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path / "run")
    steps = line()
    only_test = Step(name="summary", config=SummaryConfig(splits=("test",)), inputs=steps[7].inputs)
    run_inline(store, [*steps[:7], only_test], shards)
    assert store.gather(only_test, shards)["num_utterances"].to_pylist() == [24]


def test_trap_tokens_are_taken_once(tmp_path: Path) -> None:
    trap = Trap(point="opened", utterance_id="u", tokens=str(tmp_path), times=2)
    assert [trap.springs() for _ in range(3)] == [True, True, False]
