"""`ctxasr plan RECIPE --cluster FILE`: whether the pools of a recipe fit the cluster of a manifest."""

from collections.abc import Sequence
from pathlib import Path

from ctxasr_ray.experiment import Experiment


def fit(experiment: Experiment, files: Sequence[str]) -> int:
    """Checks the pools of a recipe against a cluster's manifest; touches no run folder.

    Raises:
        ValueError: no file, it is no manifest, or some pool does not fit; says which and why.
    """
    from ctxasr_ray import layout
    from ctxasr_ray.distributed.manifests import misfits, read_groups

    if not files:
        raise ValueError("--cluster needs a file: KubeRay's RayJob or RayCluster, or a Ray cluster launcher's YAML.")
    if found := misfits(layout.line(experiment).steps, read_groups(Path(files[0]))):
        lines = "".join(f"\n  {each}" for each in found)
        raise ValueError(f"the cluster of {files[0]} cannot hold this recipe:{lines}")
    print(f"Every pool fits the cluster of {files[0]}.")
    return 0
