"""Intervals, paired differences and p-values of 50 systems on 2,620 utterances with 10,000 replicates, on one core.

Checked against a plain bootstrap with the same draws before any time counts. Run it without arguments:
`python benchmarks/significance.py`.
"""

import sys

from figures import Figure, emit, interleaved, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)

from ctxasr_ray.metrics.significance import Blocks, compare, percentile_levels  # noqa: E402

NUM_UTTERANCES, NUM_SPEAKERS, NUM_SYSTEMS, NUM_REPLICATES, SEED = 2620, 40, 50, 10_000, 7


def plain(errors: np.ndarray, lengths: np.ndarray, blocks: Blocks, num_replicates: int) -> np.ndarray:
    """Interval bounds of every system by gathering the drawn utterances, as one would write it first."""
    members = [np.flatnonzero(blocks.index == block) for block in range(blocks.num_blocks)]
    generator = np.random.default_rng(SEED)
    rates = np.empty((num_replicates, errors.shape[1]))
    for replicate in range(num_replicates):
        drawn = generator.integers(blocks.num_blocks, size=(1, blocks.num_blocks), dtype=np.int32)[0]
        rows = np.concatenate([members[block] for block in drawn])
        rates[replicate] = errors[rows].sum(axis=0) / lengths[rows].sum(axis=0)
    return np.quantile(rates, percentile_levels(blocks.num_blocks, 0.95), axis=0)


def main() -> None:
    """Prints the figures."""
    rng = np.random.default_rng(SEED)
    lengths = np.repeat(rng.integers(3, 36, (NUM_UTTERANCES, 1)), NUM_SYSTEMS, axis=1)
    errors = rng.binomial(lengths, rng.uniform(0.02, 0.08, NUM_SYSTEMS))
    by_utterance = Blocks(kind="utterance", index=np.arange(NUM_UTTERANCES), num_blocks=NUM_UTTERANCES)
    by_speaker = Blocks(kind="speaker", index=np.arange(NUM_UTTERANCES) % NUM_SPEAKERS, num_blocks=NUM_SPEAKERS)

    def ours(blocks: Blocks, num_replicates: int) -> np.ndarray:
        found = compare(errors, lengths, blocks, baseline=0, num_replicates=num_replicates, seed=SEED)
        return np.stack([found.ci_low, found.ci_high])

    few = 200
    for blocks in (by_speaker, by_utterance):
        difference = float(np.abs(ours(blocks, few) - plain(errors, lengths, blocks, few)).max())
        if difference > 1e-12:
            sys.exit(f"significance, {blocks.kind}: bounds differ by {difference}; a faster wrong answer is no figure")
    timed = interleaved(
        lambda: plain(errors, lengths, by_utterance, few), lambda: ours(by_utterance, NUM_REPLICATES), rounds=3
    )
    work = {"systems": NUM_SYSTEMS, "utterances": NUM_UTTERANCES, "replicates": NUM_REPLICATES}
    speakers = interleaved(
        lambda: ours(by_utterance, NUM_REPLICATES), lambda: ours(by_speaker, NUM_REPLICATES), rounds=1
    )
    emit(
        [
            Figure(
                name="significance_seconds_by_utterance",
                value=timed.seconds_second,
                goal="<= 10",
                unit="s",
                counters=work | {"blocks": NUM_UTTERANCES},
            ),
            Figure(
                name="significance_seconds_by_speaker",
                value=speakers.seconds_second,
                goal="<= 10",
                unit="s",
                counters=work | {"blocks": NUM_SPEAKERS},
            ),
            Figure(
                name="significance_vs_plain_bootstrap",
                value=timed.median * NUM_REPLICATES / few,
                unit="x",
                peer="gathering drawn utterances in numpy",
                counters=work | {"replicates_peer": few},
            ),
        ]
    )


if __name__ == "__main__":
    main()
