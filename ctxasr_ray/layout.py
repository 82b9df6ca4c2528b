"""An experiment -> the steps of its run, parents first: who reads whose tables.

Every N-best list has a row for its best hypothesis and one for its oracle; every rescoring has a row of its own.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

from ctxasr_ray import schema
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.candidates.top import TopConfig
from ctxasr_ray.experiment import Branch, CorpusConfig, Experiment, Rescoring
from ctxasr_ray.first_pass.gate_traces import traced
from ctxasr_ray.fusion.confidence import ConfidenceConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.fusion.objective import parse_objective
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.calibration_summary import CalibrationConfig
from ctxasr_ray.metrics.compositional_oracle import CompositionalOracleConfig
from ctxasr_ray.metrics.confident_errors import ConfidentErrorsConfig
from ctxasr_ray.metrics.edits import EditCountsConfig
from ctxasr_ray.metrics.error_rate import error_counts
from ctxasr_ray.metrics.keywords import KeywordCountsConfig
from ctxasr_ray.metrics.nbest_errors import KEYWORDS, NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.shortlist_recall import ShortlistRecallConfig
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.scorers.speech_lm import units_for
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.stage import StageConfig, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The steps of a run, by what they are for."""

    corpus: Step
    lists: dict[str, Step]
    """System -> the step that writes its N-best lists, `first_pass` first."""
    fits: dict[str, Step]
    """System -> the step that fits its weights."""
    contexts: dict[str, Step]
    """System -> the phrases that it knew beforehand."""
    transcripts: dict[str, Step]
    """System -> the step that writes its TRANSCRIPTS; an oracle has none."""
    results: tuple[Step, ...]
    """Steps that write RESULTS: rates of every system, and how far word confidence can be believed."""
    steps: tuple[Step, ...]
    """All of them, parents first."""

    def nbest(self, system: str) -> Step:
        """The lists that a system chose its transcripts from."""
        return self.transcripts[system].inputs[0]

    def above(self, system: str) -> list[Step]:
        """Every step that a system's transcripts need when they are made for somebody, fits and errors apart."""
        return list(self._needed(system, _SERVING).values())

    def until(self, system: str) -> tuple[Step, ...]:
        """Every step that a system's transcripts are made of, fits included, parents first."""
        needed = self._needed(system, schema.TABLES)
        return tuple(step for step in self.steps if step.name in needed)

    def _needed(self, system: str, tables: Container[str]) -> dict[str, Step]:
        """The steps below a system's transcripts by name, as far as they write some tables."""
        needed: dict[str, Step] = {}
        waiting = [self.transcripts[system]]
        while waiting:
            step = waiting.pop()
            if step.config.WRITES in tables and step.name not in needed:
                needed[step.name] = step
                waiting += step.inputs
        return needed


Config = TypeVar("Config", bound=StageConfig)
Classes: TypeAlias = tuple[tuple[str, str], ...]
"""(unit, word class) pairs that are counted in a list."""
_SERVING: Final = ("context", "hypotheses", "units", "scores", "transcripts")
"""Tables that are made again for every new recording; weights and errors are not."""


def line(experiment: Experiment) -> Line:
    """Lays out the steps of an experiment; nothing is read or run.

    Raises:
        ValueError: a field of the experiment is refused.
    """
    corpus = Step(name="utterances", config=CorpusConfig())
    laid = _Layout(experiment, corpus)
    for system, branch in experiment.lists().items():
        laid.add_list(system, branch)
    for system in experiment.traces:
        laid.add_traces(system)
    summary = SummaryConfig(
        systems=tuple(system for system, _ in laid.errors),
        systems_with_transcripts=tuple(laid.transcripts),
        systems_with_fits=tuple(laid.fits),
        gaps=laid.gaps,
        word_lists=experiment.word_lists,
        num_replicates=experiment.num_replicates,
        seed=experiment.seed,
    )
    said = tuple(laid.transcripts.values())
    counted = (*(step for _, step in laid.errors), *said, *laid.fits.values())
    confidence = CalibrationConfig(
        systems=tuple(laid.transcripts),
        normaliser=experiment.normaliser,
        num_replicates=experiment.num_replicates,
        seed=experiment.seed,
    )
    results = (
        Step(name="results", config=summary, inputs=(corpus, *counted)),
        Step(name="calibration", config=confidence, inputs=(corpus, *said)),
    )
    return Line(
        corpus=corpus,
        lists=laid.lists,
        fits=laid.fits,
        contexts=laid.contexts,
        transcripts=laid.transcripts,
        results=results,
        steps=(corpus, *laid.steps, *results),
    )


