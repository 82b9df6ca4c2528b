"""The study of encoder against LLM: every row of the issue is there, and its model comes from one of its trainings."""

from pathlib import Path

from ctxasr_ray.experiment import asset
from ctxasr_ray.layout import line
from ctxasr_ray.recipes.evaluation import find
from ctxasr_ray.recipes.rare_words import ROOT, ROWS, model_of, study_rare_words, trainings
from ctxasr_ray.recipes.tiny_models import SPEECH_LM_SMALL
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.speech_llm import SpeechLlmTask


def llm_task(name: str) -> SpeechLlmTask:
    task = trainings(1)[name].task
    assert isinstance(task, SpeechLlmTask)
    return task


def test_the_recipe_has_every_row_of_the_issue() -> None:
    assert list(line(find("study_rare_words")()).transcripts) == list(ROWS)
    kinds = {"tuned_1", "tuned_2", "adapter", "lora", "lora_only", "stack_4", "wide", "filtered", "unfiltered", "small"}
    assert kinds < {system.rpartition("/")[2] for system in ROWS}


def test_every_row_reads_a_model_that_a_training_of_its_seed_writes() -> None:
    for seed in (1, 2):
        written = {f"{ROOT}/seed_{seed}/{name}/model" for name in trainings(seed)}
        branches = study_rare_words(seed).branches
        assert list(branches) == list(ROWS)[1:]
        for system, branch in branches.items():
            assert getattr(branch.nbest, "model") == model_of(system, seed)  # noqa: B009  (one of many configs)
            assert model_of(system, seed) in written


def test_a_training_starts_from_shipped_models_or_from_those_before_it() -> None:
    known = {asset("ctc"), asset("speech_lm"), SPEECH_LM_SMALL}
    for name, config in trainings(3).items():
        assert config.seed == 3
        task = config.task
        assert isinstance(task, CtcTask | SpeechLlmTask)
        needed = {task.initial} if isinstance(task, CtcTask) else {task.initial, task.encoder, task.llm}
        assert needed - {None} <= known, name
        known.add(f"{ROOT}/seed_3/{name}/model")


def test_rows_that_are_compared_differ_in_one_thing() -> None:
    own = trainings(1)
    assert own["tuned_2"].num_steps == 2 * own["tuned_1"].num_steps
    assert own["filtered"].num_steps == own["unfiltered"].num_steps
    assert own["lora"].num_steps == own["lora_only"].num_steps
    lora, lora_only = llm_task("lora"), llm_task("lora_only")
    assert (lora_only.initial, lora_only.encoder, lora_only.lora) == (None, lora.encoder, lora.lora)
    assert Path(lora.initial or "").parent.name == "adapter"
    assert [llm_task(name).adapter.stack for name in ("adapter", "stack_4", "wide")] == [2, 4, 2]
    assert llm_task("wide").adapter.width == 4 * llm_task("adapter").adapter.width
    assert llm_task("untuned").encoder == asset("ctc") != llm_task("adapter").encoder
