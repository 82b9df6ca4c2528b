"""What every reader of somebody else's N-best lists gives, and what all of them refuse in the same words."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from ctxasr_ray.corpora import nemo
from ctxasr_ray.corpora.lines import ManifestError, read_lines, refuse_duplicates
from ctxasr_ray.nbest import Hypothesis, NBest


@dataclass(frozen=True, slots=True)
class Listed:
    """One utterance's list as a file has it: numbers are not scores before the config has said what they are."""

    where: str
    """File, and line where there is one; for messages."""
    nbest: NBest
    values: tuple[tuple[float, ...], ...]
    """Per hypothesis the numbers of the format's score fields, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdRule:
    """How lists that name no utterance get their ids: in the order of another file, as many lists as it has lines."""

    path: str
    """NeMo manifest (.jsonl, .json), or a text file with one id first in each line (Kaldi's `text` or `wav.scp`)."""
    rows_per_utterance: int | None = None
    """How many rows in a line are one list (nemo_tsv)."""


_TENSOR: Final = re.compile(r"tensor\(([^,()]+)(?:,[^()]*)?\)")
"""tensor(-3.5), tensor(-3.5, device='cuda:0')"""
Reader = Callable[[str, IdRule | None], Iterator[Listed]]


def read_ids(path: str) -> list[str]:
    """The utterance ids of a file in its order; see `IdRule.path`.

    Raises:
        ManifestError: missing, broken, or one id twice.
    """
    if path.endswith((".jsonl", ".json", ".ndjson")):
        return [str(found) for found in nemo.read(path)["utterance_id"].to_pylist()]
    numbered = [(number, line.split()[0]) for number, line in read_lines(path)]
    refuse_duplicates(path, numbered)
    return [utterance_id for _, utterance_id in numbered]


def needed(path: str, rule: IdRule | None) -> IdRule:
    """The rule that a format without ids cannot do without.

    Raises:
        ManifestError: there is none.
    """
    if rule is None:
        raise ManifestError(
            path, "names no utterance; say by `ids_path` which file lists the utterances in this order (never guessed)"
        )
    return rule


def plain(text: str) -> Hypothesis:
    """An imported hypothesis that has no tokens; white space around it belongs to the file."""
    return Hypothesis(text=text.strip(), origin="imported")


def number(path: str | Path, line: int | None, name: str, cell: Any) -> float:
    """A finite number from a cell of a text file or from JSON; also as torch prints it, which ESPnet writes.

    Raises:
        ManifestError: it is none; a missing score is not 0, and an impossible text has no score at all.
    """
    tensor = _TENSOR.fullmatch(cell) if isinstance(cell, str) else None
    if tensor:
        cell = tensor[1]
    try:
        value = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        problem = f"got {str(cell)[:40]!r}, expected a finite number; leave out a hypothesis that has no score"
        raise ManifestError(path, problem, line, name)
    return value


def load_json(path: str, line: int | None, text: str) -> Any:
    """JSON without nan, infinity, half characters and keys that stand twice.

    Raises:
        ManifestError: broken, naming file, line and column.
    """

    def refuse(constant: str) -> NoReturn:
        raise ManifestError(path, f"{constant} is no JSON; leave out a hypothesis that has no score", line)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ManifestError(path, f"'{key}' stands twice in one object; give every list an id of its own", line)
            found[key] = value
        return found

    try:
        value = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ManifestError(path, f"broken JSON: {error.msg}", line or error.lineno, error.colno) from error
    except ManifestError:
        raise
    except (ValueError, RecursionError) as error:
        raise ManifestError(path, f"broken JSON: {error}", line) from error
    return value
