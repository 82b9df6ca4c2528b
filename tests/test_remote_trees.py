"""A language model in a pool of its own gives the tables that it gives beside the recogniser, also when it dies."""

import dataclasses
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from fakes import Trap, folder_in_memory, line, utterances

from ctxasr_ray import schema
from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, NextScorer, Resources, Step, TreeNodes, TreeScorer, TreeScorerHost, runtime_field
from ctxasr_ray.storage.store import Store

HERE = Path(__file__).parent
ASSETS = HERE.parent / "ctxasr_ray" / "assets"
LM, CTC = str(ASSETS / "lm"), str(ASSETS / "ctc")
ROUNDS, LOCKSTEP = 5, 3
tmp_path = pytest.fixture(folder_in_memory)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedLmConfig(CausalLmConfig):
    """Leaves a file named after its process where it was loaded."""

    marks: str = runtime_field("")

    def host(self) -> Any:
        (Path(self.marks) / f"{os.getpid()}.{len(os.listdir(self.marks))}").touch()
        return CausalLmConfig.host(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AskingConfig:
    """A stage that grows seeded trees, as a search does, three utterances side by side."""

    NAME: ClassVar[str] = "asking"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("duration_s",)}
    WRITES: ClassVar[str] = "hypotheses"
    lm: MarkedLmConfig
    lm_pool: Resources | None = runtime_field(None)
    lm_connect: Callable[[], TreeScorerHost] | None = runtime_field(None)
    trap: Trap | None = runtime_field(None)
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        return self.lm.fingerprint()

    def asked_lm(self) -> MarkedLmConfig:
        return dataclasses.replace(self.lm, utterances_per_forward=LOCKSTEP)

    def build(self) -> "Asking":
        return Asking(self, self.lm_connect() if self.lm_connect else self.asked_lm().host())


@dataclass(frozen=True, slots=True)
class Asking:
    config: AskingConfig
    host: TreeScorerHost

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        ids = tables[0]["utterance_id"].to_pylist()
        scorer, rows = self.host.sessions(costs), []
        for start in range(0, len(ids), LOCKSTEP):
            rows += grow(scorer, ids[start : start + LOCKSTEP], self.config.trap, Path(self.config.lm.marks))
        assert self.host.eos_token_id == 2
        assert self.host.max_positions == 512
        return pa.Table.from_pylist(rows, schema=schema.TABLES["hypotheses"])


