"""Given texts through an attention decoder: their exact scores, and where each token looks in the audio.

Equal beginnings are forwarded once, as one tree; a decoder that takes no positions gets one text at a time.
Letters: U utterances, T encoder positions, D width, N texts, L tokens of one, P prompt, R rows, Q scores, V vocabulary,
H heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models.seq2seq_ahead import log_probs_behind, to_ids
from ctxasr_ray.token_tree import Int32, merge

ATTENTION_LIMIT_BYTES: Final = 256 * 2**20
"""Largest cross-attention of one pass, over all layers and heads."""
MAX_NODES: Final = 2048
"""Tokens in one pass; the mask grows with their square."""
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ForcedScores:
    """What the recogniser says of given texts, in nats.

    Args:
        log_probs: (N,) float64 sum over the text's tokens, without prompt and end; 0.0 for an empty text.
        eos_log_probs: (N,) float64 of the end behind the text.
        reasons: (N,) None, or why a text has no score (which is then nan).
    """

    log_probs: npt.NDArray[np.float64]
    eos_log_probs: npt.NDArray[np.float64]
    reasons: list[str | None]


class TeacherForcing:
    """A decoder that is told what to write.

    Args:
        decoder: Of a transformers model.
        head: Hidden states to logits.
        in_tree: Whether it takes positions and masks, so that equal beginnings are forwarded once.
        eos_id: The end.
        max_positions: Longest prompt and text together.
    """

    def __init__(self, decoder: Any, head: Any, *, in_tree: bool, eos_id: int, max_positions: int) -> None:
        self._decoder, self._head, self._in_tree = decoder, head, in_tree
        self._eos_id, self._max_positions = eos_id, max_positions

    @torch.inference_mode()
    def scores(self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32]) -> ForcedScores:
        """Exact scores of given texts.

        Args:
            states_1TD: Of one utterance.
            prompt: (P,) before every text.
            texts: N token sequences, without end.
        """
        reasons: list[str | None] = [self._limit(len(prompt) + len(text)) for text in texts]
        log_probs, eos_log_probs = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
        scorable = [i for i, reason in enumerate(reasons) if reason is None]
        for group in _groups(texts, scorable, MAX_NODES):
            chosen = [texts[i] for i in group]
            paths, hidden_RD, _ = self._forward(states_1TD, prompt, chosen)
            targets = [np.append(text, self._eos_id).astype(np.int64) for text in chosen]
            values = log_probs_behind(self._head, hidden_RD, np.concatenate(paths), np.concatenate(targets))
            for i, own in zip(group, np.split(values, np.cumsum([len(p) for p in paths])[:-1]), strict=True):
                log_probs[i], eos_log_probs[i] = own[:-1].sum(), own[-1]
                if not np.isfinite(own).all():
                    log_probs[i] = eos_log_probs[i] = np.nan
                    dtype = str(states_1TD.dtype).removeprefix("torch.")
                    reasons[i] = f"the model's log_probs are not finite in {dtype}; use dtype float32"
        return ForcedScores(log_probs, eos_log_probs, reasons)

    @torch.inference_mode()
    def attention(
        self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32], heads: Sequence[tuple[int, int]]
    ) -> list[npt.NDArray[np.float32]] | None:
        """Weights of the cross-attention where each token, and last the end, is written; None if the decoder has none.

        Args:
            states_1TD: Of one utterance.
            prompt: (P,) before every text.
            texts: N token sequences that the decoder has room for, without end.
            heads: (layer, head) of the weights that are wanted.

        Returns:
            Per text (H, L + 1, T), each row a distribution over encoder positions.
        """
        config = self._decoder.config
        before = config._attn_implementation
        layers = [layer for layer, _ in heads]
        found: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        bytes_per_node = 4 * states_1TD.shape[1] * len(self._decoder.layers) * (max(h for _, h in heads) + 1)
        most = max(1, min(MAX_NODES, ATTENTION_LIMIT_BYTES // bytes_per_node))
        try:
            self._decoder.set_attn_implementation("eager")  # the only one that hands out its weights
            for group in _groups(texts, list(range(len(texts))), most):
                paths, _, cross = self._forward(states_1TD, prompt, [texts[i] for i in group], weights=True)
                if len(cross) <= max(layers):
                    return None
                weights_HRT = torch.stack([cross[layer][head] for layer, head in heads]).float().cpu().numpy()
                for i, path in zip(group, paths, strict=True):
                    found[i] = weights_HRT[:, path]
        finally:
            if before != "eager":
                self._decoder.set_attn_implementation(before)
        return found

    def _limit(self, num_positions: int) -> str | None:
        if num_positions <= self._max_positions:
            return None
        return f"model_limit: {num_positions} tokens with the prompt, the decoder takes {self._max_positions}"

    def _forward(
        self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32], *, weights: bool = False
    ) -> tuple[list[Ints], torch.Tensor, list[torch.Tensor]]:
        """Per text the rows that predict its tokens and its end; the (R, D) states; per layer (heads, R, T) weights."""
        asked: dict[str, Any] = {"encoder_hidden_states": states_1TD, "use_cache": False}
        if weights:
            asked["output_attentions"] = True
        outputs, paths, start = [], [], 0
        if self._in_tree:
            merged = merge(texts, prompt)
            tree, nodes = merged.tree, np.arange(len(merged.tree), dtype=np.int32)
            seen = torch.from_numpy(tree.visible(nodes, nodes)).to(states_1TD.device)
            mask = torch.full(seen.shape, torch.finfo(states_1TD.dtype).min, dtype=states_1TD.dtype, device=seen.device)
            outputs.append(
                self._decoder(
                    input_ids=to_ids(tree.tokens[None], seen.device),
                    attention_mask=mask.masked_fill_(seen, 0.0)[None, None],
                    position_ids=to_ids(tree.depths[None], seen.device),
                    **asked,
                )
            )
            last = len(prompt) - 1
            paths = [
                np.concatenate([[last], own[: len(text)]]).astype(np.int64)
                for own, text in zip(merged.nodes, texts, strict=True)
            ]
        else:
            for text in texts:
                tokens = np.concatenate([prompt, text])
                outputs.append(self._decoder(input_ids=to_ids(tokens[None], states_1TD.device), **asked))
                paths.append(np.arange(start + len(prompt) - 1, start + len(tokens)))
                start += len(tokens)
        cross: list[torch.Tensor] = []
        if weights and outputs[0].cross_attentions:
            layers = zip(*(output.cross_attentions for output in outputs), strict=True)
            cross = [torch.cat([one[0] for one in layer], dim=1) for layer in layers]
        return paths, torch.cat([output.last_hidden_state[0] for output in outputs]), cross


def _groups(texts: Sequence[Int32], chosen: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in groups of bounded size, neighbours in the alphabet together."""
    group: list[int] = []
    size = 0
    for i in sorted(chosen, key=lambda i: texts[i].tolist()):
        if group and size + len(texts[i]) > most:
            yield group
            group, size = [], 0
        group.append(i)
        size += len(texts[i])
    if group:
        yield group
