"""Attention masks for token trees, by the rule that each model's config asks for.

A 4D mask switches a model's own sliding window off without a word, so the window must stand in the mask.
Letters: B trees, Q new nodes, K cached and new nodes.
"""

from typing import Any, Literal

import torch

MaskPlan = Literal["plain", "window", "by_type", "refuse"]
Masks = torch.Tensor | dict[str, torch.Tensor]


def mask_plan(config: Any) -> MaskPlan:
    """Which masks a model of this (text) config takes.

    Returns:
        "plain": one 4D mask. "window": one 4D mask that contains the window (Mistral, Phi3). "by_type": a mask per
        layer type (Gemma2, Cohere2, gpt-oss). "refuse": recurrent, convolutional or chunked layers, which have
        no tree.
    """
    types = set(getattr(config, "layer_types", None) or ())
    if types - {"full_attention", "sliding_attention"}:
        return "refuse"
    if "sliding_attention" in types:
        return "by_type"
    if getattr(config, "sliding_window", None) and not types:
        return "window"
    return "plain"


def tree_masks(
    plan: MaskPlan,
    visible_BQK: torch.Tensor,
    positions_BQ: torch.Tensor,
    positions_BK: torch.Tensor,
    window: int | None,
    dtype: torch.dtype,
) -> Masks:
    """The `attention_mask` argument of a forward pass over new nodes.

    Floats, because eager attention adds a boolean mask as 1.0 (wrong by 1 to 9 nats); `finfo.min` instead of -inf,
    because a padding row sees nothing and would be nan.

    Args:
        plan: From `mask_plan`, not "refuse".
        visible_BQK: Bool, whether a key is the query's prefix, its ancestor or itself.
        positions_BQ: Depths of the queries.
        positions_BK: Depths of the keys; windows count positions, never cache slots.
        window: `sliding_window` of the config; needed by "window" and "by_type".
        dtype: Of the model.
    """
    assert plan != "refuse", "a model without a tree has no tree masks"
    if plan == "plain":
        return _additive(visible_BQK, dtype)
    assert window is not None, f"mask plan '{plan}' without a sliding_window"
    inside_BQK = visible_BQK & (positions_BQ[:, :, None] - positions_BK[:, None, :] < window)
    if plan == "window":
        return _additive(inside_BQK, dtype)
    return {"full_attention": _additive(visible_BQK, dtype), "sliding_attention": _additive(inside_BQK, dtype)}


def _additive(visible_BQK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.full(visible_BQK.shape, torch.finfo(dtype).min, dtype=dtype, device=visible_BQK.device)
    return mask.masked_fill_(visible_BQK, 0.0)[:, None]
