"""Exact line searches, one after another: the best weights in any number of dimensions, and how sure they are.

Each line is searched exactly (see `line_search`); lines run along the axes and along random directions, from the
first pass alone and from random starts. In one dimension a single line is the global optimum; in more, as for every
descent, it is the best that was met.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.fusion.line_search import Floats, Interval, Landscape, TuningSet

_BETTER: Final = 1e-12
_MAX_ROUNDS: Final = 100


@dataclass(slots=True)
class SearchWork:
    """What a search did, for receipts and benchmarks."""

    num_lines: int = 0
    num_corners: int = 0
    num_cells: int = 0


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best weights found and the landscape around them.

    Args:
        names: (D,) values in the order of the weights.
        weights: (D,) in the middle of their optimal cell.
        value: The objective there, recounted from the winners.
        start_value: The objective where the search began: the fixed source alone.
        cells: (D,) along each axis, the whole stretch that gives the same objective; a point for fixed values.
        flat: (D,) the stretch that costs at most `flat_tolerance` (relative).
        ties: (D,) how many separate stretches along the axis reach the lowest objective of that axis.
        work: Lines, corners and cells.
    """

    names: list[str]
    weights: Floats
    value: float
    start_value: float
    cells: list[Interval]
    flat: list[Interval]
    ties: list[int]
    work: SearchWork


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSearch:
    """A search over one tuning set; the same seed gives the same weights."""

    tuning_set: TuningSet
    bounds: Floats
    """(D, 2) lowest and highest weight of each value, may be infinite; equal where a value is fixed."""
    seed: int = 7
    num_restarts: int = 8
    """Random starts besides the first pass alone; none are needed for one free value."""
    num_directions: int = 4
    """Random directions per round besides the axes."""
    flat_tolerance: float = 0.01
    work: SearchWork = field(default_factory=SearchWork)

    def run(self) -> Optimum:
        """Searches from every start and centres the best weights in their cell."""
        explorer = self._explorer(self.seed)
        weights_D = np.clip(0.0, self.bounds[:, 0], self.bounds[:, 1])
        start_value = self.tuning_set.evaluate(weights_D)
        weights_D, value = self.descend(weights_D, explorer)
        for _ in range(self.num_restarts if explorer else 0):
            assert explorer is not None
            other_D, other = self.descend(explorer.start(), explorer)
            if other < value - _BETTER:
                weights_D, value = other_D, other
        weights_D = self._centred(weights_D, value)
        lines = [self.axis_landscape(weights_D, axis) for axis in range(len(weights_D))]
        limit = value * (1 + self.flat_tolerance)
        return Optimum(
            names=self.tuning_set.features.names,
            weights=weights_D,
            value=value,
            start_value=start_value,
            cells=[line.around(w, value) for line, w in zip(lines, weights_D, strict=True)],
            flat=[line.around(w, limit) for line, w in zip(lines, weights_D, strict=True)],
            ties=[line.best()[1] for line in lines],
            work=self.work,
        )

    def _explorer(self, seed: int | list[int]) -> "Explorer | None":
        """None where lines along the axes see everything, or nothing else was asked for."""
        if len(self.free) < 2 or not (self.num_restarts or self.num_directions):
            return None
        return Explorer(np.random.default_rng(seed), self.bounds, _scales(self.tuning_set, self.bounds))

    @property
    def free(self) -> npt.NDArray[np.int64]:
        """The values that may move."""
        return np.flatnonzero(self.bounds[:, 0] < self.bounds[:, 1])

    def axis_landscape(self, weights_D: Floats, axis: int) -> Landscape:
        """The objective against one weight, the others held; positions are weights, not steps."""
        if axis not in self.free:
            return Landscape(weights_D[[axis, axis]], np.array([self.tuning_set.evaluate(weights_D)]))
        line = self._line(weights_D, np.eye(len(weights_D))[axis])
        return Landscape(np.clip(line.edges + weights_D[axis], *self.bounds[axis]), line.values)

    def bootstrap(self, weights_D: Floats, blocks_U: npt.NDArray[np.int64], num_replicates: int) -> Floats:
        """Weights tuned again on resampled blocks of utterances, each time from the optimum.

        The envelopes along the lines through the optimum are walked once for all replicates; only the counts are
        added up anew. From where that leads, each replicate descends along the axes on its own.

        Args:
            weights_D: The optimum.
            blocks_U: The block (speaker, session or utterance) of each utterance, from 0.
            num_replicates: Draws.

        Returns:
            (R, D) re-tuned weights.
        """
        explorer = self._explorer([self.seed, 1])
        directions = list(np.eye(len(weights_D))[self.free])
        directions += explorer.directions(self.num_directions) if explorer else []
        random = np.random.default_rng([self.seed, 2])
        shared = [self.tuning_set.corners(weights_D, d, *self._reach(weights_D, d)) for d in directions]
        num_blocks = int(blocks_U.max()) + 1
        replicates_RD = np.empty((num_replicates, len(weights_D)))
        for r in range(num_replicates):
            drawn = np.bincount(random.integers(num_blocks, size=num_blocks), minlength=num_blocks)
            multiplicity_U = drawn[blocks_U].astype(np.float64)
            bests = [corners.landscape(multiplicity_U).best()[0] for corners in shared]
            first = int(np.argmin([b.value for b in bests]))
            moved_D = self._moved(weights_D, directions[first], bests[first].centre)
            replicates_RD[r] = self._retuned(moved_D, multiplicity_U)
        return replicates_RD

    def _retuned(self, weights_D: Floats, multiplicity_U: Floats) -> Floats:
        if len(self.free) == 1:
            return weights_D  # the shared line was the whole space
        weights_D, value = self.descend(weights_D, None, multiplicity_U)
        return self._centred(weights_D, value, multiplicity_U)

    def descend(
        self,
        weights_D: Floats,
        explorer: "Explorer | None" = None,
        multiplicity_U: Floats | None = None,
    ) -> tuple[Floats, float]:
        """Moves along the axes in turn until none helps, then along random lines; ends when neither helps.

        Args:
            weights_D: The start, within the bounds.
            explorer: Draws the random lines; None: axes only.
            multiplicity_U: How often each utterance counts; None: once.

        Returns:
            The weights reached, and the objective there.
        """
        value = self.tuning_set.evaluate(weights_D, multiplicity_U)
        for _ in range(_MAX_ROUNDS):
            weights_D, value = self._along_axes(weights_D, value, multiplicity_U)
            before = value
            for direction_D in explorer.directions(self.num_directions) if explorer else ():
                weights_D, value = self._improved(weights_D, direction_D, value, multiplicity_U)
            if value == before:
                break
        return weights_D, value

    def _along_axes(self, weights_D: Floats, value: float, multiplicity_U: Floats | None) -> tuple[Floats, float]:
        """Ends when every axis was searched since the last move, the one that moved included."""
        axes = np.eye(len(weights_D))[self.free]
        searched = turn = 0
        while searched < len(axes) and turn < _MAX_ROUNDS * len(axes):
            before = value
            weights_D, value = self._improved(weights_D, axes[turn % len(axes)], value, multiplicity_U)
            searched = 1 if value < before else searched + 1
            turn += 1
        return weights_D, value

    def _improved(
        self, weights_D: Floats, direction_D: Floats, value: float, multiplicity_U: Floats | None
    ) -> tuple[Floats, float]:
        """The best along one line, if it is better; the objective is counted again from the winners.

        In a cell of rounding's width the line and the sum may differ, and only the sum is what fusion will do.
        """
        best, _ = self._line(weights_D, direction_D, multiplicity_U).best()
        if best.value < value - _BETTER:
            moved_D = self._moved(weights_D, direction_D, best.centre)
            recounted = self.tuning_set.evaluate(moved_D, multiplicity_U)
            if recounted < value - _BETTER:
                return moved_D, recounted
        return weights_D, value

    def _centred(self, weights_D: Floats, value: float, multiplicity_U: Floats | None = None) -> Floats:
        """Moves each weight to the middle of its cell, twice, because the cell is no box; the objective stays."""
        for _ in range(2):
            for axis in self.free:
                direction_D = np.eye(len(weights_D))[axis]
                line = self._line(weights_D, direction_D, multiplicity_U)
                if len(line.values) == 1:
                    continue  # the weight changes nothing: leave the scorer as it is
                moved_D = self._moved(weights_D, direction_D, line.around(0.0, value).centre)
                if self.tuning_set.evaluate(moved_D, multiplicity_U) <= value + _BETTER:
                    weights_D = moved_D
        return weights_D

    def _line(self, weights_D: Floats, direction_D: Floats, multiplicity_U: Floats | None = None) -> Landscape:
        corners = self.tuning_set.corners(weights_D, direction_D, *self._reach(weights_D, direction_D))
        landscape = corners.landscape(multiplicity_U)
        self.work.num_lines += 1
        self.work.num_corners += corners.num_corners
        self.work.num_cells += len(landscape.values)
        return landscape

    def _reach(self, weights_D: Floats, direction_D: Floats) -> tuple[float, float]:
        """The steps along a direction that keep every weight within its bounds."""
        moving = np.flatnonzero(direction_D)
        steps = (self.bounds[moving] - weights_D[moving, None]) / direction_D[moving, None]
        return min(float(steps.min(axis=1).max()), 0.0), max(float(steps.max(axis=1).min()), 0.0)

    def _moved(self, weights_D: Floats, direction_D: Floats, step: float) -> Floats:
        return np.clip(weights_D + step * direction_D, self.bounds[:, 0], self.bounds[:, 1])


