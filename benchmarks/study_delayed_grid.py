"""Delayed fusion by beam and interval: errors, calls of the LM, seconds and bytes of keys and values per utterance.

Runs the recipe `study_delayed_grid` in this process (60 utterances of dev, shipped models, one thread), draws
`results/study_delayed_grid*.png` (the grid, and errors against calls and against the real-time factor), and prints one
figure per system. Run it without arguments; tables lie in `runs/studies`. With the file of its printed figures it draws
them again and runs nothing: `python benchmarks/study_delayed_grid.py benchmarks/results/study_delayed_grid.jsonl`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from figures import Figure, emit, pin_threads, read

pin_threads(1)

import matplotlib  # noqa: E402  (the threads are pinned first)
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from ctxasr_ray import pipeline  # noqa: E402
from ctxasr_ray.layout import line  # noqa: E402
from ctxasr_ray.opening import open_run  # noqa: E402
from ctxasr_ray.recipes.search_studies import BEAMS, INTERVALS, study_delayed_grid  # noqa: E402
from ctxasr_ray.report import frames, pareto  # noqa: E402
from ctxasr_ray.report.tables import lines  # noqa: E402

ROOT: Final = Path("runs/studies/study_delayed_grid")
RESULTS: Final = Path(__file__).parent / "results"
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
        yield Figure(name=_name(system), value=100 * wer["value"], unit="%", counters=told)


def _name(system: str) -> str:
    return f"delayed_grid_{system.replace('/', '_')}_wer"


def draw(found: Sequence[Figure]) -> None:
    """Writes all three drawings."""
    by_name = {figure.name: figure for figure in found}
    draw_grid(by_name)
    draw_costs({system: by_name[_name(system)] for system in line(study_delayed_grid()).transcripts})


def draw_grid(by_name: Mapping[str, Figure]) -> None:
    """The grid: WER and calls by beam and interval."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.6))
    for axes, key, title in zip(panels, (None, "llm_calls"), ("WER %", "LLM calls per utterance"), strict=True):
        cells = np.zeros((len(BEAMS), len(INTERVALS)))
        for place, _ in np.ndenumerate(cells):
            beam, interval = BEAMS[place[0]], INTERVALS[place[1]]
            figure = by_name[_name(f"delayed_fusion_beam_{beam}/interval_{interval}")]
            cells[place] = figure.value if key is None else float(figure.counters[key])
        axes.imshow(cells, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            ink = "black" if value > (cells.min() + cells.max()) / 2 else "white"  # high values are light
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(INTERVALS)), [str(one) for one in INTERVALS])
        axes.set_yticks(range(len(BEAMS)), [str(one) for one in BEAMS])
        axes.set_xlabel("interval (frames of 40 ms)")
        axes.set_ylabel("beam")
        axes.set_title(f"delayed fusion, dev, N = 60: {title}", fontsize=9)
    fig.tight_layout()
    fig.savefig(RESULTS / "study_delayed_grid.png", dpi=110)


def draw_costs(by_system: Mapping[str, Figure]) -> None:
    """WER against calls per utterance and against the real-time factor, as a run's page draws them."""
    records: list[dict[str, Any]] = []
    calls: dict[tuple[str, str], float | None] = {}
    for system, figure in by_system.items():
        told, place = figure.counters, {"corpus": "synthetic", "split": "dev", "system": system, "condition": {}}
        low, high = (float(told[bound]) / 100 for bound in ("ci_low", "ci_high"))
        wer = {"value": figure.value / 100, "ci_low": low, "ci_high": high, "num_utterances": told["utterances"]}
        records.append({**place, "metric": "wer", **wer})
        records.append({**place, "metric": "real_time_factor", "value": told["real_time_factor"]})
        calls["synthetic", system] = float(told.get("llm_calls", 0))
    rows = lines(records)
    axis = "language-model calls / utterance, one at a time"
    charts = {
        "calls": pareto.against(rows, calls, "error_against_calls", "language-model calls", axis),
        "real_time_factor": pareto.against_real_time_factor(rows),
    }
    for name, chart in charts.items():
        assert chart is not None, "every system has an error rate and both costs"
        replace(chart, name=f"study_delayed_grid_{name}").png(RESULTS)


def main(paths: Sequence[str]) -> None:
    """Runs, draws and prints; or draws what was printed."""
    if paths:
        draw(read(Path(paths[0])))
        return
    found = list(figures())
    draw(found)
    emit(found)


if __name__ == "__main__":
    main(sys.argv[1:])
