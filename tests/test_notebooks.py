"""Notebooks run from top to bottom on a finished run, hold no outputs, and answer the question in their title."""

from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from made_run import write_made_run
from nbclient import NotebookClient

from ctxasr_ray.cli import main
from ctxasr_ray.corpora.synthetic import SyntheticConfig, prepare
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.recipes.showcase import showcase as showcase_recipe

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
RUNS = Path(__file__).parents[1] / "runs"
QUICKSTART = RUNS / "quickstart"
SHOWCASE = RUNS / "showcase"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_the_title_is_a_question(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    title = notebook.cells[0].source.splitlines()[0]
    assert title.startswith(f"# {path.stem.split('_')[0]} ")
    assert title.endswith("?")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_run(tmp_path_factory.mktemp("made") / "run", 90)


def executed(path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    monkeypatch.setenv("CTXASR_RUN", str(run))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> tuple[str, int]:
    """Everything printed, and the number of drawings."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in found)
    return text, sum("image/png" in output.get("data", {}) for output in found)


@pytest.mark.slow
def test_the_first_look_shows_two_figures_and_answers_from_a_made_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, num_drawings = outputs(executed(NOTEBOOKS[0], made, monkeypatch))
    assert num_drawings == 2
    assert "synthetic, test: lm_rescoring makes" in text
    assert "points fewer than first_pass" in text
    assert "lm_rescoring helps in" in text


ANSWERS = {
    "02": (2, "rescoring can win at most", "lm_rescoring closes"),
    "03": (1, "is nearly as good as", "On test the chosen weight costs"),
    "05": (2, "systems are on the frontier", "The costliest step is"),
    "06": (2, "confidently wrong (0.9 or more)", "lm_rescoring makes"),
}
"""Notebook -> its drawings, and what its answer says on the made run."""
LISTS = (2, "cuts 1,000 other names to")
"""The same of 04, which reads context tables that the made run does not have."""


def notebook(number: str) -> Path:
    return next(path for path in NOTEBOOKS if path.stem.startswith(number))


@pytest.mark.slow
@pytest.mark.parametrize("number", ANSWERS)
def test_a_notebook_draws_and_answers_from_a_made_run(number: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, num_drawings = outputs(executed(notebook(number), made, monkeypatch))
    expected, *sentences = ANSWERS[number]
    assert num_drawings == expected
    for sentence in sentences:
        assert sentence in text


@pytest.mark.slow
@pytest.mark.skipif(not (QUICKSTART / "report").is_dir(), reason="no finished run in runs/quickstart: make quickstart")
@pytest.mark.parametrize("number", ["02", "03"])
def test_a_notebook_reads_the_quickstart(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, num_drawings = outputs(executed(notebook(number), QUICKSTART, monkeypatch))
    assert num_drawings == ANSWERS[number][0]
    assert ANSWERS[number][1] in text


def lists_of_names() -> Experiment:
    """The showcase's first pass, its LM, and both list sizes of the methods that are quick."""
    shown = showcase_recipe()
    quick = ("keyword_boost/list_", "keyword_candidates/list_")
    branches = {
        name: replace(branch, rescorings={}) for name, branch in shown.branches.items() if name.startswith(quick)
    }
    return replace(shown, rescorings={}, branches=branches)


@pytest.fixture(scope="module")
def showcase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `make showcase` where there is one, else one in small: several systems, shipped models, espeak."""
    if (SHOWCASE / "report").is_dir():
        return SHOWCASE
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("showcase")
    spoken = SyntheticConfig(num_dev=8, num_test=8)
    words = ["--manifest", str(prepare(spoken, folder / "corpus")), "--root", str(folder / "run")]
    words += ["--executor", "inline", "--num-replicates", "200", "--weights.num-bootstrap", "0"]
    assert main(["evaluate", "test_notebooks:lists_of_names", *words]) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", ["04", "05", "06"])
def test_a_notebook_reads_the_showcase(number: str, showcase: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, num_drawings = outputs(executed(notebook(number), showcase, monkeypatch))
    expected, sentence, *_ = {**ANSWERS, "04": LISTS}[number]
    assert num_drawings == expected
    assert sentence in text


@pytest.mark.slow
@pytest.mark.skipif(not (QUICKSTART / "report").is_dir(), reason="no finished run in runs/quickstart: make quickstart")
def test_the_first_look_reads_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    text, num_drawings = outputs(executed(NOTEBOOKS[0], QUICKSTART, monkeypatch))
    assert num_drawings == 2
    assert "lm_rescoring" in text
