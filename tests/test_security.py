"""What is never done: code of a file run when it is read, a vulnerable dependency passed over in silence."""

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("ctxasr_ray", "jobs", "benchmarks", ".ci") for path in (ROOT / room).rglob("*.py"))
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls(tree: ast.AST) -> list[tuple[str, dict[str, ast.expr]]]:
    """Dotted name and keywords of every call."""
    return [
        (ast.unparse(node.func), {each.arg: each.value for each in node.keywords if each.arg})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_of_a_file_is_run_when_it_is_read(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in modules} & LOADERS
    for name, keywords in calls(tree):
        assert ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) == "False", "numpy's default"
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True"
        assert name not in ("pd.read_pickle", "yaml.load", "yaml.unsafe_load", "eval", "exec"), f"{path}: {name}"
        if "trust_remote_code" in keywords:
            assert ast.unparse(keywords["trust_remote_code"]) == "False", f"{path}: {name}"


def package(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [], **fields}


VULNERABILITY = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}


@pytest.mark.parametrize(
    ("dependencies", "said", "status"),
    [
        ([package("a"), package("b")], "2 packages audited", 0),
        ([package("a"), package("b", vulns=[VULNERABILITY])], "b 1.0: CVE-1, PYSEC-1; fixed in 1.1", 1),
        ([package("a"), {"name": "b", "skip_reason": "not on PyPI"}], "1 packages audited, 1 not known", 0),
        ([{"name": "b", "skip_reason": "not on PyPI"}], "NOT DONE, no advisory could be read", 0),
    ],
)
def test_the_audit_fails_on_a_known_vulnerability_and_says_when_it_saw_nothing(
    dependencies: list[dict[str, Any]], said: str, status: int
) -> None:
    judge = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["judge"]
    lines, found = judge({"dependencies": dependencies})
    assert said in "\n".join(lines)
    assert found == status
