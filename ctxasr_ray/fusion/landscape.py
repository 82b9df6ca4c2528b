"""A fit and the tables behind it -> the objective against one weight, exactly: what a figure of the fit draws."""

import numpy as np
import pyarrow as pa

from ctxasr_ray.fusion.line_search import Landscape
from ctxasr_ray.fusion.log_linear import read_fit
from ctxasr_ray.fusion.scoring import read_inputs
from ctxasr_ray.fusion.weight_search import WeightSearch
from ctxasr_ray.fusion.weights import WeightsConfig, read_tuning_set


def landscape(config: WeightsConfig, fits: pa.Table, value: str, *tables: pa.Table) -> Landscape:
    """The objective for every weight of one source (or `length_bonus`), the others held at their fit.

    Args:
        config: The fit's own: it names the objective and the bounds.
        fits: FITS that hold the fit.
        value: A name among the fit's values.
        tables: What the fit read: HYPOTHESES, SCORES tables, NBEST_ERRORS; other splits are welcome, because
            looking at test is not tuning on it.

    Returns:
        Edges are weights, values the objective between two edges: a staircase without a grid, for
        `matplotlib.axes.Axes.stairs(landscape.values, landscape.edges)`.

    Raises:
        ValueError: the fit is not there, weighs other sources than the tables have, or does not vary the value.
        ContractError: tables that do not belong together.
    """
    weights = read_fit(fits, config.fit_name)
    tuning_set, bounds_D2 = read_tuning_set(config, read_inputs(tables))
    names = tuning_set.features.names
    if set(names) != set(weights):
        raise ValueError(
            f"landscape: the fit '{config.fit_name}' weighs {list(weights)}, and the tables and the config have "
            f"{names}; pass the config and the scorers of the fit."
        )
    search = WeightSearch(tuning_set=tuning_set, bounds=bounds_D2)
    free = [names[axis] for axis in search.free]
    if value not in free:
        raise ValueError(f"landscape: '{value}' is no free value of the fit '{config.fit_name}'; choose one of {free}.")
    return search.axis_landscape(np.array([weights[name] for name in names]), names.index(value))
