"""Stages with behaviour but without models, and traps that kill their process at a chosen point, once.

A trap watches Python's own audit events (os.link, os.remove, open), so that the code under test has no hooks: what is
killed is exactly what runs in production. Tokens on disk, created exclusively, make each trap spring a given number of
times over all processes.
"""

import hashlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.stage import Costs, Resources, Stage, Step, runtime_field

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where run folders of tests lie: a disk shared with other work takes tens of milliseconds per fsync."""


def folder_in_memory() -> Iterator[Path]:
    """A fixture in place of `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="ctxasr-", dir=MEMORY) as folder:
        yield Path(folder)


POINTS = ("before_processing", "opened", "mid_write", "after_temporary", "after_link", "after_unlink")


def utterances(
    num: int, *, corpus: str = "tiny", split: str = "test", seconds: float = 4.0, references: str = "play {}"
) -> pa.Table:
    rows = [
        {
            "utterance_id": f"{corpus}-{split}-{i:04d}",
            "corpus": corpus,
            "split": split,
            "speaker_id": f"s{i % 3}",
            "session_id": f"{split}-{i // 2}",
            "audio_uri": f"{corpus}/{split}/{i}.wav",
            "start_s": 0.0,
            "duration_s": seconds + (i % 5) / 10,
            "reference": references.format(i),
        }
        for i in range(num)
    ]
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


HOG_BYTES = 4 << 30
"""The most that a hog takes before it gives up: nobody killed it."""


def take_memory() -> None:
    taken = []
    while len(taken) << 26 < HOG_BYTES:
        taken.append(b"x" * (1 << 26))
        time.sleep(0.02)
    time.sleep(20)
    raise AssertionError(f"{HOG_BYTES} bytes were taken for 20 s, and nobody killed this process")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trap:
    """Kills its own process with SIGKILL when a shard that holds an utterance reaches a point."""

    point: str
    utterance_id: str
    tokens: str
    """A folder for the tokens of this trap."""
    times: int = 1

    def springs(self) -> bool:
        """Takes one of the tokens; False when they are used up."""
        for number in range(self.times):
            try:
                os.close(os.open(Path(self.tokens) / f"{self.point}-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    def kill_without(self, path: str) -> None:
        """Kills as soon as a file is gone; the audit event comes just before."""
        while os.path.exists(path):
            time.sleep(0)
        kill()

    def arm(self) -> None:
        """From now on the commits of this process are watched."""
        if not _armed:
            sys.addaudithook(_watch)
        _armed.append(self)


_armed: list[Trap] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    path = str(args[0]) if event in ("os.link", "os.remove", "open") else ""
    if ".parquet" in path:
        for trap in _armed:
            _reach(trap, event, path)


def _reach(trap: Trap, event: str, path: str) -> None:
    now = {
        "opened": event == "open" and path.endswith(".tmp"),
        "mid_write": event == "os.link",
        "after_temporary": event == "os.link",
        "after_link": event == "os.remove" and path.endswith(".tmp"),
        "after_unlink": event == "os.remove" and path.endswith(".tmp"),
    }
    if not now.get(trap.point, False) or not trap.springs():
        return
    if trap.point == "mid_write":
        os.truncate(path, os.path.getsize(path) // 2)  # as if the disk had seen half of it
    if trap.point == "after_unlink":
        threading.Thread(target=trap.kill_without, args=(path,), daemon=True).start()
    else:
        kill()


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """What a fake does besides its work; none of it changes numbers."""

    sleep_s: float = 0.0
    traps: tuple[Trap, ...] = ()
    poison: str = ""
    """Kills every process that processes an utterance with this in its id."""
    hog: str = ""
    """Takes memory on an utterance with this in its id, until the process is killed for it."""
    lethal_to_build: bool = False
    log: str = ""
    """A folder where each call leaves a file with its parent process, so that calls can be counted over processes."""

    def before(self, stage: str, ids: list[str]) -> None:
        if self.log:
            (Path(self.log) / f"{stage}.{len(ids)}.{ids[0]}.{time.time_ns()}").write_text(str(os.getppid()))
        if self.poison and any(self.poison in each for each in ids):
            kill()
        if self.hog and any(self.hog in each for each in ids):
            take_memory()
        for trap in self.traps:
            if trap.utterance_id in ids:
                if trap.point == "before_processing" and trap.springs():
                    kill()
                trap.arm()
        time.sleep(self.sleep_s)


QUIET = Behaviour()


def _number(*parts: object) -> float:
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeConfig:
    """Shared fields of all fakes."""

    NAME: ClassVar[str]
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]]
    WRITES: ClassVar[str]
    flavour: str = ""
    behaviour: Behaviour = runtime_field(QUIET)
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def build(self) -> Stage:
        if self.behaviour.lethal_to_build:
            kill()
        return FakeStage(self)

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FakeStage:
    config: FakeConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        if "utterance_id" in tables[0].column_names:
            self.config.behaviour.before(self.config.NAME, tables[0]["utterance_id"].to_pylist())
        costs.count("rows", tables[0].num_rows)
        for utterance_id in tables[0]["utterance_id"].to_pylist() if self.config.WRITES == "hypotheses" else ():
            costs.count_utterance(utterance_id, {"letters": len(utterance_id)})
        with costs.timed("work"):
            rows = self.config.rows(*tables)
        return pa.Table.from_pylist(rows, schema=schema.TABLES[self.config.WRITES])


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstPassConfig(FakeConfig):
    """Two hypotheses per utterance, made from the name of its audio; audio named "broken" is an error row."""

    NAME = "fake_first_pass"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("audio_uri", "start_s", "duration_s")}
    WRITES = "hypotheses"

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        found = []
        for row in tables[0].to_pylist():
            uri = row["audio_uri"]
            number = uri.rpartition("/")[2].removesuffix(".wav")
            texts = () if "broken" in uri else (f"play {number}", f"plays {number}")
            hypotheses = [
                {
                    "text": text,
                    "scores": [{"source": "fake", "kind": "log_prob", "log_prob": -_number(uri, text, self.flavour)}],
                    "origin": "search",
                }
                for text in texts
            ]
            error = {"error_type": "audio", "error": f"{uri}: broken"} if not texts else {}
            found.append({"utterance_id": row["utterance_id"], "hypotheses": hypotheses, **error})
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig(FakeConfig):
    NAME = "fake_scorer"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",)}
    WRITES = "scores"

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        return [
            {
                "utterance_id": row["utterance_id"],
                "sources": [
                    {
                        "source": "lm",
                        "kind": "log_prob",
                        "log_probs": [-_number(each["text"], self.flavour) for each in row["hypotheses"]],
                    }
                ],
            }
            for row in tables[0].to_pylist()
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class NbestErrorsConfig(FakeConfig):
    NAME = "fake_nbest_errors"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",), "utterances": ("reference",)}
    WRITES = "nbest_errors"

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        found = []
        for row, truth in zip(tables[0].to_pylist(), tables[1].to_pylist(), strict=True):
            errors = [int(each["text"] != truth["reference"]) for each in row["hypotheses"]]
            counts = {
                "unit": "word",
                "normaliser": "none",
                "word_class": "all",
                "reference_length": 2,
                "errors": errors,
            }
            found.append({"utterance_id": row["utterance_id"], "counts": [counts]})
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsConfig(FakeConfig):
    NAME = "fake_weights"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses",),
        "scores": ("sources",),
        "nbest_errors": ("counts",),
    }
    WRITES = "fits"
    splits: tuple[str, ...] = ("dev",)

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        scores = [sum(source["log_probs"]) for row in tables[1]["sources"].to_pylist() for source in row]
        return [
            {
                "name": "weights",
                "values": [("lm_weight", sum(scores) / max(1, len(scores)))],
                "interval": [("lm_weight", [0.0, 1.0])],
                "objective": "wer",
                "split": "dev",
                "parents": ["scores"],
                "num_configurations": tables[0].num_rows,
            }
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig(FakeConfig):
    NAME = "fake_fusion"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses", "error_type"),
        "scores": ("sources",),
        "fits": ("values",),
    }
    WRITES = "transcripts"

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        weight = dict(tables[2]["values"][0].as_py())["lm_weight"]
        found = []
        for row, score in zip(tables[0].to_pylist(), tables[1].to_pylist(), strict=True):
            lm = score["sources"][0]["log_probs"]
            fused = [each["scores"][0]["log_prob"] + weight * lm[i] for i, each in enumerate(row["hypotheses"])]
            best = max(range(len(fused)), key=fused.__getitem__) if fused else None
            text = "" if best is None else row["hypotheses"][best]["text"]
            found.append(
                {
                    "utterance_id": row["utterance_id"],
                    "text": text,
                    "hypothesis_index": best,
                    "fused_scores": fused,
                    "words": [],
                    "num_unscored": 0,
                }
            )
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCountsConfig(FakeConfig):
    NAME = "fake_error_counts"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": ("reference",), "transcripts": ("text",)}
    WRITES = "errors"

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        found = []
        for truth, row in zip(tables[0].to_pylist(), tables[1].to_pylist(), strict=True):
            wrong = int(truth["reference"] != row["text"])
            counts = {
                "metric": "wer",
                "unit": "word",
                "normaliser": "none",
                "word_class": "all",
                "alignment": "unit",
                "hits": 2 - wrong,
                "substitutions": wrong,
                "deletions": 0,
                "insertions": 0,
                "reference_length": 2,
            }
            found.append({"utterance_id": row["utterance_id"], "counts": [counts]})
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryConfig(FakeConfig):
    NAME = "fake_summary"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("split", "speaker_id"),
        "errors": ("counts",),
        "fits": ("values",),
    }
    WRITES = "results"
    splits: tuple[str, ...] = ("dev", "test")

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        wrong = sum(count["substitutions"] for row in tables[1]["counts"].to_pylist() for count in row)
        return [
            {
                "corpus": "tiny",
                "split": "test",
                "system": "fused",
                "condition": [],
                "metric": "wer",
                "unit": "word",
                "value": wrong / max(1, 2 * tables[1].num_rows),
                "counts": [("substitutions", wrong)],
                "num_utterances": tables[0].num_rows,
                "num_failed": 0,
                "num_unscored": 0,
                "num_configurations": 1,
                "signature": "fake",
            }
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig(FakeConfig):
    NAME = "corpus"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    WRITES = "utterances"


LIGHT = Resources(num_cpus=0.5)


def line(**behaviours: Behaviour) -> tuple[Step, ...]:
    """The quickstart's line in small: seven steps with a fit in the middle and results at the end."""

    def of(name: str) -> Behaviour:
        return behaviours.get(name, QUIET)

    corpus = Step(name="corpus", config=CorpusConfig())
    first_pass = Step(name="first_pass", config=FirstPassConfig(behaviour=of("first_pass")), inputs=(corpus,))
    scores = Step(name="lm_scores", config=ScorerConfig(behaviour=of("lm_scores")), inputs=(first_pass,))
    nbest_errors = Step(
        name="nbest_errors",
        config=NbestErrorsConfig(behaviour=of("nbest_errors"), resources=LIGHT),
        inputs=(first_pass, corpus),
    )
    weights = Step(name="weights", config=WeightsConfig(), inputs=(first_pass, scores, nbest_errors))
    fused = Step(
        name="fused", config=FusionConfig(behaviour=of("fused"), resources=LIGHT), inputs=(first_pass, scores, weights)
    )
    errors = Step(
        name="errors", config=ErrorCountsConfig(behaviour=of("errors"), resources=LIGHT), inputs=(corpus, fused)
    )
    summary = Step(name="summary", config=SummaryConfig(), inputs=(corpus, errors, weights))
    return (corpus, first_pass, scores, nbest_errors, weights, fused, errors, summary)
