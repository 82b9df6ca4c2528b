"""The layout of DESIGN section 4 as a check: imports point downwards, frameworks load late, files stay readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ctxasr_ray"
GROUND = (
    "schema",
    "stage",
    "nbest",
    "align",
    "align_nist",
    "align_bits",
    "align_words",
    "text",
    "archive",
    "audio",
    "recordings",
    "token_tree",
    "storage",
)
LEVELS = [
    {*GROUND},
    {"execution"},
    {"corpora", "keywords", "models", "metrics", "fusion", "report"},
    {"search"},
    {"first_pass", "candidates", "scorers", "training"},
    {"distributed", "experiment"},
    {"layout"},
    {"pipeline", "axes", "progress", "sweep", "opening", "audit"},
    {"recipes"},
    {
        "file_commands",
        "fit_command",
        "label_command",
        "run_commands",
        "sweep_command",
        "submit_command",
        "train_command",
    },
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FRAMEWORKS = {"torch", "transformers", "vllm", "pocketsphinx", "peft", "safetensors"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found.append(base)
            if base == "ctxasr_ray":
                found += [f"{base}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    assert room in LEVEL, f"{path}: room '{room}' is not in the layout; give it a level in test_layers.py and DESIGN.md"
    for name in _imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "ray":
            assert room == "distributed", f"{path} imports {name}: only distributed may"
        if parts[0] == "ctxasr_ray" and len(parts) > 1 and parts[1] != room:
            assert LEVEL[parts[1]] <= LEVEL[room], f"{path} imports {name}, which stands above it"
            if room == "distributed":
                assert parts[1] in (*GROUND, "execution"), f"{path} imports {name}: distributed knows no speech"


def test_recipes_and_cli_load_no_framework() -> None:
    code = (
        "import sys, ctxasr_ray.cli, ctxasr_ray.recipes.evaluation\n"
        f"loaded = sorted({FRAMEWORKS | {'ray', 'numba', 'matplotlib'}} & set(sys.modules))\n"
        "sys.exit(f'loaded at import: {loaded}' if loaded else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in {"utils", "helpers", "common", "base", "manager"}
    assert text.count("\n") <= 330, f"{path}: two things in one file?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= 75, f"{path}:{node.lineno} {node.name} has {length} lines: more than one step?"
