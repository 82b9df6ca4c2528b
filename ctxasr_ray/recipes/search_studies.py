"""Studies of language models inside the search: how often to ask, with which beam, and in another language."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from ctxasr_ray.corpora.spanish import SpanishConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.attention_keywords import AttentionKeywordsConfig
from ctxasr_ray.first_pass.attention_words import AttentionWordsConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
from ctxasr_ray.first_pass.search_lms import FirstPassLm
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig

BEAMS: Final = (5, 10, 20, 50)
INTERVALS: Final = (8, 16, 32, 64, 128)
"""Frames of 40 ms."""
RESCORED: Final = (5, 10, 20, 50, 100)
"""Hypotheses of the rescorings that the grid is compared with."""

BY_LABEL: Final = ((0.3, 0.5), (0.5, 0.5), (0.5, 1.0), (0.7, 1.0), (0.7, 1.5), (0.9, 1.0))
"""Pairs of lm_weight and length_bonus per label."""
WITH_FIRST_PASS_LM: Final = ((0.5, 0.1, 0.3), (0.4, 0.1, 0.3), (0.4, 0.2, 0.5), (0.3, 0.2, 0.8))
"""lm_weight of the main LM, of the small one, and its length_bonus per word."""
IN_JOINT_SEARCH: Final = ((0.1, 0.5), (0.2, 1.0))
"""Pairs of lm_weight and length_bonus per word."""
NAMES: Final = ContextConfig(true_keywords=True, num_distractors=1000)
"""The lists of the boost in joint search."""
BOOSTS: Final = (1.0, 2.0)
"""Nats per token of a phrase."""


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


def study_search_lms() -> Experiment:
    """Language models in a search by other ways than the grid's, on dev; settings stand in the names.

    By the recogniser's labels (wW_bB: lm_weight W, length_bonus B per label); delayed fusion beside a small first-pass
    LM (wW_sS_bB: the main lm_weight, the small one's and its length_bonus); and inside joint CTC-attention search, by
    the recogniser's own pieces and, word by word, with a tokenizer that it does not share (wW_bB); there also a boost
    of the true names and 1,000 others (bB: nats per token).
    """
    ctc, lm = CtcConfig(model=asset("ctc"), beam_size=50, num_hypotheses=50), CausalLmConfig(model=asset("lm"))
    characters = CausalLmConfig(model=asset("lm_characters"), source="lm_characters", utterances_per_forward=16)
    delayed = CtcFusedConfig(first_pass=ctc, lm=lm, lm_weight=0.5, length_bonus=2.0)
    by_label = replace(delayed, lm=characters, units="labels")
    thin = replace(ctc, beam_size=16, num_hypotheses=16)
    branches = {"first_pass/beam_16": Branch(nbest=thin), "delayed_fusion/words": Branch(nbest=delayed)}
    for weight, bonus in BY_LABEL:
        setting = f"w{weight}_b{bonus}"
        weighted = replace(by_label, lm_weight=weight, length_bonus=bonus)
        shallow = replace(weighted, first_pass=thin, fusion="shallow")
        branches[f"shallow_fusion_labels/{setting}"] = Branch(nbest=shallow)
        branches[f"delayed_fusion_labels/{setting}"] = Branch(nbest=weighted)
    for weight, small_weight, bonus in WITH_FIRST_PASS_LM:
        small = FirstPassLm(
            lm=replace(characters, utterances_per_forward=0), lm_weight=small_weight, length_bonus=bonus
        )
        both = replace(delayed, lm_weight=weight, first_pass_lm=small)
        branches[f"delayed_fusion_first_pass_lm/w{weight}_s{small_weight}_b{bonus}"] = Branch(nbest=both)
    return Experiment(
        first_pass=ctc,
        synthetic=SyntheticConfig(num_dev=60, num_test=0),
        shard_audio_s=400.0,
        catalogue=str(Path(asset("words")) / "phrases_2k.txt"),
        context=NAMES,
        branches={**branches, **_in_joint_search(lm, characters)},
    )


def _in_joint_search(lm: CausalLmConfig, characters: CausalLmConfig) -> dict[str, Branch]:
    joint = AttentionConfig(
        model=asset("attention"), beam_size=16, num_hypotheses=16, max_tokens=96, ctc_weight=0.3, source="joint"
    )
    own_pieces = AttentionFusedConfig(first_pass=joint, lm=lm, fusion="shallow", lm_weight=0.2)
    branches = {"first_pass/joint": Branch(nbest=joint), "shallow_fusion_joint/own_pieces": Branch(nbest=own_pieces)}
    for weight, bonus in IN_JOINT_SEARCH:
        words = AttentionWordsConfig(first_pass=joint, lm=characters, lm_weight=weight, length_bonus=bonus)
        branches[f"delayed_fusion_joint/w{weight}_b{bonus}"] = Branch(nbest=words)
        branches[f"shallow_fusion_joint/w{weight}_b{bonus}"] = Branch(nbest=replace(words, fusion="shallow"))
    for boost in BOOSTS:
        boosted = AttentionKeywordsConfig(first_pass=joint, boost=boost)
        branches[f"keyword_boost_joint/b{boost}"] = Branch(nbest=boosted, context=NAMES)
    return branches


def study_spanish() -> Experiment:
    """Spoken Spanish: no fusion, shallow and delayed fusion, and rescoring, with models of `ctxasr train`.

    The recogniser is what `ctxasr train ctc_spanish` writes, the language model what `ctxasr train lm_spanish` writes.
    In-search weights are the best of five pairs for delayed fusion every 32 frames, and of four for shallow fusion, on
    the 60 utterances of dev; those of rescoring are fitted there.
    """
    ctc = CtcConfig(model="runs/train/ctc_spanish/model", beam_size=50, num_hypotheses=50)
    lm = CausalLmConfig(model="runs/train/lm_spanish/model")
    delayed = CtcFusedConfig(first_pass=ctc, lm=lm, lm_weight=0.7, length_bonus=3.0)
    return Experiment(
        first_pass=ctc,
        scorers=(lm,),
        synthetic=SpanishConfig(num_dev=60, num_test=150),
        normaliser="basic",
        shard_audio_s=200.0,
        branches={
            "shallow_fusion": Branch(nbest=replace(delayed, fusion="shallow", lm_weight=0.3, length_bonus=3.0)),
            "delayed_fusion": Branch(nbest=delayed),
            "delayed_fusion/shortest": Branch(nbest=replace(delayed, trigger="shortest_hypothesis")),
        },
    )
