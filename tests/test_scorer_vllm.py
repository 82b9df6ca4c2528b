"""vLLM as the second backend of the LM scorer: equal to transformers, on the real engine where its wheel can be had."""

import importlib.util
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import vllm_cpu
from test_scorer_causal_lm import bpe
from tiny_causal_lms import widen

from ctxasr_ray.recipes.evaluation import whisper_vllm
from ctxasr_ray.scorers.vllm import VllmConfig
from ctxasr_ray.stage import Resources, identity

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".bench_envs" / "vllm"


def saved(directory: Path, tokenizer: tf.PreTrainedTokenizerFast) -> str:
    """A random Llama with attention heads as wide as the engine's kernels take."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    widen(tf.LlamaForCausalLM(config).eval()).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_an_actor_asks_for_the_accelerators_of_its_engine() -> None:
    (scorer,) = whisper_vllm().scorers
    assert isinstance(scorer, VllmConfig)
    assert (scorer.tensor_parallel, scorer.resources.num_gpus) == (4, 4)
    for asked in (Resources(num_gpus=2), Resources(num_gpus=1)):
        with pytest.raises(ValueError, match=r"set resources\.num_gpus to the same number"):
            VllmConfig(model="m", tensor_parallel=4, resources=asked)
    assert identity(scorer) == identity(VllmConfig(model="m", dtype="float16", max_positions=2048))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_remedy_is_said(tmp_path: Path) -> None:
    model = saved(tmp_path, bpe(bos="<s>", own_bos=True))
    with pytest.raises(ValueError, match=r"vLLM cannot be imported.*pip install"):
        VllmConfig(model=model).build()


def equal(got: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two SCORES tables say the same, numbers to a tolerance."""
    if isinstance(expected, float):
        return isinstance(got, float) and math.isclose(got, expected, rel_tol=0.0, abs_tol=tolerance)
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(equal(got[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, list):
        return len(got) == len(expected) and all(equal(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    return bool(got == expected)


@pytest.mark.slow
def test_the_engine_gives_the_scores_of_transformers_and_a_dead_one_ends_its_actor(tmp_path: Path) -> None:
    try:
        python = vllm_cpu.make(ENVIRONMENT)
    except vllm_cpu.UnavailableError as error:
        pytest.skip(f"no vllm-cpu {vllm_cpu.VERSION} for this Python and platform: {error}")
    models = [
        saved(tmp_path / "own_bos", bpe(bos="<s>", own_bos=True)),
        saved(tmp_path / "no_bos", bpe()),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    done = subprocess.run(
        [python, ROOT / "tests" / "vllm_parity.py", *models, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *lines, mortal = [json.loads(each) for each in done.stdout.splitlines() if each.startswith("{")]
    compared = [each for each in lines if "got" in each]
    assert len(compared) == 6
    for each in compared:
        assert equal(each["got"], each["expected"]), each
        scored = each["got"][0]["sources"][0]
        assert all(value is not None for value in scored["log_probs"])
        assert len(set(scored["log_probs"][:2])) == 2
    for each in lines:
        if "too_long" in each:
            scored = each["too_long"][0]["sources"][0]
            assert scored["log_probs"] == [None]
            assert "but the engine takes 254" in scored["reasons"][0]
    assert mortal["died"]
    assert equal(mortal["got"], mortal["expected"])
