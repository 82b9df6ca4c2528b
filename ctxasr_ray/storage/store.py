"""The run folder: committed tables, found by what they were made from, written once, whole, and never overwritten.

`root/<table>/<stage name>-<16 hex>/<shard name>-<16 hex>.parquet`: the first hex is the stage hash, the second the
identity, the digest of the columns that the stage reads of that shard. So a folder is its own cache: what changed has
another name, and what did not is there already. Digests and the receipt travel in the Parquet footer.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.stage import GATHERED, Step
from ctxasr_ray.storage.corpus_files import CORPUS_FOLDER, CorpusFiles
from ctxasr_ray.storage.identity import digest, stage_hash
from ctxasr_ray.storage.object_store import StoreError
from ctxasr_ray.storage.shards import Shard
from ctxasr_ray.storage.table_files import Committed, Footer

__all__ = ["Committed", "Footer", "Shard", "Store", "StoreError", "stage_hash"]


class Store(CorpusFiles):
    """A run folder, local or on S3. Cheap to make, and to send to a worker by its root."""

    def __init__(self, root: str | os.PathLike[str], *, stage_hashes: Mapping[str, str] | None = None) -> None:
        """Opens a run folder without touching it.

        Args:
            root: A path, or s3://bucket/prefix; need not exist yet.
            stage_hashes: Step name -> stage hash as computed by a driver; saves a worker from digesting model files.

        Raises:
            ValueError: the folder was written in another format or schema version.
        """
        super().__init__(root)
        self.gathered: dict[str, str] = {}
        """Stage hash -> key of the artefact that stages with a FITS parent read; see `resolve`."""
        self._known_hashes = dict(stage_hashes or {})
        self._hashes: dict[int, tuple[Step, str]] = {}
        self._found: dict[tuple[str, str], str] = {}

    def forget_listings(self) -> None:
        """See `TableFiles`; tables that were found are looked for again."""
        super().forget_listings()
        self._found = {}

    def forget(self) -> None:
        """Ends `snapshot` and forgets gathered artefacts."""
        self.forget_listings()
        self.gathered = {}

    # -- identity and place

    def stage_hash(self, step: Step) -> str:
        """See `identity.stage_hash`; computed once per step."""
        if step.name in self._known_hashes:
            return self._known_hashes[step.name]
        kept = self._hashes.get(id(step))
        if kept is None:
            kept = self._hashes[id(step)] = (step, stage_hash(step, self.stage_hash))
        return kept[1]

    def table_folder(self, step: Step) -> str:
        """`<table>/<stage name>-<16 hex>`."""
        if step.config.WRITES == "utterances":
            return CORPUS_FOLDER
        return f"{step.config.WRITES}/{step.config.NAME}-{self.stage_hash(step)[:16]}"

    def inputs(self, step: Step, shard: Shard) -> list[str] | None:
        """Keys of the committed files that a per-shard step reads for a shard; None while one is pending."""
        keys = [self.locate(parent, shard) for parent in step.inputs]
        return None if None in keys else [key for key in keys if key is not None]

    def base(self, step: Step, shard: Shard) -> tuple[str, str] | None:
        """The name that a step's table of a shard has or will have, without attempt and ending, and its identity.

        Returns:
            None while a parent is pending: a child knows its identity only when its parents are committed.
        """
        keys = self.inputs(step, shard)
        if keys is None:
            return None
        identity = self._identity(step, [[key] for key in keys])
        return f"{self.table_folder(step)}/{shard.name}-{identity[:16]}", identity

    def locate(self, step: Step, shard: Shard) -> str | None:
        """Key of the highest committed attempt of a step's table of a shard; None while there is none."""
        if step.config.WRITES == "utterances":
            return self.key_of(shard)
        if step.config.WRITES in GATHERED:
            return self.gathered.get(self.stage_hash(step))
        known = self._found.get((self.stage_hash(step), shard.uri))
        if known is not None:
            return known
        base = self.base(step, shard)
        key = None if base is None else self.highest(base[0])
        if key is not None and self._listings is not None:
            self._found[self.stage_hash(step), shard.uri] = key
        return key

    def gathered_inputs(self, step: Step, shards: Sequence[Shard]) -> list[list[str]] | None:
        """Per input of a gathered step the keys of the files that it reads, shards sorted by name.

        Raises:
            ValueError: a fit would read a test row.
        """
        splits = splits_of(step)
        chosen = sorted((shard for shard in shards if shard.split in splits), key=lambda shard: shard.name)
        if step.config.WRITES == "fits" and any(shard.split == "test" for shard in chosen):
            raise ValueError(
                f"step '{step.name}' fits values on splits {', '.join(splits)}: a fit that reads a test row is "
                "refused, because the test split is for reporting only. Fit on dev."
            )
        if step.inputs and not chosen:
            raise ValueError(
                f"step '{step.name}' reads splits {', '.join(splits)}, but the run has only "
                f"{', '.join(sorted({shard.split for shard in shards}))}. Add a corpus with such a split, "
                "or leave out the step."
            )
        found = []
        for parent in step.inputs:
            keys = [self.locate(parent, shard) for shard in (chosen[:1] if _is_gathered(parent) else chosen)]
            if None in keys:
                return None
            found.append([key for key in keys if key is not None])
        return found

    def gathered_base(self, step: Step, shards: Sequence[Shard]) -> tuple[str, str] | None:
        """As `base`, for a step with one artefact over all shards of its splits."""
        keys = self.gathered_inputs(step, shards)
        if keys is None:
            return None
        identity = self._identity(step, keys)
        return f"{self.table_folder(step)}/{'-'.join(splits_of(step)) or 'all'}-{identity[:16]}", identity

    def resolve(self, steps: Sequence[Step], shards: Sequence[Shard]) -> None:
        """Finds the gathered artefacts of a run, so that tables made with them can be read.

        Args:
            steps: Steps of the run; their ancestors are looked at too.
            shards: All shards of the run.
        """
        for step in steps:
            self.resolve(step.inputs, shards)
            if _is_gathered(step) and self.stage_hash(step) not in self.gathered:
                base = self.gathered_base(step, shards)
                key = None if base is None else self.highest(base[0])
                if key is not None:
                    self.gathered[self.stage_hash(step)] = key

    def _identity(self, step: Step, keys: Sequence[Sequence[str]]) -> str:
        read = []
        for parent, files in zip(step.inputs, keys, strict=True):
            columns = self.columns_read(step, parent)
            read.append([[self.footer(key).columns[column] for column in columns] for key in files])
        return digest([self.stage_hash(step), read])

    @staticmethod
    def columns_read(step: Step, parent: Step) -> tuple[str, ...]:
        """The columns of a parent's table that a step reads: `utterance_id` where there is one, and its `READS`.

        Raises:
            ValueError: the config does not say what it reads of that table, or names a column that it lacks.
        """
        table = parent.config.WRITES
        names = schema.TABLES[table].names
        wanted = step.config.READS.get(table)
        if wanted is None or not set(wanted) <= set(names):
            raise ValueError(
                f"step '{step.name}' ({step.config.NAME}) has '{parent.name}' as input, which writes {table}: "
                f"got READS {dict(step.config.READS)}; expected an entry for {table} with columns among {names}."
            )
        first = ("utterance_id",) if names[0] == "utterance_id" else ()
        return first + tuple(column for column in wanted if column not in first)

    def read(self, step: Step, shard: Shard) -> pa.Table:
        """The committed table of one shard.

        Raises:
            StoreError: it is not committed yet, or damaged.
        """
        return self.read_key(self._located(step, shard))

    def read_receipt(self, step: Step, shard: Shard) -> Mapping[str, Any]:
        """The receipt of one shard: rows, failures, seconds, counters, device, attempt, versions.

        Raises:
            StoreError: as `read`.
        """
        return self.footer(self._located(step, shard)).receipt

    def _located(self, step: Step, shard: Shard) -> str:
        key = self.locate(step, shard)
        if key is None:
            remedy = "run the evaluation first, and give this command the same options"
            if self.base(step, shard) is None:
                remedy += " (in Python: call `resolve` with all shards of the run, where a fit is among its ancestors)"
            raise StoreError(f"step '{step.name}', shard {shard.name}: not committed in {self.root}; {remedy}.")
        return key

    def gather(self, step: Step, shards: Sequence[Shard]) -> pa.Table:
        """The rows of many shards in the order given, or the one artefact of a gathered step.

        Args:
            step: A step of the run.
            shards: Shards to read. Where the step is gathered or has a fit among its ancestors, either these
                are all shards of the run, or `resolve` has been called with them.

        Raises:
            StoreError: as `read`.
        """
        self.resolve([step], shards)
        if _is_gathered(step):
            return self.read_key(self._artefact(step))
        tables = [self.read(step, shard) for shard in shards]
        return pa.concat_tables(tables).combine_chunks() if tables else schema.TABLES[step.config.WRITES].empty_table()

    def _artefact(self, step: Step) -> str:
        key = self.gathered.get(self.stage_hash(step))
        if key is None:
            raise StoreError(
                f"step '{step.name}': no artefact for these shards in {self.root}; run the evaluation first, and give "
                "this command the same options (in Python: call `resolve` with all shards of the run)."
            )
        return key

    def costs(self, steps: Sequence[Step], shards: Sequence[Shard]) -> list[dict[str, Any]]:
        """One row per committed step and shard: its receipt, and what it is a receipt of."""
        self.resolve(steps, shards)
        rows: list[dict[str, Any]] = []
        for step in steps:
            if step.config.WRITES == "utterances":
                continue
            about = {"step": step.name, "stage": step.config.NAME, "table": step.config.WRITES}
            if _is_gathered(step):
                key = self.gathered.get(self.stage_hash(step))
                if key is not None:
                    rows.append(
                        {
                            **about,
                            "shard": None,
                            "corpus": None,
                            "split": None,
                            "audio_s": 0.0,
                            **self.footer(key).receipt,
                        }
                    )
                continue
            for shard in shards:
                key = self.locate(step, shard)
                if key is not None:
                    place = {
                        "shard": shard.name,
                        "corpus": shard.corpus,
                        "split": shard.split,
                        "audio_s": shard.audio_s,
                    }
                    rows.append({**about, **place, **self.footer(key).receipt})
        return rows


def splits_of(step: Step) -> tuple[str, ...]:
    """The splits that a gathered step reads."""
    return tuple(step.config.splits)  # type: ignore[attr-defined]  # configs of gathered stages have it, others not


def _is_gathered(step: Step) -> bool:
    return step.config.WRITES in GATHERED
