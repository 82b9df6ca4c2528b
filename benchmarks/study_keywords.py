"""Context as lists grow, as shortlists change and as noise rises: five runs, and what they say in figures.

`study_list_sizes`: nested lists of 10 to 50,000 phrases on the same utterances; rare words of LibriSpeech (the lists of
Le et al., 2021) and names of the synthetic corpus. `study_shortlists`: ways to find 64 of 10,000 phrases.
`study_noise`: the same test set at 20, 10, 5 and 0 dB. `growth_keyword_boost` and
`growth_keyword_candidates`: what 50,000 phrases cost over 1,000, by turns.
Every model ships and every setting is its default. Run it without arguments, or name studies:
`python benchmarks/study_keywords.py study_noise`. Tables lie in `runs/studies`; curves over list sizes and over noise
are drawn into `results/`. With the file of its printed figures it draws them again and runs nothing:
`python benchmarks/study_keywords.py benchmarks/results/study_keywords.jsonl`.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from figures import Figure, emit, pin_threads, read

pin_threads(1)

import matplotlib  # noqa: E402  (the threads are pinned first)
from finished_runs import RESULTS, ROOT, Finished, figures_of  # noqa: E402

from ctxasr_ray import pipeline  # noqa: E402
from ctxasr_ray.corpora import synthetic  # noqa: E402
from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.layout import Line, line  # noqa: E402
from ctxasr_ray.opening import open_run  # noqa: E402
from ctxasr_ray.recipes import studies  # noqa: E402
from ctxasr_ray.report.curves import confident_by_setting  # noqa: E402
from ctxasr_ray.report.overview import corpora_as_settings  # noqa: E402
from ctxasr_ray.report.tables import lines, results_records  # noqa: E402
from ctxasr_ray.storage.shards import Shard  # noqa: E402
from ctxasr_ray.storage.store import Store  # noqa: E402

REAL: Final = Path(os.environ.get("CTXASR_REAL", Path(__file__).parents[2] / "shared" / "real"))
RARE: Final = REAL / "is21" / "words" / "all_rare_words.txt"
NOISE_DB: Final = (20.0, 10.0, 5.0, 0.0)
NUM_DEV, NUM_TEST = 30, 60
METRICS: Final = ("wer", "biased_wer", "unbiased_wer", "keyword_f1", "distractor_false_alarms", "keyword_leaks")
LIST_METHODS: Final = ("keyword_boost", "keyword_candidates")
COMPARED: Final = (1_000, 50_000)
"""List sizes whose cost is compared."""
ROUNDS: Final = 5
"""Comparisons by turns, after one of each that does not count."""
DRAWN: Final = {
    "biased_wer": "B-WER",
    "unbiased_wer": "U-WER",
    "distractor_false_alarms": "false alarms",
    "recall@64": "true phrases in the shortlist",
    "real_time_factor": "real-time factor",
}
LOOKED_UP: Final = ("recall@8", "recall@64")
CONFIDENT: Final = ("confidently_wrong", "confidently_wrong_repaired", "confidently_wrong_repairable", "gate_lockout")


def write_phrases() -> None:
    """The catalogue of the studies: as many names of the synthetic corpus as real rare words, in one file.

    Without the real words (`CTXASR_REAL`) names stand in for them.
    """
    path = Path(studies.PHRASES)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        needed = max(studies.LIST_SIZES) + 1000
        rare = RARE.read_text("utf-8").split() if RARE.exists() else []
        words = random.Random(7).sample(rare, min(len(rare), needed // 2))
        names = SyntheticConfig().catalogue(needed - len(words))
        path.write_text("\n".join(dict.fromkeys([*names, *words])) + "\n", "utf-8")


def noisy_manifest() -> Path:
    """The same utterances at every level of `NOISE_DB`, one corpus per level, as one manifest."""
    path = ROOT / "noise" / synthetic.MANIFEST
    rows = []
    for level in NOISE_DB:
        config = SyntheticConfig(snrs_db=(level,), num_dev=NUM_DEV, num_test=NUM_TEST)
        manifest = synthetic.prepare(config, ROOT / "noise" / f"{level:g}dB")
        for row in map(json.loads, manifest.read_text("utf-8").splitlines()):
            audio = (manifest.parent / row["audio_filepath"]).relative_to(path.parent).as_posix()
            named = {"utterance_id": f"{level:g}dB-{row['utterance_id']}", "corpus": f"synthetic_snr_db_{level:g}"}
            rows.append({**row, **named, "audio_filepath": audio})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def seconds(store: Store, shards: Sequence[Shard], laid: Line, system: str, clock: str = "seconds") -> dict[str, float]:
    """Busy seconds per second of audio on test, by what the step is for; an index, made once per list, is apart.

    Args:
        store: A finished run.
        shards: Of its corpus.
        laid: Its steps.
        system: Whose steps count.
        clock: Of the receipts: seconds, or cpu_seconds.
    """
    spent: dict[str, float] = {}
    audio_s: dict[str, float] = {}
    for step in laid.above(system):
        receipts = [r for r in store.costs([step], shards) if r["split"] == "test"]
        part = PARTS.get(step.config.NAME, "rest")
        spent[part] = spent.get(part, 0.0) + sum(r[clock]["busy"] - r[clock].get("index", 0.0) for r in receipts)
        audio_s |= {r["shard"]: r["audio_s"] for r in receipts}
    return {part: busy / sum(audio_s.values()) for part, busy in spent.items()}


def anew(system: str) -> float:
    """Processor seconds per second of audio of a system of `study_list_sizes`, made from nothing in this process."""
    whole = studies.study_list_sizes()
    branch = system.removesuffix("_rescored")
    experiment = replace(whole, executor="inline", branches={branch: whole.branches[branch]})
    with tempfile.TemporaryDirectory() as folder:
        store, shards = open_run(experiment, folder, None)
        pipeline.run(experiment, store, shards, system=system)
        return sum(seconds(store, shards, line(experiment), system, "cpu_seconds").values())


def growth(method: str) -> Iterator[Figure]:
    """How much longer a method takes with 50,000 phrases than with 1,000: the median of A B B A over `ROUNDS`.

    In processor seconds, since a longer list suffers more from neighbours, whose work is not its own.
    """
    few, many = (system_of(method, size) for size in COMPARED)
    for system in (few, many):
        anew(system)  # loads what a process loads once
    ratios, spent = [], []
    for _ in range(ROUNDS):
        first_few, first_many, last_many, last_few = (anew(system) for system in (few, many, many, few))
        ratios.append((first_many + last_many) / (first_few + last_few))
        spent.append((first_many + last_many) / 2)
        print(f"{method}: {ratios[-1]:.3f}", file=sys.stderr, flush=True)
    told = {"ratio_min": min(ratios), "ratio_max": max(ratios), "rtf_50k": median(spent)}
    yield Figure(
        name=f"list_sizes_{method}_rtf_50k_over_1k",
        value=median(ratios),
        unit="x",
        goal="<= 1.15",
        counters={**{name: round(value, 4) for name, value in told.items()}, "rounds": ROUNDS},
    )


PARTS: Final[Mapping[str, str]] = {
    "ctc": "search",
    "ctc_keywords": "search",
    "shortlist": "shortlist",
    "plausible": "shortlist",
    "causal_lm": "lm",
    "ctc_scorer": "forced_scores",
    "keyword_candidates": "candidates",
}
"""Stage -> the part of a system's work that it is."""


