"""The load check: a causal LM scores a small tree as it scores the same sequences one by one, or loses the tree.

A short check cannot see a sliding window; those are known from the config (`tree_masks.mask_plan`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from ctxasr_ray.models.arena_cache import ArenaCache
from ctxasr_ray.models.tree_forward import Block
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.stage import Costs, TreeNodes
from ctxasr_ray.token_tree import chain

if TYPE_CHECKING:
    from ctxasr_ray.models.causal_lm import CausalLm

TOLERANCE: Final = 1e-3
"""Largest difference of a token's log_prob in float32, in nats; right masks stay below 1e-5, wrong ones cost 0.3."""
HALF_TOLERANCE: Final = 0.1
"""The same for half precision, whose logits are rounded to about 0.06."""

_PREFIX: Final = 4
_SEQUENCES: Final = ([4, 5, 6, 7], [4, 5, 8, 9], [10, 11, 12, 10])  # indices into the probe's ids


def probe_ids(vocabulary: int, special_ids: Sequence[int]) -> list[int]:
    """13 ordinary token ids, repeated where a vocabulary has fewer."""
    special = set(special_ids)
    ordinary = [i for i in range(5, min(vocabulary, 200)) if i not in special] or list(range(vocabulary))
    return [ordinary[i % len(ordinary)] for i in range(13)]


@torch.inference_mode()
def tree_refusal(lm: "CausalLm", ids: Sequence[int]) -> str | None:
    """Why this model must not be scored as a tree, None if it may.

    Raises:
        ValueError: the model does not even score right-padded sequences as it scores them alone.
    """
    expected = _one_by_one(lm, ids)
    refusal = None
    if lm.body.plan == "refuse":
        refusal = f"{lm.body.config.model_type} has layers that are no attention over positions"
    else:
        try:
            found = (_at_once(lm, ids), _prefix_ahead(lm, ids), _grown(lm, ids))
            refusal = _verdict(lm, max(_difference(scores, expected) for scores in found))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # a body that knows no 4D mask fails in its own way
            refusal = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    if refusal is None:
        return None
    lm.body.refusal = refusal
    padded = _verdict(lm, _difference(_at_once(lm, ids), expected))
    if padded is not None:
        raise ValueError(
            f"{type(lm.model).__name__} scores right-padded sequences otherwise than alone ({padded}), and the token "
            f"tree is no way out ({refusal}); choose another causal LM."
        )
    return refusal


@torch.inference_mode()
def position_bytes(lm: "CausalLm", ids: Sequence[int]) -> int:
    """Bytes of keys and values of one position: measured, as configs spell their heads in many ways.

    Args:
        lm: A model that may be scored as a tree.
        ids: Of the probe.
    """
    cache, tree = ArenaCache(lm.body.config.num_hidden_layers), chain(ids[:1])
    lm.body([Block(tree, np.zeros(1, np.int32), np.zeros(0, np.int32))], Costs(), cache)
    return cache.position_bytes()


def _one_by_one(lm: "CausalLm", ids: Sequence[int]) -> list[float]:
    """Log-probs of the sequences and of their ends, each alone, unpadded and without a cache."""
    scores = []
    for sequence in _SEQUENCES:
        tokens = torch.tensor([[*ids[:_PREFIX], *(ids[i] for i in sequence)]], device=lm.device)
        log_probs = lm.model(input_ids=tokens, use_cache=False).logits[0].double().log_softmax(dim=-1)
        targets = tokens[0, _PREFIX:].to(log_probs.device)
        scores.append(float(log_probs[_PREFIX - 1 : -1].gather(1, targets[:, None]).sum()))
        scores += [float(log_probs[-1, lm.eos_token_id])] if lm.eos_token_id is not None else []
    return scores


def _at_once(lm: "CausalLm", ids: Sequence[int]) -> list[float]:
    from ctxasr_ray.models.list_trees import ScoreRequest

    sequences = [np.array([ids[i] for i in s], np.int32) for s in _SEQUENCES]
    (result,) = lm.score([ScoreRequest(np.array(ids[:_PREFIX], np.int32), sequences)])
    return _flat(lm, result.log_probs.tolist(), result.eos_log_probs.tolist())


def _prefix_ahead(lm: "CausalLm", ids: Sequence[int]) -> list[float]:
    """The same with the prefix in a pass of its own."""
    usual, lm.prefill_from = lm.prefill_from, _PREFIX
    try:
        return _at_once(lm, ids)
    finally:
        lm.prefill_from = usual


def _grown(lm: "CausalLm", ids: Sequence[int]) -> list[float]:
    """The same through a cache, in three steps of one, one and two tokens."""
    sessions = TreeSessions(lm)
    (handle,) = sessions.open([np.array(ids[:_PREFIX], np.int32)])
    tree, values, ends = chain([]), np.zeros(0), np.zeros(0)
    for length in (1, 2, 4):
        before = len(tree)
        for sequence in _SEQUENCES:
            tree.insert([ids[i] for i in sequence[:length]])
        new = TreeNodes(tree.tokens[before:], tree.parents[before:])
        ((log_probs, eos_log_probs),) = sessions.extend([handle], [new])
        values, ends = np.concatenate([values, log_probs]), np.concatenate([ends, eos_log_probs])
    last = [tree.insert([ids[i] for i in sequence])[0] for sequence in _SEQUENCES]
    return _flat(lm, [float(values[tree.path(node)].sum()) for node in last], [float(ends[node]) for node in last])


def _flat(lm: "CausalLm", log_probs: list[float], eos_log_probs: list[float]) -> list[float]:
    pairs = zip(log_probs, eos_log_probs, strict=True)
    return [score for pair in pairs for score in (pair if lm.eos_token_id is not None else pair[:1])]


def _difference(got: list[float], expected: list[float]) -> float:
    return float(np.abs(np.array(got) - np.array(expected)).max())


def _verdict(lm: "CausalLm", difference: float) -> str | None:
    tolerance = TOLERANCE if lm.body.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    if difference <= tolerance:  # false for nan
        return None
    return f"log-probs differ by {difference:.2g} from scoring one by one"
