"""Exact weight search against grids and Optuna, on random lists of 2,620 utterances x 50 hypotheses x 4 sources.

Both sides read the same scores and errors from memory; no side decodes, scores or aligns anything. Before any time
counts, the exact search must be at least as good as every grid, and many evaluations at once must equal single ones.
"""

from figures import Figure, emit, interleaved, pin_threads

pin_threads(1)

import time  # noqa: E402  # threads are pinned before numpy loads

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import optuna  # noqa: E402

from ctxasr_ray.fusion.line_search import TuningSet  # noqa: E402
from ctxasr_ray.fusion.objective import Counts, parse_objective  # noqa: E402
from ctxasr_ray.fusion.scoring import Features  # noqa: E402
from ctxasr_ray.fusion.weight_search import WeightSearch  # noqa: E402

Floats = npt.NDArray[np.float64]
UTTERANCES, HYPOTHESES, SOURCES, GRID, TRIALS, MATRICES = 2620, 50, 4, 201, 500, 6
BOUNDS = np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 2.0], [-2.0, 2.0]])
START = np.array([1.0, 0.0, 0.0, 0.0])


def random_set(seed: int) -> TuningSet:
    """Lists whose scores know something of the errors, each source in its own way."""
    random = np.random.default_rng(seed)
    size = UTTERANCES * HYPOTHESES
    errors = random.poisson(2.0, size=size).astype(np.float64)
    known = random.uniform(0.2, 1.0, size=SOURCES)
    scores = random.normal(size=(size, SOURCES)) * 3.0 - errors[:, None] * known
    offsets = np.arange(UTTERANCES + 1, dtype=np.int64) * HYPOTHESES
    counts = Counts(
        parse_objective("wer|word|whisper_english|all"),
        errors[:, None],
        np.zeros((UTTERANCES, 1)),
        np.full((UTTERANCES, 1), 20.0),
    )
    names = ["recogniser", "lm", "speech_lm", "length_bonus"]
    return TuningSet(Features(names, offsets, np.asfortranarray(scores)), counts)


def grid_line(tuning_set: TuningSet, weights: Floats, axis: int) -> tuple[float, float]:
    """The best of 201 points along an axis: one sum, one argmax, one gather per point; (position, objective).

    The strong peer: what stands still is summed once per line, and 2 arrays are read per point instead of 4.
    """
    fixed = (tuning_set.features.values @ weights).reshape(UTTERANCES, HYPOTHESES)
    moving = tuning_set.features.values[:, axis].reshape(UTTERANCES, HYPOTHESES)
    errors = tuning_set.counts.per_hypothesis.reshape(UTTERANCES, HYPOTHESES)
    rows, fused = np.arange(UTTERANCES), np.empty_like(fixed)
    found, lowest = float(weights[axis]), np.inf
    for position in np.linspace(BOUNDS[axis, 0], BOUNDS[axis, 1], GRID):
        np.multiply(moving, position - weights[axis], out=fused)
        np.add(fused, fixed, out=fused)
        total = float(errors[rows, np.argmax(fused, axis=1)].sum())
        if total < lowest:
            found, lowest = float(position), total
    return found, lowest / float(tuning_set.counts.references.sum())


def exact_line(tuning_set: TuningSet, weights: Floats, axis: int) -> float:
    """The optimum along an axis between the same bounds."""
    low, high = BOUNDS[axis] - weights[axis]
    corners = tuning_set.corners(weights, np.eye(SOURCES)[axis], low, high)
    return corners.landscape().best()[0].value


def grid_descent(tuning_set: TuningSet) -> tuple[float, int]:
    """Axis after axis on the grid, until each was searched since the last move; (objective, lines)."""
    weights, value = START.copy(), tuning_set.evaluate(START)
    lines = searched = 0
    while searched < SOURCES - 1:
        axis = 1 + lines % (SOURCES - 1)
        position, best = grid_line(tuning_set, weights, axis)
        lines += 1
        searched += 1
        if best < value - 1e-12:
            weights[axis], value, searched = position, best, 1
    return value, lines


def exact_descent(tuning_set: TuningSet) -> tuple[float, int]:
    """The same descent, each line searched exactly; (objective, lines)."""
    search = WeightSearch(tuning_set=tuning_set, bounds=BOUNDS)
    return search.descend(START)[1], search.work.num_lines


