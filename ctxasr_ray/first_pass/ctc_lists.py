"""What all first passes with a CTC model share: the search, and what it kept as an N-best list.

Letters: T frames, V labels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ctxasr_ray.nbest import Hypothesis, Score

if TYPE_CHECKING:
    from ctxasr_ray.first_pass.ctc import CtcConfig
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.search.ctc_beam import CtcBeamSearch, Labelling


def ctc_search(config: "CtcConfig", model: "CtcModel", label_kinds: tuple[int, ...] = ()) -> "CtcBeamSearch":
    """The search that a config describes, over a model's labels.

    Args:
        config: Beam and thresholds.
        model: The recogniser.
        label_kinds: What each label does to words, where in-search fusions ask for words.
    """
    from ctxasr_ray.search.ctc_beam import CtcBeamSearch

    return CtcBeamSearch(
        blank_id=model.vocabulary.blank_id,
        num_labels=len(model.vocabulary.pieces),
        beam_size=config.beam_size,
        max_labels_per_frame=config.max_labels_per_frame,
        min_label_log_prob=config.min_label_log_prob,
        beam_threshold=config.beam_threshold,
        blank_skip_prob=config.blank_skip_prob,
        suppressed=model.vocabulary.suppressed,
        label_kinds=label_kinds,
    )


def ctc_hypotheses(
    model: "CtcModel",
    log_probs_TV: npt.NDArray[np.float32],
    found: "Sequence[Labelling]",
    *,
    source: str,
    num_hypotheses: int,
    scores: Sequence[Sequence[Score]] = (),
) -> list[Hypothesis]:
    """The best labellings of distinct texts, in the order of exact forced score + what in-search fusions added.

    Args:
        model: The recogniser.
        log_probs_TV: Its output.
        found: What the search kept.
        source: Name of the forced score.
        num_hypotheses: Longest list.
        scores: Per labelling, what in-search fusions scored.
    """
    from ctxasr_ray.search.ctc_alignment import ctc_alignments, entropies
    from ctxasr_ray.search.ctc_forced import ctc_forward_scores

    blank_id, vocabulary = model.vocabulary.blank_id, model.vocabulary
    exact = ctc_forward_scores(log_probs_TV, [f.token_ids for f in found], blank_id)
    forced = [-np.inf if score.log_prob is None else score.log_prob for score in exact]
    texts: dict[str, int] = {}
    for n in sorted(range(len(found)), key=lambda n: -(forced[n] + found[n].fusion)):
        texts.setdefault(vocabulary.text(found[n].token_ids), n)
    kept = list(texts.items())[:num_hypotheses]
    alignments = ctc_alignments(log_probs_TV, [found[n].token_ids for _, n in kept], blank_id)
    entropy_T = entropies(log_probs_TV)
    hypotheses = []
    for (text, n), alignment in zip(kept, alignments, strict=True):
        assert alignment is not None, "what the search found has an alignment"
        peaks = alignment.peak_frame
        hypotheses.append(
            Hypothesis(
                text=text,
                token_ids=found[n].token_ids.tolist(),
                token_log_probs=log_probs_TV[peaks, found[n].token_ids].tolist(),
                token_entropies=entropy_T[peaks].tolist(),
                token_start_s=(alignment.start_frame * model.frame_duration_s).tolist(),
                token_end_s=(alignment.end_frame * model.frame_duration_s).tolist(),
                token_words=vocabulary.token_words(found[n].token_ids),
                scores=(
                    Score(source=source, kind="log_prob", log_prob=forced[n]),
                    *(scores[n] if scores else ()),
                ),
                search_score=found[n].log_prob + found[n].fusion,
            )
        )
    return hypotheses
