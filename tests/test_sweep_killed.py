"""`ctxasr sweep` killed at random moments and restored by the same command ends with an undisturbed one's table."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chaos_runs import HERE
from fakes import folder_in_memory
from processes_below import descendants

from ctxasr_ray.experiment import Experiment, Rescoring
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.fusion.weights import WeightsConfig

tmp_path = pytest.fixture(folder_in_memory)
SEED = 11
NUM_KILLS = 3
MEASURED = ("real_time_factor", "pareto")
"""Columns that hold seconds or follow from them."""
COMMAND = (sys.executable, "-m", "ctxasr_ray.cli", "sweep", "test_sweep_killed:recipe", "--json")
AXES = ("--system", "own", "--axes", "rescorings.own.num_hypotheses=2,3,4", "normaliser=none,whisper_english")
WORDS = ("turn", "the", "light", "in", "my", "kitchen", "off", "and", "play", "some", "music", "now", "please")


def recipe() -> Experiment:
    """Somebody else's lists with two scores each, fused with weights that dev finds: no model to load."""
    lists = ImportedConfig(paths=(os.environ["KILLED_LISTS"],), format="nbest")
    fused = {"own": Rescoring(weights=WeightsConfig(num_bootstrap=0))}
    return Experiment(first_pass=lists, rescorings=fused, shard_audio_s=8.0, num_replicates=50)


def write_corpus(folder: Path) -> dict[str, str]:
    """A manifest of 12 dev and 8 test utterances and lists of four texts each; the environment that names the lists."""
    rng = random.Random(SEED)
    manifest, lists = [], []
    for number in range(20):
        spoken = rng.choices(WORDS, k=8)
        row = {"utterance_id": f"u{number}", "audio_filepath": f"{number}.wav", "duration": 4.0}
        split = "dev" if number < 12 else "test"
        manifest.append({**row, "text": " ".join(spoken), "split": split, "speaker_id": f"s{number % 10}"})
        hypotheses = []
        for _ in range(4):
            heard = [rng.choice(WORDS).upper() if rng.random() < 0.3 else word for word in spoken]
            scores = [
                {"source": name, "kind": "log_prob", "log_prob": -rng.uniform(1, 20)} for name in ("acoustic", "lm")
            ]
            hypotheses.append({"text": " ".join(heard), "scores": scores})
        lists.append({"utterance_id": f"u{number}", "hypotheses": hypotheses})
    for name, rows in (("manifest", manifest), ("lists", lists)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "KILLED_LISTS": str(folder / "lists.jsonl"), "PYTHONPATH": paths}


def command(folder: Path, name: str) -> list[str]:
    places = ["--manifest", str(folder / "manifest.jsonl"), "--root", str(folder / name)]
    return [*COMMAND, *places, "--state", str(folder / f"{name}_state"), *AXES]


def committed(root: Path) -> dict[Path, int]:
    """Committed tables and when each was written."""
    return {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*.parquet")}


def unmeasured(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MEASURED}


def tables(output: str) -> list[dict[str, Any]]:
    """What `--json` printed: the rows of the trials, then RESULTS; without times."""
    rows = [json.loads(line) for line in output.splitlines()]
    return [unmeasured(row) for row in rows if row.get("metric") != "real_time_factor"]


def killed(words: list[str], environment: dict[str, str], root: Path, share: float, total: int, wait_s: float) -> bool:
    """Starts a sweep and kills it and all below it; False if it had finished before."""
    sweep = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sweep.poll() is None and len(committed(root)) < share * total:
        time.sleep(0.02)
    time.sleep(wait_s)
    if sweep.poll() is not None:
        return False
    for pid in [sweep.pid, *descendants(sweep.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    sweep.wait()
    return True


@pytest.mark.slow
def test_a_sweep_killed_three_times_gives_the_table_of_an_undisturbed_one(tmp_path: Path) -> None:
    environment = write_corpus(tmp_path)
    undisturbed = subprocess.run(
        command(tmp_path, "whole"), env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    files = committed(tmp_path / "whole")
    rng = random.Random(SEED)
    root = tmp_path / "hit"
    found: dict[Path, int] = {}
    for share in sorted(rng.uniform(0.0, 0.9) for _ in range(NUM_KILLS)):
        assert killed(command(tmp_path, "hit"), environment, root, share, len(files), rng.uniform(0, 0.5))
        now = committed(root)
        assert {path: now[path] for path in found} == found, "what was committed was not written again"
        found = now
    restored = subprocess.run(
        command(tmp_path, "hit"), env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert restored.returncode == 0, restored.stderr
    now = committed(root)
    assert {path: now[path] for path in found} == found
    assert now.keys() == files.keys()
    assert len(tables(undisturbed.stdout)) > 6
    assert tables(restored.stdout) == tables(undisturbed.stdout)
