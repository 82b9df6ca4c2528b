"""What a stage is: a frozen config that builds, on the worker, a callable from tables to a table.

A `Step` binds a config to the steps whose tables it reads; a run is a tuple of steps in order. The config
travels, the model is born on the worker. Nothing here knows Ray, torch or speech.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

GATHERED: Final = frozenset({"fits", "results"})
"""Tables with one artefact per run instead of one per shard: their stages read all shards of some splits at once,
in the driver, as a barrier. Their configs have one more field, `splits: tuple[str, ...]`."""


PEAK: Final = "peak_"
"""What counters begin with whose largest value counts; all others are added up."""


def runtime_field(default: Any) -> Any:
    """A config field that may change speed, never numbers (device, batch size): left out of the stage hash."""
    return field(default=default, metadata={"identity": False})


class SpentProcessError(RuntimeError):
    """A stage cannot go on in this process, built anew or not: a dead engine, a broken device context.

    An actor ends, so that the cluster starts another; a plain executor stops and says so.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one actor of a pool asks of the cluster, and how many actors there are. Never in a stage hash."""

    num_actors: int = 1
    """Actors in the pool, fixed for the run."""
    num_cpus: float = 1.0
    """Logical CPUs per actor; also the number of torch threads (at least 1)."""
    num_gpus: float = 0.0
    """GPUs per actor; fractions share one."""
    memory_bytes: int = 0
    """Host memory that the scheduler reserves per actor; 0 reserves none."""
    label_selector: Mapping[str, str] = field(default_factory=dict)
    """Node labels that an actor needs, for example {"role": "first-pass"}."""


def light() -> Resources:
    """Gives what a stage without a model asks for: a share of a CPU, in one actor with its neighbours of the kind."""
    return Resources(num_cpus=0.25)


def check_fit_splits(fit: str, splits: tuple[str, ...]) -> None:
    """Refuses splits that nothing may be fitted on.

    Raises:
        ValueError: no split, or another one than dev and train.
    """
    if not splits or set(splits) - {"dev", "train"}:
        raise ValueError(f"{fit}: splits {splits}; fit on dev (or train), never on what is reported.")


def refuse_other_splits(fit: str, utterances: pa.Table, splits: tuple[str, ...]) -> None:
    """Refuses rows that a fit may not see.

    Raises:
        ValueError: a row is of another split.
    """
    found = set(utterances.column("split").to_pylist()) - set(splits)
    if found:
        raise ValueError(f"{fit}: rows of the splits {sorted(found)} are among the inputs; expected {splits} only.")


@dataclass(slots=True)
class Costs:
    """Counters and seconds of one shard in one stage; they travel in the receipt, outside equality and hashes."""

    counters: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """The same of this process's processors, which neighbours do not lengthen; only of what is `timed`."""
    utterances: dict[str, dict[str, int]] = field(default_factory=dict)
    """Utterance -> counters of its own, where a stage has any."""
    named: dict[str, dict[str, None]] = field(default_factory=dict)
    """Kind -> what of that kind a user should hear of by name, each thing once; the receipt keeps the first few."""

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a counter, for example `llm_calls` or `tokens_scored`."""
        self.counters[name] = self.counters.get(name, 0) + int(amount)

    def peak(self, name: str, amount: int) -> None:
        """Keeps the largest value seen as `peak_<name>`, of which sums make nothing; for example `logits_bytes`."""
        name = f"{PEAK}{name}"
        self.counters[name] = max(self.counters.get(name, 0), int(amount))

    def add(self, counters: Mapping[str, int]) -> None:
        """Takes in counters that were kept elsewhere: those of largest values as such, all others as sums."""
        for name, amount in counters.items():
            (self.peak if name.startswith(PEAK) else self.count)(name.removeprefix(PEAK), amount)

    def name(self, kind: str, things: Iterable[str]) -> None:
        """Keeps things by name, for example the `unwritable_phrases` of a recogniser; nothing is counted twice."""
        if found := dict.fromkeys(things):
            self.named.setdefault(kind, {}).update(found)

    def count_utterance(self, utterance_id: str, counters: Mapping[str, int]) -> None:
        """Keeps what one utterance cost, for example `llm_calls`, `nodes`, `kv_bytes`; the last word counts."""
        self.utterances[utterance_id] = dict(counters)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall seconds of the block to `seconds[name]` (load, decode, search, llm, ...)."""
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - cpu_start


