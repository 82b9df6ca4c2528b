"""What tuning an encoder moves and what an LLM behind it moves, on a domain that no shipped model has heard.

`benchmarks/study_rare_words.py` makes the corpus, the labels and the models of every seed, and draws what comes out.

Reference:
    Wang et al., 2502.16142: the stages (encoder with its own decoder, adapter, LoRA with the adapter), one after the
    other. There an encoder of Whisper and a 7B LLM; here the shipped models, so the steps are ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig
from ctxasr_ray.recipes.own_speech import train_ctc_own
from ctxasr_ray.recipes.tiny_models import SPEECH_LM_SMALL, train_speech_llm, train_speech_llm_adapter
from ctxasr_ray.training.config import TrainingConfig
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.sources import TableSpeech
from ctxasr_ray.training.speech_llm import SpeechLlmTask

ROOT: Final = "runs/studies/rare_words"
DOMAIN: Final = SyntheticConfig(seed=31, num_train=1500, num_dev=60, num_test=150)
"""Voices, names and sentences of a seed of its own, at the noise levels of the quickstart."""
DOMAIN_RATE_HZ: Final = 11025
"""Its recordings end at 5.5 kHz, those that the shipped models learnt from at 8: on 40 utterances of dev the shipped
CTC recogniser makes 56 % word errors where it makes 50 % of the same ones at 16 kHz, greedily."""
EPOCH_STEPS: Final = 130
"""About one epoch of the train part, in batches of 6,000 frames of 10 ms."""
LABEL_STEPS: Final = 60
"""Of a tuning on pseudo-labels, filtered or not."""
ADAPTER_STEPS: Final = 300
LORA_STEPS: Final = 150
ROWS: Final[Mapping[str, str]] = {
    "first_pass": "encoder as it is, its own CTC decoder",
    "first_pass/tuned_1": "encoder tuned one epoch with its own decoder",
    "first_pass/tuned_2": "encoder tuned two epochs",
    "first_pass/filtered": "encoder tuned on pseudo-labels that pass the filters",
    "first_pass/unfiltered": "the same number of steps on all pseudo-labels",
    "speech_llm/untuned": "LLM (adapter, then LoRA) behind the encoder as it is",
    "speech_llm/adapter": "two epochs, then the adapter in front of the LLM",
    "speech_llm/lora": "two epochs, adapter, then LoRA with the adapter",
    "speech_llm/lora_only": "two epochs, then LoRA with a new adapter: no adapter stage",
    "speech_llm/stack_4": "as speech_llm/adapter, 4 frames into 1 instead of 2",
    "speech_llm/wide": "as speech_llm/adapter, four times as wide",
    "speech_llm/small": "as speech_llm/lora, with a smaller LLM",
    "speech_llm/bfloat16": "speech_llm/lora in bfloat16",
    "speech_llm/int8": "speech_llm/lora, the LLM's weights in int8",
}
"""System -> what it is."""
_MODELS: Final = {
    "speech_llm/untuned": "untuned_lora",
    "speech_llm/small": "small_lora",
    "speech_llm/bfloat16": "lora",
    "speech_llm/int8": "lora",
}
"""System -> training, where it is not the part behind the slash."""


def model_of(system: str, seed: int, root: str = ROOT) -> str:
    """Where the training behind a row writes its model."""
    return f"{root}/seed_{seed}/{_MODELS.get(system, system.rpartition('/')[2])}/model"


def trainings(seed: int, root: str = ROOT) -> dict[str, TrainingConfig]:
    """Every training of a seed by the folder that it writes to, each behind those that it starts from."""
    return {**_encoders(seed, root), **_llms(seed, root)}


def _encoders(seed: int, root: str) -> dict[str, TrainingConfig]:
    """Tunings of the shipped CTC recogniser, encoder and head, on references or on labels."""
    made = {
        "tuned_1": (f"{root}/corpus/train_dev.jsonl", EPOCH_STEPS),
        "tuned_2": (f"{root}/corpus/train_dev.jsonl", 2 * EPOCH_STEPS),
        "filtered": (f"{root}/labels/filtered/manifest.jsonl", LABEL_STEPS),
        "unfiltered": (f"{root}/labels/unfiltered/manifest.jsonl", LABEL_STEPS),
    }
    return {name: _encoder(name, seed, root, train, steps) for name, (train, steps) in made.items()}


def _encoder(name: str, seed: int, root: str, train: str, num_steps: int) -> TrainingConfig:
    base = train_ctc_own()
    assert isinstance(base.task, CtcTask)
    features = f"{root}/features/{'references' if name.startswith('tuned') else name}"
    task = replace(base.task, train=TableSpeech(path=train), dev=_dev(root), features_directory=features)
    optimiser = replace(base.optimiser, warm_up_steps=20)
    return _on_one_core(replace(base, name=name, seed=seed, task=task, num_steps=num_steps, optimiser=optimiser))


def _llms(seed: int, root: str) -> dict[str, TrainingConfig]:
    """Adapters and LoRAs; an adapter understands one encoder, so each names the model directory of its own."""
    adapter, lora = train_speech_llm_adapter(), train_speech_llm()
    assert isinstance(adapter.task, SpeechLlmTask)
    assert isinstance(lora.task, SpeechLlmTask)
    task = replace(
        adapter.task,
        train=TableSpeech(path=f"{root}/corpus/train_dev.jsonl"),
        dev=_dev(root),
        encoder=model_of("first_pass/tuned_2", seed, root),
        features_directory=f"{root}/seed_{seed}/states",
    )
    shape = task.adapter
    alone = {
        "adapter": task,
        "stack_4": replace(task, adapter=replace(shape, stack=2 * shape.stack)),
        "wide": replace(task, adapter=replace(shape, width=4 * shape.width)),
        "small": replace(task, llm=SPEECH_LM_SMALL),
        "untuned": replace(task, encoder=asset("ctc"), features_directory=f"{root}/states"),
    }
    starts = {"lora": "adapter", "small_lora": "small", "untuned_lora": "untuned", "lora_only": None}
    made = {name: replace(adapter, name=name, task=own, num_steps=ADAPTER_STEPS) for name, own in alone.items()}
    for name, start in starts.items():
        initial = None if start is None else f"{root}/seed_{seed}/{start}/model"
        below = alone[start or "adapter"]
        own = replace(below, initial=initial, lora=lora.task.lora, trained=lora.task.trained)
        made[name] = replace(lora, name=name, task=own, num_steps=LORA_STEPS)
    return {name: _on_one_core(replace(training, seed=seed)) for name, training in made.items()}


def _dev(root: str) -> TableSpeech:
    return TableSpeech(path=f"{root}/corpus/train_dev.jsonl", split="dev")


def _on_one_core(training: TrainingConfig) -> TrainingConfig:
    """In one thread and process, kept every 50 steps; dev is measured at the end."""
    return replace(training, num_threads=1, num_processes=0, checkpoint_every=50, evaluate_every=training.num_steps)


def study_rare_words(seed: int = 1, root: str = ROOT) -> Experiment:
    """Encoder against LLM: O-WER, N-WER and R-WER of every stage of the paper: --manifest runs/.../corpus/test.jsonl.

    The systems are `ROWS`; their models are those of `trainings`.
    """
    ctc = CtcConfig(model=asset("ctc"), beam_size=20, num_hypotheses=4)
    llm = SpeechLlmConfig(model=asset("speech_llm"), beam_size=4, num_hypotheses=4, max_tokens=96)
    branches: dict[str, Branch] = {}
    for system in list(ROWS)[1:]:
        model = model_of(system, seed, root)
        is_ctc = system.startswith("first_pass/")
        branches[system] = Branch(nbest=replace(ctc, model=model) if is_ctc else replace(llm, model=model))
    for dtype in ("bfloat16", "int8"):
        lora = model_of(f"speech_llm/{dtype}", seed, root)
        branches[f"speech_llm/{dtype}"] = Branch(nbest=replace(llm, model=lora, dtype=dtype))
    return Experiment(first_pass=ctc, branches=branches, shard_audio_s=200.0)
