"""The showcase: every method side by side on the quickstart's corpus, with nothing but what ships."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ctxasr_ray.candidates.keyword import KeywordCandidatesConfig
from ctxasr_ray.candidates.plausible import PlausibleConfig
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.candidates.union import UnionConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
from ctxasr_ray.first_pass.ctc_keywords import CtcKeywordsConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.recipes.hearing import hearing_rescorings
from ctxasr_ray.scorers.attention import AttentionScorerConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.ctc import CtcScorerConfig


def keyword_methods() -> Experiment:
    """Two ways to use a list of names of any length: boost in the search, candidates behind a shortlist."""
    shown = showcase()
    boost, candidates = (shown.branches[f"keyword_{way}/list_1000"] for way in ("boost", "candidates"))
    (rescored,) = candidates.rescorings.values()
    return replace(
        shown,
        context=ContextConfig(true_keywords=True),
        rescorings={},
        branches={
            "keyword_boost": replace(boost, context=None),
            "keyword_candidates": replace(
                candidates, context=None, rescorings={"keyword_candidates/rescored": rescored}
            ),
        },
    )


def showcase() -> Experiment:
    """Every method on the quickstart's corpus, with shipped models only: recognisers, unions, fusion, context."""
    ctc, lm = CtcConfig(model=asset("ctc"), beam_size=150, num_hypotheses=100), CausalLmConfig(model=asset("lm"))
    attention = AttentionConfig(model=asset("attention"), beam_size=16, num_hypotheses=16, max_tokens=96)
    rescored = Rescoring(scorers=(lm,))
    both = (CtcScorerConfig(model=asset("ctc")), AttentionScorerConfig(model=asset("attention")))
    delayed = _delayed(ctc, lm)
    gated = AttentionFusedConfig(first_pass=attention, lm=lm, temperature=0.7, lm_temperature=0.7)
    joint = replace(attention, ctc_weight=0.3, source="joint")
    joint_gated = replace(gated, first_pass=joint)
    with_names: dict[str, Branch] = {}
    for size in (100, 1000):
        with_names |= _with_names(size, ctc, lm, {"phrase_copy": joint, "multi_grained": joint_gated})
    return Experiment(
        first_pass=ctc,
        scorers=(lm,),
        synthetic=SyntheticConfig(),
        shard_audio_s=200.0,
        catalogue=str(Path(asset("words")) / "phrases_2k.txt"),
        context=_names(1000),
        rescorings={f"lm_rescoring/n{size}": Rescoring(scorers=(lm,), num_hypotheses=size) for size in (16, 64)},
        branches={
            "first_pass/attention": Branch(
                nbest=attention,
                rescorings={"lm_rescoring/attention": rescored, **hearing_rescorings()},
            ),
            "speech_llm": Branch(nbest=SpeechLlmConfig(model=asset("speech_llm"), max_tokens=96)),
            "first_pass/joint": Branch(nbest=joint),
            "union": Branch(
                nbest=UnionConfig(own_scores="record"),
                of=("first_pass", "first_pass/attention"),
                rescorings={"union/rescored": Rescoring(scorers=both), "union/lm": Rescoring(scorers=(*both, lm))},
            ),
            **_with_lm(delayed),
            "shallow_fusion/attention": Branch(nbest=replace(gated, fusion="shallow", lm_weight=0.2)),
            "gated_fusion": Branch(nbest=gated),
            "gated_fusion/joint": Branch(nbest=joint_gated),
            "keyword_boost/lm_list_1000": Branch(nbest=CtcKeywordsConfig(first_pass=delayed), context=_names(1000)),
            **with_names,
        },
    )


def _delayed(ctc: CtcConfig, lm: CausalLmConfig) -> CtcFusedConfig:
    """Delayed fusion with the weights that were best on 60 utterances of dev."""
    narrow = replace(ctc, beam_size=50, num_hypotheses=50)
    return CtcFusedConfig(first_pass=narrow, lm=lm, lm_weight=0.5, length_bonus=2.0)


def _with_lm(delayed: CtcFusedConfig) -> dict[str, Branch]:
    """CTC searches with a language model inside, by words and by labels, and their beam without; weights from dev."""
    characters = CausalLmConfig(model=asset("lm_characters"), source="lm_characters", utterances_per_forward=16)
    by_label = replace(delayed, lm=characters, units="labels", lm_weight=0.5, length_bonus=0.5)
    thin = replace(delayed.first_pass, beam_size=16, num_hypotheses=16)  # this LM is asked at every label
    shallow = replace(delayed, fusion="shallow", lm_weight=0.3, length_bonus=4.0)
    return {
        "first_pass/beam_50": Branch(nbest=delayed.first_pass),
        "shallow_fusion": Branch(nbest=shallow),
        "shallow_fusion/labels": Branch(
            nbest=replace(by_label, first_pass=thin, fusion="shallow", lm_weight=0.7, length_bonus=1.5)
        ),
        "delayed_fusion": Branch(nbest=delayed, rescorings={"delayed_fusion/rescored": Rescoring()}),
        "delayed_fusion/shortest": Branch(nbest=replace(delayed, trigger="shortest_hypothesis")),
        "delayed_fusion/labels": Branch(nbest=by_label),
    }


def _names(size: int) -> ContextConfig:
    return ContextConfig(true_keywords=True, num_distractors=size)


def _with_names(
    size: int, ctc: CtcConfig, lm: CausalLmConfig, searches: Mapping[str, AttentionConfig | AttentionFusedConfig]
) -> dict[str, Branch]:
    """The methods that take a list of names, each utterance's own and `size` others."""
    context = _names(size)
    heard = ShortlistConfig(
        ways=("exact", "phonetic", "plausible"), plausible=PlausibleConfig(recogniser=CtcOptions(model=asset("ctc")))
    )
    rescored = Rescoring(scorers=(CtcScorerConfig(model=asset("ctc")), lm), weights=WeightsConfig(fixed_source="ctc"))
    boosted = CtcKeywordsConfig(first_pass=replace(ctc, num_hypotheses=50))
    copied = {f"{name}/list_{size}": PhraseCopyConfig(search=search) for name, search in searches.items()}
    trained = {
        # the temperature is its training's dev_temperature
        f"{name}_trained": replace(config, head="trained", copy_head=asset("copy_head"), temperature=0.5)
        for name, config in copied.items()
    }
    return {
        f"keyword_boost/list_{size}": Branch(nbest=boosted, context=context),
        **{
            name: Branch(nbest=config, of=("first_pass",), context=context, shortlist=heard)
            for name, config in {**copied, **trained}.items()
        },
        f"keyword_candidates/list_{size}": Branch(
            nbest=KeywordCandidatesConfig(),
            of=("first_pass",),
            context=context,
            shortlist=ShortlistConfig(),
            rescorings={f"keyword_candidates/list_{size}_rescored": rescored},
        ),
    }
