"""An experiment -> the steps of its run, parents first: who reads whose tables.

Every N-best list has a row for its best hypothesis and one for its oracle; every rescoring has a row of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.candidates.top import TopConfig
from ctxasr_ray.experiment import Branch, CorpusConfig, Experiment, Rescoring
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.stage import StageConfig, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The steps of a run, by what they are for."""

    corpus: Step
    lists: dict[str, Step]
    """System -> the step that writes its N-best lists, `first_pass` first."""
    fits: dict[str, Step]
    """System -> the step that fits its weights."""
    transcripts: dict[str, Step]
    """System -> the step that writes its TRANSCRIPTS; an oracle has none."""
    errors: dict[str, Step]
    """System -> the step that writes its ERRORS, in the order of the results."""
    results: Step
    steps: tuple[Step, ...]
    """All of them, parents first."""

    def nbest(self, system: str) -> Step:
        """The lists that a system chose its transcripts from."""
        return self.transcripts[system].inputs[0]

    def above(self, system: str) -> list[Step]:
        """Every step that a system's transcripts need when they are made for somebody, fits and errors apart."""
        needed: dict[str, Step] = {}
        waiting = [self.transcripts[system]]
        while waiting:
            step = waiting.pop()
            if step.config.WRITES in _SERVING and step.name not in needed:
                needed[step.name] = step
                waiting += step.inputs
        return list(needed.values())


Config = TypeVar("Config", bound=StageConfig)
_SERVING: Final = ("context", "hypotheses", "scores", "transcripts")
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
    summary = SummaryConfig(
        systems=tuple(laid.errors),
        systems_with_transcripts=tuple(laid.transcripts),
        systems_with_fits=tuple(laid.fits),
        num_replicates=experiment.num_replicates,
        seed=experiment.seed,
    )
    counted = (*laid.errors.values(), *laid.transcripts.values(), *laid.fits.values())
    results = Step(name="results", config=summary, inputs=(corpus, *counted))
    return Line(
        corpus=corpus,
        lists=laid.lists,
        fits=laid.fits,
        transcripts=laid.transcripts,
        errors=laid.errors,
        results=results,
        steps=(corpus, *laid.steps, results),
    )


class _Layout:
    """Steps in the order in which they are laid, parents first; a scorer that two systems share is one step."""

    def __init__(self, experiment: Experiment, corpus: Step) -> None:
        self._experiment, self._corpus = experiment, corpus
        self.steps: list[Step] = []
        self.lists: dict[str, Step] = {}
        self.fits: dict[str, Step] = {}
        self.transcripts: dict[str, Step] = {}
        self.errors: dict[str, Step] = {}

    def add_list(self, system: str, branch: Branch) -> None:
        """One N-best list: its 1-best, its oracle, its rescorings."""
        parents = tuple(self.lists[name] for name in branch.of)
        self.lists[system] = self._fed(system, branch.nbest, parents, branch.context, branch.shortlist)
        self._add_system(system, (self.lists[system],), None)
        oracle = "oracle" if system == "first_pass" else f"oracle/{system.removeprefix('first_pass/')}"
        self.errors[oracle] = self._step(f"errors_{oracle}", OracleConfig(), (self._nbest_errors(self.lists[system]),))
        for name, rescoring in branch.rescorings.items():
            self._add_rescoring(name, rescoring, self.lists[system])

    def _add_rescoring(self, system: str, rescoring: Rescoring, hypotheses: Step) -> None:
        if rescoring.num_hypotheses is not None:
            top = TopConfig(num_hypotheses=rescoring.num_hypotheses)
            hypotheses = self._step(f"{hypotheses.name}_top_{rescoring.num_hypotheses}", top, (hypotheses,))
        scores = [
            self._fed(f"scores_{scorer.source}{_of(hypotheses)}", scorer, (hypotheses,)) for scorer in rescoring.scorers
        ]
        inputs = (hypotheses, *scores)
        if rescoring.fixed_weights is None:
            weights = replace(rescoring.weights, normaliser=self._experiment.normaliser, fit_name=system)
            parents = (*inputs, self._nbest_errors(hypotheses), self._corpus)
            self.fits[system] = self._step(f"weights_{system}", weights, parents)
            inputs = (*inputs, self.fits[system])
        self._add_system(system, inputs, rescoring.fixed_weights)

    def _add_system(self, system: str, inputs: tuple[Step, ...], weights: Mapping[str, float] | None) -> None:
        normaliser = self._experiment.normaliser
        fusion = LogLinearConfig(normaliser=normaliser, weights=weights, fit_name=system)
        self.transcripts[system] = self._step(f"transcripts_{system}", fusion, inputs)
        counts = ErrorCountsConfig(normaliser=normaliser)
        self.errors[system] = self._step(f"errors_{system}", counts, (self._corpus, self.transcripts[system]))

    def _fed(
        self,
        name: str,
        config: StageConfig,
        lists: tuple[Step, ...],
        context: ContextConfig | None = None,
        shortlist: ShortlistConfig | None = None,
    ) -> Step:
        """A step whose inputs are what its config reads, in that order: the corpus, N-best lists, context."""
        inputs: list[Step] = []
        for table in config.READS:
            if table == "utterances":
                inputs.append(self._corpus)
            elif table == "hypotheses":
                inputs += lists
            else:
                known = self._context(context)
                inputs.append(known if shortlist is None else self._shortlist(shortlist, lists[0], known))
        return self._step(name, self._with_catalogue(config), tuple(inputs))

    def _shortlist(self, config: ShortlistConfig, hypotheses: Step, context: Step) -> Step:
        name = f"shortlist_{context.name}{_of(hypotheses)}"
        return self._step(name, self._with_catalogue(config), (hypotheses, context))

    def _context(self, context: ContextConfig | None) -> Step:
        config = self._with_catalogue(context or self._experiment.context or ContextConfig())
        size = "all" if config.num_distractors is None else config.num_distractors
        return self._step(f"context_{size}", config, (self._corpus,))

    def _with_catalogue(self, config: Config) -> Config:
        """The config with the experiment's catalogue where it takes one and names none."""
        if self._experiment.catalogue is None or getattr(config, "catalogue", "") is not None:
            return config
        return replace(config, catalogue=self._experiment.catalogue)  # type: ignore[type-var]  # a frozen dataclass

    def _nbest_errors(self, hypotheses: Step) -> Step:
        counts = NbestErrorsConfig(normaliser=self._experiment.normaliser)
        return self._step(f"nbest_errors{_of(hypotheses)}", counts, (hypotheses, self._corpus))

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
