"""Entry points -> jobs of a Ray cluster's job server: submitted once, followed, retried, stopped.

A job's id is made of what it runs and the attempt, so the same command finds the job that it has started before.
"""

import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctxasr_ray.execution.stage_calls import RunError

ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
"""States that a job does not leave."""
_TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
AGENT_S: Final = 240.0
"""How long the agents of a young cluster may take to come up."""
_KILLED: Final = re.compile(r"exit code (-9|137)\b")
"""What Ray says of an entry point that took SIGKILL, itself or in a shell."""
_POLL_S: Final = 1.0
_EXCLUDED: Final = [
    ".venv",
    ".git",
    "runs",
    ".bench_envs",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
]
"""Never uploaded with the working directory."""


@dataclass(frozen=True, slots=True)
class Job:
    """One submission and how it ended."""

    submission_id: str
    status: str
    message: str


class JobServer:
    """The job server of a Ray cluster.

    Args:
        address: http://HOST:8265, the dashboard's; a token stands in RAY_AUTH_TOKEN or ~/.ray/auth_token.

    Raises:
        ConnectionError: nobody answers there.
    """

    def __init__(self, address: str) -> None:
        if any(os.environ.get(name) for name in _TOKENS) or (Path.home() / ".ray" / "auth_token").is_file():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        try:
            self._client = JobSubmissionClient(address)
            logging.getLogger("ray").setLevel(logging.ERROR)  # an INFO line per ignored file of an upload
        except AuthenticationError as error:
            raise ConnectionError(
                f"the Ray job server at {address} asks for another token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, "
                "or write it to ~/.ray/auth_token (`ray get-auth-token` on the head prints it)."
            ) from error
        except (ConnectionError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray job server answers at {address}: {error} Give the dashboard's address (http://HOST:8265)."
            ) from error

    def run(
        self,
        name: str,
        entrypoint: str,
        *,
        working_dir: Path | None,
        num_retries: int,
        say: Callable[[str], Any],
    ) -> Job:
        """Submits an entry point, or joins the attempt that runs already, and follows it to its end.

        Args:
            name: Of the job, from its fingerprint; attempt n is submitted as `name-n`.
            entrypoint: Shell command in the working directory.
            working_dir: Uploaded to the cluster; None where the image has the code.
            num_retries: Further attempts after a failed one; what was committed is not done again.
            say: Takes each new piece of the job's log.

        Returns:
            The last attempt.
        """
        attempt = self._last_attempt(name)
        first = attempt
        while True:
            status = self._status(f"{name}-{attempt}") if attempt else None
            if status is None or status in ENDED:
                attempt += 1
                self._submit(f"{name}-{attempt}", entrypoint, working_dir)
            job = self._follow(f"{name}-{attempt}", say)
            if job.status != "FAILED" or attempt - first > num_retries:
                return job
            say(f"job {job.submission_id} failed: {job.message} Submitting it again.\n")

    def stop(self, name: str) -> Job:
        """Stops the attempt that runs; what it has committed stays.

        Raises:
            RunError: none runs.
        """
        attempt = self._last_attempt(name)
        status = self._status(f"{name}-{attempt}") if attempt else None
        if status is None or status in ENDED:
            raise RunError(f"no job named {name}-... runs there; its last attempt is {status or 'unknown'}.")
        self._client.stop_job(f"{name}-{attempt}")
        while self._status(f"{name}-{attempt}") not in ENDED:
            time.sleep(_POLL_S)
        return self._job(f"{name}-{attempt}")

    def _last_attempt(self, name: str) -> int:
        ids = [details.submission_id or "" for details in self._client.list_jobs()]
        numbers = [i.removeprefix(f"{name}-") for i in ids if i.startswith(f"{name}-")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _submit(self, submission_id: str, entrypoint: str, working_dir: Path | None) -> None:
        environment: dict[str, Any] = {}
        if working_dir is not None:
            environment = {"working_dir": str(working_dir), "excludes": _EXCLUDED}
        until = time.monotonic() + AGENT_S
        while not self._is_known(submission_id):
            try:
                self._client.submit_job(entrypoint=entrypoint, submission_id=submission_id, runtime_env=environment)
            except (RuntimeError, OSError) as error:  # OSError: a busy server hung up, perhaps after it took the job
                if isinstance(error, RuntimeError) and "No available agent" not in str(error):
                    raise RunError(f"the cluster refused the job {submission_id}: {error}") from error
                if time.monotonic() > until:
                    raise ConnectionError(f"the cluster did not take the job in {AGENT_S:.0f} s: {error}") from error
                time.sleep(_POLL_S)

    def _is_known(self, submission_id: str) -> bool:
        return any(details.submission_id == submission_id for details in self._client.list_jobs())

    def _follow(self, submission_id: str, say: Callable[[str], Any]) -> Job:
        shown = 0
        while True:
            ended = self._status(submission_id) in ENDED
            log = self._client.get_job_logs(submission_id)
            if len(log) > shown:
                say(log[shown:])
                shown = len(log)
            if ended:
                return self._job(submission_id)
            time.sleep(_POLL_S)

    def _status(self, submission_id: str) -> str | None:
        return str(self._client.get_job_status(submission_id).value)

    def _job(self, submission_id: str) -> Job:
        info = self._client.get_job_info(submission_id)
        first_line = (info.message or "").partition("\n")[0]  # the log, which was shown, comes after it
        if _KILLED.search(first_line):
            first_line = (
                "its driver was killed from outside, most often for memory: give the head more, or put less beside it. "
                "What is committed stays, and the same command goes on from there."
            )
        return Job(submission_id, str(info.status.value), first_line)


def entrypoint(script: str, words: Sequence[str]) -> str:
    """The shell command of a job script with its words, quoted."""
    return shlex.join(["python", script, *words])