def optuna_study(tuning_set: TuningSet) -> optuna.Study:
    """TPE in memory over the same box; every trial evaluates by our own code."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=7))

    def objective(trial: optuna.Trial) -> float:
        free = [trial.suggest_float(str(axis), BOUNDS[axis, 0], BOUNDS[axis, 1]) for axis in range(1, SOURCES)]
        return tuning_set.evaluate(np.array([1.0, *free]))

    study.optimize(objective, n_trials=TRIALS)
    return study


def count_losses() -> dict[str, int | float | str]:
    """How often the exact search is worse than a grid, over several random matrices."""
    lines = descents = 0
    gains = []
    for seed in range(MATRICES):
        tuning_set = random_set(seed)
        for axis in range(1, SOURCES):
            lines += exact_line(tuning_set, START, axis) > grid_line(tuning_set, START, axis)[1] + 1e-12
        grid, exact = grid_descent(tuning_set)[0], WeightSearch(tuning_set=tuning_set, bounds=BOUNDS).run().value
        descents += exact > grid + 1e-12
        gains.append(round((grid - exact) / grid, 6))
    return {
        "matrices": MATRICES,
        "lines_compared": MATRICES * (SOURCES - 1),
        "lines_worse": lines,
        "descents_worse": descents,
        "relative_gain_smallest": min(gains),
        "relative_gain_largest": max(gains),
    }


def main() -> None:
    """Checks, measures, prints."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuning_set = random_set(0)
    points = np.random.default_rng(1).uniform(BOUNDS[:, 0], BOUNDS[:, 1], size=(TRIALS, SOURCES))
    assert [tuning_set.evaluate(p) for p in points[:20]] == tuning_set.evaluate_many(points[:20]).tolist()
    position, value = grid_line(tuning_set, START, 1)
    assert abs(tuning_set.evaluate(np.array([1.0, position, 0.0, 0.0])) - value) < 1e-12
    losses = count_losses()

    axes = range(1, SOURCES)
    line = interleaved(
        lambda: [grid_line(tuning_set, START, axis) for axis in axes],
        lambda: [exact_line(tuning_set, START, axis) for axis in axes],
    )
    descent = interleaved(lambda: grid_descent(tuning_set), lambda: exact_descent(tuning_set), rounds=3)
    evaluations = interleaved(lambda: optuna_study(tuning_set), lambda: tuning_set.evaluate_many(points), rounds=3)

    low, high = BOUNDS[1]
    corners = tuning_set.corners(START, np.eye(SOURCES)[1], low, high)
    start = time.perf_counter()
    full = WeightSearch(tuning_set=tuning_set, bounds=BOUNDS).run()
    full_s = time.perf_counter() - start
    found = optuna_study(tuning_set).best_value
    emit(
        [
            Figure(
                name="weights_worse_than_grid",
                value=int(losses["lines_worse"]) + int(losses["descents_worse"]),
                goal="<= 0",
                unit="cases",
                peer=f"{GRID}-point grid per axis",
                counters=losses,
            ),
            Figure(
                name="weights_line_over_grid",
                value=line.median,
                goal=">= 5",
                unit="x",
                peer=f"{GRID}-point grid in numpy",
                counters={
                    **line.counters(),
                    "lines_per_call": len(axes),
                    "corners": corners.num_corners,
                    "changes": len(corners.positions),
                },
            ),
            Figure(
                name="weights_descent_over_grid",
                value=descent.median,
                goal=">= 5",
                unit="x",
                peer=f"descent along axes on a {GRID}-point grid",
                counters={
                    **descent.counters(),
                    "lines_grid": grid_descent(tuning_set)[1],
                    "lines_exact": exact_descent(tuning_set)[1],
                },
            ),
            Figure(
                name="weights_evaluations_over_optuna",
                value=evaluations.median,
                goal=">= 20",
                unit="x",
                peer=f"optuna {optuna.__version__} TPE in memory, {TRIALS} trials",
                counters={
                    **evaluations.counters(),
                    "evaluations_per_s": round(TRIALS / evaluations.seconds_second),
                    "optuna_trials_per_s": round(TRIALS / evaluations.seconds_first),
                    "objective_optuna": round(found, 6),
                    "objective_exact_search": round(full.value, 6),
                    "exact_search_s": round(full_s, 3),
                    "exact_search_lines": full.work.num_lines,
                    "exact_search_cells": full.work.num_cells,
                },
            ),
        ]
    )


if __name__ == "__main__":
    main()
