"""Adaptation by sound alone: does a speech-text LM rescore a new domain better once it has listened to it?

Makes the domain (`corpora.unheard`: whispers, croaks and robots in loud noise), hands the train part to the trainings
of `recipes.adaptation` as recordings without transcripts, and rescores test before and after. Fusion weights are fitted
twice: on the domain's dev part, whose transcripts are read, and on that of the old domain, so that no transcript of the
new one is. Writes `results/study_adaptation{.jsonl,.md}`. Some 15 minutes of one core, so `make bench` leaves it out;
what is finished is not done again. `python benchmarks/study_adaptation.py`; `--steps 2 --utterances 10 --root DIR
--results DIR` only goes the way once.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from figures import Figure, emit, json_lines, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from ctxasr_ray import pipeline  # noqa: E402
from ctxasr_ray.corpora import synthetic  # noqa: E402
from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.corpora.unheard import UnheardConfig  # noqa: E402
from ctxasr_ray.experiment import asset  # noqa: E402
from ctxasr_ray.layout import line  # noqa: E402
from ctxasr_ray.metrics import significance  # noqa: E402
from ctxasr_ray.models import checkpoint  # noqa: E402
from ctxasr_ray.opening import open_run  # noqa: E402
from ctxasr_ray.recipes.adaptation import (  # noqa: E402
    ADAPTED,
    BEFORE,
    DOMAIN,
    ROOT,
    WAYS,
    study_adaptation,
    trainings,
)
from ctxasr_ray.report.comparison import compare  # noqa: E402
from ctxasr_ray.training import loop  # noqa: E402
from ctxasr_ray.training.speech_sequences import SpeechSequences, word_perplexity  # noqa: E402

RESULTS: Final = Path(__file__).parent / "results"
NAME: Final = "study_adaptation"
FITS: Final[Mapping[str, str]] = {"target": "the new domain's dev part", "source": "the old domain's dev part"}
"""Manifest -> whose transcripts the weights are fitted on."""
RECORDINGS: Final = "recordings.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """WER of a system on test in %, and its change against the LM before adaptation, asked in the same way."""

    dev: float
    test: tuple[float, float, float]
    """With its interval."""
    change: tuple[float, float, float] | None
    """None where there is no such LM."""


def say(what: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def write_corpus(config: UnheardConfig, num_source: int, root: Path) -> None:
    """`recordings.jsonl` without any transcript, and a manifest of dev and test for each way to fit the weights."""
    folder = root / "corpus"
    spoken = _rows(synthetic.prepare(config, root / "spoken"))
    source = _rows(synthetic.prepare(SyntheticConfig(num_dev=num_source, num_test=0), root / "source"))
    unread = ("text", "keywords")
    recordings = [{k: v for k, v in row.items() if k not in unread} for row in spoken if row["split"] != "test"]
    test = [row for row in spoken if row["split"] == "test"]
    dev = [row for row in spoken if row["split"] == "dev"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((RECORDINGS, recordings), ("target.jsonl", dev + test), ("source.jsonl", source + test)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _rows(manifest: Path) -> list[dict[str, Any]]:
    rows = [json.loads(row) for row in manifest.read_text("utf-8").splitlines()]
    return [{**row, "audio_filepath": str((manifest.parent / row["audio_filepath"]).resolve())} for row in rows]


def train(root: Path, most_steps: int | None) -> list[Figure]:
    """Trains what is not trained yet; perplexities of the domain's dev part, before and after.

    Per unit, without any transcript, and per word of its transcripts, alone and behind their own units.
    """
    found = []
    for name, config in trainings(str(root)).items():
        steps = config.num_steps if most_steps is None else min(config.num_steps, most_steps)
        say(f"{name}: {steps} steps")
        (root / name).mkdir(parents=True, exist_ok=True)
        task = config.task.build(root / name, 0)
        with torch.inference_mode():
            before = task.evaluate()["dev_unit_perplexity"]
        model = loop.run(replace(config, num_steps=steps), root / name)
        told = json.loads((root / name / loop.RESULT).read_text("utf-8"))
        if not found:
            found += _perplexities(BEFORE, before, asset("speech_lm"), root / name, {})
        counters = {"steps": steps, "recordings_and_sentences": told["num_examples"]}
        found += _perplexities(name, told["figures"]["dev_unit_perplexity"], str(model), root / name, counters)
    return found


def _perplexities(name: str, unit: float, model: str, run: Path, counters: Mapping[str, int]) -> Iterator[Figure]:
    yield Figure(name=f"adaptation_{name}_unit_perplexity", value=unit, counters=counters)
    source = checkpoint.resolve(model)
    lm = checkpoint.load_model(AutoModelForCausalLM, source, dtype=torch.float32)
    written = SpeechSequences(checkpoint.load_tokenizer(source), 1.0)
    target = (run.parent / "corpus" / "target.jsonl").read_text("utf-8").splitlines()
    texts = [row["text"] for row in map(json.loads, target) if row["split"] == "dev"]
    with np.load(run / "dev_units.npz") as file:
        units = np.split(file["units"], np.cumsum(file["num_units"])[:-1])
    rows = {"alone": [written.text(text) for text in texts]}
    rows["heard"] = [written.heard_text(own, text) for own, text in zip(units, texts, strict=True)]
    for way, own in rows.items():
        with torch.inference_mode():
            value = word_perplexity(lm, written, own, texts)
        yield Figure(name=f"adaptation_{name}_word_perplexity_{way}", value=value)


def evaluate(root: Path, fit: str) -> dict[str, Row]:
    """Every system with the weights of one fit."""
    experiment = replace(study_adaptation(str(root)), executor="inline")
    store, shards = open_run(experiment, str(root / "run"), root / "corpus" / f"{fit}.jsonl")
    pipeline.run(experiment, store, shards, on_progress=lambda e: say(f"{fit} {e.done} of {e.total}: {e.report.step}"))
    results = pipeline.results(experiment, store, shards)
    pipeline.report(experiment, store, shards, results, root / f"report_{fit}", f"{NAME}, {FITS[fit]}")
    laid = line(experiment)
    utterances = store.gather(laid.corpus, shards)
    utterances = utterances.filter(pc.equal(utterances["split"], "test"))
    transcripts = {system: _of(store.gather(step, shards), utterances) for system, step in laid.transcripts.items()}
    changes = _changes(utterances, transcripts, experiment.normaliser, experiment.num_replicates, experiment.seed)
    rows: dict[str, Row] = {}
    found = [row for row in results.to_pylist() if row["metric"] == "wer"]
    for own in (row for row in found if row["split"] == "test"):
        dev = next(row for row in found if (row["split"], row["system"]) == ("dev", own["system"]))
        bounds = tuple(100 * own[name] for name in ("value", "ci_low", "ci_high"))
        rows[own["system"]] = Row(dev=100 * dev["value"], test=bounds, change=changes.get(own["system"]))
    return rows


def _of(transcripts: pa.Table, utterances: pa.Table) -> pa.Table:
    return transcripts.filter(pc.is_in(transcripts["utterance_id"], utterances["utterance_id"]))


def _changes(
    utterances: pa.Table, transcripts: Mapping[str, pa.Table], normaliser: str, num_replicates: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Points of WER and their paired interval, of every adapted system against the same one before."""
    counted = compare(utterances, transcripts, normaliser=normaliser)
    blocks = significance.choose_blocks(*(utterances[name].to_pylist() for name in ("speaker_id", "session_id")))
    lengths_US = np.repeat(counted.num_words[:, None], len(counted.systems), axis=1)
    changes = {}
    for way in WAYS:
        first = counted.systems.index(f"{BEFORE}/{way}")
        found = significance.compare(
            counted.errors.T, lengths_US, blocks, baseline=first, num_replicates=num_replicates, seed=seed
        )
        for system in (f"{name}/{way}" for name in ADAPTED):
            at = counted.systems.index(system)
            low, high = (100 * float(bound[at]) for bound in (found.delta_ci_low, found.delta_ci_high))
            changes[system] = (100 * float(found.delta[at]), low, high)
    return changes


