"""The two loops over all hypotheses that numpy cannot vectorise: upper envelopes, and winners under many weights.

Sums run over d in the order of `scoring.fused_scores`, without fused multiply-adds, so that equal scores stay equal.
"""

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def envelopes(
    offsets: Ints, values_HD: Floats, weights_D: Floats, direction_D: Floats, low: float, high: float
) -> tuple[Ints, Floats, Ints, Ints, Ints]:
    """Walks each list's upper envelope along weights + t * direction from `low` to `high`, a corner at a time.

    A list with a missing score keeps its first hypothesis everywhere.

    Returns:
        (U,) the winner at `low` (-1: empty list); (B,) position, utterance, winner before and after each corner.
    """
    size = len(values_HD)
    start = np.full(len(offsets) - 1, -1, dtype=np.int64)
    positions, owners = np.empty(size), np.empty(size, dtype=np.int64)
    before, after = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    longest = np.max(np.diff(offsets)) if len(offsets) > 1 else 0
    intercepts, slopes, crossings = np.empty(longest), np.empty(longest), np.empty(longest)
    found = 0
    for u in range(len(offsets) - 1):
        begin, length = offsets[u], offsets[u + 1] - offsets[u]
        if length == 0:
            continue
        start[u] = begin
        _project(values_HD, begin, weights_D, intercepts[:length])
        _project(values_HD, begin, direction_D, slopes[:length])
        if np.isnan(intercepts[:length].sum()):
            continue
        current = _winner_at(intercepts[:length], slopes[:length], low, crossings)
        start[u] = begin + current
        position = low
        while True:
            following = _next_corner(intercepts[:length], slopes[:length], current, high, crossings)
            if following < 0:
                break
            position = max(position, crossings[following])  # rounding may put a corner a hair before the last one
            positions[found], owners[found] = position, u
            before[found], after[found] = begin + current, begin + following
            found += 1
            current = following
    return start, positions[:found], owners[:found], before[:found], after[:found]


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _project(values_HD: Floats, begin: int, direction_D: Floats, out: Floats) -> None:
    """Weighted sums of one list; also a missing value with weight 0 makes them unknown."""
    out[:] = 0.0
    for d in range(len(direction_D)):
        weight = direction_D[d]
        for j in range(len(out)):
            out[j] += weight * values_HD[begin + j, d]


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _winner_at(intercepts: Floats, slopes: Floats, low: float, heights: Floats) -> int:
    """The line on top just above `low`; of equal lines the earliest."""
    ties = slopes
    for j in range(len(slopes)):
        heights[j] = intercepts[j] + low * slopes[j]
    if low == -np.inf:
        heights[: len(slopes)] = -slopes
        ties = intercepts
    current = 0
    for j in range(1, len(slopes)):
        if heights[j] > heights[current] or (heights[j] == heights[current] and ties[j] > ties[current]):
            current = j
    return current


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _next_corner(intercepts: Floats, slopes: Floats, current: int, high: float, crossings: Floats) -> int:
    """The line that takes over first before `high`, the steepest where several do at once; -1 for none."""
    height, slope = intercepts[current], slopes[current]
    for j in range(len(slopes)):  # divides for all lines, because that runs in vector registers
        crossing = (height - intercepts[j]) / (slopes[j] - slope)
        crossings[j] = crossing if slopes[j] > slope else np.inf
    nearest, following = high, -1
    for j in range(len(slopes)):
        if crossings[j] < nearest:
            nearest, following = crossings[j], j
        elif following >= 0 and crossings[j] == nearest and slopes[j] > slopes[following]:
            following = j
    return following


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def winners_of_many(offsets: Ints, values_HD: Floats, weights_DB: Floats) -> Ints:
    """What `scoring.winners` of `scoring.fused_scores` gives, for many weights in one pass over the scores.

    Returns:
        (B, U) positions of the winners, -1 for an empty list.
    """
    dimensions, size = weights_DB.shape
    winner_BU = np.full((size, len(offsets) - 1), -1, dtype=np.int64)
    fused_B, best_B = np.empty(size), np.empty(size)
    leader_B = np.empty(size, dtype=np.int64)
    for u in range(len(offsets) - 1):
        begin, end = offsets[u], offsets[u + 1]
        if begin == end:
            continue
        leader_B[:] = begin
        best_B[:] = -np.inf
        for j in range(begin, end):
            fused_B[:] = 0.0
            for d in range(dimensions):
                value = values_HD[j, d]
                if np.isnan(value):  # a weight of 0 leaves a missing score out, any other makes the sum unknown
                    for b in range(size):
                        fused_B[b] += value if weights_DB[d, b] != 0.0 else 0.0
                else:
                    for b in range(size):
                        fused_B[b] += weights_DB[d, b] * value
            for b in range(size):
                ahead = fused_B[b] > best_B[b]
                best_B[b] = fused_B[b] if ahead else best_B[b]
                leader_B[b] = j if ahead else leader_B[b]
        winner_BU[:, u] = leader_B
    return winner_BU
