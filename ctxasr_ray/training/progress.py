"""A bar with the loss, the rate and the time left on a terminal; silence elsewhere (the run's log.jsonl has it all)."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_S: Final = 1.0
"""Between two looks at a log that others write."""


@contextlib.contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Gives a function of (note, steps) that advances the bar by some steps, by default one, and shows a note.

    Args:
        what: What is being done, for example "ctc: training".
        total: Steps in all.
        done: Steps done before.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done, note="")

        def advance(note: str = "", steps: int = 1) -> None:
            progress.update(task, advance=steps, note=note)

        yield advance


@contextlib.contextmanager
def follow(log: Path, what: str, total: int) -> Iterator[None]:
    """Shows the bar of a training whose steps other processes write to its log; steps back where they start again.

    Args:
        log: JSON lines with `step` and `loss`; need not be there yet.
        what: What is being done.
        total: Steps in all.
    """
    ended = threading.Event()

    def watch(advance: Callable[..., None]) -> None:
        shown = 0
        last = False
        while not last:
            last = ended.wait(POLL_S)  # once more after the end, for the last steps
            whole = log.read_text("utf-8").rpartition("\n")[0] if log.is_file() else ""
            losses = [entry for entry in map(json.loads, whole.splitlines()) if "loss" in entry]
            done = losses[-1]["step"] if losses else 0
            if done != shown:
                advance(f"loss {losses[-1]['loss']:.3f}" if losses else "", done - shown)
            shown = done

    with bar(what, total) as advance:
        watcher = threading.Thread(target=watch, args=(advance,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
