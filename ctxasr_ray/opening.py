"""A run folder, a manifest and an experiment -> the store with its shards: where every command on a run begins."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Experiment

if TYPE_CHECKING:
    from ctxasr_ray.storage.store import Shard, Store


def open_run(experiment: Experiment, root: str, manifest: str | Path | None) -> "tuple[Store, list[Shard]]":
    """The run folder and the shards of the manifest, or of the recipe's own corpus.

    Args:
        experiment: May bring a synthetic corpus, whose dev part stands in where the manifest has none.
        root: Run folder, also s3://bucket/folder.
        manifest: NeMo JSON lines, also a URL, or a folder; None for the recipe's own corpus.

    Raises:
        ValueError: there is no corpus, or a row of it is refused.
    """
    import pyarrow as pa

    from ctxasr_ray import pipeline
    from ctxasr_ray.corpora.manifest import read_corpus
    from ctxasr_ray.storage.store import Store

    tables = [] if manifest is None else [read_corpus(manifest)]
    spoken = experiment.synthetic
    if spoken is not None and not tables:
        tables = [read_corpus(_spoken(spoken))]
    elif spoken is not None and pipeline.needs_dev(experiment, tables[0]):
        tables.append(read_corpus(_spoken(replace(spoken, num_train=0, num_test=0))))
    if not tables:
        raise ValueError(
            "this recipe has no corpus of its own; name one: --manifest FILE (NeMo JSON lines or a folder)."
        )
    store = Store(root)
    return store, pipeline.add_corpus(experiment, store, pa.concat_tables(tables))


def _spoken(config: SyntheticConfig) -> Path:
    """The manifest of a synthetic corpus, made once per config under runs/corpora."""
    from ctxasr_ray.corpora import synthetic
    from ctxasr_ray.stage import identity
    from ctxasr_ray.storage.identity import digest

    return synthetic.prepare(config, Path("runs/corpora") / f"synthetic-{digest(identity(config))[:16]}")
