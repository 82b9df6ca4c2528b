"""A quiet connection to Ray, and the refusal, in words, of a plan that the cluster cannot hold."""

import contextlib
import logging
import math
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctxasr_ray.stage import Resources
from ctxasr_ray.storage.object_store import Folder, LocalFolder

QUIET: Final = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Read by Ray when it is imported: one stray line instead of 35."""
JOIN_S: Final = 60.0
"""How long the nodes of a given cluster may take to join before a plan is refused."""
REACH_S: Final = 20.0
"""How long a given cluster may take to answer; Ray itself goes on trying for minutes and then says little."""
OBJECT_STORE_BYTES: Final = 256 * 2**20
"""Of a local cluster; only descriptions of shards travel, so Ray's default of 30 % of the memory would be wasted."""
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  # after QUIET, which it reads at import
import ray.data  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

__all__ = [
    "JOIN_S",
    "Pool",
    "alive_nodes",
    "asked",
    "connected",
    "options",
    "ray",
    "refuse_unfit",
    "refuse_unreachable",
    "refuse_unshared",
    "unplaced",
]


@dataclass(frozen=True, slots=True)
class Pool:
    """What one actor pool of a dataset asks for."""

    name: str
    """Names of its steps."""
    resources: Resources


@contextlib.contextmanager
def connected(address: str | None, num_cpus: float) -> Iterator[None]:
    """A Ray connection: the caller's own, the cluster at an address, or a local one that lives as long as the block.

    Args:
        address: As `ray.init` takes it; None means RAY_ADDRESS if set, else a local cluster.
        num_cpus: Logical CPUs that the pools need; a local cluster offers at least these, for actors that mostly wait.

    Raises:
        ValueError: nothing answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    is_local = address is None and "RAY_ADDRESS" not in os.environ
    if is_local:
        cpus = max(math.ceil(num_cpus), os.cpu_count() or 1)
        address = "local"  # None would join whatever cluster runs on this machine
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if not is_local:
        refuse_unreachable(address or os.environ["RAY_ADDRESS"])
    with _on_loopback() if is_local else contextlib.nullcontext():
        for tries_left in (2, 1, 0):
            try:
                with _silent_unless_it_fails():
                    ray.init(address=address, **options)
                break
            except Exception:  # a busy machine can miss Ray's own 30 s for a local node, which raises a bare Exception
                if not is_local or not tries_left:
                    raise
                ray.shutdown()
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()


def refuse_unreachable(address: str) -> None:
    """Makes sure that something answers at a cluster's address; `auto` and `local` are left to Ray.

    Raises:
        ValueError: nothing does, or it is no address.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"'{address}' is no address of a Ray cluster; expected HOST:6379, ray://HOST:10001, or auto for the one on "
            "this machine. Nothing was started."
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at '{address}' ({error}). Give the head's address, HOST:6379 from inside of the "
            "cluster or ray://HOST:10001 from outside, once the cluster is up. Nothing was started."
        ) from error


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Keeps a local cluster from other machines: its servers bind to every interface unless its node is 127.0.0.1.

    Ray's own switch for that has the name of the systems where it is the default; for a node address given as
    127.0.0.1 Ray puts the machine's public one.
    """
    switch = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before, was = os.environ.get(switch), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[switch], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


@contextlib.contextmanager
def _silent_unless_it_fails() -> Iterator[None]:
    """Holds back what Ray's native side writes to standard error while it starts, and shows it where that fails."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def alive_nodes() -> set[str]:
    """Ids of the nodes that live now."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def refuse_unfit(pools: Sequence[Pool], *, wait_s: float) -> None:
    """Makes sure that all actors of all pools of a dataset find a place at the same time.

    Raises:
        ValueError: they do not; says which pool, what it asks, what there is and what to change.
    """
    until = time.monotonic() + wait_s
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        homeless = unplaced(pools, [(dict(node["Resources"]), dict(node.get("Labels", {}))) for node in nodes])
        if homeless is None:
            return
        if time.monotonic() > until:
            break
        time.sleep(1.0)
    lines = [f"  {pool.name}: {asked(pool)}" for pool in pools]
    offers = [f"  node {node['NodeManagerAddress']}: {_offered(node['Resources'])}" for node in nodes]
    raise ValueError(
        f"the cluster cannot hold all pools at once; '{homeless.name}' finds no place for one of its actors. Asked:\n"
        + "\n".join(lines)
        + "\nThe cluster has:\n"
        + "\n".join(offers)
        + "\nAsk for fewer actors or smaller ones (`resources` of the step), or add nodes. Nothing was started."
    )


def unplaced(pools: Sequence[Pool], nodes: Sequence[tuple[dict[str, float], dict[str, str]]]) -> Pool | None:
    """The first pool with an actor that fits nowhere, largest actors placed first; None when all fit.

    Args:
        pools: Pools that live at the same time.
        nodes: Per node its resources (CPU, GPU, memory) and its labels.
    """
    free = [(dict(resources), labels) for resources, labels in nodes]
    order = sorted(pools, key=lambda pool: (-pool.resources.num_gpus, -pool.resources.num_cpus))
    for pool in order:
        need = {"CPU": pool.resources.num_cpus, "GPU": pool.resources.num_gpus, "memory": pool.resources.memory_bytes}
        for _ in range(pool.resources.num_actors):
            for resources, labels in free:
                suits = all(labels.get(key) == value for key, value in pool.resources.label_selector.items())
                if suits and all(resources.get(kind, 0.0) >= amount - 1e-9 for kind, amount in need.items()):
                    for kind, amount in need.items():
                        resources[kind] = resources.get(kind, 0.0) - amount
                    break
            else:
                return pool
    return None


def options(resources: Resources) -> dict[str, Any]:
    """What Ray is told of one actor with these resources."""
    found: dict[str, Any] = {"num_cpus": resources.num_cpus}
    if resources.num_gpus:
        found["num_gpus"] = resources.num_gpus
    if resources.memory_bytes:
        found["memory"] = resources.memory_bytes
    if resources.label_selector:
        found["label_selector"] = dict(resources.label_selector)
    return found


def asked(pool: Pool) -> str:
    """What a pool asks for, in words."""
    resources = pool.resources
    parts = [f"{resources.num_cpus:g} CPU"]
    if resources.num_gpus:
        parts.append(f"{resources.num_gpus:g} GPU")
    if resources.memory_bytes:
        parts.append(f"{resources.memory_bytes / 2**30:.1f} GiB")
    parts += [f"label {key}={value}" for key, value in resources.label_selector.items()]
    return f"{resources.num_actors} actors with {', '.join(parts)} each"


def _offered(resources: dict[str, float]) -> str:
    memory = resources.get("memory", 0.0) / 2**30
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {memory:.1f} GiB"


def refuse_unshared(folder: Folder) -> None:
    """Makes sure that every node sees the run folder.

    Raises:
        ValueError: it is local and some node has another disk there.
    """
    nodes = sorted(alive_nodes())
    if not isinstance(folder, LocalFolder) or len(nodes) < 2:
        return
    key = f".seen-{uuid.uuid4().hex}"
    folder.create(key, b"1")

    sees = ray.remote(num_cpus=0)(os.path.exists)
    try:
        strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        path = str(folder.path(key))
        seen = ray.get([sees.options(scheduling_strategy=strategy).remote(path) for strategy in strategies])
    finally:
        folder.delete(key)
    blind = [node for node, saw in zip(nodes, seen, strict=True) if not saw]
    if blind:
        raise ValueError(
            f"run folder '{folder.root}' is local, but the cluster has {len(nodes)} nodes and {len(blind)} of "
            "them do not see it. Choose a --root that all nodes see: a shared disk, or s3://bucket/prefix."
        )
