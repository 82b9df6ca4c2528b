"""Studies: runs that answer one question about context each; `benchmarks/study_keywords.py` makes what they read."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from ctxasr_ray.candidates.keyword import KeywordCandidatesConfig
from ctxasr_ray.candidates.plausible import PlausibleConfig
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.corpora.mandarin import MandarinConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_keywords import CtcKeywordsConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.recipes.showcase import showcase
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.ctc import CtcScorerConfig

LIST_SIZES: Final = (10, 100, 1_000, 10_000, 50_000)
"""Distractors of the nested lists."""
PHRASES: Final = "runs/corpora/phrases_50k.txt"
"""Names of the synthetic corpus and real rare words; `benchmarks/study_keywords.py` writes it."""
ABLATED_SIZE: Final = 10_000
"""Distractors of the lists whose shortlists are compared."""
HEAD_WITHOUT_DRUGS: Final = "runs/train/copy_head_without_drugs/model"
_UNION: Final = ("exact", "phonetic", "plausible")
_CTC: Final = CtcConfig(model=asset("ctc"), beam_size=100, num_hypotheses=50)
_PLAUSIBLE: Final = PlausibleConfig(recogniser=CtcOptions(model=asset("ctc")))


def _lists(size: int) -> ContextConfig:
    return ContextConfig(true_keywords=True, num_distractors=size)


def _candidates(name: str, shortlist: ShortlistConfig | None, context: ContextConfig) -> Branch:
    """Keyword candidates of a shortlist, the best 16 texts scored by the recogniser and by the LM."""
    scorers = (CtcScorerConfig(model=asset("ctc")), CausalLmConfig(model=asset("lm")))
    rescored = Rescoring(scorers=scorers, weights=WeightsConfig(fixed_source="ctc"), num_hypotheses=16)
    return Branch(
        nbest=KeywordCandidatesConfig(),
        of=("first_pass",),
        context=context,
        shortlist=shortlist,
        rescorings={f"{name}_rescored": rescored},
    )


def study_list_sizes() -> Experiment:
    """Lists of 10 to 50,000 phrases on the same utterances: boost in the search, and candidates of a shortlist.

    An utterance's true phrases are its own, and a shortlist looks own phrases up apart from the list: recall@k tells
    how they rank against the list, and not what a search pruned for the list's length would lose of them.
    """
    shortlist = ShortlistConfig(ways=_UNION, plausible=_PLAUSIBLE)
    branches: dict[str, Branch] = {}
    for size in LIST_SIZES:
        boosted = CtcKeywordsConfig(first_pass=_CTC)
        branches[f"keyword_boost/list_{size}"] = Branch(nbest=boosted, context=_lists(size))
        name = f"keyword_candidates/list_{size}"
        branches[name] = _candidates(name, shortlist, _lists(size))
    return Experiment(
        first_pass=_CTC,
        synthetic=SyntheticConfig(num_dev=40, num_test=100),
        shard_audio_s=400.0,
        catalogue=PHRASES,
        context=_lists(max(LIST_SIZES)),
        branches=branches,
    )


def study_shortlists() -> Experiment:
    """Ways to find 64 of 10,000 phrases, alone, together and by an oracle, each with the candidates made of it."""
    one_way = {way: ShortlistConfig(ways=(way,)) for way in ("exact", "phonetic")}
    shortlists: dict[str, ShortlistConfig] = {
        **one_way,
        "plausible": ShortlistConfig(ways=("plausible",), plausible=_PLAUSIBLE),
        "semantic": ShortlistConfig(ways=("semantic",), encoder=asset("lm")),
        "union": ShortlistConfig(ways=_UNION, plausible=_PLAUSIBLE),
    }
    branches = {
        f"keyword_candidates/{way}": _candidates(f"keyword_candidates/{way}", shortlist, _lists(ABLATED_SIZE))
        for way, shortlist in shortlists.items()
    }
    oracle = _candidates("keyword_candidates/true_list", None, _lists(0))
    return replace(study_list_sizes(), branches={**branches, "keyword_candidates/true_list": oracle})


def study_copy_kinds() -> Experiment:
    """Copy heads that know all kinds of names, or all but drugs, beside the head that needs no training.

    The second one is what `ctxasr train copy_head --task.without-kinds drug` writes, in the directory of
    `HEAD_WITHOUT_DRUGS`.
    """
    whole = showcase()
    trained = whole.branches["phrase_copy/list_100_trained"]
    assert isinstance(trained.nbest, PhraseCopyConfig)
    unknowing = replace(trained.nbest, copy_head=HEAD_WITHOUT_DRUGS)
    branches = {
        **{name: whole.branches[name] for name in ("first_pass/joint", "phrase_copy/list_100")},
        "phrase_copy/list_100_trained": trained,
        "phrase_copy/list_100_trained_without_drugs": replace(trained, nbest=unknowing),
    }
    return replace(whole, scorers=(), rescorings={}, branches=branches)


def study_noise() -> Experiment:
    """The methods with and without context on utterances at several noise levels: --manifest of a corpus per level."""
    boosted = CtcKeywordsConfig(first_pass=_CTC)
    lm = CausalLmConfig(model=asset("lm"))
    shortlist = ShortlistConfig(ways=_UNION, plausible=_PLAUSIBLE)
    name = "keyword_candidates/list_1000"
    return Experiment(
        first_pass=_CTC,
        scorers=(lm,),
        shard_audio_s=400.0,
        catalogue=PHRASES,
        context=_lists(1_000),
        branches={
            "keyword_boost/list_1000": Branch(nbest=boosted, context=_lists(1_000)),
            name: _candidates(name, shortlist, _lists(1_000)),
        },
    )


def mandarin() -> Experiment:
    """Spoken Mandarin with names that sound alike: characters, mixed error rate, lists of names in the search.

    No ear tells the characters of such a name from others of the same sound; a list does.
    """
    ctc = CtcConfig(model=asset("ctc_mandarin"), beam_size=100, num_hypotheses=50)
    boosted = CtcKeywordsConfig(first_pass=ctc, normaliser="mandarin")

    def names(size: int) -> ContextConfig:
        return ContextConfig(true_keywords=True, num_distractors=size, normaliser="mandarin")

    return Experiment(
        first_pass=ctc,
        synthetic=MandarinConfig(num_dev=0, num_test=150),
        normaliser="mandarin",
        word_lists=WordLists(common_words=None),
        shard_audio_s=200.0,
        catalogue=str(Path(asset("words")) / "phrases_mandarin.txt"),
        context=names(1_000),
        branches={f"keyword_boost/list_{size}": Branch(nbest=boosted, context=names(size)) for size in (100, 1_000)},
    )
