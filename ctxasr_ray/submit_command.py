"""`ctxasr submit`: the words of a local command, run as a job of a Ray cluster."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tyro

JOBS: Final = ("prepare", "evaluate", "pseudo-label", "sweep", "train", "report")
"""Commands that have a script in jobs/."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """Runs a command on a Ray cluster: `ctxasr submit [OPTIONS] COMMAND ...`, with the command's own words."""

    address: str = "http://127.0.0.1:8265"
    """Of the cluster's dashboard, where the job server answers."""
    working_dir: Path | None = Path()
    """Uploaded to the cluster; it holds jobs/. None: the image has the project at its working directory."""
    retries: int = 2
    """Further attempts of a job that fails; each goes on from what is committed."""
    stop: bool = False
    """Stop the job of these words instead."""


def submit(words: Sequence[str]) -> int:
    """Run a command (evaluate, sweep, train, ...) as a job of a Ray cluster, follow its log, retry it."""
    from ctxasr_ray.distributed.jobs import JobServer, entrypoint
    from ctxasr_ray.storage.identity import digest

    place = next((i for i, word in enumerate(words) if word in JOBS), len(words))
    options = tyro.cli(Submit, args=list(words[:place]), prog="ctxasr submit")
    command = list(words[place:])
    if not command:
        raise ValueError(f"expected a command: ctxasr submit --address URL COMMAND ... with one of {', '.join(JOBS)}.")
    if options.working_dir is not None and not (options.working_dir / "jobs" / f"{command[0]}.py").is_file():
        raise ValueError(
            f"'{options.working_dir.resolve()}' has no jobs/{command[0]}.py; give the project's folder as "
            "--working-dir, or None where the image holds it."
        )
    name = f"{command[0]}-{digest(command)[:12]}"
    server = JobServer(options.address)
    if options.stop:
        job = server.stop(name)
    else:
        job = server.run(
            name,
            entrypoint(f"jobs/{command[0]}.py", command[1:]),
            working_dir=options.working_dir,
            num_retries=options.retries,
            say=lambda text: print(text, end="", flush=True),
        )
    note = f": {job.message}" if job.status == "FAILED" else ""
    print(f"job {job.submission_id}: {job.status}{note}", file=sys.stderr)
    return 0 if job.status == "SUCCEEDED" or options.stop else 1
