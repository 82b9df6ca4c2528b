"""Studies of language models inside the search: how often to ask, with which beam, and in another language."""

from dataclasses import replace
from typing import Final

from ctxasr_ray.corpora.spanish import SpanishConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig

BEAMS: Final = (5, 10, 20, 50)
INTERVALS: Final = (8, 16, 32, 64, 128)
"""Frames of 40 ms."""
RESCORED: Final = (5, 10, 20, 50, 100)
"""Hypotheses of the rescorings that the grid is compared with."""


def delayed_fusion() -> Experiment:
    """A CTC recogniser without and with a language model inside its search, which it asks every 32 frames.

    Other models: --first-pass.model NAME --branches.delayed-fusion.nbest.first-pass.model NAME
    --branches.delayed-fusion.nbest.lm.model NAME.
    """
    ctc, lm = CtcConfig(model=asset("ctc"), beam_size=50, num_hypotheses=50), CausalLmConfig(model=asset("lm"))
    fused = CtcFusedConfig(first_pass=ctc, lm=lm, lm_weight=0.5, length_bonus=2.0)
    return Experiment(
        first_pass=ctc,
        synthetic=SyntheticConfig(num_dev=0, num_test=60),
        shard_audio_s=200.0,
        branches={"delayed_fusion": Branch(nbest=fused)},
    )


def study_delayed_grid() -> Experiment:
    """Delayed fusion by beam and interval, on dev: nothing is chosen here that test reports.

    Beside it the same beams without fusion and with shallow fusion, both triggers, and rescoring of 5 to 100
    hypotheses. Weights are those of the showcase, equal for delayed fusion and rescoring.
    """
    ctc, lm = CtcConfig(model=asset("ctc"), beam_size=100, num_hypotheses=100), CausalLmConfig(model=asset("lm"))
    delayed = CtcFusedConfig(first_pass=ctc, lm=lm, lm_weight=0.5, length_bonus=2.0)
    weights = {"causal_lm": delayed.lm_weight, "length_bonus": delayed.length_bonus}
    branches: dict[str, Branch] = {}
    for beam in BEAMS:
        narrow = replace(ctc, beam_size=beam, num_hypotheses=5)
        by_beam = replace(delayed, first_pass=narrow)
        branches[f"no_fusion/beam_{beam}"] = Branch(nbest=narrow)
        shallow = replace(by_beam, fusion="shallow", lm_weight=0.3, length_bonus=4.0)
        branches[f"shallow_fusion/beam_{beam}"] = Branch(nbest=shallow)
        shortest = replace(by_beam, trigger="shortest_hypothesis")
        branches[f"delayed_fusion_shortest/beam_{beam}"] = Branch(nbest=shortest)
        for interval in INTERVALS:
            branches[f"delayed_fusion_beam_{beam}/interval_{interval}"] = Branch(
                nbest=replace(by_beam, interval=interval)
            )
    return Experiment(
        first_pass=ctc,
        synthetic=SyntheticConfig(num_dev=60, num_test=0),
        shard_audio_s=400.0,
        rescorings={
            f"lm_rescoring/n{size}": Rescoring(scorers=(lm,), fixed_weights=weights, num_hypotheses=size)
            for size in RESCORED
        },
        branches=branches,
    )


def study_spanish() -> Experiment:
    """Spoken Spanish: no fusion, shallow and delayed fusion, and rescoring, with models of `ctxasr train`.

    The recogniser is what `ctxasr train ctc_spanish` writes, the language model what `ctxasr train lm_spanish` writes.
    """
    ctc = CtcConfig(model="runs/train/ctc_spanish/model", beam_size=50, num_hypotheses=50)
    lm = CausalLmConfig(model="runs/train/lm_spanish/model")
    delayed = CtcFusedConfig(first_pass=ctc, lm=lm, lm_weight=0.5, length_bonus=2.0)  # as in the showcase, not tuned
    return Experiment(
        first_pass=ctc,
        scorers=(lm,),
        synthetic=SpanishConfig(num_dev=60, num_test=150),
        normaliser="basic",
        shard_audio_s=200.0,
        branches={
            "shallow_fusion": Branch(nbest=replace(delayed, fusion="shallow", lm_weight=0.3, length_bonus=4.0)),
            "delayed_fusion": Branch(nbest=delayed),
            "delayed_fusion/shortest": Branch(nbest=replace(delayed, trigger="shortest_hypothesis")),
        },
    )
