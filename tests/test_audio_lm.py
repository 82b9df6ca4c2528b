"""Audio-language models of transformers: texts behind a sound as a token tree, against the whole model."""

import numpy as np
import pytest
import torch
from tiny_audio_lms import FAMILIES, make
from tiny_ctc import noise

from ctxasr_ray.models.audio_lm import TransformersAudioLm
from ctxasr_ray.models.list_trees import ScoreRequest

TEXTS = ["a time of you", "a time of", "of a time", ""]
PROMPT = "of {speech} a time "


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forcing_equals_the_forward_of_the_whole_model(family: str, attention: str) -> None:
    raw, processor, tokens = make(family, attention)
    model = TransformersAudioLm(raw, processor, tokens, name=family, prompt=PROMPT)
    for samples in (noise(1, 0.7), noise(2, 1.3)):
        texts = tokens.encode(TEXTS)
        (scores,) = model.lm.score([ScoreRequest(model.prefix(samples), texts)])
        batch = processor(
            text=[PROMPT.replace("{speech}", processor.audio_token)], audio=[samples], return_tensors="pt"
        )
        for i, text in enumerate(texts):
            ids = torch.cat([batch["input_ids"], torch.from_numpy(text.astype(np.int64))[None]], dim=1)
            inputs = {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.inference_mode():
                log_probs_NV = raw(**inputs, use_cache=False).logits[0].log_softmax(-1)
            behind = log_probs_NV[-len(text) - 1 :]
            expected = sum(float(behind[n, token]) for n, token in enumerate(text))
            assert scores.log_probs[i] == pytest.approx(expected, abs=1e-4)
            assert scores.eos_log_probs[i] == pytest.approx(float(behind[-1, tokens.eos_token_id]), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_sound_gives_other_scores(family: str) -> None:
    model = TransformersAudioLm(*make(family), name=family, prompt=PROMPT)
    texts = model.tokens.encode(TEXTS[:2])
    one, other = model.lm.score([ScoreRequest(model.prefix(noise(seed, 1.0)), texts) for seed in (1, 2)])
    assert np.abs(one.log_probs - other.log_probs).min() > 1e-3


def test_a_prompt_without_a_place_for_the_sound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold \{speech\} once"):
        TransformersAudioLm(*make("voxtral"), name="voxtral", prompt="of a time")
