"""A recogniser and a causal LM that write with the same pieces: which token of one is which of the other."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.token_tree import Int32

UNSHARED: Final = -1
"""In place of a token that the LM lacks."""
_SHOWN: Final = 3
_PROBES: Final = ("time of you", "a b c", "ab cab")
"""Must fall into the same pieces, where the pieces can write them at all."""


def shared_tokens(
    recogniser: Any, lm: Any, written_V: npt.NDArray[np.bool_], *, recogniser_eos: int, lm_eos: int | None, name: str
) -> Int32:
    """(V,) the LM's token of each token of the recogniser, `UNSHARED` for those that are never written.

    The pieces must be equal, their numbers need not; the recogniser's end is the LM's end of sequence.

    Args:
        recogniser: Its tokenizer, one of transformers.
        lm: The LM's.
        written_V: (V,) tokens that the recogniser may write, its end included.
        recogniser_eos: The recogniser's end.
        lm_eos: The LM's end of sequence.
        name: Of the LM, for messages.

    Raises:
        ValueError: an LM with other pieces or without an end of sequence.
    """
    if lm_eos is None:
        raise ValueError(f"LM '{name}' names no end of sequence, so a search cannot weigh its end; choose another LM.")
    of_lm, of_recogniser = lm.get_vocab(), recogniser.get_vocab()
    written = {
        piece: index
        for piece, index in of_recogniser.items()
        if index < len(written_V) and written_V[index] and index != recogniser_eos
    }
    special = {*lm.all_special_tokens, *recogniser.all_special_tokens}
    lacking = sorted(set(written) - set(of_lm))
    further = sorted(set(of_lm) - set(of_recogniser) - special)
    if lacking or further or not _fall_alike(recogniser, lm, written):
        pieces = ", ".join(repr(piece) for piece in (lacking or further)[:_SHOWN])
        what = f"pieces of one that the other lacks: {pieces}" if pieces else "the same text falls into other pieces"
        raise ValueError(
            f"LM '{name}' does not write with the recogniser's pieces ({what}); fusion by token needs one tokenizer "
            "for both: train one of them on the other's, or rescore with this LM instead (scorers.causal_lm)."
        )
    tokens = np.full(len(written_V), UNSHARED, np.int32)
    for piece, index in written.items():
        tokens[index] = of_lm[piece]
    tokens[recogniser_eos] = lm_eos
    return tokens


def _fall_alike(recogniser: Any, lm: Any, written: dict[str, int]) -> bool:
    for text in _PROBES:
        pieces = recogniser.tokenize(text)
        if set(pieces) <= set(written) and pieces != lm.tokenize(text):
            return False
    return True
