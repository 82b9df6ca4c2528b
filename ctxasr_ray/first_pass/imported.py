"""UTTERANCES -> HYPOTHESES from somebody else's N-best lists, joined by utterance_id and never by line number.

What a number means (probability or not, base of its logarithm, end of sequence in it or not) is declared in the config;
nothing is guessed from the look of a file.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final

import pyarrow as pa

from ctxasr_ray.archive import AudioError, is_url, open_binary
from ctxasr_ray.corpora.lines import ManifestError, refuse_other_corpus
from ctxasr_ray.first_pass.nbest_formats import FORMATS
from ctxasr_ray.first_pass.nbest_lists import IdRule, Listed
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.stage import Costs, Resources

_NATS: Final[Mapping[str, float]] = {"e": 1.0, "10": math.log(10.0)}
"""Base of a logarithm -> nats per unit."""
_KINDS: Final = ("log_prob", "opaque", "search")
_BLOCK_BYTES: Final = 2**20
_CERTAIN: Final = 1e-6
"""How far above 0 a log-probability may lie by rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedConfig:
    """A first pass that was made elsewhere: reads N-best lists and keeps every row of them, repeats too.

    An utterance without a list keeps its row, with the reason, and counts as all deletions.
    """

    NAME: ClassVar[str] = "imported"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ()}
    WRITES: ClassVar[str] = "hypotheses"

    paths: tuple[str, ...] = field(metadata={"identity": False})
    """Files (also URLs) or folders in reach of every worker. Several are parts of one set of lists (dev and test), and
    in a format with one transcript per file also several systems, best first. Their digests are in the stage hash."""
    format: str
    """One of `nbest_formats.FORMATS`."""
    score_kinds: Mapping[str, str] = field(default_factory=dict)
    """What each number of the format is, for example {"score": "opaque"}: log_prob (a sum over tokens of logarithms
    of probabilities, neither weighted nor divided by a length), opaque (anything else that grows with quality), or
    search (a record that fusion never weights)."""
    log_base: str | None = None
    """Base of the logarithm of every log_prob: e or 10. Opaque numbers stay as they are."""
    eos: str | None = None
    """Whether log_prob numbers hold the end of the sequence: included or excluded. It cannot be taken apart again."""
    source: str = "imported"
    """Name of the score in `scores`; where a format has several, each is called SOURCE_FIELD."""
    ids_path: str | None = field(default=None, metadata={"identity": False})
    """For formats that name no utterance: file with the utterances in the order of the lists, a NeMo manifest or one
    id first in each line."""
    rows_per_utterance: int | None = None
    """For nemo_tsv: rows of each list."""
    resources: Resources = field(default_factory=Resources)
    """Actors of the pool; each holds all lists in memory."""

    def __post_init__(self) -> None:
        """Refuses numbers of unknown meaning."""
        if self.format not in FORMATS:
            raise ValueError(f"imported: format '{self.format}' is unknown; choose one of {', '.join(FORMATS)}.")
        if not self.paths:
            raise ValueError("imported: paths is empty; name the files or folders that hold the lists.")
        form = FORMATS[self.format]
        if set(self.score_kinds) != set(form.scores) or not set(self.score_kinds.values()) <= set(_KINDS):
            raise ValueError(
                f"imported: format {self.format} has the numbers {list(form.scores)}, score_kinds is "
                f"{dict(self.score_kinds)}. Say of each what it is: {', '.join(_KINDS)}; it is not guessed."
            )
        has_log_probs = "log_prob" in self.score_kinds.values()
        for name, value, allowed in (("log_base", self.log_base, _NATS), ("eos", self.eos, ("included", "excluded"))):
            if has_log_probs and value not in allowed:
                raise ValueError(
                    f"imported: {name} is {value!r}, but {self.format} has numbers declared log_prob. Say "
                    f"{' or '.join(allowed)}; where nobody knows, declare the numbers opaque."
                )
            if not has_log_probs and value is not None:
                raise ValueError(f"imported: {name} is {value!r}, but no number is declared log_prob; leave it out.")
        if self.ids_path is not None and (not form.ids_from_elsewhere or len(self.paths) > 1):
            raise ValueError(
                f"imported: ids_path is given; it serves one file of a format without ids, got {len(self.paths)} "
                f"file(s) of {self.format}. Leave it out, or import each file by a config of its own."
            )
        if (self.format == "nemo_tsv") != (self.rows_per_utterance is not None) or (self.rows_per_utterance or 1) < 1:
            raise ValueError(
                f"imported: rows_per_utterance is {self.rows_per_utterance}; nemo_tsv needs it (the beam size, at "
                "least 1), other formats do not have it."
            )
        if self.format == "nemo_tsv" and self.ids_path is None:
            raise ValueError("imported: nemo_tsv names no utterance; set ids_path to the manifest that was decoded.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of all files, by content and by their names below a folder.

        Raises:
            ValueError: a path that does not exist.
        """
        digests = {f"lists/{place}": _digest(path) for place, path in enumerate(self.paths)}
        return digests if self.ids_path is None else {**digests, "ids": _digest(self.ids_path)}

    def build(self) -> "Imported":
        """Reads all lists.

        Raises:
            ManifestError: a file that cannot be taken as it is, naming file, line, column and remedy.
        """
        return Imported(self, self.read())

    def read(self) -> dict[str, NBest]:
        """Utterance id -> its list, with the scores as declared.

        Raises:
            ManifestError: as `build`.
        """
        form = FORMATS[self.format]
        rule = None
        if self.ids_path is not None:
            rule = IdRule(path=self.ids_path, rows_per_utterance=self.rows_per_utterance)
        found: dict[str, NBest] = {}
        where: dict[str, str] = {}
        for path in self.paths:
            own: set[str] = set()
            for listed in form.read(path, rule):
                utterance_id = listed.nbest.utterance_id
                if utterance_id in own or (utterance_id in found and not form.one_per_file):
                    raise ManifestError(
                        listed.where,
                        f"'{utterance_id}' has a list in {where[utterance_id]} already. Keep one of them; lists of "
                        "several systems are imported by one config each and joined by a union",
                    )
                own.add(utterance_id)
                where[utterance_id] = listed.where
                earlier = found[utterance_id].hypotheses if utterance_id in found else ()
                found[utterance_id] = replace(listed.nbest, hypotheses=(*earlier, *self._declared(listed, form.scores)))
        return found

    def refuse_other_corpus(self, utterance_ids: Iterable[str]) -> None:
        """Refuses lists of utterances that the corpus does not have; to be called where the whole corpus is known.

        Args:
            utterance_ids: Of all splits.

        Raises:
            ValueError: names the lists that would be ignored in silence.
        """
        refuse_other_corpus(
            self.read(),
            utterance_ids,
            path=", ".join(self.paths),
            what="lists",
            remedy="Give the manifest that was decoded, or remove those lists.",
        )

    def _declared(self, listed: Listed, fields: Sequence[str]) -> Iterable[Hypothesis]:
        if not fields:
            return listed.nbest.hypotheses
        names = [self.source if len(fields) == 1 else f"{self.source}_{name}" for name in fields]
        kinds = [self.score_kinds[name] for name in fields]
        return [
            replace(hypothesis, scores=tuple(map(self._score, [listed.where] * len(fields), names, kinds, values)))
            for hypothesis, values in zip(listed.nbest.hypotheses, listed.values, strict=True)
        ]

    def _score(self, where: str, source: str, kind: str, value: float) -> Score:
        if kind == "log_prob":
            value *= _NATS[str(self.log_base)]
            if value > _CERTAIN:
                raise ManifestError(
                    where,
                    f"score '{source}' is {value}, above 0, and declared log_prob; no probability is above 1. Declare "
                    "it opaque if higher is better; negate it first if it is a cost",
                )
        return Score(source=source, kind=kind, log_prob=value)


class Imported:
    """Built by `ImportedConfig`; one call per shard."""

    def __init__(self, config: ImportedConfig, lists: Mapping[str, NBest]) -> None:
        """Takes the lists of all utterances."""
        self._lists = lists
        self._from = f"{', '.join(config.paths)} ({config.format})"

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, HYPOTHESES out: same rows, same order; an utterance without a list is an error row."""
        (utterances,) = tables
        rows = []
        for utterance_id in utterances.column("utterance_id").to_pylist():
            found = self._lists.get(utterance_id)
            if found is None:
                costs.count("missing_lists")
                reason = f"no list of this utterance in {self._from}; joined by utterance_id"
                found = NBest(utterance_id=utterance_id, error_type="text", error=reason)
            costs.count("hypotheses", len(found.hypotheses))
            rows.append(found)
        return hypotheses_table(rows)


def _digest(path: str) -> str:
    place = Path(path)
    hasher = hashlib.sha256()
    if not is_url(path) and place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.is_file()):
            name = file.relative_to(place).as_posix().encode()
            hasher.update(len(name).to_bytes(8, "little") + name + bytes.fromhex(_digest(str(file))))
        return hasher.hexdigest()
    try:
        with open_binary(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                hasher.update(block)
    except AudioError as error:
        raise ManifestError(path, f"{error.reason}; name a file or folder with N-best lists") from error
    return hasher.hexdigest()
