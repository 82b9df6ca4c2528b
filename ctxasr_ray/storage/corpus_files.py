"""UTTERANCES in a run folder: shards as committed files, and numbered manifests that say which ones are current."""

import json
import re
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.storage.identity import column_digests, digest
from ctxasr_ray.storage.shards import Shard, cut
from ctxasr_ray.storage.table_files import TableFiles

CORPUS_FOLDER: Final = f"utterances/corpus-{digest(['utterances', schema.SCHEMA_VERSION])[:16]}"


class CorpusFiles(TableFiles):
    """What `Store` knows of corpora."""

    def add_corpus(self, utterances: pa.Table, *, shard_audio_s: float, seed: int) -> list[Shard]:
        """Cuts UTTERANCES into shards (see `shards.cut`) and commits them.

        Adding the same table again changes nothing. A table with mended references commits new files under the same
        shard names, which `shards` then returns; the stages that do not read references find their work done.

        Args:
            utterances: All utterances of one or more corpora and splits.
            shard_audio_s: Seconds of audio per shard.
            seed: Of the draw.

        Returns:
            All shards, by corpus, split and number.

        Raises:
            ValueError, ContractError: see `shards.cut`.
            StoreError: the folder cannot be written.
        """
        cuts = cut(utterances, shard_audio_s=shard_audio_s, seed=seed)
        self.prepare()
        added = []
        for (corpus, split), pieces in cuts.items():
            shards = []
            for number, (table, audio_s) in enumerate(pieces):
                name = f"{corpus}-{split}-{number:05d}"
                identity = digest([column_digests(table), table.num_rows])
                key = f"{CORPUS_FOLDER}/{name}-{identity[:16]}.parquet"
                self.commit(key, table, "utterances", identity, {"failures": 0})
                shards.append(Shard(name, corpus, split, table.num_rows, audio_s, f"{self.root}/{key}"))
            self._publish_manifest(corpus, split, shards)
            added += shards
        return added

    def shards(self, corpus: str, split: str | None = None) -> list[Shard]:
        """The shards of a corpus as last added, by split and number; empty if it was never added."""
        found = []
        for each in (split,) if split else sorted(schema.SPLITS):
            numbers = self._manifests(corpus, each)
            if numbers:
                rows = json.loads(self.folder.read(_manifest_key(corpus, each, numbers[-1])))
                found += [Shard(**{**row, "uri": f"{self.root}/{row['uri']}"}) for row in rows]
        return found

    def _manifests(self, corpus: str, split: str) -> list[int]:
        pattern = re.compile(re.escape(f"{corpus}-{split}.") + r"(\d+)\.json")
        return sorted(int(m[1]) for m in map(pattern.fullmatch, self.folder.names("utterances/manifests")) if m)

    def _publish_manifest(self, corpus: str, split: str, shards: Sequence[Shard]) -> None:
        rows = [{**shard.to_dict(), "uri": self.key_of(shard)} for shard in shards]
        data = json.dumps(rows, indent=1).encode()
        numbers = self._manifests(corpus, split)
        if numbers and self.folder.read(_manifest_key(corpus, split, numbers[-1])) == data:
            return
        number = numbers[-1] + 1 if numbers else 1
        while not self.folder.create(_manifest_key(corpus, split, number), data):
            number += 1

    def key_of(self, shard: Shard) -> str:
        """The key of a shard's UTTERANCES file.

        Raises:
            ValueError: the shard belongs to another run folder.
        """
        if not shard.uri.startswith(f"{self.root}/"):
            raise ValueError(f"shard {shard.name} lies in '{shard.uri}', not in this run folder '{self.root}'.")
        return shard.uri.removeprefix(f"{self.root}/")


def _manifest_key(corpus: str, split: str, number: int) -> str:
    return f"utterances/manifests/{corpus}-{split}.{number}.json"
