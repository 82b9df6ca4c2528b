"""One shape for every measured figure, a fair timer, and the lines that scripts and people read.

Every benchmark ends with `emit(figures)`: a table for people, then one JSON line per figure.
"""

import contextlib
import gc
import json
import operator
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_GOAL = re.compile(r"(>=|<=|==|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number, the goal it was held to, and the work that was counted on the way."""

    name: str
    """Listed in `benchmarks/README.md`; stable, because scripts look for it."""
    value: float
    goal: str | None = None
    """A comparison such as ">= 2.0", or None where the figure is only stated."""
    unit: str = ""
    """For example "x" (a ratio of seconds), "s", "MB" or "fraction"."""
    peer: str | None = None
    """What it was measured against, with version."""
    counters: Mapping[str, int | float | str] = field(default_factory=dict)
    """Deterministic work (tokens, forwards, breakpoints), spreads and conditions."""

    def __post_init__(self) -> None:
        if self.goal is not None and _GOAL.fullmatch(self.goal) is None:
            raise ValueError(f"figure '{self.name}': goal '{self.goal}' is no comparison; write for example '>= 2.0'.")

    @property
    def met(self) -> bool | None:
        """Whether the value meets the goal; None without a goal."""
        if self.goal is None:
            return None
        parts = _GOAL.fullmatch(self.goal)
        assert parts is not None
        return bool(_COMPARISONS[parts[1]](self.value, float(parts[2])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Speedup:
    """How many times faster the second of two callables is, over interleaved rounds."""

    median: float
    """Median of the per-round ratios, seconds of the first / seconds of the second."""
    minimum: float
    maximum: float
    seconds_first: float
    """Median seconds of one call of the first."""
    seconds_second: float
    """Median seconds of one call of the second."""
    rounds: int

    def counters(self) -> dict[str, int | float | str]:
        """The spread as counters of a `Figure`."""
        return {
            "ratio_min": round(self.minimum, 4),
            "ratio_max": round(self.maximum, 4),
            "seconds_peer": round(self.seconds_first, 6),
            "seconds_ours": round(self.seconds_second, 6),
            "rounds": self.rounds,
        }


def interleaved(
    first: Callable[[], object], second: Callable[[], object], rounds: int = 5, warm_up: int = 1
) -> Speedup:
    """Times two callables as A B B A per round, so that a drift of the machine hits both alike.

    Args:
        first: The peer; called without arguments.
        second: Ours, doing the same work; check that the outputs are equal before calling this.
        rounds: Rounds that count, at least 1; each calls either callable twice.
        warm_up: Untimed calls of each before the first round.
    """
    for _ in range(warm_up):
        first()
        second()
    ratios, firsts, seconds = [], [], []
    for _ in range(rounds):
        a1, b1, b2, a2 = (_seconds(call) for call in (first, second, second, first))
        ratios.append((a1 + a2) / (b1 + b2))
        firsts.append((a1 + a2) / 2)
        seconds.append((b1 + b2) / 2)
    return Speedup(
        median=statistics.median(ratios),
        minimum=min(ratios),
        maximum=max(ratios),
        seconds_first=statistics.median(firsts),
        seconds_second=statistics.median(seconds),
        rounds=rounds,
    )


def _seconds(call: Callable[[], object]) -> float:
    with _no_garbage_collection():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pin_threads(num_threads: int = 1) -> None:
    """Gives every numerical library the same number of threads; call it before importing numpy or torch.

    Raises:
        RuntimeError: numpy or torch is loaded already, so its pools have their size.
    """
    loaded = [name for name in ("numpy", "torch") if name in sys.modules]
    if loaded:
        raise RuntimeError(f"pin_threads: {' and '.join(loaded)} loaded already; call it before importing them.")
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "TOKENIZERS_PARALLELISM",
    ):
        os.environ[name] = "false" if name.startswith("TOKENIZERS") else str(num_threads)


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on: processor, cores, load, versions of what is loaded."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), flags=re.MULTILINE)
        cpu = models[0] if models else cpu
    facts: dict[str, str | int | float] = {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    for name in ("numpy", "torch", "numba", "transformers", "ray"):
        if name in sys.modules:
            facts[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return facts


def emit(figures: Sequence[Figure]) -> None:
    """Prints a table for people, then, last, one JSON line per figure."""
    print(f"\n{'figure':<44} {'value':>12} {'unit':<9} {'goal':<10} {'met':<4} against")
    for figure in figures:
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        print(
            f"{figure.name:<44} {figure.value:>12.4g} {figure.unit:<9} "
            f"{figure.goal or '-':<10} {met:<4} {figure.peer or '-'}"
        )
        for key, value in figure.counters.items():
            print(f"    {key} = {value}")
    print(flush=True)
    print("\n".join(json_lines(figures)), flush=True)


def json_lines(figures: Sequence[Figure]) -> list[str]:
    """One JSON object per figure, with what it was measured on."""
    facts = machine()
    return [json.dumps({**asdict(figure), "met": figure.met, "machine": facts}) for figure in figures]


def read(path: Path) -> list[Figure]:
    """The figures that a script printed as JSON lines, without their goals."""
    told = [json.loads(row) for row in path.read_text("utf-8").splitlines()]
    return [Figure(name=one["name"], value=one["value"], unit=one["unit"], counters=one["counters"]) for one in told]
