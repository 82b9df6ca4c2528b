"""The error of the fused transcripts along a line in weight space, exactly: every breakpoint, no grid.

Along w + t * d each hypothesis scores a straight line in t, so the winner of a list changes only where the upper
envelope of its lines has a corner. Sorting the corners of all utterances and adding up the changes of their counts
gives the objective in every cell between two corners.
Shapes: U utterances, H hypotheses, D weighted values, M counts, B corners, C cells.

Reference:
    Och 2003, Minimum error rate training in statistical machine translation, section 4 (the paper's algorithm;
    ratios of totals, optimal intervals, ties and resampling without new envelopes are ours).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.fusion.kernels import envelopes, winners_of_many
from ctxasr_ray.fusion.objective import Counts
from ctxasr_ray.fusion.scoring import Features, fused_scores, winners

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NARROWEST: Final = 1e-12
"""Cells narrower than this, relative to where they lie, are decided by rounding; nobody can stand in them."""
_SAME: Final = 1e-12
"""Objectives closer than this are equal: they come from the same whole numbers."""

_BLOCK: Final = 64
"""Weights that one pass over the scores serves; their sums stay in registers and the first cache."""


@dataclass(frozen=True, slots=True)
class TuningSet:
    """What a search needs: scores in one matrix, errors once per hypothesis."""

    features: Features
    counts: Counts

    def evaluate(self, weights_D: Floats, multiplicity_U: Floats | None = None) -> float:
        """The objective of the transcripts that `log_linear` would give with these weights.

        Args:
            weights_D: In the order of `features.names`.
            multiplicity_U: How often each utterance counts; None: once.
        """
        winner_U, _ = winners(self.features.offsets, fused_scores(self.features.values, weights_D))
        counts_UM = self._of_winners(winner_U)
        if multiplicity_U is None:
            return float(self.counts.value(counts_UM.sum(0), self.counts.references.sum(0)))
        return float(self.counts.value(multiplicity_U @ counts_UM, multiplicity_U @ self.counts.references))

    def evaluate_many(self, weights_BD: Floats) -> Floats:
        """(B,) objectives of many weights at once, for surfaces over two of them; each equals `evaluate`."""
        features, references_T = self.features, self.counts.references.sum(0)
        value_B = np.empty(len(weights_BD))
        for start in range(0, len(weights_BD), _BLOCK):
            block_BD = weights_BD[start : start + _BLOCK]
            winner_BU = winners_of_many(features.offsets, features.values, np.ascontiguousarray(block_BD.T))
            totals_BM = np.stack([self._of_winners(winner_U).sum(0) for winner_U in winner_BU])
            value_B[start : start + _BLOCK] = self.counts.value(totals_BM, references_T)
        return value_B

    def scored(self) -> npt.NDArray[np.bool_]:
        """(U,) False for empty lists and lists with a missing score, which no weight can change."""
        missing_H = np.isnan(self.features.values).any(axis=1)
        counted = np.concatenate([[0], np.cumsum(missing_H)])
        offsets = self.features.offsets
        complete_U: npt.NDArray[np.bool_] = counted[offsets[1:]] == counted[offsets[:-1]]
        return complete_U & (np.diff(offsets) > 0)

    def _of_winners(self, winner_U: Ints) -> Floats:
        counts_UM = self.counts.constant.copy()
        filled = winner_U >= 0
        counts_UM[filled] = self.counts.per_hypothesis[winner_U[filled]]
        return counts_UM

    def corners(self, weights_D: Floats, direction_D: Floats, low: float, high: float) -> "Corners":
        """All changes of the objective along weights + t * direction for low < t < high.

        Args:
            weights_D: Where t is 0.
            direction_D: Not all zero.
            low: At most 0; may be -inf.
            high: At least 0; may be inf.
        """
        features = self.features
        start_U, positions_B, owners_B, before_B, after_B = envelopes(
            features.offsets, features.values, weights_D, direction_D, low, high
        )
        deltas_BM = self.counts.per_hypothesis[after_B] - self.counts.per_hypothesis[before_B]
        changes = deltas_BM.any(axis=1)
        positions_B, owners_B, deltas_BM = positions_B[changes], owners_B[changes], deltas_BM[changes]
        order = np.argsort(positions_B, kind="stable")
        return Corners(
            counts=self.counts,
            num_corners=len(changes),
            start=self._of_winners(start_U),
            positions=positions_B[order],
            owners=owners_B[order],
            deltas=deltas_BM[order],
            low=low,
            high=high,
        )


@dataclass(frozen=True, slots=True)
class Corners:
    """The envelopes along one line, before utterances are counted; resampling needs no new ones.

    Args:
        counts: How totals become an objective.
        num_corners: Of all envelopes, also those between hypotheses with equal counts.
        start: (U, M) counts of each utterance at the lower end of the line.
        positions: (B,) ascending, where counts change.
        owners: (B,) the utterance of each change.
        deltas: (B, M) what changes, crossing upwards.
        low: Lower end of the line, may be -inf.
        high: Upper end of the line, may be inf.
    """

    counts: Counts
    num_corners: int
    start: Floats
    positions: Floats
    owners: Ints
    deltas: Floats
    low: float
    high: float

    def landscape(self, multiplicity_U: Floats | None = None) -> "Landscape":
        """The objective in every cell, with each utterance counted as often as `multiplicity_U` says."""
        deltas_BM, references_UT = self.deltas, self.counts.references
        if multiplicity_U is None:
            start_M, references_T = self.start.sum(0), references_UT.sum(0)
        else:
            start_M, references_T = multiplicity_U @ self.start, multiplicity_U @ references_UT
            deltas_BM = deltas_BM * multiplicity_U[self.owners, None]
        totals_CM = np.concatenate([start_M[None], start_M + np.cumsum(deltas_BM, axis=0)])
        edges = np.concatenate([[self._end(-1)], self.positions, [self._end(1)]])
        return _merged(edges, self.counts.value(totals_CM, references_T))

    def _end(self, sign: int) -> float:
        """A finite end: behind the outermost corner nothing changes any more, so a step beyond it stands for all."""
        bound = self.low if sign < 0 else self.high
        if np.isfinite(bound) or not len(self.positions):
            return bound if np.isfinite(bound) else float(sign)
        outermost = max(sign * float(self.positions[0 if sign < 0 else -1]), 0.0)
        return sign * (outermost + max(1.0, outermost))


@dataclass(frozen=True, slots=True)
class Interval:
    """One cell of a landscape: every position inside gives the same objective."""

    low: float
    high: float
    value: float

    @property
    def centre(self) -> float:
        """The position furthest from both ends, the robust choice."""
        return (self.low + self.high) / 2

    @property
    def width(self) -> float:
        """How far the position can move without changing the objective."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Landscape:
    """The objective along a line, exactly.

    Args:
        edges: (C + 1,) ascending positions; cell c lies between edges[c] and edges[c + 1].
        values: (C,) the objective in each cell; neighbours differ.
    """

    edges: Floats
    values: Floats

    def best(self) -> tuple[Interval, int]:
        """The widest of the cells with the lowest objective (the lower one where two are as wide), and how many tie."""
        ties = np.flatnonzero(self.values <= self.values.min() + _SAME)
        widths = self.edges[ties + 1] - self.edges[ties]
        cell = int(ties[np.argmax(widths)])
        return Interval(float(self.edges[cell]), float(self.edges[cell + 1]), float(self.values[cell])), len(ties)

    def around(self, position: float, at_most: float) -> Interval:
        """The stretch around a position in which the objective stays at or below a limit.

        Args:
            position: Between the outer edges.
            at_most: The limit; the cell of the position itself belongs to the stretch whatever its value.
        """
        here = int(np.clip(np.searchsorted(self.edges, position, side="right") - 1, 0, len(self.values) - 1))
        above = np.flatnonzero(self.values > at_most + _SAME)
        left = above[above < here]
        right = above[above > here]
        first = int(left[-1]) + 1 if len(left) else 0
        last = int(right[0]) - 1 if len(right) else len(self.values) - 1
        return Interval(float(self.edges[first]), float(self.edges[last + 1]), float(self.values[here]))


def _merged(edges: Floats, values: Floats) -> Landscape:
    """Leaves out cells too narrow to stand in, then joins neighbours of equal objective."""
    wide = np.diff(edges) > _NARROWEST * (1 + np.abs(edges[:-1]))
    if not wide.any():
        wide[np.argmax(np.diff(edges))] = True
    lows, values = edges[:-1][wide], values[wide]
    first = np.concatenate([[True], np.abs(np.diff(values)) > _SAME])
    starts = lows[first]
    starts[0] = edges[0]
    return Landscape(np.concatenate([starts, edges[-1:]]), values[first])
