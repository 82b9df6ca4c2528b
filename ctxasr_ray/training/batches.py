"""Length-bucketed batches as a function of (seed, epoch), so that a resumed run sees what the killed one would have."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

LENGTH_JITTER = 0.1
"""Relative noise on the lengths before sorting: buckets stay tight while their members change from epoch to epoch."""


def epoch_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Cuts one epoch into batches of about equal length and bounded padded size, in random order.

    Args:
        lengths: (N,) length of each example, in frames or tokens, >= 1.
        batch_size: Most frames or tokens of a batch, padding included; a longer example is a batch of its own.
        seed: Of the run.
        epoch: 0 or more.

    Returns:
        Arrays of example indices; every example stands in exactly one.
    """
    rng = np.random.default_rng([seed, epoch])
    keys = lengths * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
    batches: list[npt.NDArray[np.int64]] = []
    current: list[int] = []
    longest = 0
    for index in np.argsort(keys, kind="stable").tolist():
        longest_with = max(longest, int(lengths[index]))
        if current and longest_with * (len(current) + 1) > batch_size:
            batches.append(np.asarray(current, np.int64))
            current, longest_with = [], int(lengths[index])
        current.append(index)
        longest = longest_with
    if current:
        batches.append(np.asarray(current, np.int64))
    return [batches[i] for i in rng.permutation(len(batches))]


def steps(
    lengths: npt.NDArray[np.int64], batch_size: int, seed: int, *, start: int, stop: int
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yields (step, example indices) for steps `start` to `stop`, over as many epochs as they take.

    Args:
        lengths: At least one.
        batch_size: As `epoch_batches`.
        seed: Of the run.
        start: First step.
        stop: The step after the last.
    """
    step = epoch = 0
    while step < stop:
        batches = epoch_batches(lengths, batch_size, seed, epoch)
        for batch in batches[max(0, start - step) :]:
            here = max(step, start)
            if here >= stop:
                return
            yield here, batch
            start = here + 1
        step += len(batches)
        epoch += 1
