"""One progress bar for a run: pieces done, rate, time left; a line per step when the output is no terminal."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ctxasr_ray.execution import inline


@contextlib.contextmanager
def shown(console: Console) -> Iterator[inline.OnProgress]:
    """Gives the callback that an executor tells of every finished table.

    Args:
        console: Where the bar goes, at best standard error. Quiet when it is not a terminal.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tables"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("starting", total=None)

        def on_progress(progress: inline.Progress) -> None:
            report = progress.report
            name = f"{report.step} {report.shard}" if report.shard else report.step
            bar.update(task, completed=progress.done, total=progress.total, description=name)

        yield on_progress