class _Layout:
    """Steps in the order in which they are laid, parents first; a scorer that two systems share is one step."""

    def __init__(self, experiment: Experiment, corpus: Step) -> None:
        self._experiment, self._corpus = experiment, corpus
        self._normaliser, self._word_lists = experiment.normaliser, experiment.word_lists
        self._fits_confidence = experiment.tunes()
        self.steps: list[Step] = []
        self.lists: dict[str, Step] = {}
        self.fits: dict[str, Step] = {}
        self.contexts: dict[str, Step] = {}
        self.transcripts: dict[str, Step] = {}
        self.errors: list[tuple[str, Step]] = []
        self.gaps: dict[str, tuple[str, str]] = {}

    def add_list(self, system: str, branch: Branch) -> None:
        """One N-best list: its 1-best, its oracles, its rescorings."""
        hypotheses = self._fed(system, branch.nbest, tuple(self.lists[name] for name in branch.of), branch=branch)
        self.lists[system] = hypotheses
        for step in hypotheses.inputs:
            if step.config.WRITES == "context":
                self.contexts[system] = step
            if isinstance(step.config, ShortlistConfig):
                recall = ShortlistRecallConfig(normaliser=self._normaliser)
                self.errors.append((system, self._step(f"recall_{step.name}", recall, (self._corpus, step))))
        confidence = self._confidence(system, hypotheses)
        self._add_system(system, (hypotheses,), None, confidence)
        judged = (self.transcripts["first_pass"], self.transcripts[system])
        unsure = ConfidentErrorsConfig(normaliser=self._normaliser)
        step = self._step(f"confident_errors_{system}", unsure, (self._corpus, *judged, hypotheses))
        self.errors.append((system, step))
        of = "" if system == "first_pass" else f"/{system.removeprefix('first_pass/')}"
        classes = _classes(branch)
        counts = self._nbest_errors(hypotheses, classes)
        self.errors.append((f"oracle{of}", self._step(f"errors_oracle{of}", OracleConfig(), (counts,))))
        best_path = CompositionalOracleConfig(normaliser=self._normaliser)
        step = self._step(f"errors_compositional_oracle{of}", best_path, (hypotheses, self._corpus))
        self.errors.append((f"oracle{of}/compositional", step))
        for name, rescoring in branch.rescorings.items():
            self._add_rescoring(name, rescoring, hypotheses, confidence, classes)
            if rescoring.num_hypotheses is None:
                self.gaps[name] = (system, f"oracle{of}")

    def add_traces(self, system: str) -> None:
        """What the gate did at each token of a list's 1-best."""
        if system not in self.lists:
            raise ValueError(f"traces: there is no list '{system}'; the lists are {', '.join(self.lists)}.")
        hypotheses = self.lists[system]
        self._step(f"traces_{system}", traced(system, hypotheses.config), (self._corpus, hypotheses))

    def _confidence(self, system: str, hypotheses: Step) -> tuple[Step, ...]:
        """The fit of a list's word confidence, from its 1-best on dev; none where nothing is fitted."""
        if not self._fits_confidence:
            return ()
        plain = LogLinearConfig(normaliser=self._normaliser)
        said = self._step(f"transcripts_uncalibrated_{system}", plain, (hypotheses,))
        fit = ConfidenceConfig(normaliser=self._normaliser)
        return (self._step(f"confidence_{system}", fit, (self._corpus, said)),)

    def _add_rescoring(
        self, system: str, rescoring: Rescoring, hypotheses: Step, confidence: tuple[Step, ...], classes: Classes
    ) -> None:
        if rescoring.num_hypotheses is not None:
            top = TopConfig(num_hypotheses=rescoring.num_hypotheses)
            hypotheses = self._step(f"{hypotheses.name}_top_{rescoring.num_hypotheses}", top, (hypotheses,))
        scores = [
            self._fed(f"scores_{scorer.source}{_of(hypotheses)}", scorer, (hypotheses,), units=rescoring.units)
            for scorer in rescoring.scorers
        ]
        inputs = (hypotheses, *scores)
        if rescoring.fixed_weights is None:
            weights = replace(rescoring.weights, normaliser=self._normaliser, fit_name=system)
            parents = (*inputs, self._nbest_errors(hypotheses, classes), self._corpus)
            self.fits[system] = self._step(f"weights_{system}", weights, parents)
            inputs = (*inputs, self.fits[system])
        self._add_system(system, inputs, rescoring.fixed_weights, confidence)

    def _add_system(
        self,
        system: str,
        inputs: tuple[Step, ...],
        weights: Mapping[str, float] | None,
        confidence: tuple[Step, ...],
    ) -> None:
        """A row of the results: the transcripts, and everything that is counted in them."""
        corpus, normaliser = self._corpus, self._normaliser
        fusion = LogLinearConfig(
            normaliser=normaliser,
            weights=weights,
            fit_name=system,
            temperature_fit="confidence" if confidence else None,
        )
        said = self._step(f"transcripts_{system}", fusion, (*inputs, *confidence))
        self.transcripts[system] = said
        counts = error_counts(normaliser, self._word_lists)
        keywords = self._with_catalogue(KeywordCountsConfig(normaliser=normaliser))
        steps = [
            self._step(f"errors_{system}", counts, (corpus, said)),
            self._step(f"keywords_{system}", keywords, (corpus, said, *self._known())),
        ]
        if system != "first_pass":
            edits = EditCountsConfig(normaliser=normaliser)
            steps.append(self._step(f"edits_{system}", edits, (corpus, self.transcripts["first_pass"], said)))
        self.errors += [(system, step) for step in steps]

    def _known(self) -> tuple[Step, ...]:
        """The phrases that keywords are counted against besides the true ones: the experiment's, where it has any."""
        knows_nothing = self._experiment.catalogue is None and self._experiment.context is None
        return () if knows_nothing else (self._context(None),)

    def _fed(
        self,
        name: str,
        config: StageConfig,
        lists: tuple[Step, ...],
        *,
        branch: Branch | None = None,
        units: SpeechUnitsConfig | None = None,
    ) -> Step:
        """A step whose inputs are what its config reads, in that order: the corpus, N-best lists, units, context."""
        inputs: list[Step] = []
        for table in config.READS:
            if table == "utterances":
                inputs.append(self._corpus)
            elif table == "hypotheses":
                inputs += lists
            elif table == "units":
                inputs.append(self._units(name, config, units))
            else:
                inputs.append(self._told(branch, lists))
        return self._step(name, self._with_catalogue(config), tuple(inputs))

    def _told(self, branch: Branch | None, lists: tuple[Step, ...]) -> Step:
        """What may be known beforehand: phrases, of a branch also cut to a shortlist, and what was said before."""
        if branch is None:
            return self._context(None)
        told = self._context(branch.context, may_be_empty=branch.history is not None)
        if branch.shortlist is not None:
            told = self._shortlist(branch.shortlist, lists[0], told)
        if branch.history is not None:
            told = self._step(f"history_{told.name}{_of(lists[0])}", branch.history, (self._corpus, lists[0], told))
        return told

    def _units(self, reader: str, hears: StageConfig, config: SpeechUnitsConfig | None) -> Step:
        """The units of the corpus, made once for every scorer that hears with this encoder and quantiser."""
        config = units_for(reader, hears, config)
        known = [step for step in self.steps if step.config.WRITES == "units"]
        same = [step for step in known if step.config == config]
        return same[0] if same else self._step(f"units_{len(known) + 1}", config, (self._corpus,))

    def _shortlist(self, config: ShortlistConfig, hypotheses: Step, context: Step) -> Step:
        inputs: tuple[Step, ...] = (hypotheses, context)
        if config.plausible is not None:
            heard = self._with_catalogue(config.plausible)
            inputs = (*inputs, self._step(f"plausible_{context.name}", heard, (self._corpus, context)))
        ways = "_".join(config.ways)
        return self._step(f"shortlist_{ways}_{context.name}{_of(hypotheses)}", self._with_catalogue(config), inputs)

    def _context(self, context: ContextConfig | None, *, may_be_empty: bool = False) -> Step:
        config = self._with_catalogue(context or self._experiment.context or ContextConfig())
        if not may_be_empty:
            config.refuse_nothing()
        size = "all" if config.num_distractors is None else config.num_distractors
        others = [c for c in (s.config for s in self.steps) if isinstance(c, ContextConfig) and c != config]
        same_size = sum(c.num_distractors == config.num_distractors for c in others)
        name = f"context_{size}_{same_size + 1}" if same_size else f"context_{size}"
        return self._step(name, config, (self._corpus,))

    def _with_catalogue(self, config: Config) -> Config:
        """The config with the experiment's catalogue where it takes one and names none."""
        if self._experiment.catalogue is None or getattr(config, "catalogue", "") is not None:
            return config
        named = {"catalogue": self._experiment.catalogue, "catalogue_format": self._experiment.catalogue_format}
        return replace(config, **named)  # type: ignore[type-var]  # a frozen dataclass

    def _nbest_errors(self, hypotheses: Step, classes: Classes) -> Step:
        config = NbestErrorsConfig(classes=classes, normaliser=self._normaliser, word_lists=self._word_lists)
        known = self._known() if KEYWORDS in classes else ()
        counts = self._with_catalogue(config)
        return self._step(f"nbest_errors{_of(hypotheses)}", counts, (hypotheses, self._corpus, *known))

    def _step(self, name: str, config: StageConfig, inputs: tuple[Step, ...]) -> Step:
        for step in self.steps:
            if step.config == config and step.inputs == inputs:
                return step
        if any(step.name == name for step in self.steps):
            raise ValueError(f"two different steps are named '{name}'; give the scorers of one list different sources.")
        self.steps.append(Step(name=name, config=config, inputs=inputs))
        return self.steps[-1]


def _of(hypotheses: Step) -> str:
    return "" if hypotheses.name == "first_pass" else f"_of_{hypotheses.name}"


def _classes(branch: Branch) -> Classes:
    """What is counted in a list: all words and characters, and what the fits over it minimise."""
    fitted = [rescoring.weights for rescoring in branch.rescorings.values() if rescoring.fixed_weights is None]
    terms = [term for weights in fitted for term in parse_objective(weights.objective, weights.normaliser)]
    return tuple(dict.fromkeys([("word", "all"), ("character", "all"), *((t.unit, t.word_class) for t in terms)]))