def system_of(method: str, size: int) -> str:
    """The system whose time and errors stand for a method."""
    return f"{method}/list_{size}" + ("" if method == "keyword_boost" else "_rescored")


def list_sizes() -> Iterator[Figure]:
    """Curves over list sizes, and what the longest list costs."""
    run = Finished("study_list_sizes", studies.study_list_sizes())
    yield from figures_of(run, "list_sizes_first_pass", "first_pass", METRICS)
    for method in LIST_METHODS:
        for size in studies.LIST_SIZES:
            list_name, system = f"{method}/list_{size}", system_of(method, size)
            prefix = f"list_sizes_{method}_{size}"
            yield from figures_of(run, prefix, system, METRICS)
            yield from figures_of(run, prefix, list_name, LOOKED_UP)
            parts = seconds(run.store, run.shards, run.line, system)
            told = {f"{part}_ms_per_s": round(1000 * seconds, 2) for part, seconds in parts.items()}
            yield Figure(name=f"{prefix}_real_time_factor", value=sum(parts.values()), unit="s per s", counters=told)


def shortlists() -> Iterator[Figure]:
    """Recall of every way to make a shortlist, and what candidates make of it, by type of phrase."""
    run = Finished("study_list_sizes", studies.study_shortlists())  # the same folder: the first pass is there
    for system in run.experiment.branches:
        prefix = f"shortlists_{system.partition('/')[2]}"
        yield from figures_of(run, prefix, system, ("recall@1", *LOOKED_UP))
        yield from figures_of(run, prefix, f"{system}_rescored", METRICS)
        for kind, found in run.by_type(f"{system}_rescored").items():
            yield Figure(name=f"{prefix}_keyword_f1_{kind}", value=found.f1, unit="fraction")


