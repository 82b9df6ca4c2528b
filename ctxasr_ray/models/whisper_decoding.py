"""Whisper's decoder on the weights of the loaded model, without a module call around every operation.

A step over the beams of a small model is less arithmetic than the calls around it. Used only where the load check finds
its steps to be those of the whole model. Letters as in `models.seq2seq_decoding`; D is the width of all heads together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Linear
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from ctxasr_ray.models.cpu_linear import OneDnnLinear, linear
from ctxasr_ray.models.seq2seq_decoding import TreeDecoding, copied_layer

States = tuple[torch.Tensor, torch.Tensor]


def is_plain_whisper(decoder: Any) -> bool:
    """Whether a decoder is transformers' Whisper with nothing in place of its projections (adapters, quantisation)."""
    projections = [one for one in decoder.modules() if isinstance(one, Linear)]
    return type(decoder) is WhisperDecoder and all(type(one) in (Linear, OneDnnLinear) for one in projections)


class WhisperWeights:
    """A decoder's weights as its steps read them; the projections of each layer to queries, keys and values are one.

    The modules go on with views of the same memory, so nothing is held twice.

    Args:
        decoder: One that `is_plain_whisper`.
    """

    def __init__(self, decoder: Any) -> None:
        self.embeddings = decoder.embed_tokens.weight, decoder.embed_positions.weight
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self.last_norm = _norm(decoder.layer_norm)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        nodes: Sequence[Any],
        heard: Sequence[States],
    ) -> torch.Tensor:
        """(U, B, D) last states of tokens that attend to cached nodes, and are appended to them, and to what was heard.

        Args:
            tokens: (U, B) ids.
            positions: (U, B).
            mask: (U, B, nodes and tokens) what is added to attention scores.
            nodes: Per layer the cache of what was written.
            heard: Per layer keys and values of what the encoder heard.
        """
        of_tokens, of_positions = self.embeddings
        hidden = embedding(tokens, of_tokens) + embedding(positions, of_positions)
        for layer, own, told in zip(self.layers, nodes, heard, strict=True):
            hidden = layer.forward(hidden, own, mask[:, None], told)
        return torch.layer_norm(hidden, *self.last_norm)

    def decoding(self, decoder: Any, head: Any, states_UTD: torch.Tensor) -> "WhisperTreeDecoding":
        """Opens a decoding, as the classes of `models.seq2seq_decoding` do."""
        return WhisperTreeDecoding(self, decoder, head, states_UTD)


class WhisperTreeDecoding(TreeDecoding):
    """Beams as nodes of one tree per utterance, as in `TreeDecoding`.

    Args:
        weights: Of the decoder.
        decoder: One that `is_plain_whisper`.
        head: Hidden states to logits.
        states_UTD: The encoder's, equally long for all utterances.
    """

    def __init__(self, weights: WhisperWeights, decoder: Any, head: Any, states_UTD: torch.Tensor) -> None:
        super().__init__(decoder, head, states_UTD)
        self._weights = weights
        self._heard = [layer.heard(states_UTD) for layer in weights.layers]

    def keep(self, rows: torch.Tensor) -> None:
        """As `Decoding.keep`."""
        super().keep(rows)
        self._heard = [(keys[rows], values[rows]) for keys, values in self._heard]

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._weights.forward(tokens, positions, mask, self._nodes.layers, self._heard)

    def _beside(
        self, utterance: int, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        one = torch.tensor([utterance], device=tokens.device)
        nodes = [copied_layer(layer, one) for layer in self._nodes.layers]
        heard = [(keys[one], values[one]) for keys, values in self._heard]
        return self._weights.forward(tokens, positions, mask, nodes, heard)


class _Layer:
    """Weights of one layer.

    Args:
        layer: A `WhisperDecoderLayer`.
    """

    def __init__(self, layer: Any) -> None:
        own, cross = layer.self_attn, layer.encoder_attn
        self._num_heads, self._scaling, self._activation = own.num_heads, own.scaling, layer.activation_fn
        self._own, self._out = _together(own.q_proj, own.k_proj, own.v_proj), _weights(own.out_proj)
        self._asked, self._told = _weights(cross.q_proj), _weights(cross.out_proj)
        self._heard = _together(cross.k_proj, cross.v_proj)
        self._wide, self._narrow = _weights(layer.fc1), _weights(layer.fc2)
        norms = (layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm)
        self._norms = tuple(_norm(one) for one in norms)

    def heard(self, states_UTD: torch.Tensor) -> States:
        """(U, heads, T, D / heads) keys and values of what the encoder heard."""
        keys, values = linear(states_UTD, *self._heard).chunk(2, dim=-1)
        return self._heads(keys).contiguous(), self._heads(values).contiguous()

    def forward(self, hidden: torch.Tensor, nodes: Any, mask: torch.Tensor, heard: States) -> torch.Tensor:
        """(U, B, D) states behind the layer; appends to the cached `nodes`."""
        first, second, third = self._norms
        three = linear(torch.layer_norm(hidden, *first), *self._own).view(*hidden.shape[:2], 3, self._num_heads, -1)
        queries, keys, values = three.permute(2, 0, 3, 1, 4).unbind()
        hidden = hidden + linear(self._mixed(queries, nodes.update(keys, values), mask), *self._out)
        queries = self._heads(linear(torch.layer_norm(hidden, *second), *self._asked))
        hidden = hidden + linear(self._mixed(queries, heard, None), *self._told)
        wide = self._activation(linear(torch.layer_norm(hidden, *third), *self._wide))
        return hidden + linear(wide, *self._narrow)

    def _mixed(self, queries: torch.Tensor, known: States, mask: torch.Tensor | None) -> torch.Tensor:
        mixed = scaled_dot_product_attention(queries, *known, attn_mask=mask, scale=self._scaling)
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """(U, heads, positions, D / heads)."""
        return states.view(*states.shape[:2], self._num_heads, -1).transpose(1, 2)


def _weights(module: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    return module.weight, module.bias


def _together(*modules: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of several projections of the same states as one; the modules become views of them."""
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.cat([one.weight for one in modules])
        missing = weight.new_zeros(len(modules[0].weight))
        bias = torch.cat([missing if one.bias is None else one.bias for one in modules])
        for one, part in zip(modules, weight.chunk(len(modules)), strict=True):
            one.weight.data = part
    return weight, bias


def _norm(module: Any) -> tuple[Any, torch.Tensor, torch.Tensor, float]:
    return module.normalized_shape, module.weight, module.bias, module.eps