def grow(scorer: TreeScorer, ids: list[str], trap: Trap | None, marks: Path) -> list[dict[str, Any]]:
    """Per utterance the sum of all log-probs that a seeded search with pruning has seen."""
    draws = {each: random.Random(each) for each in ids}
    sessions = scorer.open([np.array([1], np.int32)] * len(ids))
    alive: dict[str, list[int]] = {each: [-1] for each in ids}
    sizes, sums = dict.fromkeys(ids, 0), dict.fromkeys(ids, 0.0)
    for round_ in range(ROUNDS):
        if trap is not None and trap.utterance_id in ids and round_ == 2 and trap.springs():
            for mark in marks.iterdir():
                os.kill(int(mark.name.split(".")[0]), signal.SIGKILL)
        new = []
        for each in ids:
            parents = draws[each].choices(alive[each], k=6)
            tokens = [draws[each].randrange(3, 500) for _ in parents]
            new.append(TreeNodes(np.array(tokens, np.int32), np.array(parents, np.int32)))
        scores = scorer.extend(sessions, new)
        for each, (log_probs, eos) in zip(ids, scores, strict=True):
            sums[each] += float(log_probs.sum() + eos.sum())
            children = list(range(sizes[each], sizes[each] + 6))
            sizes[each] += 6
            alive[each] = draws[each].sample([node for node in alive[each] if node >= 0] + children, k=4)
        assert isinstance(scorer, NextScorer)
        last, tokens = [np.array([sizes[each] - 1], np.int32) for each in ids], np.array([2, 3, 4], np.int32)
        for each, after in zip(ids, scorer.next_log_probs(sessions, last, [tokens] * len(ids)), strict=True):
            sums[each] += float(after.sum())
        scorer.retain(sessions, [np.array(alive[each], np.int32) for each in ids])
    scorer.close(sessions)
    return [
        {
            "utterance_id": each,
            "hypotheses": [{"text": str(alive[each]), "scores": [], "search_score": sums[each], "origin": "search"}],
        }
        for each in ids
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(HERE)
    from ctxasr_ray.distributed.cluster import connected

    with connected(None, 6):
        yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def run(executor: Any, root: Path, config: AskingConfig) -> tuple[pa.Table, dict[str, int]]:
    """The table and the counters of all shards."""
    corpus = line()[0]
    store = Store(root)
    shards = store.add_corpus(utterances(12, split="dev"), shard_audio_s=20, seed=1)
    assert len(shards) > 2
    (root / "marks").mkdir()
    config = dataclasses.replace(config, lm=dataclasses.replace(config.lm, marks=str(root / "marks")))
    step = Step(name="asking", config=config, inputs=(corpus,))
    executor(store, [step], shards)
    counters: dict[str, int] = {}
    for shard in shards:
        key = store.locate(step, shard)
        assert key is not None
        for name, amount in store.footer(key).receipt["counters"].items():
            counters[name] = counters.get(name, 0) + amount
    return store.gather(step, shards), counters


def texts_and_scores(table: pa.Table) -> tuple[list[str], list[float]]:
    lists = [row[0] for row in table["hypotheses"].to_pylist()]
    return [one["text"] for one in lists], [one["search_score"] for one in lists]


CONFIG = AskingConfig(lm=MarkedLmConfig(model=LM, device="cpu"))


@pytest.mark.slow
def test_a_pool_gives_the_tables_of_a_model_beside_the_stage(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    inline, counted = run(run_inline, tmp_path / "inline", CONFIG)
    beside, _ = run(run_ray, tmp_path / "beside", dataclasses.replace(CONFIG, resources=Resources(num_actors=2)))
    pooled = dataclasses.replace(CONFIG, resources=Resources(num_actors=2), lm_pool=Resources(num_actors=2))
    remote, counted_there = run(run_ray, tmp_path / "pool", pooled)
    assert inline == beside == remote
    assert {name: counted_there[name] for name in counted} == counted  # the work is counted where it is asked for
    assert "llm_actor_deaths" not in counted_there
    assert len(os.listdir(tmp_path / "pool" / "marks")) == 2  # two models for two stages, whatever they are asked
    assert len(os.listdir(tmp_path / "beside" / "marks")) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("num_actors", [1, 2])
def test_a_dead_lm_actor_costs_a_replay_and_no_row(cluster: None, tmp_path: Path, num_actors: int) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    inline, counted = run(run_inline, tmp_path / "inline", CONFIG)
    (tmp_path / "tokens").mkdir()
    utterance_id = inline["utterance_id"].to_pylist()[5]
    trap = Trap(point="asked", utterance_id=utterance_id, tokens=str(tmp_path / "tokens"))
    config = dataclasses.replace(CONFIG, lm_pool=Resources(num_actors=num_actors), trap=trap)
    table, counted_there = run(run_ray, tmp_path / "killed", config)
    assert os.listdir(tmp_path / "tokens") == ["asked-0"]
    texts, scores = texts_and_scores(table)
    expected_texts, expected_scores = texts_and_scores(inline)
    assert texts == expected_texts
    np.testing.assert_allclose(scores, expected_scores, atol=1e-3)  # sums of some 75 log-probs, other batches
    assert counted_there["llm_actor_deaths"] >= 1
    assert counted_there["sessions_replayed"] == LOCKSTEP
    assert 0 < counted_there["tokens_replayed"] <= LOCKSTEP * 12
    assert counted_there["nodes"] == counted["nodes"] + counted_there["tokens_replayed"]


@pytest.mark.slow
def test_delayed_fusion_with_a_pool_gives_the_lists_of_one_actor(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.corpora.synthetic import SyntheticConfig
    from ctxasr_ray.distributed.pools import run_ray
    from ctxasr_ray.first_pass.ctc import CtcConfig
    from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig

    rows = utterances(4, split="dev").to_pylist()
    for place, row in enumerate(rows):
        samples = SyntheticConfig().spoken("dev", place).samples
        path = tmp_path / f"{place}.wav"
        soundfile.write(path, samples, 16000)
        row |= {"audio_uri": str(path), "duration_s": len(samples) / 16000}
    corpus = schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")
    config = CtcFusedConfig(
        first_pass=CtcConfig(model=CTC, beam_size=8, num_hypotheses=4, device="cpu"),
        lm=CausalLmConfig(model=LM, device="cpu"),
        interval=8,
    )
    tables = []
    for executor, pool in ((run_inline, None), (run_ray, Resources())):
        store = Store(tmp_path / executor.__name__)
        shards = store.add_corpus(corpus, shard_audio_s=60, seed=1)
        step = Step(name="fused", config=dataclasses.replace(config, lm_pool=pool), inputs=(line()[0],))
        executor(store, [step], shards)
        tables.append(store.gather(step, shards))
    assert tables[0] == tables[1]
    assert all(len(row) == 4 for row in tables[0]["hypotheses"].to_pylist())


@pytest.mark.slow
def test_pools_of_models_count_when_a_plan_is_checked(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    config = dataclasses.replace(CONFIG, lm_pool=Resources(num_gpus=1))
    with pytest.raises(ValueError, match="'asking, language model' finds no place"):
        run(run_ray, tmp_path / "refused", config)


def test_equal_models_of_several_steps_share_a_pool() -> None:
    from ctxasr_ray.distributed.tree_scorers import host_pools

    pool = Resources(num_actors=3, num_gpus=0.5)
    first, second = (dataclasses.replace(CONFIG, lm_pool=pool, resources=Resources(num_cpus=n)) for n in (1, 2))
    other = dataclasses.replace(first, lm=dataclasses.replace(CONFIG.lm, dtype="bfloat16"))
    steps = [Step(name=f"step{i}", config=config) for i, config in enumerate((first, second, other, CONFIG))]
    assert [(each.name, each.resources) for each in host_pools(steps)] == [
        ("step0, language model", pool),
        ("step2, language model", pool),
    ]


def test_a_plan_names_what_a_pool_of_a_language_model_asks_for(tmp_path: Path) -> None:
    from rich.console import Console

    from ctxasr_ray.execution.planning import plan
    from ctxasr_ray.report.steps import steps_table

    store = Store(tmp_path)
    shards = store.add_corpus(utterances(4, split="dev"), shard_audio_s=20, seed=1)
    config = dataclasses.replace(CONFIG, lm_pool=Resources(num_actors=3, num_gpus=0.5))
    rows = plan(store, [Step(name="asking", config=config, inputs=(line()[0],))], shards)
    assert rows[0]["lm_pool"]["num_actors"] == 3
    console = Console(width=160)
    with console.capture() as shown:
        console.print(steps_table(rows))
    assert "1 x 1 CPU; LM: 3 x 1 CPU, 0.5 GPU" in shown.get()


def test_what_is_replayed_is_what_may_have_children() -> None:
    """The bookkeeping of a session that is opened anew after every round, against a scorer that lives."""
    from ctxasr_ray.distributed.remote_sessions import Session

    scorer = CONFIG.lm.build()
    from ctxasr_ray.models.tree_host import TreeHost

    host, costs = TreeHost(scorer.lm), Costs()
    prefix = np.array([1], np.int32)
    rng, session, lives = random.Random(3), Session(prefix), host.sessions(Costs())
    (living,) = lives.open([prefix])
    alive = [-1]
    for _ in range(5):
        parents = rng.choices(alive, k=6)
        new = TreeNodes(np.array(rng.choices(range(3, 500), k=6), np.int32), np.array(parents, np.int32))
        first = len(session.tokens)
        session.grow(new)
        ((expected, _),) = lives.extend([living], [new])
        again = host.sessions(costs)
        (handle,) = again.open([prefix])
        session.places = []
        old = session.placed(0, first)
        if len(old.tokens):
            again.extend([handle], [old])
        ((log_probs, _),) = again.extend([handle], [session.placed(first, len(session.tokens))])
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)
        alive = rng.sample(range(len(session.tokens)), k=3)
        alive = [node for node in alive if session.alive[node]] + [len(session.tokens) - 1]
        session.retain(np.array(alive, np.int32))
        lives.retain([living], [np.array(alive, np.int32)])
        assert len(old.tokens) < max(1, first)
    gone = next(node for node, is_alive in enumerate(session.alive) if not is_alive)
    with pytest.raises(ValueError, match=f"node {gone} was not retained; open a new session"):
        session.grow(TreeNodes(np.array([5], np.int32), np.array([gone], np.int32)))