def noise() -> Iterator[Figure]:
    """Every method at every level, and its confidently wrong words."""
    run = Finished("study_noise", studies.study_noise(), noisy_manifest())
    for chart in confident_by_setting(corpora_as_settings(lines(results_records(run.results)))):
        replace(chart, name="study_noise").png(RESULTS)
    for level in NOISE_DB:
        for system in run.line.transcripts:
            prefix = f"noise_{level:g}dB_{system.replace('/', '_')}"
            yield from figures_of(run, prefix, system, (*METRICS, *CONFIDENT), f"synthetic_snr_db_{level:g}")


def draw_list_sizes(found: Sequence[Figure]) -> None:
    """Errors, false alarms, recall of the shortlist and seconds over list sizes, with 95 % intervals."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_name = {figure.name: figure for figure in found}
    fig, panels = pyplot.subplots(1, len(DRAWN), figsize=(2.9 * len(DRAWN), 3.2))
    for (metric, title), axes in zip(DRAWN.items(), panels, strict=True):
        for place, method in enumerate(LIST_METHODS):
            names = {size: f"list_sizes_{method}_{size}_{metric}" for size in studies.LIST_SIZES}
            known = {size: by_name[name] for size, name in names.items() if name in by_name}
            if not known:
                continue  # a boost has no shortlist
            ink = f"C{place}"
            axes.plot(list(known), [f.value for f in known.values()], color=ink, marker="o", ms=3, label=method)
            bounds = [[f.counters.get(end, f.value) for f in known.values()] for end in ("ci_low", "ci_high")]
            axes.fill_between(list(known), *bounds, color=ink, alpha=0.15)
        if (level := by_name.get(f"list_sizes_first_pass_{metric}")) is not None:
            axes.axhline(level.value, color="grey", ls=":", label="no list")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("distractors in the list", fontsize=8)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncol=len(labels), fontsize=8, frameon=False)
    fig.tight_layout(rect=(0, 0.08, 1, 1))
    fig.savefig(RESULTS / "study_list_sizes.png", dpi=110)


STUDIES: Final = {
    "study_list_sizes": list_sizes,
    "study_shortlists": shortlists,
    "study_noise": noise,
    **{f"growth_{method}": partial(growth, method) for method in LIST_METHODS},
}


def main(arguments: Sequence[str]) -> None:
    """Runs the studies that are named, or all, and draws them; or draws what was printed."""
    if arguments and arguments[0] not in STUDIES:
        draw_list_sizes(read(Path(arguments[0])))
        return
    write_phrases()
    found = [figure for name in arguments or STUDIES for figure in STUDIES[name]()]
    if "study_list_sizes" in (arguments or STUDIES):
        draw_list_sizes(found)
    emit(found)


if __name__ == "__main__":
    main(sys.argv[1:])
