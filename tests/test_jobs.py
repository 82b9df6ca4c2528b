"""Job scripts through the job server of a real local Ray cluster."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ctxasr_ray.cli import main
from ctxasr_ray.corpora import synthetic
from ctxasr_ray.distributed.jobs import entrypoint
from ctxasr_ray.submit_command import JOBS

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PATH = f"{BIN}:/usr/bin:/bin"
SMALL = [
    *("--shard-audio-s", "20", "--num-replicates", "100", "--weights.num-bootstrap", "0", "--executor", "inline"),
    *("--first-pass.beam-size", "8", "--first-pass.num-hypotheses", "4"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A Ray head with its job server on loopback, which asks for a token."""

    address: str
    token: Path

    def submit(self, *words: str, token: Path | None = None) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token or self.token), "PATH": PATH}
        command = [str(BIN / "ctxasr"), "submit", "--address", self.address, *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In a process group of its own."""
    port, gcs = free_port(), free_port()
    token = tmp_path_factory.mktemp("auth") / "token"
    token.write_text(secrets.token_hex(32))
    words = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--port", str(gcs)]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(port), "--include-dashboard", "true"]
    words += ["--object-store-memory", str(2**27), "--disable-usage-stats"]
    quiet = {
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": PATH,
    }
    ray = subprocess.Popen(
        words, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and ray.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}", token)
    finally:
        os.killpg(ray.pid, signal.SIGTERM)
        try:
            ray.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(ray.pid, signal.SIGKILL)


def test_every_job_is_the_command_of_its_name() -> None:
    for name in JOBS:
        text = (ROOT / "jobs" / f"{name}.py").read_text()
        assert f'main(["{name}", *sys.argv[1:]])' in text
        assert f"python jobs/{name}.py" in text
    assert entrypoint("jobs/evaluate.py", ["quickstart", "--root", "a b"]) == (
        "python jobs/evaluate.py quickstart --root 'a b'"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a command"),
        (["--address", "http://127.0.0.1:1", "evaluate", "quickstart"], "no Ray job server answers"),
        (["--working-dir", "/", "evaluate", "quickstart"], "has no jobs/evaluate.py"),
    ],
)
def test_a_job_that_cannot_be_submitted_is_refused_in_words(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or a token of this machine would change it for all later tests
    assert main(["submit", *words]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_runs_on_the_cluster_and_goes_on_from_what_is_committed(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    manifest = synthetic.prepare(synthetic.SyntheticConfig(num_dev=3, num_test=3), tmp_path / "corpus")
    job = ["quickstart", "--root", str(tmp_path / "run"), "--manifest", str(manifest), *SMALL]
    for attempt in (1, 2):
        done = server.submit("evaluate", *job, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().endswith(f"-{attempt}: SUCCEEDED")
        assert '"system": "lm_rescoring"' in done.stdout
        assert ("0 tables made" in done.stdout) == (attempt == 2)
    (tmp_path / "run" / "report" / "index.html").unlink()
    assert server.submit("report", *job).returncode == 0
    assert (tmp_path / "run" / "report" / "index.html").is_file()


@pytest.mark.slow
def test_a_job_that_fails_is_tried_again_and_then_said_to_have_failed(server: Server, tmp_path: Path) -> None:
    failed = server.submit("--retries", "1", "evaluate", "quickstrat")
    assert failed.returncode == 1
    assert failed.stdout.count("Did you mean 'quickstart'?") == 2
    assert "-2: FAILED" in failed.stderr
    idle = server.submit("--stop", "evaluate", "quickstrat")
    assert (idle.returncode, "no job named evaluate-" in idle.stderr) == (1, True)
    (tmp_path / "other").write_text(secrets.token_hex(32))
    stranger = server.submit("evaluate", "quickstart", token=tmp_path / "other")
    assert (stranger.returncode, "asks for another token" in stranger.stderr) == (1, True)


@pytest.mark.slow
def test_a_job_that_is_killed_for_memory_says_so_in_words(server: Server, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "evaluate.py").write_text("import os\nos.kill(os.getpid(), 9)  # as the kernel does\n")
    killed = server.submit("--working-dir", str(tmp_path), "--retries", "0", "evaluate", "quickstart")
    assert killed.returncode == 1
    assert "FAILED: its driver was killed from outside, most often for memory" in killed.stderr
    assert "What is committed stays" in killed.stderr
