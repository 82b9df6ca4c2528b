"""The showcase: every method side by side on the quickstart's corpus, with nothing but what ships."""

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
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.recipes.hearing import speech_lm_rescorings
from ctxasr_ray.scorers.attention import AttentionScorerConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.ctc import CtcScorerConfig


def keyword_methods() -> Experiment:
    """The showcase's two ways to use a list of names, to sweep: boost in the search, candidates behind a shortlist."""
    shown = showcase()
    boost, candidates = (shown.branches[f"keyword_{way}/list_1000"] for way in ("boost", "candidates"))
    (rescored,) = candidates.rescorings.values()
    return replace(
        shown,
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
    narrow = replace(ctc, beam_size=50, num_hypotheses=50)
    delayed = CtcFusedConfig(first_pass=narrow, lm=lm, lm_weight=0.5, length_bonus=2.0)  # best on 60 utterances of dev
    shallow = replace(delayed, fusion="shallow", lm_weight=0.3, length_bonus=4.0)  # chosen in the same way
    gated = AttentionFusedConfig(first_pass=attention, lm=lm, temperature=0.7, lm_temperature=0.7)
    joint = replace(attention, ctc_weight=0.3, source="joint")
    joint_gated = replace(gated, first_pass=joint)
    boosted = CtcKeywordsConfig(first_pass=replace(ctc, num_hypotheses=50))
    short, long = (ContextConfig(true_keywords=True, num_distractors=size) for size in (100, 1000))
    heard = ShortlistConfig(
        ways=("exact", "phonetic", "plausible"), plausible=PlausibleConfig(recogniser=CtcOptions(model=asset("ctc")))
    )
    candidates = Branch(nbest=KeywordCandidatesConfig(), of=("first_pass",), shortlist=ShortlistConfig())
    with_candidates = Rescoring(
        scorers=(CtcScorerConfig(model=asset("ctc")), lm), weights=WeightsConfig(fixed_source="ctc")
    )
    return Experiment(
        first_pass=ctc,
        scorers=(lm,),
        synthetic=SyntheticConfig(),
        shard_audio_s=200.0,
        catalogue=str(Path(asset("words")) / "phrases_2k.txt"),
        context=long,
        rescorings={f"lm_rescoring/n{size}": Rescoring(scorers=(lm,), num_hypotheses=size) for size in (16, 64)},
        branches={
            "first_pass/attention": Branch(
                nbest=attention,
                rescorings={"lm_rescoring/attention": rescored, **speech_lm_rescorings(asset("speech_lm"))},
            ),
            "first_pass/joint": Branch(nbest=joint),
            "union": Branch(
                nbest=UnionConfig(own_scores="record"),
                of=("first_pass", "first_pass/attention"),
                rescorings={"union/rescored": Rescoring(scorers=both), "union/lm": Rescoring(scorers=(*both, lm))},
            ),
            "shallow_fusion": Branch(nbest=shallow),
            "shallow_fusion/attention": Branch(nbest=replace(gated, fusion="shallow", lm_weight=0.2)),
            "gated_fusion": Branch(nbest=gated),
            "gated_fusion/joint": Branch(nbest=joint_gated),
            "delayed_fusion": Branch(nbest=delayed, rescorings={"delayed_fusion/rescored": Rescoring()}),
            "delayed_fusion/shortest": Branch(nbest=replace(delayed, trigger="shortest_hypothesis")),
            "keyword_boost/lm_list_1000": Branch(nbest=CtcKeywordsConfig(first_pass=delayed), context=long),
            **{
                f"keyword_boost/list_{size}": Branch(nbest=boosted, context=context)
                for size, context in ((100, short), (1000, long))
            },
            **{
                f"{name}/list_{size}": Branch(
                    nbest=PhraseCopyConfig(search=search), of=("first_pass",), context=context, shortlist=heard
                )
                for size, context in ((100, short), (1000, long))
                for name, search in (("phrase_copy", joint), ("multi_grained", joint_gated))
            },
            **{
                f"keyword_candidates/list_{size}": replace(
                    candidates,
                    context=context,
                    rescorings={f"keyword_candidates/list_{size}_rescored": with_candidates},
                )
                for size, context in ((100, short), (1000, long))
            },
        },
    )
