"""What a detector says, and the one finding that every run may have: recordings without a transcript, and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

from ctxasr_ray.report.lost_words import LostWord

EXAMPLES: Final = 3
"""Utterances that a finding names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that somebody should look at before believing the numbers."""

    severity: Literal["error", "warning", "note"]
    """error: a number is wrong or charged; warning: it may mean something else; note: worth knowing."""
    name: str
    """Which detector speaks, for example `list_without_effect`."""
    what: str
    where: str
    """Corpus, split, system, setting or utterances."""
    got: str
    expected: str
    remedy: str
    words: tuple[LostWord, ...] = ()
    """The words that pay for it, where it is about words."""

    def __str__(self) -> str:
        return f"{self.what} ({self.where}): got {self.got}, expected {self.expected}. {self.remedy}"


def failed(transcripts: Mapping[str, pa.Table]) -> list[Finding]:
    """Utterances without a transcript, with the reason of the first few; once where several systems share them."""
    systems: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for system, table in transcripts.items():
        bad = table.filter(table.column("error_type").is_valid()).select(["utterance_id", "error_type", "error"])
        own = tuple((row["utterance_id"], row["error_type"], row["error"] or "") for row in bad.to_pylist())
        if own:
            systems.setdefault(own, []).append(system)
    found = []
    for rows, names in systems.items():
        kinds = Counter(kind for _, kind, _ in rows)
        reasons = [f"{utterance_id}: {error}" for utterance_id, _, error in rows[:EXAMPLES]]
        more = f"; and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else ""
        found.append(
            Finding(
                severity="warning",
                name="failed",
                what="Utterances without a transcript, charged as all deleted",
                where=", ".join(names) if len(names) <= EXAMPLES else f"{len(names)} systems",
                got=f"{len(rows)} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})",
                expected="none",
                remedy="Reasons: " + "; ".join(reasons) + more,
            )
        )
    return found
