"""What is minimised: cross entropy, CTC and their mixture in nats per target token, and expected word errors.

Each is a sum over the rows given, divided by a `count` of the whole batch: the losses of its parts add up to its own.

Letters of shapes: B utterances, T frames, N target positions, V vocabulary, H hypotheses.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Target that costs nothing (padding); the convention of torch and transformers."""


def num_targets(targets_BN: Tensor) -> int:
    """Targets that count."""
    return int((targets_BN != IGNORED).sum())


def cross_entropy(logits_BNV: Tensor, targets_BN: Tensor, *, count: float, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-probability of the targets, in nats per token.

    Args:
        logits_BNV: Any float type; the softmax is taken in float32.
        targets_BN: int64; `IGNORED` positions do not count.
        count: Targets of the whole batch.
        label_smoothing: Share of the target's mass that is spread over the vocabulary, in [0, 1).

    Returns:
        Scalar, float32.
    """
    total = functional.cross_entropy(
        logits_BNV.float().flatten(0, 1),
        targets_BN.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / count


def ctc(logits_BTV: Tensor, lengths_B: Tensor, targets_BN: Tensor, *, blank: int, count: float) -> Tensor:
    """Negative log-probability of the target texts, all alignments summed, in nats per target token.

    Args:
        logits_BTV: Any float type; the softmax is taken in float32.
        lengths_B: Frames of each utterance, at least what its text needs.
        targets_BN: int64, padded with `IGNORED`.
        blank: Vocabulary index of the blank.
        count: Targets of the whole batch.

    Returns:
        Scalar, float32; infinite where a text does not fit its frames.

    Reference:
        Graves et al. 2006, Connectionist temporal classification, equation 12; the division by tokens is ours.
    """
    mask_BN = targets_BN != IGNORED
    log_probs_TBV = functional.log_softmax(logits_BTV.float(), dim=-1).transpose(0, 1)
    total = functional.ctc_loss(
        log_probs_TBV,
        targets_BN.masked_select(mask_BN),
        lengths_B,
        mask_BN.sum(-1),
        blank=blank,
        reduction="sum",
    )
    return total / count


def joint(ctc_loss: Tensor, attention_loss: Tensor, *, ctc_weight: float) -> Tensor:
    """Mixture of the CTC and attention losses of one encoder.

    Args:
        ctc_loss: Scalar, nats per token.
        attention_loss: Scalar, nats per token.
        ctc_weight: In [0, 1]; 0.3 in the paper's best systems.

    Reference:
        Watanabe et al. 2017, Hybrid CTC/attention architecture, equation 27.
    """
    return torch.lerp(attention_loss, ctc_loss, ctc_weight)


def expected_word_errors(scores_BH: Tensor, errors_BH: Tensor, mask_BH: Tensor, *, count: float) -> Tensor:
    """Word errors that are expected when hypotheses are drawn by their scores (MWER), per utterance.

    With P the softmax of an utterance's scores, the gradient by a score is P_i (e_i - sum_j P_j e_j) / count: nothing
    where all errors of a list are equal, so such a list needs no special case.

    Args:
        scores_BH: Fused log scores in nats, unnormalised; any float type, the softmax is taken in float32.
        errors_BH: Word edit errors of each hypothesis.
        mask_BH: bool, False for padding, whose scores and errors may be anything.
        count: Utterances of the whole batch.

    Returns:
        Scalar, float32, in words per utterance.

    Raises:
        ValueError: an utterance without hypotheses; names its row.

    Reference:
        Shivakumar et al., 2409.16654, the MWER loss over N-best lists; Prabhavalkar et al. 2018, Minimum word error
        rate training for attention-based sequence-to-sequence models. The division by utterances is ours.
    """
    empty = (~mask_BH.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"MWER: utterances {empty[:5]} of the batch have an empty N-best list, over which nothing can be expected; "
            "leave them out, with their reason, before training."
        )
    posteriors_BH = scores_BH.float().masked_fill(~mask_BH, -torch.inf).softmax(-1)
    return (posteriors_BH * errors_BH.float().masked_fill(~mask_BH, 0.0)).sum() / count


def mwer(expected_errors: Tensor, cross_entropy_loss: Tensor, *, cross_entropy_share: float) -> Tensor:
    """Expected word errors with a share of cross entropy, which keeps the model a language model.

    Args:
        expected_errors: Scalar, by `expected_word_errors`.
        cross_entropy_loss: Scalar, nats per token of the references.
        cross_entropy_share: At least 0; 0.01 in Prabhavalkar et al. 2018, section 3.2.
    """
    return expected_errors + cross_entropy_share * cross_entropy_loss


def frames_needed(target: list[int]) -> int:
    """Fewest CTC frames that can carry a text: one per token, and a blank between equal neighbours."""
    return len(target) + sum(a == b for a, b in itertools.pairwise(target))
