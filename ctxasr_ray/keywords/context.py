"""UTTERANCES -> CONTEXT: what a stage may know beforehand, and the phrases of a row given back to its consumers.

A row names the catalogue by its digest and says how many of its phrases it has; only the row's own phrases stand in it.
The list of size n of an utterance is its own phrases and the first n others of the catalogue's one order, so every
larger list contains the smaller one, and curves over list sizes compare.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.corpora.lines import refuse_other_corpus
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.keywords.phrase_entries import Entry
from ctxasr_ray.keywords.phrase_files import format_of, read_bytes, read_lists
from ctxasr_ray.schema import CONTEXT, ContractError, conform
from ctxasr_ray.stage import Costs, Resources, light

COLUMNS: Final = ("catalogue", "num_distractors", "phrase_ids", "phrases", "weights", "origins")
"""What a contextual stage reads of CONTEXT: its READS has "context": COLUMNS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextConfig(CatalogueOptions):
    """Gives every utterance its phrase list: a global one, one of its own, its true keywords, or several of these."""

    NAME: ClassVar[str] = "context"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("keywords",)}
    WRITES: ClassVar[str] = "context"

    num_distractors: int | None = None
    """Phrases of the catalogue, in its order, that are not the utterance's own; None: all of them."""
    true_keywords: bool = False
    """Adds the truly spoken keywords (UTTERANCES.keywords). For experiments: nobody knows them beforehand."""
    lists: str | None = field(default=None, metadata={"identity": False})
    """File with a list per utterance_id (is21 or JSON). An utterance that it lacks has an empty one and is counted."""
    lists_format: str | None = field(default=None, metadata={"identity": False})
    """`is21` or `json`; None: the extension tells."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses a negative size."""
        if self.num_distractors is not None and self.num_distractors < 0:
            raise ValueError(f"num_distractors is {self.num_distractors}; expected 0 or more, or None for all.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the catalogue and of the lists, and the normaliser's version.

        Raises:
            ValueError: a file is missing or refused, or the catalogue has fewer phrases than `num_distractors`.
        """
        found = self.phrases_fingerprint()
        if self.lists is not None:
            data = read_bytes(self.lists)
            format = format_of(self.lists, self.lists_format, lists=True)
            found["lists"] = hashlib.sha256(format.encode() + b"\0" + data).hexdigest()
        return found

    def refuse_other_corpus(self, utterance_ids: Iterable[str]) -> None:
        """Refuses lists of utterances that the corpus does not have; to be called where the whole corpus is known.

        Raises:
            ValueError: names the lists that would be ignored in silence.
        """
        refuse_other_corpus(
            self._lists(),
            utterance_ids,
            path=f"'{self.lists}'",
            what="phrase lists",
            remedy="Rename them to the corpus's utterance_ids, or remove them.",
        )

    def refuse_nothing(self) -> None:
        """To be called where phrases are needed.

        Raises:
            ValueError: there is no catalogue, no list and no truth to take them from.
        """
        if self.catalogue is None and self.lists is None and not self.true_keywords:
            raise ValueError(
                "context: the run takes phrases and has none; name a list for all utterances (--catalogue FILE) or one "
                "for each (lists of the ContextConfig)."
            )

    def build(self) -> "ContextStage":
        """Reads the files."""
        return ContextStage(self, self.phrases(), self._lists())

    def phrases(self) -> Catalogue | None:
        """Reads the catalogue, as `CatalogueOptions.phrases`.

        Raises:
            ValueError: also if it has fewer phrases than `num_distractors`.
        """
        found = CatalogueOptions.phrases(self)
        if found is not None and self.num_distractors is not None and self.num_distractors > len(found):
            raise ValueError(
                f"context: num_distractors is {self.num_distractors}, and '{self.catalogue}' has {len(found)} phrases. "
                "Give a longer catalogue, a recipe that takes a list as long as it is (keyword_methods, "
                f"pocketsphinx_keywords), or --context.num-distractors {len(found)}; a branch with a list size of its "
                f"own has --branches.NAME.context.num-distractors {len(found)}."
            )
        return found

    def _lists(self) -> dict[str, list[Entry]]:
        if self.lists is None:
            return {}
        return read_lists(read_bytes(self.lists), self.lists, format_of(self.lists, self.lists_format, lists=True))


@dataclass(frozen=True, slots=True)
class ContextStage:
    """Built by `ContextConfig`; one call per shard."""

    config: ContextConfig
    catalogue: Catalogue | None
    lists: Mapping[str, Sequence[Entry]]

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, CONTEXT out.

        Args:
            tables: UTTERANCES.
            costs: Counts `own_phrases`, `unusable_phrases` (nothing is left after normalising), `shared_phrases`,
                `utterances_without_list`, `keywords_unknown`, and `catalogue_<finding>` for each finding of the list.
        """
        rows = tables[0].select(["utterance_id", "keywords"]).to_pylist()
        num_distractors = 0
        if self.catalogue is not None:
            size = len(self.catalogue)
            num_distractors = size if self.config.num_distractors is None else self.config.num_distractors
            for finding in self.catalogue.findings:
                costs.peak(f"catalogue_{finding.kind}", finding.count)
        made = []
        for row in rows:
            given = [(entry, "list") for entry in self.lists.get(row["utterance_id"], ())]
            costs.count("utterances_without_list", self.config.lists is not None and not given)
            if self.config.true_keywords:
                costs.count("keywords_unknown", row["keywords"] is None)
                given += [(Entry(0, keyword), "truth") for keyword in row["keywords"] or ()]
            own = self._own(given)
            costs.count("own_phrases", len(own))
            costs.count("unusable_phrases", sum(not text.normalise(e.phrase, self.config.normaliser) for e, _ in given))
            costs.count("shared_phrases", num_distractors)
            made.append(
                {
                    "utterance_id": row["utterance_id"],
                    "catalogue": None if self.catalogue is None else self.catalogue.digest,
                    "num_distractors": num_distractors,
                    **columns(own),
                    "history": None,
                }
            )
        return conform(pa.Table.from_pylist(made, schema=CONTEXT), "context")

    def _own(self, given: Iterable[tuple[Entry, str]]) -> "list[Phrase]":
        """Each normalised phrase once, with the weight of its list, else of the catalogue, else 1."""
        own: dict[str, Phrase] = {}
        for entry, origin in given:
            normal = text.normalise(entry.phrase, self.config.normaliser)
            if not normal or normal in own:
                continue
            place = -1 if self.catalogue is None else self.catalogue.ids.get(normal, -1)
            weight = entry.score
            if weight is None:
                weight = 1.0 if self.catalogue is None or place < 0 else float(self.catalogue.weights()[place])
            own[normal] = Phrase(phrase_id=place, text=entry.phrase.strip(), weight=weight, origin=origin)
        return list(own.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """One phrase of a row's own."""

    phrase_id: int
    """Place in the catalogue, -1 where it is not in it."""
    text: str
    """Raw."""
    weight: float
    """As lists give scores; 1 where they give none."""
    origin: str
    """truth, list, or how a shortlist found it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPhrases:
    """What one utterance may know: its own phrases, and the catalogue's first `num_shared` in its order."""

    own: tuple[Phrase, ...]
    num_shared: int
    """Own phrases of the catalogue may be among them; so many are read that `num_distractors` others are."""

    def texts(self, catalogue: Catalogue | None) -> list[str]:
        """All phrases, raw, each once: own ones first. A copy per row; shared lists are better kept shared."""
        mine = {phrase.phrase_id for phrase in self.own}
        others = () if catalogue is None else catalogue.phrases[: self.num_shared]
        return [phrase.text for phrase in self.own] + [t for n, t in enumerate(others) if n not in mine]


def columns(own: Sequence[Phrase]) -> dict[str, Any]:
    """The columns of one CONTEXT row that hold its own phrases."""
    return {
        "phrase_ids": [phrase.phrase_id for phrase in own],
        "phrases": [phrase.text for phrase in own],
        "weights": [phrase.weight for phrase in own],
        "origins": [phrase.origin for phrase in own],
    }


def row_phrases(context: pa.Table, catalogue: Catalogue | None) -> list[RowPhrases]:
    """The phrases of every row, for stages that use them (search, shortlist, prompts, metrics).

    Args:
        context: CONTEXT rows, at least the columns of `COLUMNS`.
        catalogue: What the stage's `catalogue` field names, from `catalogue.load` under the same normaliser.

    Raises:
        ContractError: rows that name another catalogue, or name one where the stage has none.
    """
    digests = set(context["catalogue"].unique().to_pylist()) - {None}
    mine = None if catalogue is None else catalogue.digest
    needed = any(n for n in context["num_distractors"].to_pylist())
    if needed and digests != {mine}:
        raise ContractError(
            f"context: its rows were made with the catalogue {sorted(digests)[0][:12] if digests else 'None'}, the "
            f"stage was given {mine[:12] if mine else 'none'}; give both the same file, format and normaliser."
        )
    found = []
    for row in context.select(list(COLUMNS)).to_pylist():
        own = tuple(
            Phrase(phrase_id=phrase_id, text=phrase, weight=weight, origin=origin)
            for phrase_id, phrase, weight, origin in zip(
                *(row[name] or () for name in ("phrase_ids", "phrases", "weights", "origins")), strict=True
            )
        )
        found.append(RowPhrases(own=own, num_shared=_num_shared(own, row["num_distractors"] or 0, catalogue)))
    return found


def _num_shared(own: Sequence[Phrase], num_distractors: int, catalogue: Catalogue | None) -> int:
    """Phrases of the order to read until `num_distractors` of them are not the row's own."""
    if catalogue is None or not num_distractors:
        return 0
    num_shared = num_distractors
    for place in sorted(phrase.phrase_id for phrase in own if phrase.phrase_id >= 0):
        if place >= num_shared:
            break
        num_shared += 1
    return min(num_shared, len(catalogue))