class Stage(Protocol):
    """A built stage: the rows of its first table in, the same rows in the same order out."""

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One shard.

        Args:
            tables: One table per input of the step, in the step's order, each with the columns that the
                config's `READS` names for it and the same `utterance_id` column.
            costs: Where the stage counts its work.

        Returns:
            A table that `schema.conform` accepts for the config's `WRITES`.

        Raises:
            OSError, RuntimeError: faults of the world; the shard is retried, nothing is committed.
        """
        ...


@runtime_checkable
class StageConfig(Protocol):
    """A frozen, keyword-only, slotted dataclass with these class attributes and methods."""

    NAME: ClassVar[str]
    """Short name of the stage kind, for example "ctc"; stands in paths."""
    STAGE_VERSION: ClassVar[int]
    """Raised whenever the same config and inputs give other outputs."""
    READS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Table name -> columns besides `utterance_id` that change the outputs; nothing else is handed in."""
    WRITES: ClassVar[str]
    """Table name, a key of `schema.TABLES`."""

    @property
    def resources(self) -> Resources:
        """What one actor asks of the cluster; a plain field in the frozen config."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of everything outside the config that changes numbers: model files, tokenizer, catalogue.

        Raises:
            ValueError: a file that the config names is missing or refused, naming it.
        """
        ...

    def build(self) -> Stage:
        """Loads the model, on the worker."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A stage in a run: its config, and the steps whose tables it reads."""

    name: str
    """Unique in the run, for example "first_pass" or "lm_scores"."""
    config: StageConfig
    inputs: tuple["Step", ...] = ()
    """Parents in the order of the stage's arguments. Empty for a corpus, whose table is written by `prepare`."""


def identity(config: Any) -> Any:
    """The part of a config that changes numbers, as plain JSON values.

    Dataclasses become {"type": name, field: value}; fields made by `runtime_field` and `resources` are left out.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {
            f.name: identity(getattr(config, f.name))
            for f in dataclasses.fields(config)
            if f.metadata.get("identity", True) and f.name != "resources"
        }
        return {"type": type(config).__name__, **fields}
    if isinstance(config, Mapping):
        return {str(key): identity(config[key]) for key in sorted(config)}
    if isinstance(config, (list, tuple)):
        return [identity(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise ValueError(f"a config field holds a {type(config).__name__}; use plain values, tuples and dataclasses")


@dataclass(frozen=True, slots=True)
class TreeNodes:
    """New nodes for one session of a `TreeScorer`, parents before children.

    Args:
        tokens: (n,) int32 token ids.
        parents: (n,) int32 indices into all nodes of the session, counted from its opening;
            -1 is the prefix. A new node may name another new node that stands before it.
    """

    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]


class TreeScorer(Protocol):
    """A causal LM that is asked for new nodes of token trees, incrementally; never scores a node twice.

    Local object or proxy to another pool; a session stays with one LLM actor, and the client of an actor that
    died opens again and extends by the same nodes.
    """

    def open(self, prefixes: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        """Opens a session per prefix of tokens (may be empty) and returns their handles."""
        ...

    def extend(
        self, sessions: Sequence[int], nodes: Sequence[TreeNodes]
    ) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Scores new nodes of many sessions in as few forward passes as fit.

        Returns:
            Per session two (n,) float64 arrays in nats: log P(token | path above it), nan where nothing stands above
            it, and log P(end of sequence | path down to the token), nan if the model has no such token.
        """
        ...

    def retain(self, sessions: Sequence[int], nodes: Sequence[npt.NDArray[np.int32]]) -> None:
        """Says, per session, below which nodes children may still come; all others but their ancestors are dead."""
        ...

    def close(self, sessions: Sequence[int]) -> None:
        """Forgets sessions and their caches."""
        ...


@runtime_checkable
class NextScorer(TreeScorer, Protocol):
    """A `TreeScorer` that also gives distributions, for searches whose labels are the model's own tokens."""

    def next_log_probs(
        self,
        sessions: Sequence[int],
        nodes: Sequence[npt.NDArray[np.int32]],
        tokens: Sequence[npt.NDArray[np.int32]],
    ) -> list[npt.NDArray[np.float64]]:
        """Per session (m, L) log P of some tokens behind old nodes, -1 being the prefix; nan where it is empty."""
        ...


class TreeScorerHost(Protocol):
    """A loaded causal LM that several searches may ask, each through a `TreeScorer` of its own."""

    @property
    def eos_token_id(self) -> int | None:
        """End of sequence, None if the model has none."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model takes, prefix included; None is no limit."""
        ...

    @property
    def position_bytes(self) -> int:
        """Keys and values of one position in a cache; 0 for a model that is asked without one."""
        ...

    def sessions(self, costs: Costs) -> TreeScorer:
        """A scorer whose work is counted in `costs`; not for several threads."""
        ...


class HostConfig(Protocol):
    """The config of a causal LM; equal configs share a pool."""

    def host(self) -> TreeScorerHost:
        """Loads the model."""
        ...


@runtime_checkable
class AsksLm(Protocol):
    """What the config of a stage has too, if the stage asks an LM while it works: the LM may have a pool of its own.

    An executor with pools loads an LM that has one there and sets `lm_connect` in the config that it sends to the
    stage's actors; any other executor leaves it, and the stage loads the LM beside itself. Both are runtime fields.
    """

    @property
    def lm_pool(self) -> Resources | None:
        """Actors of the LM's own; None is beside the stage."""
        ...

    @property
    def lm_connect(self) -> Callable[[], TreeScorerHost] | None:
        """Gives the stage its way to the pool; None loads the LM."""
        ...

    def asked_lm(self) -> HostConfig:
        """The LM as the stage would load it."""
        ...
