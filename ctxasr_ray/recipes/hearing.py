"""Models that hear as rescorers: their rows over one N-best list, and the lists that they are trained on."""

from dataclasses import replace
from pathlib import Path

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.models.speech_lm import QUANTISER
from ctxasr_ray.recipes.tiny_models import LM_SMALL, SPEECH_LM_SMALL
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.speech_llm import SpeechLlmScorerConfig
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig


def speech_lm_rescorings(model: str, *, adapter: str | None = None, name: str = "speech_lm") -> dict[str, Rescoring]:
    """A speech-text LM as rescorer of one list: text alone, speech first, text first, both orders together.

    Args:
        model: Its directory, the quantiser beside it.
        adapter: Updates on top, as `ctxasr train speech_lm_mwer` writes them.
        name: Of the systems, before the slash.
    """
    units = SpeechUnitsConfig(encoder=asset("ctc"), quantiser=str(Path(model) / QUANTISER))
    source = name.replace("/", "_")
    alone = CausalLmConfig(model=model, adapter=adapter, source=f"{source}_alone")
    first = SpeechLmConfig(model=model, adapter=adapter, source=source)
    last = SpeechLmConfig(model=model, adapter=adapter, source=f"{source}_last", order="text_first")
    return {
        f"{name}/text_only": Rescoring(scorers=(alone,)),
        f"{name}/speech_first": Rescoring(scorers=(first,), units=units),
        f"{name}/text_first": Rescoring(scorers=(last,), units=units),
        f"{name}/both_orders": Rescoring(scorers=(first, last), units=units),
    }


def speech_llm_rescorings(model: str) -> dict[str, Rescoring]:
    """An LLM recogniser as rescorer of one list, and its control: the same behind another utterance's sound.

    Args:
        model: Its directory.
    """
    heard = SpeechLlmScorerConfig(model=model)
    control = SpeechLlmScorerConfig(model=model, source="speech_llm_misheard", hears="next")
    return {
        "speech_llm/rescoring": Rescoring(scorers=(heard,)),
        "speech_llm/misheard": Rescoring(scorers=(control,)),
    }


def hearing_rescorings() -> dict[str, Rescoring]:
    """The shipped models that hear, each as rescorer of one list: the speech-text LM before and after MWER, the LLM."""
    before, after = asset("speech_lm"), asset("speech_lm_mwer")
    return {
        **speech_lm_rescorings(before),
        **speech_lm_rescorings(before, adapter=after, name="speech_lm_mwer"),
        **speech_llm_rescorings(asset("speech_llm")),
    }


def training_lists() -> Experiment:
    """Lists of speech that no shipped model has heard, for `ctxasr train speech_lm_mwer`: --root runs/train/lists."""
    rows = speech_lm_rescorings(asset("speech_lm"))
    return Experiment(
        first_pass=AttentionConfig(model=asset("attention"), beam_size=8, num_hypotheses=8, max_tokens=96),
        rescorings={"speech_lm/speech_first": rows["speech_lm/speech_first"]},
        synthetic=SyntheticConfig(seed=9, num_train=2000, num_dev=200, num_test=0),
        shard_audio_s=200.0,
    )


def study_speech_lm() -> Experiment:
    """The speech-text LM on one attention list: beside the shipped LM and its own control, before and after MWER.

    The control is what `ctxasr train speech_lm_control` writes: same size, texts and steps, nothing spoken.
    """
    lm, control = asset("lm"), "runs/train/speech_lm_control/model"
    return Experiment(
        first_pass=AttentionConfig(model=asset("attention"), beam_size=16, num_hypotheses=16, max_tokens=96),
        scorers=(CausalLmConfig(model=lm),),
        rescorings={
            "lm_rescoring/control": Rescoring(scorers=(CausalLmConfig(model=control, source="control"),)),
            **hearing_rescorings(),
        },
        synthetic=SyntheticConfig(),
        shard_audio_s=200.0,
    )


def study_plateau() -> Experiment:
    """One family of language models at two sizes, with and without sound, on one attention list and inside its search.

    The small ones are what `ctxasr train lm_small` and `ctxasr train speech_lm_small` write.

    Reference:
        Zhou and Li, 2507.12252, leave open whether a larger LM goes on helping.
    """
    attention = AttentionConfig(model=asset("attention"), beam_size=16, num_hypotheses=16, max_tokens=96)
    large = CausalLmConfig(model=asset("lm"))
    small = CausalLmConfig(model=LM_SMALL, source="lm_small")
    gated = AttentionFusedConfig(first_pass=attention, lm=large, temperature=0.7, lm_temperature=0.7)
    return Experiment(
        first_pass=attention,
        scorers=(large,),
        rescorings={
            "lm_rescoring/small": Rescoring(scorers=(small,)),
            **speech_lm_rescorings(asset("speech_lm")),
            **speech_lm_rescorings(SPEECH_LM_SMALL, name="speech_lm/small"),
        },
        branches={"gated_fusion": Branch(nbest=gated), "gated_fusion/small": Branch(nbest=replace(gated, lm=small))},
        synthetic=SyntheticConfig(),
        shard_audio_s=200.0,
    )
