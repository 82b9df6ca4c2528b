"""Whisper's decoder on the weights of the loaded model, without a module call around every operation.

A step over the beams of a small model is less arithmetic than the calls around it. Used only where the load check finds
its steps to be those of the whole model. Letters as in `models.seq2seq_decoding`; D is the width of all heads together.
"""

from typing import Any

import torch
from torch.nn import Linear
from torch.nn.functional import embedding, linear, scaled_dot_product_attention
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from ctxasr_ray.models.seq2seq_decoding import TreeDecoding

States = tuple[torch.Tensor, torch.Tensor]


def is_plain_whisper(decoder: Any) -> bool:
    """Whether a decoder is transformers' Whisper with nothing in place of its projections (adapters, quantisation)."""
    projections = [one for one in decoder.modules() if isinstance(one, Linear)]
    return type(decoder) is WhisperDecoder and all(type(one) is Linear for one in projections)


class WhisperTreeDecoding(TreeDecoding):
    """Beams as nodes of one tree per utterance, as in `TreeDecoding`.

    Args:
        decoder: One that `is_plain_whisper`.
        head: Hidden states to logits.
        states_UTD: The encoder's, equally long for all utterances.
    """

    def __init__(self, decoder: Any, head: Any, states_UTD: torch.Tensor) -> None:
        super().__init__(decoder, head, states_UTD)
        self._embeddings = decoder.embed_tokens.weight, decoder.embed_positions.weight
        self._layers = [_Layer(layer, states_UTD) for layer in decoder.layers]
        self._last_norm = _norm(decoder.layer_norm)

    def keep(self, rows: torch.Tensor) -> None:
        """As `Decoding.keep`."""
        super().keep(rows)
        for layer in self._layers:
            keys, values = layer.heard
            layer.heard = (keys[rows], values[rows])

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        dtype = self._states_UTD.dtype
        mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device).masked_fill_(seen, 0.0)
        of_tokens, of_positions = self._embeddings
        hidden = embedding(tokens, of_tokens) + embedding(positions, of_positions)
        for layer, nodes in zip(self._layers, self._nodes.layers, strict=True):
            hidden = layer.forward(hidden, nodes, mask[:, None])
        return torch.layer_norm(hidden, *self._last_norm)


class _Layer:
    """Weights of one layer, and the keys and values of what was heard.

    Args:
        layer: A `WhisperDecoderLayer`.
        states_UTD: The encoder's.
    """

    def __init__(self, layer: Any, states_UTD: torch.Tensor) -> None:
        own, cross = layer.self_attn, layer.encoder_attn
        self._num_heads, self._scaling, self._activation = own.num_heads, own.scaling, layer.activation_fn
        self._own = tuple(_weights(one) for one in (own.q_proj, own.k_proj, own.v_proj, own.out_proj))
        self._cross = tuple(_weights(one) for one in (cross.q_proj, cross.out_proj))
        self._wide = tuple(_weights(one) for one in (layer.fc1, layer.fc2))
        norms = (layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm)
        self._norms = tuple(_norm(one) for one in norms)
        keys, values = (self._heads(linear(states_UTD, *_weights(one))) for one in (cross.k_proj, cross.v_proj))
        self.heard: States = (keys.contiguous(), values.contiguous())

    def forward(self, hidden: torch.Tensor, nodes: Any, mask: torch.Tensor) -> torch.Tensor:
        """(U, B, D) states behind the layer; appends to the cached `nodes`."""
        queries, keys, values, out = self._own
        normed = torch.layer_norm(hidden, *self._norms[0])
        known = nodes.update(self._heads(linear(normed, *keys)), self._heads(linear(normed, *values)))
        hidden = hidden + linear(self._mixed(linear(normed, *queries), known, mask), *out)
        queries, out = self._cross
        normed = torch.layer_norm(hidden, *self._norms[1])
        hidden = hidden + linear(self._mixed(linear(normed, *queries), self.heard, None), *out)
        wide, narrow = self._wide
        normed = torch.layer_norm(hidden, *self._norms[2])
        return hidden + linear(self._activation(linear(normed, *wide)), *narrow)

    def _mixed(self, queries_UBD: torch.Tensor, known: States, mask: torch.Tensor | None) -> torch.Tensor:
        queries = self._heads(queries_UBD * self._scaling)
        mixed = scaled_dot_product_attention(queries, *known, attn_mask=mask, scale=1.0)
        return mixed.transpose(1, 2).reshape(queries_UBD.shape)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """(U, heads, positions, D / heads)."""
        return states.view(*states.shape[:2], self._num_heads, -1).transpose(1, 2)


def _weights(module: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    return module.weight, module.bias


def _norm(module: Any) -> tuple[Any, torch.Tensor, torch.Tensor, float]:
    return module.normalized_shape, module.weight, module.bias, module.eps
