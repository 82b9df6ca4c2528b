"""kaldialign beside jiwer and sclite: another aligner and another bootstrap, the same numbers."""

import random

import kaldialign
import numpy as np
import pytest

from ctxasr_ray import align
from ctxasr_ray.metrics.significance import Blocks, compare


def made_pairs(num: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """References of 0 to 25 words of few kinds, and what a poor recogniser made of them: many ties."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(num):
        said = rng.choices("abcdefgh", k=rng.randint(0, 25))
        heard = [w if rng.random() < 0.8 else rng.choice("abcdefgh") for w in said if rng.random() < 0.9]
        for _ in range(rng.randint(0, 3)):
            heard.insert(rng.randint(0, len(heard)), rng.choice("abcdefgh"))
        pairs.append((said, heard))
    return pairs


def counted(pairs: list[tuple[list[str], list[str]]], alignment: str) -> align.Counts:
    said, heard = ([" ".join(pair[side]) for pair in pairs] for side in (0, 1))
    references, hypotheses = align.encode("word", said, heard)
    return align.count(references, hypotheses, alignment)


def test_totals_at_unit_costs_equal_kaldialign_pair_by_pair() -> None:
    pairs = made_pairs(3000, seed=5)
    theirs = [kaldialign.edit_distance(said, heard)["total"] for said, heard in pairs]
    assert counted(pairs, "unit").errors.tolist() == theirs


def test_nist_alignments_cost_what_kaldialigns_sclite_mode_costs() -> None:
    """Three substitutions cost as much as two deletions and two insertions, so that only the cost is one number."""
    pairs = made_pairs(3000, seed=6)
    ours = counted(pairs, "nist")
    theirs = [kaldialign.edit_distance(said, heard, sclite_mode=True) for said, heard in pairs]
    cost = 4 * ours.substitutions + 3 * (ours.deletions + ours.insertions)
    assert cost.tolist() == [4 * their["sub"] + 3 * (their["del"] + their["ins"]) for their in theirs]


def test_an_interval_over_utterances_equals_kaldialigns_bootstrap() -> None:
    pairs = [(said, heard) for said, heard in made_pairs(400, seed=7) if said]
    better = [(said, heard[1:] if i % 2 else said[:-1] + heard[-1:]) for i, (said, heard) in enumerate(pairs)]
    counts = [counted(side, "unit") for side in (pairs, better)]
    blocks = Blocks(kind="utterance", index=np.arange(len(pairs)), num_blocks=len(pairs))
    ours = compare(
        np.stack([c.errors for c in counts], 1),
        np.stack([c.reference_length for c in counts], 1),
        blocks,
        baseline=0,
        num_replicates=4000,
        seed=3,
    )
    references = [said for said, _ in pairs]
    theirs = kaldialign.bootstrap_wer_ci(
        references, [h for _, h in pairs], [h for _, h in better], replications=4000, seed=1
    )
    for system, name in enumerate(("system1", "system2")):
        width = ours.ci_high[system] - ours.ci_low[system]
        # theirs is mean +- 1.96 standard deviations, ours are percentiles: equal but for the skew and the draws
        assert theirs[name]["ci95min"] == pytest.approx(ours.ci_low[system], abs=0.05 * width)
        assert theirs[name]["ci95max"] == pytest.approx(ours.ci_high[system], abs=0.05 * width)
    assert theirs["p_s2_improv_over_s1"] == pytest.approx(ours.probability_of_improvement[1], abs=0.01)
