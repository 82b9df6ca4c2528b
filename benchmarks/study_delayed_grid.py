"""Delayed fusion by beam and interval: errors, calls of the LM, seconds and bytes of keys and values per utterance.

Runs the recipe `study_delayed_grid` in this process (60 utterances of dev, shipped models, one thread), writes the grid
as `results/study_delayed_grid.png`, and prints one figure per system. Run it without arguments; tables lie in
`runs/studies`, and the run's own page draws errors against calls and against the real-time factor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from figures import Figure, emit, pin_threads

pin_threads(1)

import matplotlib  # noqa: E402  (the threads are pinned first)
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from ctxasr_ray import pipeline  # noqa: E402
from ctxasr_ray.layout import line  # noqa: E402
from ctxasr_ray.opening import open_run  # noqa: E402
from ctxasr_ray.recipes.search_studies import BEAMS, INTERVALS, study_delayed_grid  # noqa: E402
from ctxasr_ray.report import frames  # noqa: E402

ROOT: Final = Path("runs/studies/study_delayed_grid")
FIGURE: Final = Path(__file__).parent / "results" / "study_delayed_grid.png"
COUNTERS: Final = ("llm_calls", "nodes", "tokens_flat", "triggers", "kv_bytes")
LENGTHS_S: Final = (3.0, 5.0, 6.0, 8.1)
"""Bounds of the lengths that bytes of keys and values are told for."""


def finished() -> tuple[dict[str, dict[str, Any]], Mapping[str, Sequence[str]]]:
    """Rows of RESULTS by system (WER, real-time factor), and the steps that each system's transcripts come from."""
    experiment = replace(study_delayed_grid(), executor="inline")
    store, shards = open_run(experiment, str(ROOT), None)
    pipeline.run(experiment, store, shards)
    results = pipeline.results(experiment, store, shards)
    pipeline.report(experiment, store, shards, results, ROOT / "report", "study_delayed_grid")
    rows: dict[str, dict[str, Any]] = {}
    for row in results.to_pylist():
        if row["metric"] in ("wer", "real_time_factor"):
            rows.setdefault(row["system"], {})[row["metric"]] = row
    laid = line(experiment)
    return rows, {system: [step.name for step in laid.above(system)] for system in laid.transcripts}


def figures() -> Iterator[Figure]:
    """One figure per system."""
    rows, steps = finished()
    costs = frames.utterance_costs(ROOT)
    utterances = frames.table(ROOT, "utterances").set_index("utterance_id")
    for system, own_steps in steps.items():
        wer, rtf = (rows[system][metric] for metric in ("wer", "real_time_factor"))
        told: dict[str, int | float | str] = {
            "ci_low": round(100 * wer["ci_low"], 2),
            "ci_high": round(100 * wer["ci_high"], 2),
            "utterances": wer["num_utterances"],
            "real_time_factor": round(rtf["value"], 4),
        }
        own = costs[costs["step"].isin(own_steps)]
        if len(own):
            per_utterance = own.groupby("utterance_id")[list(COUNTERS)].sum()
            told |= {name: round(float(per_utterance[name].mean()), 1) for name in COUNTERS}
            seconds = utterances.loc[per_utterance.index, "duration_s"]
            groups = per_utterance["kv_bytes"].groupby(pd.cut(seconds, LENGTHS_S), observed=True).mean()
            told |= {f"kv_bytes_{span.left:g}_to_{span.right:g}_s": round(value) for span, value in groups.items()}
        name = f"delayed_grid_{system.replace('/', '_')}_wer"
        yield Figure(name=name, value=100 * wer["value"], unit="%", counters=told)


def draw(found: Sequence[Figure]) -> None:
    """The grid: WER and calls by beam and interval."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_name = {figure.name: figure for figure in found}
    fig, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.6))
    for axes, key, title in zip(panels, (None, "llm_calls"), ("WER %", "LLM calls per utterance"), strict=True):
        cells = np.zeros((len(BEAMS), len(INTERVALS)))
        for place, _ in np.ndenumerate(cells):
            beam, interval = BEAMS[place[0]], INTERVALS[place[1]]
            figure = by_name[f"delayed_grid_delayed_fusion_beam_{beam}_interval_{interval}_wer"]
            cells[place] = figure.value if key is None else float(figure.counters[key])
        axes.imshow(cells, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white")
        axes.set_xticks(range(len(INTERVALS)), [str(one) for one in INTERVALS])
        axes.set_yticks(range(len(BEAMS)), [str(one) for one in BEAMS])
        axes.set_xlabel("interval (frames of 40 ms)")
        axes.set_ylabel("beam")
        axes.set_title(f"delayed fusion, dev, N = 60: {title}", fontsize=9)
    fig.tight_layout()
    fig.savefig(FIGURE, dpi=110)


def main() -> None:
    """Runs, draws and prints."""
    found = list(figures())
    draw(found)
    emit(found)


if __name__ == "__main__":
    main()
