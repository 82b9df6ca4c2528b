"""A lease on a table: two runs in one folder are normal, two writers of one table would do the same work twice.

Only work is saved: results are safe without it, because commits are create-only. A lease is a numbered file that
is created once; taking over means creating the next number, so that exactly one waiter wins. The holder counts beats;
a waiter measures on its own clock how long the count stands still, so that clocks need not agree.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from ctxasr_ray.storage import processes
from ctxasr_ray.storage.object_store import Folder, StoreError

HEARTBEAT_S: Final = 5.0
EXPIRY_S: Final = 20.0
POLL_S: Final = 0.5
log = logging.getLogger("ctxasr_ray")


class Leases:
    """A context in which this process is the only one to write some tables.

    Args:
        folder: The run folder.
        tables: `<table>/<stage>-<hash>` each; taken in sorted order, so that two runs cannot wait for each other.
        told: Other writers that this run has said it waits for; each is named once, and added here.
    """

    def __init__(self, folder: Folder, tables: Sequence[str], told: set[str] | None = None) -> None:
        """Takes nothing yet."""
        self._folder = folder
        self._told = set() if told is None else told
        self._tables = sorted(set(tables))
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        """Waits until all tables are free, and takes them."""
        self._beat.start()
        try:
            for table in self._tables:
                self._take(table)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Frees them."""
        self._stop.set()
        self._beat.join()
        for table, number in self._held.items():
            with contextlib.suppress(OSError, StoreError):
                self._folder.delete(_key(table, number))
        self._held = {}

    @staticmethod
    def holder(folder: Folder, table: str) -> str | None:
        """The process that holds a table now, or None; a dead one on this host does not count."""
        found = _newest(folder, table)
        if found is None or processes.is_dead(found[1]["process"]):
            return None
        return str(found[1]["process"])

    def _take(self, table: str) -> None:
        waited, seen, since = False, "", time.monotonic()
        while True:
            found = _newest(self._folder, table)
            if found is not None:
                number, content = found
                if json.dumps(content) != seen:
                    seen, since = json.dumps(content), time.monotonic()
                dead = processes.is_dead(content["process"])
                if not dead and time.monotonic() - since < EXPIRY_S:
                    waited = True
                    if content["process"] not in self._told:
                        self._told.add(content["process"])
                        log.warning(
                            "another run (%s) is writing %s; waiting for it, to use what it commits.",
                            processes.described(content["process"]),
                            table,
                        )
                    time.sleep(POLL_S)
                    continue
                if waited or not dead:
                    writer = processes.described(content["process"])
                    log.warning("the other run (%s) is gone; taking over %s where it stopped.", writer, table)
            else:
                number = 0
            if self._create(table, number + 1):
                if number:
                    self._folder.delete(_key(table, number))
                return

    def _create(self, table: str, number: int) -> bool:
        if not self._folder.note(_key(table, number), _content(0)):
            return False
        with self._lock:
            self._held[table] = number
        return True

    def _keep(self) -> None:
        beat = 0
        while not self._stop.wait(HEARTBEAT_S):
            beat += 1
            with self._lock:
                held = list(self._held.items())
            for table, number in held:
                with contextlib.suppress(OSError, StoreError):  # a store that is away for a while must not end the run
                    self._folder.replace(_key(table, number), _content(beat))


def _key(table: str, number: int) -> str:
    return f".run/leases/{table.replace('/', '.')}.{number}.json"


def _content(beat: int) -> bytes:
    return json.dumps({"process": processes.this_process(), "beat": beat}).encode()


def _newest(folder: Folder, table: str) -> tuple[int, dict[str, Any]] | None:
    prefix = table.replace("/", ".") + "."
    numbers = [
        int(middle)
        for name in folder.names(".run/leases")
        if name.startswith(prefix) and (middle := name.removeprefix(prefix).removesuffix(".json")).isdigit()
    ]
    for number in sorted(numbers, reverse=True):
        with contextlib.suppress(FileNotFoundError):
            return number, json.loads(folder.read(_key(table, number)))
    return None
