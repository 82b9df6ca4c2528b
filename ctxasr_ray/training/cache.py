"""Names for what a training computes once: they hold a digest of what it was made of, so nothing else is reused."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ctxasr_ray.stage import identity

MADE_OF = "made_of.json"
"""Beside cached parts: what their folder's digest stands for."""


def digest(made_of: Any) -> str:
    """Gives 16 hex digits that stand for configs and plain values; runtime fields do not count."""
    return hashlib.sha256(_written(made_of).encode()).hexdigest()[:16]


def keyed(path: Path, made_of: Any) -> Path:
    """Gives the place of a file or folder that is made of this, beside those that are made of something else."""
    return path.with_name(f"{path.stem}-{digest(made_of)}{path.suffix}")


def claim(directory: Path, made_of: Any) -> Path:
    """Makes the folder that is `keyed` by what its files are made of, and says so in it."""
    place = keyed(directory, made_of)
    place.mkdir(parents=True, exist_ok=True)
    (place / MADE_OF).write_text(_written(made_of, indent=2) + "\n", "utf-8")
    return place


def _written(made_of: Any, indent: int | None = None) -> str:
    return json.dumps(identity(made_of), sort_keys=True, indent=indent)
