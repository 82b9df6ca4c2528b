"""A whole run as one frozen value: what a recipe returns and the command line overrides field by field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Resources, Stage


def asset(name: str) -> str:
    """Path of a model directory that ships with the package: ctc, lm or attention."""
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
class Experiment:
    """One evaluation: a recogniser, the language models that rescore its N-best, and how numbers are made."""

    first_pass: CtcConfig | AttentionConfig | PocketSphinxConfig | ImportedConfig
    """The recogniser and its search."""
    scorers: tuple[CausalLmConfig, ...] = ()
    """Language models that score every hypothesis; all of them enter the fusion."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """How fusion weights are found on dev; unused without scorers."""
    fixed_weights: Mapping[str, float] | None = None
    """Fusion weights by source (and length_bonus) instead of a fit on dev."""
    synthetic: SyntheticConfig | None = None
    """Spoken by espeak-ng when no manifest is given; its dev part is used where a manifest brings no dev split."""
    normaliser: str = "whisper_english"
    """Text normaliser of every metric, one of `text.NORMALISERS`."""
    shard_audio_s: float = 600.0
    """Seconds of audio per shard, the unit of work and resume; 7200 suits GPU clusters."""
    num_replicates: int = 10_000
    """Bootstrap replicates behind every interval."""
    seed: int = 7
    """Of the cut into shards and of the bootstrap."""
    executor: Literal["ray", "inline"] = "ray"
    """Where stages run: actor pools of Ray, or a plain loop in this process. Both give the same tables."""
