"""Several HYPOTHESES -> HYPOTHESES: the candidates of several first passes as one list, equal texts once.

Round robin by rank: the first of every system in the order of the inputs, then the second of every system, and so on,
without the texts that stand already. Every first pass thus keeps its best near the top, whatever its scores mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar, Final

import pyarrow as pa

from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.schema import HYPOTHESES, ContractError, conform
from ctxasr_ray.stage import Costs, Resources, light

_TOKENS: Final = ("token_ids", "token_log_probs", "token_entropies", "token_start_s", "token_end_s", "token_words")
_SIDES: Final = ("keep", "record")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnionConfig:
    """Joins the lists of two or more first passes.

    A text that several systems found stands once, at its best place, with the scores of all of them side by side, and
    with the tokens and the `search_score` of the first that has them. An utterance fails only where every system did.
    """

    NAME: ClassVar[str] = "union"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses", "error_type", "error")}
    WRITES: ClassVar[str] = "hypotheses"

    own_scores: str = "keep"
    """keep: scores stay what they are, and a candidate that one system did not find lacks that system's score.
    record: they become records of the search (kind `search`), so that forced scorers can give every candidate the
    score of each recogniser under the same source."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses a choice that does not exist."""
        if self.own_scores not in _SIDES:
            raise ValueError(f"union: own_scores is '{self.own_scores}'; expected one of {', '.join(_SIDES)}.")

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing outside the config."""
        return {}

    def build(self) -> "Union":
        """Nothing to load."""
        return Union(self)


@dataclass(frozen=True, slots=True)
class Union:
    """The built stage."""

    config: UnionConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """Joins one shard.

        Args:
            tables: Two or more HYPOTHESES of the same utterances in the same order.
            costs: Counts `candidates`, `merged` (texts found before) and `failed_lists`.

        Raises:
            ValueError: fewer than two tables.
            ContractError: other utterances, or one source in two tables: its scores could not be told apart.
        """
        if len(tables) < 2:
            raise ValueError(f"union: got {len(tables)} HYPOTHESES table(s), expected at least 2; name more inputs.")
        for table in tables[1:]:
            same_rows("hypotheses", table, "hypotheses of the first input", tables[0])
        _refuse_shared_sources(tables)
        rows = []
        for systems in zip(*(table.to_pylist() for table in tables), strict=True):
            failed = [system for system in systems if system["error_type"] is not None]
            costs.count("failed_lists", len(failed))
            hypotheses = self._joined([system["hypotheses"] for system in systems])
            costs.count("candidates", len(hypotheses))
            costs.count("merged", sum(len(system["hypotheses"]) for system in systems) - len(hypotheses))
            all_failed = len(failed) == len(systems)
            rows.append(
                {
                    "utterance_id": systems[0]["utterance_id"],
                    "hypotheses": hypotheses,
                    "error_type": failed[0]["error_type"] if all_failed else None,
                    "error": "; ".join(str(system["error"]) for system in failed) if all_failed else None,
                }
            )
        return conform(pa.Table.from_pylist(rows, schema=HYPOTHESES), "hypotheses")

    def _joined(self, lists: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for rank in zip_longest(*lists):
            for hypothesis in rank:
                if hypothesis is not None:
                    self._add(found, hypothesis)
        return list(found.values())

    def _add(self, found: dict[str, dict[str, Any]], hypothesis: dict[str, Any]) -> None:
        scores = hypothesis["scores"]
        if self.config.own_scores == "record":
            scores = [{**score, "kind": "search"} for score in scores]
        first = found.setdefault(hypothesis["text"], {**hypothesis, "scores": [], "origin": "union"})
        present = {score["source"] for score in first["scores"]}
        # a list may hold one text twice (imported ones do): the better-ranked row speaks for its system
        first["scores"] = [*first["scores"], *(score for score in scores if score["source"] not in present)]
        if first["token_ids"] is None and hypothesis["token_ids"] is not None:
            first.update({name: hypothesis[name] for name in _TOKENS})
        if first["search_score"] is None:
            first["search_score"] = hypothesis["search_score"]


def _refuse_shared_sources(tables: Sequence[pa.Table]) -> None:
    owner: dict[str, int] = {}
    for index, table in enumerate(tables):
        scores = table.column("hypotheses").combine_chunks().flatten().field("scores").flatten()
        for source in scores.field("source").unique().to_pylist():
            if owner.setdefault(source, index) != index:
                raise ContractError(
                    f"union: source '{source}' stands in inputs {owner[source]} and {index}; scores of two systems "
                    "under one name cannot be told apart. Give each first pass a `source` of its own."
                )
