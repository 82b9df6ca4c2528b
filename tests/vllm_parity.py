"""Runs under the interpreter of `vllm_cpu.py`: what the engine says, what transformers says, and a dead engine on Ray.

Arguments: folders of tiny checkpoints, then a working folder. Prints one JSON line per comparison.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.scorers.causal_lm import CausalLmConfig, CausalLmScorer
from ctxasr_ray.scorers.vllm import VllmConfig
from ctxasr_ray.stage import Costs, Resources, Step

TEXTS = [
    "once upon a time you met a girl of the town",
    "once upon a time you met a curl of the town",
    "",
    "once upon a time you met a girl of the town",
    "two </s> words <unk>",
    "of a time " * 9,
    "of a time " * 60,
]
CPU = Resources(num_cpus=1)
ENGINE: dict[str, Any] = {"dtype": "float32", "tokens_per_step": 128, "memory_share": 0.05, "resources": CPU}
"""Few tokens per step, so that long texts and many texts take several."""
WAYS: list[dict[str, Any]] = [
    {},
    {"prompt": "the town of", "text_form": "sentence"},
    {"start_from_eos": True},
]


def compare(model: str, ways: list[dict[str, Any]]) -> None:
    """One model and some ways of writing texts, with both backends; the engine starts once."""
    table = hypotheses_table(
        [
            NBest(utterance_id="z", hypotheses=[Hypothesis(text=t) for t in TEXTS]),
            NBest(utterance_id="broken", error_type="audio", error="no such file"),
            NBest(utterance_id="nothing"),
            NBest(utterance_id="a", hypotheses=[Hypothesis(text="a girl")]),
        ]
    )
    engine = VllmConfig(model=model, **ENGINE).build()
    long = hypotheses_table([NBest(utterance_id="l", hypotheses=[Hypothesis(text="of a time " * 200)])])
    print(json.dumps({"too_long": engine(long, costs=Costs()).to_pylist()}))
    for way in ways:
        plain = CausalLmConfig(model=model, **way).build()
        costs = Costs()
        got = CausalLmScorer(engine.lm, plain.tokens)(table, costs=costs).to_pylist()
        expected = plain(table, costs=Costs()).to_pylist()
        print(json.dumps({"model": model, "way": way, "got": got, "expected": expected, "counters": costs.counters}))


@dataclass(frozen=True, kw_only=True, slots=True)
class MortalConfig(VllmConfig):
    """An engine that dies at the first shard, once."""

    token: str = ""

    def build(self) -> CausalLmScorer:
        stage = VllmConfig.build(self)
        engine: Any = stage.lm._engine  # type: ignore[attr-defined]  # a VllmLm
        generate = engine.generate

        def mortal(*words: Any, **options: Any) -> Any:
            try:
                os.close(os.open(self.token, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return generate(*words, **options)
            engine.llm_engine.engine_core.shutdown()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        engine.generate = mortal
        return stage


def die_on_ray(model: str, folder: Path) -> None:
    """The same shards inline with transformers and on Ray with an engine that dies."""
    from test_pools import line, prepared

    from ctxasr_ray.distributed.pools import run_ray

    tables = []
    for name, config in (
        ("inline", CausalLmConfig(model=model)),
        ("ray", MortalConfig(model=model, token=str(folder / "died"), **ENGINE)),
    ):
        corpus, first_pass, *_ = line()
        steps = (corpus, first_pass, Step(name="lm", config=config, inputs=(first_pass,)))
        store, shards = prepared(folder / name, 4)
        (run_inline if name == "inline" else run_ray)(store, steps, shards)
        tables.append(store.gather(steps[-1], shards).to_pylist())
    print(json.dumps({"died": (folder / "died").exists(), "got": tables[1], "expected": tables[0]}))


if __name__ == "__main__":
    *models, folder = sys.argv[1:]
    for model in models:
        compare(model, WAYS)
    die_on_ray(models[0], Path(folder))
