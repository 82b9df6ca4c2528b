"""Counts how often a piece of work has killed its worker, so that a poison shard cannot loop for ever.

A marker file is written before a piece is processed and removed after. One that is found later is a death: of the
worker, if the same run outlived it on a node that lives still; else a preemption (driver or node died), which
does not count.
"""

import json
from collections.abc import Callable

from ctxasr_ray.storage import processes
from ctxasr_ray.storage.object_store import Folder


class Attempts:
    """Markers of one worker."""

    def __init__(self, folder: Folder, *, run: str, node: str, is_alive: Callable[[str], bool]) -> None:
        """Remembers who works.

        Args:
            folder: The run folder.
            run: Name of this run of the driver; a rerun has another one.
            node: Name of this machine.
            is_alive: Whether a node of this run still lives.
        """
        self.node = node
        self._folder, self._run, self._is_alive = folder, run, is_alive

    def begin(self, place: str) -> int:
        """Marks a piece of work as begun.

        Args:
            place: Key of the piece, without number and ending.

        Returns:
            How many workers it has killed so far.
        """
        numbers = self._numbers(place)
        deaths = self._deaths(place, numbers)
        marker = {"run": self._run, "node": self.node, "process": processes.this_process(), "deaths": deaths}
        number = (numbers[-1] if numbers else 0) + 1
        while not self._folder.note(f"{place}.{number}.json", json.dumps(marker).encode()):
            number += 1
        for older in numbers:
            self._folder.delete(f"{place}.{older}.json")
        return deaths

    def forget(self, prefix: str) -> None:
        """Removes every marker whose place starts with a prefix."""
        folder, _, name = prefix.rpartition("/")
        for each in self._folder.names(folder):
            if each.startswith(name):
                self._folder.delete(f"{folder}/{each}")

    def end(self, place: str) -> None:
        """Removes the markers of a piece of work that its worker survived, well or with an exception."""
        for number in self._numbers(place):
            self._folder.delete(f"{place}.{number}.json")

    def _numbers(self, place: str) -> list[int]:
        folder, _, name = place.rpartition("/")
        endings = (each.removeprefix(f"{name}.").removesuffix(".json") for each in self._folder.names(folder))
        return sorted(int(ending) for ending in endings if ending.isdigit())

    def _deaths(self, place: str, numbers: list[int]) -> int:
        if not numbers:
            return 0
        try:
            last = json.loads(self._folder.read(f"{place}.{numbers[-1]}.json"))
        except FileNotFoundError:  # another worker has just survived there
            return 0
        outlived = last["run"] == self._run and self._is_alive(last["node"])
        killed = outlived and not processes.is_alive(last["process"])
        return int(last["deaths"]) + killed
