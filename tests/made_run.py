"""A made-up run as valid tables: what the report's tests draw and what screenshots are taken of."""

import json
import math
import random
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.experiment import CorpusConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.real_time_factor import real_time_factors
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.report.landscapes import read_tuned
from ctxasr_ray.report.page import write_report
from ctxasr_ray.schema import FITS, RESULTS, TRANSCRIPTS, UTTERANCES, conform
from ctxasr_ray.stage import Costs, Resources, Stage, Step
from ctxasr_ray.storage.store import Store

WORDS = [
    "call",
    "navigate",
    "to",
    "play",
    "the",
    "next",
    "song",
    "by",
    "from",
    "my",
    "list",
    "doctor",
    "please",
    "send",
]
NAMES = ["ashgabat", "ivermectin", "okonkwo", "szymborska", "lamotrigine", "reykjavik", "quetiapine", "ljubljana"]
SYSTEMS = ("first_pass", "lm_rescoring")
BASE = {"corpus": "synthetic", "condition": [], "unit": "word", "num_failed": 0, "num_unscored": 0}


@dataclass(frozen=True)
class MadeRun:
    """Keyword arguments of `write_report`, without the directory and the title."""

    results: pa.Table
    utterances: pa.Table
    transcripts: dict[str, pa.Table]
    hypotheses: pa.Table
    costs: list[dict[str, Any]]
    fits: pa.Table
    provenance: dict[str, Any]

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _corrupt(rng: random.Random, words: list[str], rate: float) -> str:
    out: list[str] = []
    for word in words:
        draw = rng.random() / rate
        if draw < 0.6:
            out.append(word[: max(1, len(word) // 2)] + rng.choice(["er", "a", "ing", "o"]))
        elif draw < 0.8:
            continue
        else:
            out.append(word)
        if draw > 0.8 and draw < 1.0:
            out.append(rng.choice(WORDS))
    return " ".join(out)


def made_utterances(num: int, *, audio: Path | None = None, seed: int = 7) -> pa.Table:
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for index in range(num):
        words = rng.sample(WORDS, rng.randint(4, 9)) + rng.sample(NAMES, rng.randint(1, 3))
        rng.shuffle(words)
        rows.append(
            {
                "utterance_id": f"utt-{index:05d}",
                "corpus": "synthetic",
                "split": "dev" if index % 3 == 0 else "test",
                "speaker_id": f"voice-{index % 37:02d}",
                "audio_uri": str(audio) if audio else f"missing/utt-{index:05d}.wav",
                "start_s": 0.0,
                "duration_s": 4.0,
                "reference": " ".join(words),
                "language": "en",
                "keywords": [word for word in words if word in NAMES],
                "attributes": [("snr_db", str(rng.choice([20, 10, 5, 0])))],
            }
        )
    return conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")


def _words(text: str) -> list[dict[str, Any]]:
    """Words that are in no vocabulary are mostly less sure, and sometimes surely wrong."""
    known = {*WORDS, *NAMES}
    sure = [0.97 if word in known else 0.95 if len(word) % 3 == 0 else 0.4 for word in text.split()]
    return [
        {"word": word, "start_s": 0.3 * i, "end_s": 0.3 * i + 0.25, "confidence": confidence, "origin": "search"}
        for i, (word, confidence) in enumerate(zip(text.split(), sure, strict=True))
    ]


def made_transcripts(ids: list[str], texts: list[str], *, failed: frozenset[str] = frozenset()) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "utterance_id": id_,
            "text": "" if id_ in failed else text,
            "hypothesis_index": None if id_ in failed else 0,
            "fused_scores": [],
            "words": [] if id_ in failed else _words(text),
            "num_unscored": 0,
            "error_type": "audio" if id_ in failed else None,
            "error": f"{id_}.wav: zero-length file" if id_ in failed else None,
        }
        for id_, text in zip(ids, texts, strict=True)
    ]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def result(split: str, system: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    n = more.pop("num_utterances", 200)
    half = 0.08 * value
    row = {
        **BASE,
        "split": split,
        "system": system,
        "metric": metric,
        "value": value,
        "ci_low": value - half,
        "ci_high": value + half,
        "counts": [],
        "baseline": None,
        "delta": None,
        "delta_ci_low": None,
        "delta_ci_high": None,
        "p_value": None,
        "num_utterances": n,
        "num_blocks": 12,
        "num_configurations": 1,
        "signature": f"{metric}|norm:whisper_english.v1|split:{split}|n:{n}|boot:1000,seed:7",
    }
    return {**row, **more}


def results_table(rows: list[dict[str, Any]]) -> pa.Table:
    return conform(pa.Table.from_pylist(rows, schema=RESULTS), "results")


def _counts(value: float, words: int) -> list[tuple[str, int]]:
    errors = round(value * words)
    s, d = round(0.7 * errors), round(0.2 * errors)
    return [
        ("hits", words - s - d),
        ("substitutions", s),
        ("deletions", d),
        ("insertions", errors - s - d),
        ("reference_length", words),
    ]


def made_results() -> pa.Table:
    rows: list[dict[str, Any]] = []
    for split, n in (("dev", 100), ("test", 200)):
        for system, wer in (("first_pass", 0.213), ("oracle", 0.121), ("lm_rescoring", 0.172)):
            compared: dict[str, Any] = {}
            if system != "first_pass":
                delta = wer - 0.213
                bounds = {"delta_ci_low": delta - 0.008, "delta_ci_high": delta + 0.008}
                compared = {"baseline": "first_pass", "delta": delta, "p_value": 0.0002, **bounds}
            counts = {"counts": _counts(wer, 8 * n), "num_utterances": n}
            rows.append(result(split, system, "wer", wer, **counts, **compared))
            rows.append(result(split, system, "cer", wer / 2.6, unit="character", num_utterances=n))
            if system != "oracle":
                factor = 0.031 if system == "first_pass" else 0.044
                rows.append(result(split, system, "real_time_factor", factor, unit="s/s", ci_low=None, ci_high=None))
    return results_table(rows)


def made_costs(num_shards: int = 3) -> list[dict[str, Any]]:
    costs = []
    for shard in range(num_shards):
        steps: tuple[tuple[str, str, dict[str, float], dict[str, int]], ...] = (
            ("first_pass", "hypotheses", {"load": 1.2, "decode": 0.6, "model": 9.5, "search": 2.1}, {"frames": 41_200}),
            ("lm_scores", "scores", {"load": 0.8, "llm": 4.4}, {"llm_calls": 64, "nodes": 18_431, "tokens": 52_020}),
            ("fusion", "transcripts", {"fuse": 0.05}, {}),
            ("errors", "errors", {"align": 0.11}, {}),
        )
        for step, table, seconds, counters in steps:
            cost = {"step": step, "shard": f"shard-{shard:05d}", "table": table, "rows": 100, "seconds": seconds}
            peak = {"peak_logits_bytes": 4_000_000 + shard} if step == "lm_scores" else {}
            wall = sum(seconds.values()) + 0.2
            costs.append({**cost, "counters": {**counters, **peak}, "device": "cpu", "wall_s": wall})
    return costs


def made_fits() -> pa.Table:
    """Weights as `fusion.weights` writes them: four rows."""
    same = {
        "objective": "wer|word|whisper_english|all",
        "split": "dev",
        "parents": ["hypotheses", "scores:causal_lm", "nbest_errors"],
    }
    values = [("causal_lm", 0.62), ("length_bonus", 0.35)]
    spans = {
        "weights": [("causal_lm", [0.605, 0.635]), ("length_bonus", [0.3, 0.4])],
        "weights/flat": [("causal_lm", [0.51, 0.78]), ("length_bonus", [-0.2, 0.9])],
        "weights/ties": [],
        "weights/bootstrap": [("causal_lm", [0.44, 0.93]), ("length_bonus", [-0.6, 1.4])],
    }
    rows = [
        {
            **same,
            "name": name,
            "values": [("causal_lm", 1.0), ("length_bonus", 2.0)] if name.endswith("ties") else values,
            "interval": interval,
            "objective_value": None if name.endswith("bootstrap") else 0.1714,
            "num_configurations": int(name == "weights"),
        }
        for name, interval in spans.items()
    ]
    return conform(pa.Table.from_pylist(rows, schema=FITS), "fits")


def write_tone(path: Path, *, seconds: float = 1.0) -> Path:
    rate = 16_000
    samples = (int(8000 * math.sin(2 * math.pi * 440 * i / rate)) for i in range(int(rate * seconds)))
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        out.writeframes(b"".join(s.to_bytes(2, "little", signed=True) for s in samples))
    return path


def made_run(num: int = 300, *, audio: Path | None = None, seed: int = 7) -> MadeRun:
    utterances = made_utterances(num, audio=audio, seed=seed)
    ids = utterances["utterance_id"].to_pylist()
    references = [text.split() for text in utterances["reference"].to_pylist()]
    rng = random.Random(seed)
    texts = {"first_pass": [_corrupt(rng, words, 0.35) for words in references]}
    texts["lm_rescoring"] = [
        text if rng.random() < 0.5 else _corrupt(rng, words, 0.2)
        for text, words in zip(texts["first_pass"], references, strict=True)
    ]
    failed = frozenset(ids[5:6])
    more = [[_corrupt(rng, words, 0.25) for _ in range(4)] for words in references]
    nbests = [
        NBest(
            utterance_id=id_,
            hypotheses=[
                Hypothesis(text=text, scores=[Score(source="ctc", kind="log_prob", log_prob=-float(rank))])
                for rank, text in enumerate((texts["first_pass"][index], texts["lm_rescoring"][index], *more[index]))
            ],
        )
        for index, id_ in enumerate(ids)
    ]
    return MadeRun(
        results=made_results(),
        utterances=utterances,
        transcripts={system: made_transcripts(ids, texts[system], failed=failed) for system in SYSTEMS},
        hypotheses=hypotheses_table(nbests),
        costs=made_costs(),
        fits=made_fits(),
        provenance={
            "recipe": "quickstart",
            "git_commit": "a6c31f2",
            "packages": {"ray": "2.60.0", "torch": "2.13.0", "ctxasr-ray": "0.1.0"},
            "config": {"first_pass": {"type": "CtcConfig", "beam": 50}},
            "normaliser": "whisper_english",
        },
    )


# -- a showcase: many systems, many metrics, conditions


def many_systems(num: int) -> list[str]:
    """Names as a showcase has them; the oracle is no system of transcripts."""
    named = ["first_pass", "first_pass/attention", "lm_rescoring", "lm_rescoring/large", "union", "phrase_copy"]
    named += [f"lm_rescoring/n{n}" for n in (4, 16, 64)]
    named += ["shallow_fusion", *(f"delayed_fusion/interval_{i}" for i in (8, 32, 128))]
    named += [f"keyword_boost/list_{size}" for size in (10, 100, 1000, 10_000)]
    return [*named, *(f"gated_fusion/v{index}" for index in range(100))][:num]


def made_showcase(num_systems: int = 40, num: int = 300, *, audio: Path | None = None) -> MadeRun:
    """A made run with many systems, all metrics, list sizes and reliability bins."""
    run = made_run(num, audio=audio)
    rng = random.Random(3)
    ids = run.utterances["utterance_id"].to_pylist()
    references = [reference.split() for reference in run.utterances["reference"].to_pylist()]
    names = many_systems(num_systems)
    first = run.transcripts["first_pass"]["text"].to_pylist()
    transcripts = {"first_pass": run.transcripts["first_pass"]}
    for name in names[1:]:
        keep, rate = rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.3)
        texts = [
            text if rng.random() < keep else _corrupt(rng, words, rate)
            for text, words in zip(first, references, strict=True)
        ]
        transcripts[name] = made_transcripts(ids, texts)
    rows: list[dict[str, Any]] = []
    for split, n in (("dev", num // 3), ("test", num - num // 3)):
        for place, name in enumerate([*names, "oracle", "oracle/union"]):
            rows += _showcase_rows(rng, split, name, n, place)
    return MadeRun(
        results=results_table(rows),
        utterances=run.utterances,
        transcripts=transcripts,
        hypotheses=run.hypotheses,
        costs=[{**cost, "step": f"{cost['step']}_{i}"} for i in range(8) for cost in run.costs],
        fits=run.fits,
        provenance=run.provenance,
    )


def _showcase_rows(rng: random.Random, split: str, name: str, n: int, place: int) -> list[dict[str, Any]]:
    wer = 0.213 if place == 0 else rng.uniform(0.12, 0.23)
    rates = {"wer": wer, "cer": wer / 2.6, "biased_wer": 1.8 * wer, "unbiased_wer": 0.8 * wer, "rare_wer": 1.5 * wer}
    rates |= {"keyword_f1": 1 - 2 * wer, "keyword_recall": 1 - 2.2 * wer, "keyword_precision": 1 - wer}
    rows = []
    for metric, value in rates.items():
        start = 1 - (1 - value) * 0.213 / wer if metric.startswith("keyword") else value * 0.213 / wer
        delta = value - start
        compared = {"baseline": "first_pass", "delta": delta, "p_value": 0.01}
        compared |= {"delta_ci_low": delta - 0.012, "delta_ci_high": delta + 0.012}
        counts = {"counts": _counts(value, 8 * n)} if metric.endswith("wer") else {}
        more = {} if place == 0 else compared
        rows.append(
            result(split, name, metric, value, num_utterances=n, num_configurations=place + 1, **counts, **more)
        )
    plain = {"ci_low": None, "ci_high": None, "num_utterances": n}
    rows.append(result(split, name, "distractor_false_alarms", rng.uniform(0, 0.2), **plain))
    if not name.startswith("oracle"):
        rows.append(result(split, name, "real_time_factor", 0.03 * 1.12**place, unit="s/s", **plain))
    if place < 3:
        for number in range(10):
            confidence = 0.5 + number / 20
            where = [("bin", f"{number:02d}"), ("mean_confidence", f"{confidence:.3f}")]
            rows.append(result(split, name, "reliability", confidence - 0.1 + place / 20, condition=where, **plain))
    return rows


# -- a run folder, written by the real store from made stages


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeHypothesesConfig:
    """A stage that takes its rows from `made_run`."""

    NAME: ClassVar[str] = "made"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("reference",)}
    WRITES: ClassVar[str] = "hypotheses"

    num: int
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def build(self) -> Stage:
        return _Made(made_run(self.num).hypotheses)


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeTranscriptsConfig:
    """The same for one system's transcripts."""

    NAME: ClassVar[str] = "made"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("reference",)}
    WRITES: ClassVar[str] = "transcripts"

    num: int
    system: str
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def build(self) -> Stage:
        return _Made(made_run(self.num).transcripts[self.system])


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeScoresConfig:
    """The same for a language model that likes texts without made-up words."""

    NAME: ClassVar[str] = "made"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "scores"

    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def build(self) -> Stage:
        return _made_scores


def _made_scores(*tables: pa.Table, costs: Costs) -> pa.Table:
    rng = random.Random(1)
    known = {*WORDS, *NAMES}
    ids, found = [], []
    for row in tables[0].to_pylist():
        words = [hypothesis["text"].split() for hypothesis in row["hypotheses"]]
        log_probs = [-sum(1.0 if w in known else 2.5 for w in each) - rng.random() for each in words]
        ids.append(row["utterance_id"])
        found.append([SourceScores(source="causal_lm", log_probs=log_probs)])
    costs.count("llm_calls", len(ids))
    return scores_table(ids, found)


@dataclass(frozen=True)
class _Made:
    table: pa.Table

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        with costs.timed("made"):
            wanted = tables[0]["utterance_id"].to_pylist()
            at = {id_: row for row, id_ in enumerate(self.table["utterance_id"].to_pylist())}
            costs.count("rows", len(wanted))
            for utterance_id in wanted:
                costs.count_utterance(utterance_id, {"letters": len(utterance_id)})
            return self.table.take([at[id_] for id_ in wanted])


def write_made_run(root: Path, num: int = 90) -> Path:
    """Runs made lists, scores and transcripts through the real fit and the real metrics into a run folder."""
    corpus = Step(name="utterances", config=CorpusConfig())
    hypotheses = Step(name="first_pass", config=MadeHypothesesConfig(num=num), inputs=(corpus,))
    scores = Step(name="scores_causal_lm", config=MadeScoresConfig(), inputs=(hypotheses,))
    nbest_errors = Step(name="nbest_errors", config=NbestErrorsConfig(), inputs=(hypotheses, corpus))
    weights = WeightsConfig(num_bootstrap=20, num_restarts=1, fit_name="lm_rescoring")
    fit = Step(name="weights_lm_rescoring", config=weights, inputs=(hypotheses, scores, nbest_errors, corpus))
    transcripts = {
        s: Step(name=f"transcripts_{s}", config=MadeTranscriptsConfig(num=num, system=s), inputs=(corpus,))
        for s in SYSTEMS
    }
    errors = {s: Step(name=f"errors_{s}", config=ErrorCountsConfig(), inputs=(corpus, transcripts[s])) for s in SYSTEMS}
    summary = SummaryConfig(systems=SYSTEMS, systems_with_transcripts=SYSTEMS, num_replicates=500)
    results = Step(name="results", config=summary, inputs=(corpus, *errors.values(), *transcripts.values()))
    steps = (corpus, hypotheses, scores, nbest_errors, fit, *transcripts.values(), *errors.values(), results)
    store = Store(root)
    shards = store.add_corpus(made_utterances(num), shard_audio_s=100.0, seed=7)
    run_inline(store, steps, shards)
    needed = {"first_pass": (hypotheses,), "lm_rescoring": (hypotheses, scores)}
    system_costs = {system: store.costs(own, shards) for system, own in needed.items()}
    table = store.gather(results, shards)
    write_report(
        root / "report",
        title="Made run",
        results=pa.concat_tables([table, real_time_factors(table, system_costs)]),
        utterances=store.gather(corpus, shards),
        transcripts={s: store.gather(step, shards) for s, step in transcripts.items()},
        hypotheses=store.gather(hypotheses, shards),
        costs=store.costs(steps, shards),
        fits=store.gather(fit, shards),
        provenance=json.loads(store.folder.read("provenance.json")),
        system_costs=system_costs,
        tuned=read_tuned(store, {"lm_rescoring": fit}, shards),
    )
    return root
