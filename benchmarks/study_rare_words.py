"""Encoder against LLM on rare words: every training stage of the paper, its labels, sizes and precisions, seed by seed.

Makes a domain that no shipped model has heard (recordings at 11,025 Hz of new voices and names), pseudo-labels of a
part of it, the trainings of `recipes.rare_words` for every seed, and one evaluation of test per seed; writes
`results/study_rare_words{.jsonl,.md,.png,_real_time_factor.png}`. About an hour of one core for three seeds, so
`make bench` leaves it out. What is finished is not done again: the same command goes on where a killed one stopped.
`python benchmarks/study_rare_words.py [--seeds 3]`; `--steps 2 --utterances 10 --root DIR --results DIR` only
goes the way once.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from figures import Figure, emit, json_lines, pin_threads, read

pin_threads(1)

import matplotlib  # noqa: E402  (the threads are pinned first)
import soundfile  # noqa: E402
import soxr  # noqa: E402

from ctxasr_ray import cli, pipeline  # noqa: E402
from ctxasr_ray.corpora import synthetic  # noqa: E402
from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.label_command import YIELDS  # noqa: E402
from ctxasr_ray.opening import open_run  # noqa: E402
from ctxasr_ray.recipes.rare_words import DOMAIN, DOMAIN_RATE_HZ, ROOT, ROWS, study_rare_words, trainings  # noqa: E402
from ctxasr_ray.recipes.tiny_models import SPEECH_LM_SMALL  # noqa: E402
from ctxasr_ray.training import loop  # noqa: E402

RESULTS: Final = Path(__file__).parent / "results"
NAME: Final = "study_rare_words"
RATES: Final = {"orthographic_wer": "O-WER", "wer": "N-WER", "rare_wer": "R-WER"}
FACTOR: Final = "real_time_factor"
NUM_LABELLED: Final = 500
"""Train utterances that are pseudo-labelled."""
CAPTION_LOSS: Final = 0.1
"""Share of the reference's words that a caption lacks."""
FILTERS: Final[Mapping[str, Sequence[str]]] = {
    "filtered": (),
    "unfiltered": ("--max-wer", "None", "--min-distinct-words", "0", "--max-duration-s", "60"),
}
"""Labels -> options of `ctxasr pseudo-label`."""
COMPARED: Final = (
    ("encoder, one epoch", "first_pass", "first_pass/tuned_1"),
    ("encoder, two epochs", "first_pass", "first_pass/tuned_2"),
    ("encoder, under the LLM", "speech_llm/untuned", "speech_llm/lora"),
    ("LLM behind the encoder as it is", "first_pass", "speech_llm/untuned"),
    ("LLM behind the tuned encoder", "first_pass/tuned_2", "speech_llm/lora"),
    ("LoRA behind the adapter", "speech_llm/adapter", "speech_llm/lora"),
    ("adapter stage left out", "speech_llm/lora", "speech_llm/lora_only"),
    ("filters on labels", "first_pass/unfiltered", "first_pass/filtered"),
)
"""What changes, from which row to which."""
COSTED: Final = ("first_pass/tuned_2", "speech_llm/small", "speech_llm/lora", "speech_llm/bfloat16", "speech_llm/int8")


