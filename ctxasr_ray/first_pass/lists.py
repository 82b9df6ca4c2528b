"""What N-best lists of every searching first pass keep: their size, and the reason where there is none."""

from ctxasr_ray.nbest import NBest


def check_list_size(num_hypotheses: int, beam_size: int) -> None:
    """Refuses a list that is longer than the beam it is read from.

    Raises:
        ValueError: names both.
    """
    if not 1 <= num_hypotheses <= beam_size:
        raise ValueError(
            f"num_hypotheses is {num_hypotheses}, beam_size {beam_size}; expected 1 to beam_size. "
            "Raise beam_size or lower num_hypotheses: a beam cannot hold more hypotheses than rows."
        )


def failed(utterance_id: str, error: tuple[str, str] | None) -> NBest:
    """Gives the row of an utterance without hypotheses.

    Args:
        utterance_id: Of the row.
        error: (error_type, message).
    """
    error_type, message = error if error is not None else (None, None)
    return NBest(utterance_id=utterance_id, error_type=error_type, error=message)


def not_finite(dtype: str) -> str:
    """Says why a recogniser's numbers cannot be searched."""
    return f"the model's log-probs are not finite in {dtype}; use dtype float32."
