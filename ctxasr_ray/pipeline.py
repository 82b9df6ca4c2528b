"""The main flow: recordings -> N-best -> scores -> fused transcripts -> errors -> results -> report.

Read this first, then one scorer and one fusion. A run is a line of steps; executors only differ in where they run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from ctxasr_ray.execution.inline import OnProgress, RunSummary, run_inline
from ctxasr_ray.experiment import CorpusConfig, Experiment
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.real_time_factor import real_time_factors
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.stage import Step
from ctxasr_ray.storage.store import Shard, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The steps of a run, by what they are for."""

    corpus: Step
    first_pass: Step
    scores: tuple[Step, ...]
    fit: Step | None
    transcripts: dict[str, Step]
    """System -> the step that writes its TRANSCRIPTS; the oracle has none."""
    errors: dict[str, Step]
    """System -> the step that writes its ERRORS, in the order of the results."""
    results: Step
    steps: tuple[Step, ...]
    """All of them, parents first."""


def line(experiment: Experiment) -> Line:
    """Lays out the steps of an experiment; nothing is read or run.

    Raises:
        ValueError: a field of the experiment is refused.
    """
    corpus = Step(name="utterances", config=CorpusConfig())
    first_pass = Step(name="first_pass", config=experiment.first_pass, inputs=(corpus,))
    nbest_errors = Step(
        name="nbest_errors", config=NbestErrorsConfig(normaliser=experiment.normaliser), inputs=(first_pass, corpus)
    )
    scores = tuple(
        Step(name=f"scores_{scorer.source}", config=scorer, inputs=(first_pass,)) for scorer in experiment.scorers
    )
    transcripts = {
        "first_pass": Step(
            name="transcripts_first_pass",
            config=LogLinearConfig(normaliser=experiment.normaliser),
            inputs=(first_pass,),
        )
    }
    fit = None
    if scores:
        fusion = LogLinearConfig(normaliser=experiment.normaliser, weights=experiment.fixed_weights)
        inputs = (first_pass, *scores)
        if experiment.fixed_weights is None:
            weights = replace(experiment.weights, normaliser=experiment.normaliser)
            fit = Step(name="weights", config=weights, inputs=(first_pass, *scores, nbest_errors, corpus))
            inputs = (*inputs, fit)
        transcripts["lm_rescoring"] = Step(name="transcripts_lm_rescoring", config=fusion, inputs=inputs)
    counts = ErrorCountsConfig(normaliser=experiment.normaliser)
    errors = {
        system: Step(name=f"errors_{system}", config=counts, inputs=(corpus, step))
        for system, step in transcripts.items()
    }
    errors["oracle"] = Step(name="errors_oracle", config=OracleConfig(), inputs=(nbest_errors,))
    summary = SummaryConfig(
        systems=tuple(errors),
        systems_with_transcripts=tuple(transcripts),
        systems_with_fits=("lm_rescoring",) if fit else (),
        num_replicates=experiment.num_replicates,
        seed=experiment.seed,
    )
    fits = (fit,) if fit else ()
    results = Step(name="results", config=summary, inputs=(corpus, *errors.values(), *transcripts.values(), *fits))
    return Line(
        corpus=corpus,
        first_pass=first_pass,
        scores=scores,
        fit=fit,
        transcripts=transcripts,
        errors=errors,
        results=results,
        steps=(corpus, first_pass, *scores, nbest_errors, *fits, *transcripts.values(), *errors.values(), results),
    )


def needs_dev(experiment: Experiment, utterances: pa.Table) -> bool:
    """Whether weights must be fitted and no utterance is dev."""
    fits = bool(experiment.scorers) and experiment.fixed_weights is None
    return fits and "dev" not in set(utterances["split"].to_pylist())


def add_corpus(experiment: Experiment, store: Store, utterances: pa.Table) -> list[Shard]:
    """Cuts a manifest into shards and commits them.

    Raises:
        ValueError: no rows, the experiment must fit weights and no row is dev, or imported lists are of utterances
            that the manifest does not have.
    """
    if isinstance(experiment.first_pass, ImportedConfig):
        experiment.first_pass.refuse_other_corpus(utterances["utterance_id"].to_pylist())
    if utterances.num_rows == 0:
        raise ValueError("the manifest has no utterances; nothing can be evaluated.")
    if needs_dev(experiment, utterances):
        raise ValueError(
            "fusion weights are fitted on dev, and no utterance has split 'dev'. Add dev utterances to the manifest "
            '("split": "dev"), or give the weights: --fixed-weights causal_lm 0.4 length_bonus 0.5'
        )
    return store.add_corpus(utterances, shard_audio_s=experiment.shard_audio_s, seed=experiment.seed)


def run(
    experiment: Experiment,
    store: Store,
    shards: Sequence[Shard],
    *,
    on_progress: OnProgress | None = None,
    retry_errors: bool = False,
    address: str | None = None,
) -> RunSummary:
    """Brings every table of an experiment to its committed state; what is committed already is not done again.

    Args:
        experiment: What to run.
        store: The run folder, with the corpus added.
        shards: Shards of the corpus.
        on_progress: Called after each piece of work.
        retry_errors: Redo rows that carry an error, as a new attempt.
        address: Of a Ray cluster; None joins a running one or starts one here.

    Raises:
        ValueError, ContractError, RunError, StoreError: see `execution.inline.run_inline`.
    """
    steps = line(experiment).steps
    if experiment.executor == "inline":
        return run_inline(store, steps, shards, on_progress=on_progress, retry_errors=retry_errors)
    from ctxasr_ray.distributed.pools import run_ray

    return run_ray(store, steps, shards, on_progress=on_progress, retry_errors=retry_errors, address=address)


def results(experiment: Experiment, store: Store, shards: Sequence[Shard]) -> pa.Table:
    """RESULTS of a finished run, with each system's real-time factor (the only measured time) from its receipts."""
    laid = line(experiment)
    table = store.gather(laid.results, shards)
    by_system: dict[str, tuple[Step, ...]] = {"first_pass": (laid.first_pass,)}
    if laid.scores:
        by_system["lm_rescoring"] = (laid.first_pass, *laid.scores, laid.transcripts["lm_rescoring"])
    costs = {system: store.costs(steps, shards) for system, steps in by_system.items()}
    return pa.concat_tables([table, real_time_factors(table, costs)])


def report(experiment: Experiment, store: Store, shards: Sequence[Shard], directory: Path, title: str) -> Path:
    """Writes the report folder of a finished run and returns the path of its page."""
    from ctxasr_ray.report.page import write_report

    laid = line(experiment)
    return write_report(
        directory,
        title=title,
        results=results(experiment, store, shards),
        utterances=store.gather(laid.corpus, shards),
        transcripts={system: store.gather(step, shards) for system, step in laid.transcripts.items()},
        hypotheses=store.gather(laid.first_pass, shards),
        costs=store.costs(laid.steps, shards),
        fits=store.gather(laid.fit, shards) if laid.fit else None,
        provenance=json.loads(store.folder.read("provenance.json")),
    )
