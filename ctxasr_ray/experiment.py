"""A whole run as one frozen value: what a recipe returns and the command line overrides field by field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from ctxasr_ray.candidates.history import HistoryConfig
from ctxasr_ray.candidates.keyword import KeywordCandidatesConfig
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.candidates.union import UnionConfig
from ctxasr_ray.corpora.mandarin import MandarinConfig
from ctxasr_ray.corpora.spanish import SpanishConfig
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.attention_keywords import AttentionKeywordsConfig
from ctxasr_ray.first_pass.attention_words import AttentionWordsConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
from ctxasr_ray.first_pass.ctc_keywords import CtcKeywordsConfig
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig
from ctxasr_ray.first_pass.pocketsphinx_keywords import PocketSphinxKeywordsConfig
from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig, SpeechLlmKeywordsConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.scorers.attention import AttentionScorerConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.ctc import CtcScorerConfig
from ctxasr_ray.scorers.pocketsphinx import PocketSphinxScorerConfig
from ctxasr_ray.scorers.speech_llm import SpeechLlmScorerConfig
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.scorers.vllm import VllmConfig
from ctxasr_ray.stage import Resources, Stage

FirstPass: TypeAlias = (
    CtcConfig
    | CtcFusedConfig
    | CtcKeywordsConfig
    | AttentionConfig
    | AttentionFusedConfig
    | AttentionWordsConfig
    | AttentionKeywordsConfig
    | PhraseCopyConfig
    | PocketSphinxConfig
    | PocketSphinxKeywordsConfig
    | SpeechLlmConfig
    | SpeechLlmKeywordsConfig
    | ImportedConfig
)
"""Recordings -> N-best lists."""
Scorer: TypeAlias = (
    CausalLmConfig
    | VllmConfig
    | AttentionScorerConfig
    | CtcScorerConfig
    | PocketSphinxScorerConfig
    | SpeechLmConfig
    | SpeechLlmScorerConfig
)
"""N-best lists -> scores of every hypothesis."""
Candidates: TypeAlias = UnionConfig | KeywordCandidatesConfig
"""N-best lists -> another N-best list."""


def asset(name: str) -> str:
    """Path of a model directory that ships with the package: ctc, lm, attention, speech_lm, ..."""
    return str(Path(__file__).parent / "assets" / name)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Stands at the head of a line of steps for the UTTERANCES that `Store.add_corpus` has cut and committed."""

    NAME: ClassVar[str] = "corpus"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    WRITES: ClassVar[str] = "utterances"

    resources: Resources = field(default_factory=Resources)
    """Unused: nothing runs here."""

    def fingerprint(self) -> Mapping[str, str]:
        """Empty: rows of a corpus are their own identity."""
        return {}

    def build(self) -> Stage:
        """Never called: executors start below the corpus."""
        raise AssertionError("a corpus is committed by Store.add_corpus, not by a stage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescoring:
    """A row of the results: every source of one N-best list and of some scorers, weighted and added up."""

    scorers: tuple[Scorer, ...] = ()
    """All of them enter the fusion, beside the scores that the list has of its own."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """How the weights are found on dev."""
    fixed_weights: Mapping[str, float] | None = None
    """Weights by source (and length_bonus) instead of a fit on dev."""
    num_hypotheses: int | None = None
    """Only the first ones of each list are scored; None: all."""
    units: SpeechUnitsConfig | None = None
    """What its speech-text LMs hear: units of the quantiser that lies beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """Another N-best list of the same utterances, with a row for its 1-best, and what is made of it."""

    nbest: FirstPass | Candidates
    """Where the list comes from."""
    of: tuple[str, ...] = ()
    """The lists that candidates, shortlist and history are made of: first_pass, or branches that stand before this."""
    context: ContextConfig | None = None
    """What it knows beforehand, in place of the experiment's."""
    shortlist: ShortlistConfig | None = None
    """Cuts that list to what an utterance may hold, by the first list of `of`."""
    history: HistoryConfig | None = None
    """Adds what was said earlier in the session, by the first list of `of`."""
    rescorings: Mapping[str, Rescoring] = field(default_factory=dict)
    """System -> fusion over this list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One evaluation: a recogniser, the language models that rescore its N-best, and how numbers are made."""

    first_pass: FirstPass
    """The recogniser and its search; every other system is compared with its 1-best."""
    scorers: tuple[Scorer, ...] = ()
    """Models that score every hypothesis; all of them enter the fusion of the system lm_rescoring."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """How fusion weights are found on dev; unused without scorers."""
    fixed_weights: Mapping[str, float] | None = None
    """Fusion weights by source (and length_bonus) instead of a fit on dev."""
    catalogue: str | None = None
    """File of phrases that may be said, for everything in the run that takes context and for the keyword metrics."""
    catalogue_format: str | None = None
    """lines, scored, is21, nemo, sherpa or json; None: the file's extension tells."""
    context: ContextConfig | None = None
    """Which of these phrases each utterance gets; None with a catalogue: all of them."""
    rescorings: Mapping[str, Rescoring] = field(default_factory=dict)
    """System -> a further fusion over the first pass's lists."""
    branches: Mapping[str, Branch] = field(default_factory=dict)
    """System -> another N-best list: a second recogniser or search, a union, new candidates."""
    traces: tuple[str, ...] = ()
    """Lists of a gated search (first_pass, branches): TRACES keep what the gate did at each token of their 1-best."""
    synthetic: SpanishConfig | MandarinConfig | SyntheticConfig | None = None
    """Spoken by espeak-ng when no manifest is given; its dev part is used where a manifest brings no dev split."""
    normaliser: str = "whisper_english"
    """Text normaliser of every metric, one of `text.NORMALISERS`."""
    word_lists: WordLists = field(default_factory=WordLists)
    """Common words (never biased) and rare words, by files; without a rule for rare ones there is no R-WER."""
    shard_audio_s: float = 600.0
    """Seconds of audio per shard, the unit of work and resume; 7200 suits GPU clusters."""
    num_replicates: int = 10_000
    """Bootstrap replicates behind every interval."""
    seed: int = 7
    """Of the cut into shards and of the bootstrap."""
    executor: Literal["ray", "inline"] = "ray"
    """Where stages run: actor pools of Ray, or a plain loop in this process. Both give the same tables."""

    def lists(self) -> dict[str, Branch]:
        """Every N-best list by system, the first pass first.

        Raises:
            ValueError: two systems of one name, or a branch that is made of a list that does not stand before it.
        """
        main = Rescoring(scorers=self.scorers, weights=self.weights, fixed_weights=self.fixed_weights)
        own = {"lm_rescoring": main} if self.scorers else {}
        lists = {"first_pass": Branch(nbest=self.first_pass, rescorings={**own, **self.rescorings})}
        for system, branch in self.branches.items():
            missing = [name for name in branch.of if name not in lists]
            if missing or system in lists:
                problem = f"is made of {missing}" if missing else "stands twice"
                raise ValueError(f"branch '{system}' {problem}; the lists before it are {list(lists)}.")
            if not branch.of and (branch.shortlist is not None or branch.history is not None):
                raise ValueError(
                    f"branch '{system}' has a shortlist or a history and no list to make it of; set `of`, for example "
                    "('first_pass',)."
                )
            lists[system] = branch
        systems = [name for system, branch in lists.items() for name in (system, *branch.rescorings)]
        twice = sorted({name for name in systems if systems.count(name) > 1})
        if twice:
            raise ValueError(f"systems {twice} stand more than once; give each row of the results its own name.")
        return lists

    def tunes(self) -> bool:
        """Whether weights are fitted, which needs dev utterances."""
        rescorings = [rescoring for branch in self.lists().values() for rescoring in branch.rescorings.values()]
        return any(rescoring.fixed_weights is None for rescoring in rescorings)
