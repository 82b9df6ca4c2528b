"""Counters and gauges of every step, which Ray exports to Prometheus from each node (`ctxasr_...`, tag `step`)."""

from ray.util import metrics

from ctxasr_ray.execution.worker import Report

_TAGS = ("step", "outcome")


class StageMetrics:
    """What one actor has done; Ray adds the node and the worker."""

    def __init__(self) -> None:
        self._shards = metrics.Counter("ctxasr_shards", "Shards brought to their table", tag_keys=_TAGS)
        self._rows = metrics.Counter("ctxasr_rows", "Rows of the tables made", tag_keys=_TAGS)
        self._failures = metrics.Counter("ctxasr_failures", "Rows that carry an error", tag_keys=_TAGS)
        self._busy_s = metrics.Counter("ctxasr_busy_seconds", "Work without loading", tag_keys=_TAGS)
        self._load_s = metrics.Counter("ctxasr_load_seconds", "Loading of models", tag_keys=_TAGS)
        self._shard_s = metrics.Gauge("ctxasr_shard_seconds", "Work of the last shard", tag_keys=_TAGS)

    def count(self, report: Report) -> None:
        """Adds a finished piece of work."""
        tags = {"step": report.step, "outcome": report.outcome}
        self._shards.inc(1, tags)
        for counter, amount in (
            (self._rows, report.rows),
            (self._failures, report.failures),
            (self._busy_s, report.seconds),
            (self._load_s, report.load_s),
        ):
            if amount > 0:  # Ray refuses to add nothing
                counter.inc(amount, tags)
        self._shard_s.set(report.seconds, tags)
