"""The main flow: recordings -> N-best -> scores -> fused transcripts -> errors -> results -> report.

Read this first, then one scorer and one fusion. A run is a line of steps; executors only differ in where they run.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ctxasr_ray.execution.inline import OnProgress, RunSummary, run_inline
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.layout import line
from ctxasr_ray.metrics.joined_windows import join_windows
from ctxasr_ray.metrics.real_time_factor import real_time_factors
from ctxasr_ray.storage.store import Shard, Store


def needs_dev(experiment: Experiment, utterances: pa.Table) -> bool:
    """Whether weights must be fitted and no utterance is dev."""
    return experiment.tunes() and "dev" not in set(utterances["split"].to_pylist())


def add_corpus(experiment: Experiment, store: Store, utterances: pa.Table) -> list[Shard]:
    """Cuts a manifest into shards and commits them.

    Raises:
        ValueError: no rows, the experiment must fit weights and no row is dev, or imported lists are of utterances
            that the manifest does not have.
    """
    for branch in experiment.lists().values():
        if isinstance(branch.nbest, ImportedConfig):
            branch.nbest.refuse_other_corpus(utterances["utterance_id"].to_pylist())
        if branch.context is not None:
            branch.context.refuse_other_corpus(utterances["utterance_id"].to_pylist())
    if experiment.context is not None:
        experiment.context.refuse_other_corpus(utterances["utterance_id"].to_pylist())
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
    system: str | None = None,
) -> RunSummary:
    """Brings every table of an experiment to its committed state; what is committed already is not done again.

    Args:
        experiment: What to run.
        store: The run folder, with the corpus added.
        shards: Shards of the corpus.
        on_progress: Called after each piece of work.
        retry_errors: Redo rows that carry an error, as a new attempt.
        address: Of a Ray cluster; None joins a running one or starts one here.
        system: Only its transcripts and what they are made of; None: everything.

    Raises:
        ValueError, ContractError, RunError, StoreError: see `execution.inline.run_inline`.
    """
    laid = line(experiment)
    steps = laid.steps if system is None else laid.until(system)
    if experiment.executor == "inline":
        return run_inline(store, steps, shards, on_progress=on_progress, retry_errors=retry_errors)
    from ctxasr_ray.distributed.pools import run_ray

    return run_ray(store, steps, shards, on_progress=on_progress, retry_errors=retry_errors, address=address)


def results(experiment: Experiment, store: Store, shards: Sequence[Shard]) -> pa.Table:
    """RESULTS of a finished run, with each system's real-time factor (the only measured time) from its receipts."""
    laid = line(experiment)
    table = pa.concat_tables([store.gather(step, shards) for step in laid.results])
    costs = {system: store.costs(laid.above(system), shards) for system in laid.transcripts}
    return pa.concat_tables([table, real_time_factors(table, costs)])


def report(
    experiment: Experiment, store: Store, shards: Sequence[Shard], results: pa.Table, directory: Path, title: str
) -> Path:
    """Writes the report folder of a finished run, whose `results` are given, and returns the path of its page."""
    from ctxasr_ray.report.landscapes import read_tuned
    from ctxasr_ray.report.odd_phrases import odd_phrases, unwritable_phrases
    from ctxasr_ray.report.page import write_report

    laid = line(experiment)
    utterances = store.gather(laid.corpus, shards)
    costs = store.costs(laid.steps, shards)
    return write_report(
        directory,
        title=title,
        results=results,
        utterances=utterances,
        transcripts={s: join_windows(utterances, store.gather(step, shards)) for s, step in laid.transcripts.items()},
        hypotheses=store.gather(laid.lists["first_pass"], shards),
        costs=costs,
        fits={system: store.gather(step, shards) for system, step in laid.fits.items()},
        provenance=json.loads(store.folder.read("provenance.json")),
        system_costs={system: store.costs(laid.above(system), shards) for system in laid.transcripts},
        tuned=read_tuned(store, laid.fits, shards),
        contexts={system: store.gather(step, shards) for system, step in laid.contexts.items()},
        findings=[*odd_phrases(step.config for step in laid.steps), *unwritable_phrases(costs)],
    )
