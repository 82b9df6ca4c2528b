"""RESULTS as records and as lines of a table for people, with the words and numbers that every table writes.

A `Line` is one system on one split under one condition: the unit that a reader compares.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray.report.systems import is_bound, is_percent, label, rank
from ctxasr_ray.schema import SPLITS, conform

Record = Mapping[str, Any]
"""One RESULTS row with its maps as dictionaries."""

PRIMARY: Final = ("wer", "mer", "cer")
"""The metrics that may lead the table, first one present in the run wins."""

BINNED: Final = ("reliability",)
"""Metrics whose rows are points of one curve; they are drawn, and make no lines of a table."""


def results_records(results: pa.Table) -> list[dict[str, Any]]:
    """RESULTS rows as plain JSON values: maps become objects, a missing value is None.

    Args:
        results: A table that `schema.conform` accepts as "results".

    Returns:
        One dictionary per row, in the table's order, keys in the schema's order.

    Raises:
        ContractError: the table breaks the RESULTS schema.
    """
    rows: list[dict[str, Any]] = conform(results, "results").to_pylist()
    return [{**row, "condition": dict(row["condition"]), "counts": dict(row["counts"])} for row in rows]


@dataclass(frozen=True, slots=True)
class Line:
    """One system on one split under one condition, with all its metrics."""

    corpus: str
    split: str
    system: str
    condition: Mapping[str, str]
    metrics: Mapping[str, Record]

    @property
    def label(self) -> str:
        """The system with its condition, for example `shallow_fusion (beam=10, interval=32)`."""
        if not self.condition:
            return self.system
        return f"{self.system} ({', '.join(f'{k}={v}' for k, v in self.condition.items())})"

    def value(self, metric: str, field: str = "value") -> float | None:
        """A metric's value or interval bound, None where the line does not have it."""
        value = self.metrics.get(metric, {}).get(field)
        return None if value is None else float(value)


def lines(records: Sequence[Record]) -> list[Line]:
    """Gathers rows into lines: by split (train, dev, test), then as the systems first appear."""
    found: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        if record["metric"] in BINNED:
            continue
        key = (record["corpus"], record["split"], record["system"], tuple(record["condition"].items()))
        # A metric that stands twice differs in its normaliser: the first one is the run's own choice.
        found.setdefault(key, {}).setdefault(record["metric"], record)
    made = [Line(key[0], key[1], key[2], dict(key[3]), metrics) for key, metrics in found.items()]
    order = {split: index for index, split in enumerate(SPLITS)}
    return sorted(made, key=lambda line: (line.corpus, order.get(line.split, len(order))))


def main_lines(rows: Sequence[Line]) -> list[Line]:
    """The lines over whole splits; all of them where every line has a condition, as in a sweep."""
    return [row for row in rows if not row.condition] or list(rows)


def reported_split(rows: Sequence[Line]) -> str:
    """The split that figures are reported on: test where there is one, else dev, else train."""
    return next((split for split in reversed(SPLITS) if any(row.split == split for row in rows)), "test")


def primary_metric(rows: Sequence[Line]) -> str:
    """The metric that leads the table: WER where the run has it, else mixed, else character error rate."""
    present = {metric for row in rows for metric in row.metrics}
    return next((metric for metric in PRIMARY if metric in present), min(present, default="wer"))


def number(metric: str, value: float | None, *, signed: bool = False) -> str:
    """A value as people read it: rates in percent with two decimals, other ratios with three."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{100 * value:+.2f}" if is_percent(metric) else f"{value:+,.{0 if abs(value) >= 1000 else 3}f}"
    return text if signed else text.lstrip("+")


def interval(metric: str, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """`[low, high]`, or nothing where the run has no interval."""
    if low is None or high is None:
        return ""
    return f"[{number(metric, low, signed=signed)}, {number(metric, high, signed=signed)}]"


def p_value(value: float | None) -> str:
    """A p value with three decimals; smaller ones say so."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def edits(record: Record) -> str:
    """`substitutions/deletions/insertions` of an error rate."""
    counts = record.get("counts", {})
    names = ("substitutions", "deletions", "insertions")
    return "/".join(f"{counts[n]:,}" for n in names) if all(n in counts for n in names) else "-"


def headlines(records: Sequence[Record]) -> list[str]:
    """One sentence per corpus and reported split: the best real system against its baseline, in words."""
    rows = main_lines(lines(records))
    metric, split = primary_metric(rows), reported_split(rows)
    sentences = []
    for corpus in dict.fromkeys(row.corpus for row in rows):
        here = [row for row in rows if (row.corpus, row.split) == (corpus, split) and not is_bound(row.system)]
        scored = [row for row in here if row.value(metric) is not None]
        if scored:
            sentences.append(_headline(min(scored, key=lambda row: row.value(metric) or 0.0), metric))
    return sentences


