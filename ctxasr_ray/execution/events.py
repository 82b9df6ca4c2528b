"""What a run does, as JSON lines in the run folder: one per step and shard, readable while it goes on.

`.run/events/<run>.<number>.jsonl`: create-only parts, so that a disk and S3 are written alike.
"""

import json
import time
from dataclasses import asdict
from typing import Any, Final

from ctxasr_ray.execution.worker import Report
from ctxasr_ray.storage.object_store import Folder

FOLDER: Final = ".run/events"
FLUSH_S: Final = 5.0
"""The longest that a line waits in the driver while work goes on."""


class EventLog:
    """Lines of one run; skipped pieces leave none.

    Args:
        folder: The run folder.
        run: Name of the run.
    """

    def __init__(self, folder: Folder, run: str) -> None:
        self._folder, self._run = folder, run
        self._lines: list[str] = []
        self._parts = 0
        self._flushed = time.monotonic()

    def add(self, report: Report) -> None:
        """One line: run, time (seconds since the epoch), step, shard, outcome, attempt, rows, failures, seconds."""
        if report.outcome == "skipped":
            return
        self._lines.append(json.dumps({"run": self._run, "at": time.time(), **asdict(report)}))
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what has gathered."""
        self._flushed = time.monotonic()
        if self._lines:
            self._parts += 1
            self._folder.note(f"{FOLDER}/{self._run}.{self._parts}.jsonl", "\n".join([*self._lines, ""]).encode())
            self._lines.clear()


def read_events(folder: Folder) -> list[dict[str, Any]]:
    """All lines of all runs in this folder, in order of time."""
    events: list[dict[str, Any]] = []
    for name in folder.names(FOLDER):
        events += [json.loads(line) for line in folder.read(f"{FOLDER}/{name}").decode().splitlines()]
    return sorted(events, key=lambda event: event["at"])


def pace(events: list[dict[str, Any]], step: str) -> float | None:
    """Shards per second that the newest run does of a step, None below two of them."""
    own = [event for event in events if event["step"] == step and event["run"] == events[-1]["run"]]
    seconds = own[-1]["at"] - own[0]["at"] if own else 0.0
    return (len(own) - 1) / seconds if seconds > 0 else None