def figures(by_fit: Mapping[str, Mapping[str, Row]]) -> Iterator[Figure]:
    """WER on test of every system and fit."""
    for fit, rows in by_fit.items():
        for system, row in rows.items():
            told: dict[str, int | float | str] = {"dev": round(row.dev, 2), "interval": _interval(row.test)}
            if row.change is not None:
                told["change_by_adaptation"] = f"{row.change[0]:+.2f} {_interval(row.change, '+')}"
            name = f"adaptation_{system.replace('/', '_')}_wer_weights_of_{fit}"
            yield Figure(name=name, value=row.test[0], unit="%", counters=told)


def _interval(bounds: tuple[float, float, float], sign: str = "") -> str:
    return f"[{bounds[1]:{sign}.2f}, {bounds[2]:{sign}.2f}]"


def findings(by_fit: Mapping[str, Mapping[str, Row]], heard: Sequence[Figure], config: UnheardConfig) -> str:
    """The rows as Markdown."""
    lines = [
        "# Adaptation of the speech-text LM by sound alone",
        "",
        "`python benchmarks/study_adaptation.py`; WER in %.",
    ]
    lines += [
        f"Domain: {len(config.TIMBRES['test'])} timbres that no shipped model has heard, at "
        f"{', '.join(f'{snr:g}' for snr in config.snrs_db)} dB; {config.num_train} recordings to listen to, their",
        f"transcripts unread; dev {config.num_dev}, test {config.num_test} utterances of other speakers. 16-best lists "
        "of the shipped attention recogniser, which is not adapted.",
        "Change: against the LM before adaptation, asked in the same way, on test; paired, 95 %, over speakers.",
        "",
    ]
    for fit, whose in FITS.items():
        lines += [
            f"Weights fitted on {whose}:",
            "",
            "| system | that dev part | test | change by adaptation |",
            "|---|---:|---:|---:|",
        ]
        for system, row in by_fit[fit].items():
            change = "" if row.change is None else f"{row.change[0]:+.1f} [{row.change[1]:+.1f}, {row.change[2]:+.1f}]"
            value, low, high = row.test
            lines.append(f"| `{system}` | {row.dev:.1f} | {value:.1f} [{low:.1f}, {high:.1f}] | {change} |")
        lines.append("")
    lines += [f"- `{name}`: {what}." for name, what in ADAPTED.items()]
    measures = ("unit_perplexity", "word_perplexity_alone", "word_perplexity_heard")
    lines += ["", "Perplexities of the new domain's dev part:", ""]
    lines += ["| LM | per unit | per word of the text alone | per word behind its own units |", "|---|---:|---:|---:|"]
    values = {figure.name: figure.value for figure in heard}
    for name in (BEFORE, *ADAPTED):
        own = [f"{values[f'adaptation_{name}_{measure}']:.2f}" for measure in measures]
        lines.append(f"| `{name}` | {' | '.join(own)} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> None:
    """Makes, trains, evaluates, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="most steps of every training")
    parser.add_argument("--utterances", type=int, help="utterances of train, dev and test each")
    parser.add_argument("--root", type=Path, default=Path(ROOT))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    num = options.utterances
    config = DOMAIN if num is None else replace(DOMAIN, num_train=num, num_dev=num, num_test=num)
    write_corpus(config, config.num_dev, options.root)
    heard = train(options.root, options.steps)
    by_fit = {fit: evaluate(options.root, fit) for fit in FITS}
    found = [*heard, *figures(by_fit)]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{NAME}.jsonl").write_text("\n".join(json_lines(found)) + "\n", "utf-8")
    (options.results / f"{NAME}.md").write_text(findings(by_fit, heard, config), "utf-8")
    emit(found)


if __name__ == "__main__":
    main(sys.argv[1:])
