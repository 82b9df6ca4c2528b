"""`ctxasr plan RECIPE --cluster FILE`: whether the pools of a recipe fit the cluster of a manifest."""

from pathlib import Path

from ctxasr_ray.experiment import Experiment


def fit(experiment: Experiment, file: Path) -> int:
    """Checks the pools of a recipe against a cluster's manifest; touches no run folder.

    Raises:
        ValueError: the file is no manifest, or some pool does not fit; says which and why.
    """
    from ctxasr_ray import layout
    from ctxasr_ray.distributed.manifests import misfits, read_groups

    if found := misfits(layout.line(experiment).steps, read_groups(file)):
        lines = "".join(f"\n  {each}" for each in found)
        raise ValueError(f"the cluster of {file} cannot hold this recipe:{lines}")
    print(f"Every pool fits the cluster of {file}.")
    return 0
