"""N-best lists of a run as something to learn from: texts, their errors, the recogniser's scores, what was heard."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.fusion.scoring import features, source_names
from ctxasr_ray.models.speech_lm import MADE_BY, refuse_other_units
from ctxasr_ray.nbest import flatten, score_matrix
from ctxasr_ray.storage.table_files import TableFiles
from ctxasr_ray.training.sources import refuse_test


@dataclass(frozen=True, slots=True)
class ListExample:
    """One utterance with its list.

    Args:
        name: Its utterance_id.
        reference: Raw.
        texts: (H,) hypotheses, best first by the recogniser.
        scores: (H,) float64, the recogniser's own log_prob, end of sequence included; 0 for lists without scores.
        errors: (H,) word errors against the reference.
        num_words: (H,) normalised words, which a length bonus multiplies.
        reference_length: Normalised words of the reference.
        units: What was heard.
    """

    name: str
    reference: str
    texts: list[str]
    scores: npt.NDArray[np.float64]
    errors: npt.NDArray[np.int64]
    num_words: npt.NDArray[np.int64]
    reference_length: int
    units: npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedLists:
    """One split of the tables that an ordinary run has committed: HYPOTHESES, NBEST_ERRORS, UNITS and UTTERANCES."""

    root: str
    """Folder of the run, on this machine."""
    hypotheses: str
    """Which lists: the folder in `hypotheses/`, or the beginning of its name, such as "attention-"."""
    split: str = "train"
    num_hypotheses: int = 8
    """The first ones of each list that are learnt from."""

    def __post_init__(self) -> None:
        """Refuses test, and lists that are no choice."""
        refuse_test(self.split, self.root)
        if self.num_hypotheses < 2:
            raise ValueError(f"num_hypotheses is {self.num_hypotheses}; expected at least 2, or there is no choice.")

    def read(self) -> tuple[list[ListExample], dict[str, str]]:
        """Reads the split.

        Returns:
            The utterances whose lists can be learnt from, and for every other one why it is left out: an empty list,
            no reference, nothing heard, or hypotheses that all have the same number of errors (no gradient).

        Raises:
            ValueError: tables are missing, or there are several to choose from; names the folders.
            StoreError: a file is damaged.
        """
        utterances = self._table("utterances", "")
        hypotheses = self._table("hypotheses", self.hypotheses)
        units = {row["utterance_id"]: row for row in self._table("units", "").to_pylist()}
        counts = {row["utterance_id"]: row["counts"] for row in self._table("nbest_errors", "").to_pylist()}
        references = dict(zip(utterances["utterance_id"].to_pylist(), utterances["reference"].to_pylist(), strict=True))
        flat, own_H = flatten(hypotheses), _own_scores(hypotheses)
        kept: list[ListExample] = []
        left_out: dict[str, str] = {}
        for name, (start, stop) in zip(flat.utterance_ids, flat.bounds(), strict=True):
            size = min(stop - start, self.num_hypotheses)
            place = slice(start, start + size)
            words = next(c for c in counts[name] if (c["unit"], c["word_class"]) == ("word", "all"))
            reason = _unusable(size, words, units[name])
            if reason is not None:
                left_out[name] = reason
                continue
            kept.append(
                ListExample(
                    name=name,
                    reference=references[name],
                    texts=flat.texts[place],
                    scores=own_H[place],
                    errors=np.asarray(words["errors"][:size]),
                    num_words=np.asarray(words["num_units"][:size]),
                    reference_length=words["reference_length"],
                    units=np.asarray(units[name]["units"], np.int32),
                )
            )
        return kept, left_out

    def refuse_other_units(self, model: str) -> None:
        """Refuses units of another quantiser than the one beside a speech-text LM, as their receipts name it.

        Raises:
            ValueError: names both, or a table whose receipt names none.
        """
        files = TableFiles(self.root)
        for key in self._keys("units", ""):
            named = files.footer(key).receipt["named"].get(MADE_BY)
            if named is None:
                raise ValueError(
                    f"run folder {self.root}: the receipt of {key} does not say which quantiser made its units, so "
                    "they may mean other sounds to the model; run the evaluation again, into a new folder."
                )
            (digest,) = named["examples"]
            refuse_other_units(model, digest, f"the quantiser of run folder {self.root}")

    def _table(self, table: str, folder: str) -> pa.Table:
        """All shards of the split."""
        files = TableFiles(self.root)
        whole = pa.concat_tables([files.read_key(key) for key in self._keys(table, folder)])
        return schema.conform(whole, table)  # refuses an utterance that stands in two shards

    def _keys(self, table: str, folder: str) -> list[str]:
        """The files of all shards of the split, each at its highest attempt."""
        root = Path(self.root)
        folders = sorted(path for path in (root / table).glob(f"{folder}*") if path.name != "manifests")
        if len(folders) != 1:
            found = [str(f.relative_to(root)) for f in folders] or "none"
            raise ValueError(
                f"run folder {root}: expected one folder of {table} named '{folder}*', got {found}; "
                "run the evaluation whose lists are learnt from first, into a folder of its own."
            )
        files = TableFiles(root)
        shards = sorted({path.name.split(".")[0] for path in folders[0].glob(f"*-{self.split}-*.parquet")})
        if not shards:
            raise ValueError(f"run folder {root}: {folders[0]} has no shard of split '{self.split}'.")
        keys = [files.highest(f"{folders[0].relative_to(root).as_posix()}/{shard}") for shard in shards]
        return [key for key in keys if key is not None]


def _own_scores(hypotheses: pa.Table) -> npt.NDArray[np.float64]:
    matrix = score_matrix(hypotheses)
    first = source_names(matrix)[:1]
    return features(matrix, first).values[:, 0] if first else np.zeros(len(matrix.values))


def _unusable(size: int, words: Mapping[str, Any], heard: Mapping[str, Any]) -> str | None:
    """Why nothing can be learnt from an utterance whose first `size` hypotheses are looked at; None where it can."""
    if size == 0:
        return "its list is empty"
    if words["errors"] is None:
        return "it has no reference"
    if heard["error_type"] is not None:
        return f"nothing was heard: {heard['error']}"
    if len(set(words["errors"][:size])) == 1:
        return "its hypotheses all have the same number of errors"
    return None
