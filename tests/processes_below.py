"""Processes below another one, as the kernel lists them."""

import contextlib
from pathlib import Path


def _parents() -> dict[int, int]:
    """Process -> the one above it, of all that live now."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def descendants(ancestor: int) -> list[int]:
    """Processes below another one, at any depth."""
    parents, family = _parents(), {ancestor}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family - {ancestor})


def children(parents: set[int], title: str) -> list[int]:
    """Processes right below some others whose title starts so."""
    found = []
    for child, parent in _parents().items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if parent in parents and Path(f"/proc/{child}/cmdline").read_text().startswith(title):
                found.append(child)
    return sorted(found)
