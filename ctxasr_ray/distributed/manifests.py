"""A cluster manifest -> the nodes that it can have, and what of a run's pools does not fit them, in words.

Reads KubeRay's RayJob and RayCluster and the Ray cluster launcher's YAML; nothing is started. A group that scales
counts with its largest number of nodes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ctxasr_ray.distributed.cluster import Pool, asked, unplaced
from ctxasr_ray.distributed.pools import simultaneous_pools
from ctxasr_ray.stage import Step

_UNITS: Final = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 2.0 ** (10 * power) for power, letter in enumerate("KMGT", 1)
}
_GPUS: Final = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Group:
    """Equal nodes of a manifest."""

    name: str
    num_nodes: int
    resources: Mapping[str, float]
    """Of each node: CPU, GPU, memory in bytes."""
    labels: Mapping[str, str]


def read_groups(path: Path) -> list[Group]:
    """The groups of nodes of a manifest, the head first.

    Raises:
        ValueError: the file is no such manifest, or does not say what its nodes have.
    """
    try:
        documents = [each for each in yaml.safe_load_all(path.read_text()) if isinstance(each, dict)]
    except yaml.YAMLError as error:
        raise ValueError(f"cluster manifest '{path}' is no YAML: {error}") from error
    for document in documents:
        if document.get("kind") == "RayJob":
            return _kuberay(document["spec"]["rayClusterSpec"])
        if document.get("kind") == "RayCluster":
            return _kuberay(document["spec"])
        if "available_node_types" in document:
            return _launcher(document)
        if document.get("provider", {}).get("type") == "local":
            raise ValueError(
                f"cluster manifest '{path}' names hosts and not what they have, so nothing can be checked before they "
                "are up. Start them; a run is refused there in the same words when its pools do not fit."
            )
    raise ValueError(
        f"cluster manifest '{path}' holds {[each.get('kind') for each in documents] or 'nothing'}; expected KubeRay's "
        "RayJob or RayCluster, or a launcher file with available_node_types."
    )


def misfits(steps: Sequence[Step], groups: Sequence[Group]) -> list[str]:
    """What of a run's pools the nodes cannot hold, a sentence each; empty where all fit."""
    nodes = [(dict(group.resources), dict(group.labels)) for group in groups for _ in range(group.num_nodes)]
    found: list[str] = []
    for pools in simultaneous_pools(steps):
        alone = [pool for pool in pools if unplaced([pool], nodes) is not None]
        found += [_why(pool, groups) for pool in alone]
        fitting = [pool for pool in pools if pool not in alone]
        together = unplaced(fitting, nodes)
        if together is not None:
            found.append(
                f"'{together.name}' ({asked(together)}) fits alone, but not beside the pools that live at the same "
                f"time: {'; '.join(f'{p.name} ({asked(p)})' for p in fitting if p is not together)}. Add nodes, or "
                "ask for fewer actors or smaller ones."
            )
    return list(dict.fromkeys(found))


def _why(pool: Pool, groups: Sequence[Group]) -> str:
    """Why a pool does not even fit an empty cluster: labels first, then the largest node, then the number of nodes."""
    wanted = pool.resources
    suitable = [g for g in groups if wanted.label_selector.items() <= g.labels.items() and g.num_nodes]
    start = f"'{pool.name}' asks for {asked(pool)}: "
    if not suitable:
        known = [f"{g.name} has {dict(g.labels) or 'none'}" for g in groups]
        return f"{start}no group of nodes has the label {dict(wanted.label_selector)} ({'; '.join(known)})."
    needs = (("GPU", wanted.num_gpus), ("CPU", wanted.num_cpus), ("memory", float(wanted.memory_bytes)))
    for kind, amount in needs:
        largest = max(suitable, key=lambda group: group.resources.get(kind, 0.0))
        offered = largest.resources.get(kind, 0.0)
        if offered < amount:
            unit, scale = (" GiB of memory", 2**30) if kind == "memory" else (f" {kind}", 1)
            return (
                f"{start}an actor needs {amount / scale:g}{unit}, but the largest node with its labels "
                f"({largest.name}) has {offered / scale:g}{unit}."
            )
    places = ", ".join(f"{g.num_nodes} x {g.name}" for g in suitable)
    return f"{start}each actor fits a node, but {places} hold fewer than {wanted.num_actors} of them."


def _kuberay(cluster: Mapping[str, Any]) -> list[Group]:
    head = cluster["headGroupSpec"]
    groups = [_kuberay_group("head", 1, head)]
    for group in cluster.get("workerGroupSpecs", []):
        most = int(group.get("maxReplicas", group.get("replicas", 1))) * int(group.get("numOfHosts", 1))
        groups.append(_kuberay_group(str(group["groupName"]), most, group))
    return groups


def _kuberay_group(name: str, num_nodes: int, group: Mapping[str, Any]) -> Group:
    """What Ray sees of a pod: its limits, unless the group's `resources` or rayStartParams say otherwise."""
    container = group["template"]["spec"]["containers"][0]
    asked_for = container.get("resources", {})
    limits = {**asked_for.get("requests", {}), **asked_for.get("limits", {}), **group.get("resources", {})}
    start = group.get("rayStartParams", {})
    resources = {
        "CPU": _number(start.get("num-cpus", limits.get("CPU", limits.get("cpu", 0)))),
        "GPU": _number(start.get("num-gpus", limits.get("GPU", limits.get(_GPUS, 0)))),
        "memory": _number(start.get("memory", limits.get("memory", 0))),
    }
    return Group(name, num_nodes, resources, dict(group.get("labels", {})))


def _launcher(manifest: Mapping[str, Any]) -> list[Group]:
    head = manifest.get("head_node_type")
    groups = []
    for name, kind in manifest["available_node_types"].items():
        resources = {key: _number(value) for key, value in kind.get("resources", {}).items()}
        if not {"CPU", "memory"} <= resources.keys():
            raise ValueError(f"node type '{name}' does not say its CPU and memory under `resources`; add them.")
        num_nodes = int(kind.get("max_workers", 0)) + (name == head)
        groups.append(Group(str(name), num_nodes, resources, dict(kind.get("labels", {}))))
    return sorted(groups, key=lambda group: group.name != head)


def _number(quantity: str | float) -> float:
    """A quantity of Kubernetes (500m, 32Gi) as a number."""
    match = re.fullmatch(r"([0-9.]+)(m|k|[MGT]|[KMGT]i)?", str(quantity).strip())
    if match is None:
        raise ValueError(f"quantity '{quantity}' is not understood; write it like 2, 500m or 32Gi.")
    return float(match[1]) * _UNITS[match[2] or ""]