@dataclass(frozen=True, slots=True)
class Explorer:
    """Random lines and starts, each value at the loudness at which it can compete with the fixed source."""

    random: np.random.Generator
    bounds: Floats
    scales: Floats

    def directions(self, number: int) -> list[Floats]:
        """Random directions in which fixed values do not move."""
        drawn = self.random.normal(size=(number, len(self.bounds))) * self.scales
        drawn[:, self.bounds[:, 0] == self.bounds[:, 1]] = 0.0
        return [direction_D for direction_D in drawn if direction_D.any()]

    def start(self) -> Floats:
        """Random weights within the bounds."""
        weights_D = self.random.normal(size=len(self.bounds)) * self.scales
        positive = self.bounds[:, 0] >= 0
        weights_D[positive] = np.abs(weights_D[positive])
        return np.clip(weights_D, self.bounds[:, 0], self.bounds[:, 1])


def _scales(tuning_set: TuningSet, bounds_D2: Floats) -> Floats:
    """(D,) weights at which each value varies inside a list as much as the fixed source does; 0 for constants."""
    lengths = np.diff(tuning_set.features.offsets)
    scored = tuning_set.scored()
    kept = np.repeat(scored, lengths)
    values_HD = tuning_set.features.values[kept]
    if not len(values_HD):
        return np.zeros(len(bounds_D2))
    starts = np.concatenate([[0], np.cumsum(lengths[scored])[:-1]])
    means_UD = np.add.reduceat(values_HD, starts, axis=0) / lengths[scored, None]
    spread_D = np.sqrt(np.mean((values_HD - np.repeat(means_UD, lengths[scored], axis=0)) ** 2, axis=0))
    fixed = bounds_D2[:, 0] == bounds_D2[:, 1]
    loud = float(np.max(spread_D[fixed] * np.abs(bounds_D2[fixed, 0]), initial=0.0)) or 1.0
    scales_D: Floats = np.zeros(len(spread_D))
    scales_D[spread_D > 0] = loud / spread_D[spread_D > 0]
    return scales_D


def percentile_intervals(replicates_RD: Floats, confidence: float = 0.95) -> Floats:
    """(D, 2) percentile bootstrap intervals.

    Reference:
        Efron and Tibshirani 1993, An introduction to the bootstrap, section 13.3.
    """
    tail = (1 - confidence) / 2
    intervals_D2: Floats = np.quantile(replicates_RD, [tail, 1 - tail], axis=0).T
    return intervals_D2
