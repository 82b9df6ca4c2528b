"""A causal LM whose vocabulary has speech units and modality marks: how speech and text stand in one sequence.

    text alone         <s> text </s>
    speech alone       <s> <speech> units </speech> </s>
    speech, then text  <s> <speech> units </speech> <text> text </s>
    text, then speech  <s> text <speech> units </speech> </s>

Text alone stands as in the LM that was extended, so that any scorer of causal LMs may ask for it. The layout is ours:
the paper (Shivakumar et al., 2409.16654) names the orders, not the marks.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

from ctxasr_ray.token_tree import Int32

SPEECH, SPEECH_END, TEXT = "<speech>", "</speech>", "<text>"
QUANTISER: Final = "units.safetensors"
"""The quantiser that made the units, beside the model that reads them."""
MADE_BY: Final = "quantiser"
"""Under this the receipt of a UNITS table names the digest of its quantiser."""


def refuse_other_units(model: str, digest: str, made_by: str) -> None:
    """Refuses units of another quantiser than the one beside a speech-text LM; where none lies there, none is known.

    Args:
        model: Directory of the LM.
        digest: `Quantiser.digest` of what made the units.
        made_by: Names that quantiser, for the message.

    Raises:
        ValueError: the digests differ.
    """
    from ctxasr_ray.models.speech_units import load_quantiser

    beside = Path(model) / QUANTISER
    if beside.is_file() and (own := load_quantiser(beside).digest) != digest:
        raise ValueError(
            f"speech-text LM '{model}' knows the units of {beside} ({own[:23]}), but these were made with {made_by} "
            f"({digest[:23]}): equal numbers that mean other sounds. Make the units with {beside}, or give the LM that "
            "was trained on these."
        )


def unit_token(unit: int) -> str:
    """Gives the token of a unit."""
    return f"<unit_{unit}>"


def extend_vocabulary(model: Any, tokenizer: Any, num_units: int, seed: int) -> None:
    """Appends marks and units to a tokenizer and rows to its model's embeddings; old tokens keep ids and weights.

    Args:
        model: A causal LM of transformers; new rows are drawn with the spread of the old ones.
        tokenizer: Its tokenizer. The new tokens are special: a text that spells one out is read as letters.
        num_units: K.
        seed: Of the new rows.

    Raises:
        ValueError: the tokenizer knows speech already.
    """
    import torch
    from tokenizers import AddedToken

    if SPEECH in tokenizer.get_vocab():
        raise ValueError(f"the tokenizer has {SPEECH} already; extend a model of text alone, once.")
    before = len(tokenizer)
    new = [SPEECH, SPEECH_END, TEXT, *map(unit_token, range(num_units))]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new], special_tokens=True)
    rows = model.get_input_embeddings().weight.shape[0]  # many models have more than their tokenizer needs
    model.resize_token_embeddings(max(rows, len(tokenizer)), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in embeddings.values():  # one where they are tied
            spread = float(weight[:before].std())
            weight[before:] = spread * torch.randn(weight[before:].shape, generator=generator)


class SpeechTokens:
    """The marks and units of an extended tokenizer.

    Args:
        tokenizer: After `extend_vocabulary`, or loaded from what was saved then.

    Raises:
        ValueError: the tokenizer has no marks or no units.
    """

    num_units: int
    """K."""

    def __init__(self, tokenizer: Any) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        lacking = [token for token in (SPEECH, SPEECH_END, TEXT, unit_token(0)) if token not in vocabulary]
        if lacking:
            raise ValueError(
                f"the tokenizer has no {', '.join(lacking)}, so its model knows no speech units; expected a "
                "speech-text LM, as `ctxasr train speech_lm` makes one. For text alone use the scorer causal_lm."
            )
        self.speech, self.speech_end, self.text = (vocabulary[mark] for mark in (SPEECH, SPEECH_END, TEXT))
        ids: list[int] = []
        while (token := unit_token(len(ids))) in vocabulary:
            ids.append(vocabulary[token])
        self._ids = np.asarray(ids, np.int32)
        self.num_units = len(ids)

    def spoken(self, units: Int32) -> Int32:
        """Writes units as tokens: <speech>, one token per unit, </speech>.

        Raises:
            ValueError: a unit that the model does not know; names it and the remedy.
        """
        outside = units[(units < 0) | (units >= self.num_units)]
        if len(outside):
            raise ValueError(
                f"unit {outside[0]} is out of range: the model knows units 0 to {self.num_units - 1}. Make the units "
                f"with the quantiser that the model was trained with ({QUANTISER} beside it)."
            )
        return np.concatenate([[self.speech], self._ids[units], [self.speech_end]]).astype(np.int32)

    def heard(self, units: Int32) -> Int32:
        """Writes what stands before a text whose speech is known: `spoken` and the <text> mark.

        Raises:
            ValueError: as `spoken`.
        """
        return np.append(self.spoken(units), np.int32(self.text))
