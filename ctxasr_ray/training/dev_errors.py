"""Error rates on dev while a model is trained; reported figures come from the pipeline, with intervals."""

from collections.abc import Sequence

from ctxasr_ray import align, text


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, float]:
    """Gives word and character error rate of training texts, which are normalised already.

    Args:
        references: As trained on; together at least one word.
        hypotheses: As many.
    """
    rates = []
    for unit in ("word", "character"):
        true, written = (text.units(texts, "none", unit) for texts in (references, hypotheses))
        encoded_true, encoded_written = align.encode(unit, true, written)
        errors = int(align.distances(encoded_true, encoded_written).sum())
        rates.append(errors / int(encoded_true.lengths.sum()))
    return rates[0], rates[1]
