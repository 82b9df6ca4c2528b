"""What an encoder heard of a source: units per frame and, where it spells by CTC, the frame at which each word ends.

Letters of shapes: F feature frames, M mel bins, T encoder frames, W words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.training import cache
from ctxasr_ray.training.progress import bar

if TYPE_CHECKING:
    from ctxasr_ray.models.speech_units import Quantiser, SpeechEncoder
    from ctxasr_ray.training.features import Features

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Heard:
    """Units of every utterance of a source, in its order.

    Args:
        units: (T,) per utterance, one unit per frame.
        word_ends: (W,) per utterance, the frame after each word, the last one T; empty where the text has no
            alignment or the encoder does not spell.
    """

    units: list[Int16]
    word_ends: list[Int16]


def hear(
    spoken: "Features",
    encoder: "SpeechEncoder",
    quantiser: "Quantiser",
    characters: Any,
    path: Path,
    *,
    warp: float = 0.0,
    seed: int = 0,
) -> Heard:
    """Makes the units of a source once and keeps them in a file.

    Args:
        spoken: Log-mel features by the encoder's own extractor.
        encoder: At the quantiser's layer.
        quantiser: Of that encoder.
        characters: Tokenizer of the encoder's CTC head over single characters, or None: no word ends.
        path: File that holds the result (npz), the digest of what it is made of appended to its name.
        warp: Largest stretch of the mel axis, drawn for each utterance; 0 leaves it.
        seed: Of the draws.
    """
    made_of = {"features": spoken.digest, "quantiser": quantiser.digest, "ends": characters is not None}
    path = cache.keyed(path, {**made_of, "warp": warp, "seed": seed})
    if not path.exists():
        units, ends = [], []
        with bar("units", len(spoken)) as advance:
            for index in range(len(spoken)):
                features_FM = spoken[index]
                if warp:
                    features_FM = warp_mel(features_FM, np.random.default_rng([seed, index]).uniform(-warp, warp))
                states_TD, logits_TV = encoder.of_features(features_FM)
                units.append(quantiser.units(states_TD).astype(np.int16))
                ends.append(word_ends(logits_TV, spoken.texts[index], characters))
                advance("")
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            units=np.concatenate(units),
            ends=np.concatenate(ends),
            num_units=[len(u) for u in units],
            num_ends=[len(e) for e in ends],
        )
        temporary.replace(path)
    with np.load(path) as file:
        return Heard(
            np.split(file["units"], np.cumsum(file["num_units"])[:-1]),
            np.split(file["ends"], np.cumsum(file["num_ends"])[:-1]),
        )


def warp_mel(features_FM: npt.NDArray[np.float32], stretch: float) -> npt.NDArray[np.float32]:
    """Reads the features at mel bins stretched by `stretch` (0.1: 10 % longer), as of a longer vocal tract.

    A recogniser knows the voices that it was trained on too well: its units of them are cleaner than those of anyone
    else, and who learns from them trusts units too much.

    Reference:
        Jaitly and Hinton 2013, Vocal tract length perturbation; on the mel axis and linear, which is ours.
    """
    bins = features_FM.shape[1]
    places = np.clip(np.arange(bins) * (1 + stretch), 0, bins - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, bins - 1)
    share = (places - low).astype(np.float32)
    return np.ascontiguousarray(features_FM[:, low] * (1 - share) + features_FM[:, high] * share)


def word_ends(logits_TV: npt.NDArray[np.float32], text: str, characters: Any) -> Int16:
    """Gives the frame after each word by forced alignment; empty where there is none.

    A word ends half-way between its last letter and the next word's first.
    """
    from ctxasr_ray.search.ctc_alignment import ctc_alignments

    nothing = np.zeros(0, np.int16)
    if characters is None or not logits_TV.shape[1]:
        return nothing
    ids = characters(text, add_special_tokens=False)["input_ids"]
    highest = logits_TV.max(-1, keepdims=True)
    log_probs_TV = logits_TV - highest - np.log(np.exp(logits_TV - highest).sum(-1, keepdims=True))
    (found,) = ctc_alignments(log_probs_TV, [ids], characters.pad_token_id)
    letters = np.cumsum([len(word) + 1 for word in text.split()])[:-1]
    if found is None or len(ids) != len(" ".join(text.split())):
        return nothing
    middles = (found.end_frame[letters - 2] + found.start_frame[letters]) // 2
    return np.append(middles, len(logits_TV)).astype(np.int16)