def say(what: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def write_corpus(config: SyntheticConfig, root: Path) -> None:
    """The domain at its rate: `corpus/train_dev.jsonl`, `corpus/test.jsonl`, and captions of a part of train."""
    spoken = synthetic.prepare(config, root / "spoken")
    folder = root / "corpus"
    if (folder / "test.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(row) for row in spoken.read_text("utf-8").splitlines()]
    for row in rows:
        samples, rate_hz = soundfile.read(spoken.parent / row["audio_filepath"], dtype="float32")
        path = (folder / f"{row['utterance_id']}.flac").resolve()
        soundfile.write(path, soxr.resample(samples, rate_hz, DOMAIN_RATE_HZ), DOMAIN_RATE_HZ)
        row["audio_filepath"] = str(path)
    train = [row for row in rows if row["split"] == "train"]
    captions = [{**row, "text": caption(row["text"], row["utterance_id"])} for row in train[:NUM_LABELLED]]
    manifests = {
        "captions": captions,
        "train_dev": [row for row in rows if row["split"] != "test"],
        "test": [row for row in rows if row["split"] == "test"],  # last: with it all is there
    }
    for name, own in manifests.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")


def caption(text: str, utterance_id: str) -> str:
    """What somebody wrote who was in a hurry: the reference without some of its words."""
    rng = random.Random(f"caption/{utterance_id}")
    return " ".join(word for word in text.split() if rng.random() >= CAPTION_LOSS)


def write_labels(root: Path) -> None:
    """Transcripts of the shipped LLM recogniser as labels, through the filters and around them."""
    for name, options in FILTERS.items():
        folder = root / "labels" / name
        if (folder / synthetic.MANIFEST).exists():
            continue
        words = ["pseudo-label", "speech_llm", "--manifest", str(root / "corpus" / "captions.jsonl")]
        words += ["--root", str(root / "labelling"), "--directory", str(folder), "--executor", "inline"]
        words += ["--first-pass.beam-size", "2", "--first-pass.num-hypotheses", "1", "--first-pass.max-tokens", "96"]
        if status := cli.main([*words, *options]):
            raise SystemExit(status)


def train(seed: int, root: Path, most_steps: int | None) -> None:
    """Trains what is not trained yet."""
    for name, config in trainings(seed, str(root)).items():
        steps = config.num_steps if most_steps is None else min(config.num_steps, most_steps)
        say(f"seed {seed}: {name}, {steps} steps")
        loop.run(replace(config, num_steps=steps), root / f"seed_{seed}" / name)


def evaluate(seed: int, root: Path) -> list[dict[str, Any]]:
    """RESULTS of test."""
    experiment = replace(study_rare_words(seed, str(root)), executor="inline")
    store, shards = open_run(experiment, str(root / "run"), root / "corpus" / "test.jsonl")
    pipeline.run(experiment, store, shards, on_progress=lambda e: say(f"{e.done} of {e.total}: {e.report.step}"))
    results = pipeline.results(experiment, store, shards)
    pipeline.report(experiment, store, shards, results, root / f"seed_{seed}" / "report", NAME)
    return [row for row in results.to_pylist() if row["metric"] in (*RATES, FACTOR)]


def figures(by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[Figure]:
    """Mean and range over seeds of every row's rates, with each seed's own interval, and of its real-time factor."""
    for system in ROWS:
        for metric in (*RATES, FACTOR):
            own = {
                seed: next(row for row in rows if (row["system"], row["metric"]) == (system, metric))
                for seed, rows in by_seed.items()
            }
            scale, unit = (1.0, "s per s") if metric == FACTOR else (100.0, "%")
            values = [scale * row["value"] for row in own.values()]
            told: dict[str, int | float | str] = {"lowest": round(min(values), 4), "highest": round(max(values), 4)}
            for seed, row in own.items() if metric != FACTOR else ():
                low, high = (scale * row[bound] for bound in ("ci_low", "ci_high"))
                told[f"seed_{seed}"] = f"{scale * row['value']:.2f} [{low:.2f}, {high:.2f}]"
                told["utterances"] = row["num_utterances"]
            yield Figure(name=_name(system, metric), value=fmean(values), unit=unit, counters=told)


def _name(system: str, metric: str) -> str:
    return f"rare_words_{system.replace('/', '_')}_{metric}"


def findings(found: Sequence[Figure], num_seeds: int, root: Path) -> str:
    """The rows, what each change moves, and the filters' yields, as Markdown."""
    by_name = {figure.name: figure for figure in found}
    metrics = (*RATES, FACTOR)
    lines = ["# Encoder against LLM on rare words", ""]
    lines += [
        f"`python benchmarks/study_rare_words.py --seeds {num_seeds}`; test of the domain of `recipes.rare_words`."
    ]
    lines += ["Mean over seeds (lowest to highest); intervals of every seed stand in the JSON lines. WER in %."]
    lines += [
        "Models and references write lower case without punctuation, so O-WER is hardly another figure than N-WER.",
        "",
    ]
    lines += ["| row | what it is | O-WER | N-WER | R-WER | RTF |", "|---|---|---:|---:|---:|---:|"]
    for system, what in ROWS.items():
        cells = []
        for metric in metrics:
            one, digits = by_name[_name(system, metric)], 3 if metric == FACTOR else 1
            bounds = (float(one.counters[bound]) for bound in ("lowest", "highest"))
            cells.append(f"{one.value:.{digits}f} ({' to '.join(f'{bound:.{digits}f}' for bound in bounds)})")
        lines.append(f"| `{system}` | {what} | {' | '.join(cells)} |")
    lines += ["", "| what changes | from | to | O-WER | N-WER | R-WER |", "|---|---|---|---:|---:|---:|"]
    for what, before, after in COMPARED:
        pairs = [(by_name[_name(before, metric)].value, by_name[_name(after, metric)].value) for metric in RATES]
        moved = [f"{b - a:+.1f} ({100 * (b / a - 1):+.0f} % relative)" for a, b in pairs]
        lines.append(f"| {what} | `{before}` | `{after}` | {' | '.join(moved)} |")
    lines += ["", _core_finding(by_name)]
    filters = json.loads((root / "labels" / "filtered" / YIELDS).read_text("utf-8"))["yields"]
    lines += ["", "Filters on the pseudo-labels of the shipped LLM recogniser, one behind the other:", ""]
    lines += [f"- {one['name']}: {one['num_kept']} of {one['num_seen']} kept" for one in filters]
    return "\n".join(lines) + "\n"


def _core_finding(by_name: Mapping[str, Figure]) -> str:
    """The paper's claim beside what was measured here."""

    def moved(before: str, after: str) -> str:
        pairs = [(_name(before, metric), _name(after, metric)) for metric in ("wer", "rare_wer")]
        overall, rare = (100 * (by_name[b].value / by_name[a].value - 1) for a, b in pairs)
        return f"N-WER by {overall:+.0f} % and R-WER by {rare:+.0f} %"

    return (
        "The paper finds that the encoder moves O-WER and N-WER, and the LLM R-WER. Here, relative, the encoder (two "
        f"epochs) moves {moved('first_pass', 'first_pass/tuned_2')}, the LLM behind it (adapter, LoRA) "
        f"{moved('first_pass/tuned_2', 'speech_llm/lora')}; a larger LLM behind the same encoder "
        f"{moved('speech_llm/small', 'speech_llm/lora')}. Most rare words here are made-up names that the LLM has "
        "never read: it knows how names are built, where the paper's LLM of 7 billion parameters has read its rare "
        "words."
    )


def draw(found: Sequence[Figure], directory: Path) -> None:
    """The three rates by row, and R-WER against the real-time factor; bars are ranges over seeds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_name = {figure.name: figure for figure in found}
    fig, axes = pyplot.subplots(figsize=(9.5, 4.4))
    for place, (metric, title) in enumerate(RATES.items()):
        own = [by_name[_name(system, metric)] for system in ROWS]
        at = [row + 0.2 * (place - 1) for row in range(len(own))]
        axes.errorbar(at, [one.value for one in own], yerr=_spread(own), fmt="os^"[place], ms=5, label=title)
    axes.set_xticks(range(len(ROWS)), list(ROWS), rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("% of reference words")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, ncol=3)
    fig.tight_layout()
    fig.savefig(directory / f"{NAME}.png", dpi=110)
    fig, axes = pyplot.subplots(figsize=(6.4, 4.0))
    for place, system in enumerate(COSTED):
        rate, factor = by_name[_name(system, "rare_wer")], by_name[_name(system, FACTOR)]
        place_x, bars = [factor.value], {"xerr": _spread([factor]), "yerr": _spread([rate])}
        axes.errorbar(place_x, [rate.value], fmt="os^Dv"[place], ms=7, label=ROWS[system], **bars)
    axes.set_xlabel("real-time factor (s of work per s of audio)")
    axes.set_ylabel("R-WER (% of rare reference words)")
    axes.grid(alpha=0.3)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    fig.tight_layout()
    fig.savefig(directory / f"{NAME}_{FACTOR}.png", dpi=110)


def _spread(own: Sequence[Figure]) -> list[list[float]]:
    """Down to the lowest seed and up to the highest."""
    return [
        [max(0.0, one.value - float(one.counters["lowest"])) for one in own],
        [max(0.0, float(one.counters["highest"]) - one.value) for one in own],
    ]


def main(words: Sequence[str]) -> None:
    """Runs, writes, draws and prints; or draws what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("printed", nargs="?", type=Path, help="JSON lines of an earlier run: draw them, run nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="most steps of every training")
    parser.add_argument("--utterances", type=int, help="utterances of train, dev and test each")
    parser.add_argument("--root", type=Path, default=Path(ROOT))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    options.results.mkdir(parents=True, exist_ok=True)
    if options.printed is not None:
        draw(read(options.printed), options.results)
        return
    if not Path(SPEECH_LM_SMALL).is_dir():
        raise SystemExit(
            f"{NAME}: no model at {SPEECH_LM_SMALL}, the smaller LLM; make it by `ctxasr train lm_small` and then "
            "`ctxasr train speech_lm_small`, or link a finished one there."
        )
    num = options.utterances
    write_corpus(DOMAIN if num is None else replace(DOMAIN, num_train=num, num_dev=num, num_test=num), options.root)
    write_labels(options.root)
    by_seed = {}
    for seed in range(1, options.seeds + 1):
        train(seed, options.root, options.steps)
        by_seed[seed] = evaluate(seed, options.root)
    found = list(figures(by_seed))
    (options.results / f"{NAME}.jsonl").write_text("\n".join(json_lines(found)) + "\n", "utf-8")
    (options.results / f"{NAME}.md").write_text(findings(found, options.seeds, options.root), "utf-8")
    draw(found, options.results)
    emit(found)


if __name__ == "__main__":
    main(sys.argv[1:])
