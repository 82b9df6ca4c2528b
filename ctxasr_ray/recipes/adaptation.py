"""Adaptation of the shipped speech-text LM to a domain by its sound alone, and what rescoring gains by it.

`benchmarks/study_adaptation.py` makes the recordings, trains, evaluates, and writes what comes out.

The rate is dev's choice, as far as it can choose. WER of both orders there is 46.97 before; with 600 recordings and 80
steps 46.90 at a rate of 1e-4 and 47.20 with a LoRA of rank 8 at 1e-3; beside 1,500 transcribed utterances of the old
domain, 160 steps, 46.97 with that LoRA and 46.82 at 1e-4 with sentences too. At 3e-4 and 1e-3 all weights forget:
perplexity per word behind its units is 15.1 before, 16.2 and 21.0 after, 15.4 at 1e-4.

Reference:
    Shivakumar et al., 2409.16654: speech continuation on target-domain audio, without transcripts, before rescoring.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ctxasr_ray.corpora.unheard import UnheardConfig
from ctxasr_ray.experiment import Experiment, Rescoring, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.recipes.hearing import speech_lm_rescorings
from ctxasr_ray.recipes.own_speech import train_speech_lm_adapted
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.training.adaptation import AdaptationTask
from ctxasr_ray.training.config import TrainingConfig
from ctxasr_ray.training.sources import Recordings, SyntheticText

ROOT: Final = "runs/studies/adaptation"
DOMAIN: Final = UnheardConfig(num_train=600, num_dev=100, num_test=200)
"""Train is what the LM listens to."""
BEFORE: Final = "speech_lm"
WAYS: Final = ("text_only", "speech_first", "text_first", "both_orders")
"""How a speech-text LM is asked: `hearing.speech_lm_rescorings`."""
ADAPTED: Final[Mapping[str, str]] = {
    "speech_lm_adapted": "units alone",
    "speech_lm_adapted_with_text": "units, and as many sentences of the old domain's text",
}
"""Systems, before the slash -> what their LM went on with."""


def trainings(root: str = ROOT) -> dict[str, TrainingConfig]:
    """The training behind every name of `ADAPTED`."""
    base = train_speech_lm_adapted()
    assert isinstance(base.task, AdaptationTask)
    path = f"{root}/corpus/recordings.jsonl"
    task = replace(
        base.task,
        train=Recordings(path=path),
        dev=Recordings(path=path, split="dev"),
        features_directory=f"{root}/features",
    )
    text = SyntheticText(num_sentences=DOMAIN.num_train, num_seeds=40)
    tasks = dict(zip(ADAPTED, (task, replace(task, text=text)), strict=True))
    return {name: replace(base, name=name, task=own, num_threads=1, num_processes=0) for name, own in tasks.items()}


def study_adaptation(root: str = ROOT) -> Experiment:
    """One attention list in unheard voices and noise, rescored before and after adaptation: --manifest target.jsonl.

    The weights are fitted on the manifest's dev part; `source.jsonl` has one of the old domain.
    """
    rows: dict[str, Rescoring] = speech_lm_rescorings(asset("speech_lm"))
    for name in ADAPTED:
        rows |= speech_lm_rescorings(f"{root}/{name}/model", name=name)
    return Experiment(
        first_pass=AttentionConfig(model=asset("attention"), beam_size=16, num_hypotheses=16, max_tokens=96),
        scorers=(CausalLmConfig(model=asset("lm")),),
        rescorings=rows,
        shard_audio_s=200.0,
    )
