"""The console script `ctxasr`: a command, a recipe's name, then any field of the recipe.

Every command ends with one clear message and a non-zero exit when it cannot do what was asked; what a run has
committed stays, and the same command goes on from there.
"""

import errno
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ctxasr_ray.file_commands import compare, prepare, score
from ctxasr_ray.label_command import pseudo_label
from ctxasr_ray.recipes.evaluation import RECIPES
from ctxasr_ray.run_commands import audit, evaluate, export, parse_evaluate, plan, report, status
from ctxasr_ray.schema import ContractError
from ctxasr_ray.submit_command import submit
from ctxasr_ray.sweep_command import sweep_recipe
from ctxasr_ray.train_command import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    from ctxasr_ray.execution.stage_calls import RunError
    from ctxasr_ray.storage.store import StoreError

    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    warnings.formatwarning = lambda message, *_, **__: f"ctxasr: {message}\n"
    command, *rest = words
    if command not in COMMANDS:
        print(f"ctxasr: command '{command}' is unknown.\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[command](rest)
    except (ValueError, ContractError, RunError, StoreError, OSError) as error:
        print(f"ctxasr {command}: {error}{_how_to_go_on(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nctxasr {command}: stopped. What is committed stays; the same command goes on.", file=sys.stderr)
        return 130


def _how_to_go_on(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ". What is committed is intact. Free space or mend permissions, then run the same command again."
    return ""


def _usage() -> str:
    lines = ["usage: ctxasr COMMAND [RECIPE] [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<22} {_first_line(function)}" for name, function in COMMANDS.items()]
    lines += ["", "recipes:"]
    lines += [f"  {name:<22} {_first_line(function)}" for name, function in RECIPES.items()]
    lines += ["", "`ctxasr evaluate RECIPE --help` lists every field of a recipe."]
    return "\n".join(lines)


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]


def _evaluate(words: list[str]) -> int:
    """Run a recipe on a manifest: N-best, scores, fusion, results, report."""
    return evaluate(parse_evaluate("evaluate", words))


def _quickstart(words: list[str]) -> int:
    """Run the whole line on a synthetic corpus with the shipped tiny models (about two minutes)."""
    return evaluate(parse_evaluate("quickstart", ["quickstart", *words]))


COMMANDS: Final[Mapping[str, Callable[[list[str]], int]]] = {
    "quickstart": _quickstart,
    "evaluate": _evaluate,
    "sweep": sweep_recipe,
    "submit": submit,
    "plan": plan,
    "status": status,
    "report": report,
    "audit": audit,
    "export": export,
    "prepare": prepare,
    "pseudo-label": pseudo_label,
    "train": train,
    "score": score,
    "compare": compare,
}


if __name__ == "__main__":
    sys.exit(main())
