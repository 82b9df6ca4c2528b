"""Recordings and N-best lists -> SCORES, for forced scorers that hear one utterance at a time."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from ctxasr_ray.nbest import SourceScores, flatten, scores_table
from ctxasr_ray.recordings import Heard, Limits, heard_ahead
from ctxasr_ray.stage import Costs


def score_heard_lists(
    utterances: pa.Table,
    hypotheses: pa.Table,
    limits: Limits,
    source: str,
    score: Callable[[Heard, list[str]], SourceScores],
    costs: Costs,
) -> pa.Table:
    """SCORES in the order of the utterances: every text of what can be heard is scored, the others have the reason.

    Args:
        utterances: With the columns of `recordings.COLUMNS`.
        hypotheses: HYPOTHESES of the same rows.
        limits: Of the model.
        source: Name of the scores.
        score: Called with what was heard and the texts of its list, at least one.
        costs: Gets the seconds of decoding.

    Raises:
        OSError: a fault of the disk or network while reading audio.
    """
    flat = flatten(hypotheses)
    bounds = flat.offsets.tolist()
    rows, errors = [], []
    for heard in heard_ahead(utterances, limits, 2, costs):
        texts = flat.texts[bounds[heard.row] : bounds[heard.row + 1]]
        if heard.samples is None or not texts:
            rows.append([unscored(source, texts, heard.error and ": ".join(heard.error))])
        else:
            rows.append([score(heard, texts)])
        errors.append(heard.error)
    return scores_table(flat.utterance_ids, rows, errors)


def unscored(source: str, texts: Sequence[str], reason: str | None, *, has_end: bool = True) -> SourceScores:
    """Scores of texts that have none, for one reason."""
    nothing = [None] * len(texts)
    ends = nothing if has_end else None
    return SourceScores(source=source, log_probs=nothing, eos_log_probs=ends, reasons=[reason] * len(texts))
