"""UTTERANCES, HYPOTHESES, CONTEXT -> CONTEXT: what a recogniser heard earlier in an utterance's session.

A prompt with `{history}` tells it: of the LM inside phrase copy (`lm_prompt`), and of an LLM recogniser. It is the
1-best of an ordinary first pass, never a reference, so a run on new recordings has it too.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from ctxasr_ray.keywords.context import COLUMNS
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.nbest import flatten
from ctxasr_ray.schema import CONTEXT, conform
from ctxasr_ray.stage import Costs, Resources, light


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryConfig:
    """Adds the nearest earlier transcripts of the session to what an utterance may know."""

    NAME: ClassVar[str] = "history"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("session_id", "recording_id", "start_s"),
        "hypotheses": ("hypotheses",),
        "context": (*COLUMNS, "history"),
    }
    WRITES: ClassVar[str] = "context"

    num_utterances: int = 3
    """Earlier utterances with words; at least 1."""
    max_words: int = 60
    """Words of all of them; the oldest go first. At least 1."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses a history of nothing."""
        if min(self.num_utterances, self.max_words) < 1:
            raise ValueError(
                f"history: num_utterances is {self.num_utterances}, max_words {self.max_words}; expected at least 1."
            )

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing outside the config."""
        return {}

    def build(self) -> "History":
        """Nothing to load."""
        return History(self)


@dataclass(frozen=True, slots=True)
class History:
    """The built stage; one call per shard, which holds whole sessions."""

    config: HistoryConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES, HYPOTHESES and CONTEXT in, CONTEXT with `history` out.

        A session is that of `session_id`, else the recording. Its utterances run by `start_s`, whatever the recording
        (two channels of one talk are two recordings), equal ones by id. Without anything earlier history is null.

        Args:
            tables: UTTERANCES, HYPOTHESES, CONTEXT of the same rows.
            costs: Counts `utterances_without_session` and `utterances_with_history`.

        Raises:
            ContractError: other rows.
        """
        utterances, hypotheses, context = tables
        for name, table in (("hypotheses", hypotheses), ("context", context)):
            same_rows(name, table, "utterances", utterances)
        rows = utterances.select(["utterance_id", "session_id", "recording_id", "start_s"]).to_pylist()
        flat = flatten(hypotheses)
        said = [flat.texts[first] if first < stop else "" for first, stop in flat.bounds()]
        sessions: dict[tuple[bool, str], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            if row["session_id"] is None and row["recording_id"] is None:
                costs.count("utterances_without_session")
            else:
                own = row["session_id"] is not None
                sessions[own, row["session_id"] if own else row["recording_id"]].append(place)
        found: list[str | None] = [None] * len(rows)
        for places in sessions.values():
            places.sort(key=lambda place: (rows[place]["start_s"], rows[place]["utterance_id"]))
            earlier: list[str] = []
            for place in places:
                words = " ".join(earlier[-self.config.num_utterances :]).split()[-self.config.max_words :]
                found[place] = " ".join(words) or None
                if said[place].strip():
                    earlier.append(said[place])
        costs.count("utterances_with_history", sum(history is not None for history in found))
        place = context.column_names.index("history")
        table = context.set_column(place, CONTEXT.field("history"), pa.array(found, pa.string()))
        return conform(table, "context")