def _headline(best: Line, metric: str) -> str:
    record = best.metrics[metric]
    rate = f"{number(metric, record['value'])} % {label(metric)}"
    bounds = interval(metric, record["ci_low"], record["ci_high"])
    sentence = f"{best.corpus}, {best.split}: {best.label} makes {rate}" + (
        f" (95 % interval {bounds})" if bounds else ""
    )
    delta, baseline = record["delta"], record["baseline"]
    if delta is None or baseline is None or baseline == best.system:
        return sentence + f" over {record['num_utterances']:,} utterances."
    start = record["value"] - delta
    relative = f", {abs(100 * delta / start):.1f} % relative" if start else ""
    direction = "fewer" if delta < 0 else "more"
    bounds = interval(metric, record["delta_ci_low"], record["delta_ci_high"], signed=True)
    paired = f", paired 95 % interval {bounds}" if bounds else ""
    tested = f", p {p_value(record['p_value'])}" if record["p_value"] is not None else ""
    return (
        f"{sentence}, {abs(100 * delta):.2f} points {direction} than {baseline}{relative}{paired}{tested}; "
        f"{record['num_utterances']:,} utterances."
    )


def columns(rows: Sequence[Line]) -> list[str]:
    """The metrics of a table: the leading one, error rates, keywords, others by name, the real-time factor last."""
    lead = primary_metric(rows)
    present = {metric for row in rows for metric in row.metrics} - {lead}
    return [lead, *sorted(present, key=rank)]


def legend(rows: Sequence[Line]) -> list[str]:
    """What the columns mean, for somebody who sees the table for the first time."""
    metric = primary_metric(rows)
    unit = "characters" if metric == "cer" else "words"
    baselines = dict.fromkeys(
        record["baseline"] for row in rows for record in row.metrics.values() if record["baseline"]
    )
    against = " or ".join(baselines) or "the baseline"
    said = [
        f"{label(metric)} %: (S + D + I) / reference {unit}, lower is better; [95 % interval].",
        f"change: points against {against} on the same utterances, minus is better; p: of no difference.",
        f"S/D/I: {unit} substituted, deleted, inserted. N: utterances.",
    ]
    if any(is_bound(row.system) for row in rows):
        said.append("oracle: the best hypothesis of each N-best list, a bound and not a system.")
    if any("real_time_factor" in row.metrics for row in rows):
        said.append("RTF: seconds of work per second of audio, model loading apart.")
    records = [row.metrics[metric] for row in rows if metric in row.metrics]
    if any(troubles(record) for record in records):
        said.append("failed, missing: utterances without a transcript, charged as all deleted; unscored: 1-best kept.")
    blocks = dict.fromkeys(filter(None, map(_blocks, records)))
    return [*said, f"Intervals: bootstrap over {'; '.join(blocks)}."] if blocks else said


def _blocks(record: Record) -> str:
    """What the bootstrap drew for a row, as its signature names it, for example `30 speakers (test)`."""
    kind = re.search(r"\bblock:(\w+)", record["signature"])
    if record["num_blocks"] is None or kind is None:
        return ""
    # Metrics fall back to single utterances where fewer than 10 speakers and sessions are known.
    narrow = ", too few speakers are known: perhaps too narrow" if kind.group(1) == "utterance" else ""
    return f"{record['num_blocks']:,} {kind.group(1)}s ({record['split']}{narrow})"


def troubles(record: Record) -> str:
    """Utterances of a row that something went wrong with, in words; empty where nothing did."""
    counts = record["counts"]
    numbers = {
        "failed": record["num_failed"],
        "missing": counts.get("missing_utterances", 0),
        "extra": counts.get("extra_utterances", 0),
        "unscored": record["num_unscored"],
    }
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items() if number)


def cells(row: Line, metric: str) -> list[str]:
    """A line's leading cells as people read them: rate, interval, change, its interval, p, S/D/I, N."""
    record = row.metrics.get(metric)
    if record is None:
        return ["-"] * 7
    compared = record["delta"] is not None and record["baseline"] != row.system
    return [
        number(metric, record["value"]),
        interval(metric, record["ci_low"], record["ci_high"]),
        number(metric, record["delta"], signed=True) if compared else "",
        interval(metric, record["delta_ci_low"], record["delta_ci_high"], signed=True) if compared else "",
        p_value(record["p_value"]) if compared else "",
        edits(record),
        f"{record['num_utterances']:,}",
    ]
