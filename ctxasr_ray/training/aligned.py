"""Where each token is spoken, by forced alignment with a character CTC model: a target for every frame.

A small transformer that has to find tokens and their places at once stays long on a plateau where it writes nothing;
told the places, it learns the tokens at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint
from ctxasr_ray.search.ctc_alignment import Alignment, ctc_alignments
from ctxasr_ray.training import cache
from ctxasr_ray.training.features import Features
from ctxasr_ray.training.progress import bar

Labels = npt.NDArray[np.int16]


def frame_labels(
    teacher: str, spoken: Features, targets: Mapping[str, Sequence[int]], tokenizer: Any, stride: int, path: Path
) -> dict[str, Labels]:
    """Aligns every text with its audio and spreads its tokens over the frames; kept in a file.

    Args:
        teacher: Hugging Face directory of a CTC model over single characters.
        spoken: Features of the utterances by the teacher's own extractor.
        targets: Utterance -> token ids of the student.
        tokenizer: The student's, whose pieces spell the text and mark word starts as the teacher's spaces do.
        stride: Student frames per teacher frame.
        path: File that holds the labels, computed once; the digest of what they are made of is appended to its name.

    Returns:
        Utterance -> (student frames,) token ids, the student's blank (<pad>) where nothing is spoken. An utterance
        whose text the teacher cannot align has no entry.

    Raises:
        ValueError: the teacher's tokens are not single characters.
    """
    made_of = {"features": spoken.digest, "teacher": checkpoint.fingerprint(teacher)["model"], "stride": stride}
    path = cache.keyed(path, {**made_of, "targets": {name: list(ids) for name, ids in targets.items()}})
    if not path.exists():
        labels = _align(teacher, spoken, targets, tokenizer, stride)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **labels)  # type: ignore[arg-type]  # numpy's stub takes the names for its own option
        temporary.replace(path)
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _align(
    teacher: str, spoken: Features, targets: Mapping[str, Sequence[int]], tokenizer: Any, stride: int
) -> dict[str, Labels]:
    import torch
    from transformers import AutoModelForCTC

    source = checkpoint.resolve(teacher)
    model = checkpoint.load_model(AutoModelForCTC, source, dtype=torch.float32)
    characters = checkpoint.load_tokenizer(source)
    if max(map(len, set(characters.get_vocab()) - set(characters.all_special_tokens))) > 1:
        raise ValueError(f"teacher '{teacher}': its tokens are not single characters, so they place no others.")
    labels: dict[str, Labels] = {}
    with bar("alignment", len(spoken)) as advance, torch.inference_mode():
        for index, name in enumerate(spoken.names):
            advance("")
            if name not in targets:
                continue
            features_BFM = torch.from_numpy(spoken[index])[None]
            mask_BF = torch.ones(features_BFM.shape[:2], dtype=torch.bool)
            log_probs_TV = model(features_BFM, attention_mask=mask_BF).logits[0].log_softmax(-1).numpy()
            ids = characters(spoken.texts[index], add_special_tokens=False)["input_ids"]
            (found,) = ctc_alignments(log_probs_TV, [ids], int(model.config.pad_token_id))
            if found is not None:
                pieces = tokenizer.convert_ids_to_tokens(list(targets[name]))
                labels[name] = spread(
                    found, list(targets[name]), pieces, len(log_probs_TV), stride, tokenizer.pad_token_id
                )
    return labels


def spread(
    found: Alignment, target: Sequence[int], pieces: Sequence[str], num_frames: int, stride: int, blank: int
) -> Labels:
    """Writes each token on the frames of its characters.

    Args:
        found: Frames of the characters, word separators included, none before the first word.
        target: Token ids.
        pieces: Their spellings, which together are the characters, with one more separator in front.
        num_frames: Frames of the alignment.
        stride: Frames to write per frame of the alignment.
        blank: Written elsewhere, and between two equal tokens that touch.

    Returns:
        (num_frames * stride,) token ids, from which removing repeats and blanks gives the target.
    """
    labels = np.full(num_frames * stride, blank, np.int16)
    place = -1  # the first word's separator is not spoken
    before, before_end = -1, 0
    for token, piece in zip(target, pieces, strict=True):
        first, last = max(place, 0), place + len(piece) - 1
        place += len(piece)
        # A piece that is only the first separator has no frame of its own: it takes the one before the first character.
        begin = int(found.start_frame[first]) * stride if last >= 0 else 0
        end = int(found.end_frame[last]) * stride if last >= 0 else 1
        begin = max(begin, before_end)
        if before == token and before_end == begin:
            begin += 1
        labels[begin:end] = token
        before, before_end = token, end
    return labels
