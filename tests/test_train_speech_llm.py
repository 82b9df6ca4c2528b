"""The training of the LLM recogniser on the shipped encoder and LM: stages, what moves, kills, what is refused."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxasr_ray.models import checkpoint
from ctxasr_ray.models.audio_lm import load_audio_lm
from ctxasr_ray.recipes.tiny_models import train_speech_llm, train_speech_llm_adapter
from ctxasr_ray.training import loop
from ctxasr_ray.training.config import TrainingConfig
from ctxasr_ray.training.sources import SyntheticSpeech
from ctxasr_ray.training.speech_llm import SpeechLlmTask

pytestmark = pytest.mark.slow


def _small(config: TrainingConfig, folder: Path, **changes: object) -> TrainingConfig:
    assert isinstance(config.task, SpeechLlmTask)
    task = replace(
        config.task,
        train=SyntheticSpeech(num_utterances=8),
        dev=SyntheticSpeech(num_utterances=3, split="dev"),
        features_directory=str(folder / "features"),
        **changes,
    )
    return replace(config, task=task, num_steps=4, batch_size=400, num_processes=0, num_threads=1, checkpoint_every=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, the second from the first."""
    made = tmp_path_factory.mktemp("trained")
    loop.run(_small(train_speech_llm_adapter(), made), made / "adapter")
    loop.run(_second(made), made / "whole")
    return made


def _second(folder: Path) -> TrainingConfig:
    return _small(train_speech_llm(), folder, initial=str(folder / "adapter" / "model"))


def test_each_stage_starts_from_the_last_and_the_model_hears(folder: Path) -> None:
    first, second = (load_file(folder / stage / "model" / "model.safetensors") for stage in ("adapter", "whole"))
    assert first.keys() == second.keys()
    distance = max(float((second[n].float() - w.float()).abs().max()) for n, w in first.items())
    assert 0 < distance < 0.01  # four steps of a warm-up to 2e-3 away from the first stage, not from a new draw
    model = load_audio_lm(checkpoint.resolve(str(folder / "whole" / "model")), device="cpu")
    prefix = model.prefix(np.zeros(8000, np.float32))
    assert prefix.shape == (2 + 7 + 2, 192)  # <s> <speech>, 13 frames of 40 ms in pairs, </speech> <text>
    assert torch.isfinite(prefix).all()


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_train_speech_llm import _second\nfrom ctxasr_ray.training import loop\n"
        f"loop.run(_second(Path({str(folder)!r})), {str(tmp_path / 'whole')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "whole" / "checkpoint.safetensors").exists():
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.002)
    process.kill()
    assert process.wait() != 0, "it finished before it was killed"
    assert not (tmp_path / "whole" / "training.json").exists()
    loop.run(_second(folder), tmp_path / "whole")
    for name in ("model.safetensors", "lora/adapter_model.safetensors"):
        expected = load_file(folder / "whole" / "model" / name)
        for key, weight in load_file(tmp_path / "whole" / "model" / name).items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-5)


def test_an_adapter_of_another_recipe_is_refused(folder: Path, tmp_path: Path) -> None:
    other = replace(_second(folder), task=replace(_second(folder).task, prompt="say {speech}"))
    with pytest.raises(ValueError, match=r"has adapter .* and prompt '<speech>\{speech\}</speech><text>'; this"):
        loop.run(other, tmp_path / "run")


def test_an_adapter_of_another_llm_of_equal_width_is_refused(folder: Path, tmp_path: Path) -> None:
    task = _second(folder).task
    assert isinstance(task, SpeechLlmTask)
    shutil.copytree(task.llm, tmp_path / "llm")
    weights = load_file(tmp_path / "llm" / "model.safetensors")
    save_file(
        {k: v.flip(0).contiguous() for k, v in weights.items()},
        tmp_path / "llm" / "model.safetensors",
        {"format": "pt"},
    )
    other = replace(_second(folder), task=replace(task, llm=str(tmp_path / "llm")))
    with pytest.raises(ValueError, match=r"adapter/model' was trained with the llm sha256:.*, but '.*/llm' is sha256:"):
        loop.run(other, tmp_path / "run")
