"""Where the real material lies: env CTXASR_REAL, else ../shared/real from the project's root."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("CTXASR_REAL", Path(__file__).parents[2] / "shared" / "real"))


def real(path: str = "") -> Path:
    """A file or folder of the real material; skips the test, saying so, where it is missing."""
    found = ROOT / path
    if not found.exists():
        pytest.skip(f"real material is missing: {found} (set CTXASR_REAL to its folder)")
    return found
