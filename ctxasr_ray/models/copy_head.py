"""Which phrase of a list starts here: a pointer over phrases and "none", from a model's state before the next token.

Two heads share one encoder of phrases. The recogniser's asks with its decoder's state, which then looks ahead in the
encoder's states, since a name is longer than what one state of the decoder has heard; the language model's asks with
its hidden state alone, and knows what kind of name may stand here, not which.

Reference:
    Zhou and Li 2025, arXiv:2507.12252, the phrase grain, and the authors' earlier CopyNE, arXiv:2305.12839: keywords
    behind a recurrent encoder, a dot product over the root of its width, a softmax over phrases and "none". Two heads
    that are fused like tokens is our reading of the paper (known to us from prose); looking ahead is ours.

Letters: B rows, L positions, T encoder positions, D width of states, E of the encoder, N phrases, M tokens of the
longest, A width of queries and keys, V vocabulary, H heads.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from ctxasr_ray.token_tree import Int32

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
NOT_HEARD: Final = -1e9
"""Added to what a query looks at, behind the end of an utterance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyHeadShape:
    """Sizes of a copy head; stands in its config.json."""

    vocab_size: int
    """Of the tokenizer that both models write with."""
    decoder_size: int
    """Width of the recogniser's decoder states, and of its encoder's."""
    lm_size: int
    """Width of the language model's hidden states."""
    embedding_size: int = 96
    phrase_size: int = 128
    """Of each direction of the recurrent encoder."""
    key_size: int = 256
    num_blocks: int = 2
    """Looks at the audio, one after the other."""
    num_heads: int = 4


class CopyHead(nn.Module):
    """Log-probs of phrases and "none", which stands last.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: CopyHeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab_size, shape.embedding_size)
        self.recurrent = nn.GRU(shape.embedding_size, shape.phrase_size, batch_first=True, bidirectional=True)
        size, width = shape.decoder_size, 2 * shape.phrase_size
        self.blocks = nn.ModuleList(_Look(size, shape.num_heads) for _ in range(shape.num_blocks))
        self.query = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, shape.key_size))
        self.key = nn.Linear(width, shape.key_size)
        self.none = nn.Parameter(torch.zeros(shape.key_size))
        self.lm_query = nn.Sequential(
            nn.LayerNorm(shape.lm_size), nn.Linear(shape.lm_size, width), nn.GELU(), nn.Linear(width, shape.key_size)
        )
        self.lm_key = nn.Linear(width, shape.key_size)
        self.lm_none = nn.Parameter(torch.zeros(shape.key_size))

    def phrases(self, phrases: Sequence[Int32]) -> Tensor:
        """(N, 2 * phrase_size) vectors of token sequences, none of them empty; each as it would be alone."""
        lengths = torch.tensor([len(phrase) for phrase in phrases])
        tokens_NM = torch.zeros((len(phrases), int(lengths.max())), dtype=torch.int64)
        for row, phrase in enumerate(phrases):
            tokens_NM[row, : len(phrase)] = torch.from_numpy(np.asarray(phrase, np.int64))
        device = self.none.device
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens_NM.to(device)), lengths, batch_first=True, enforce_sorted=False
        )
        _, last_2NH = self.recurrent(packed)
        return torch.cat([last_2NH[0], last_2NH[1]], dim=-1)

    def hear(self, audio_BTE: Tensor) -> list[Tensor]:
        """What the recogniser's queries look at, once per utterance.

        Args:
            audio_BTE: Encoder states.
        """
        return [block.hear(audio_BTE) for block in self.blocks]  # type: ignore[operator]  # a Module in torch's eyes

    def recogniser_logits(
        self, states_BLD: Tensor, heard: Sequence[Tensor], phrases_NW: Tensor, hidden_BT: Tensor | None = None
    ) -> Tensor:
        """(B, L, N + 1) logits of the recogniser's head.

        Args:
            states_BLD: Decoder states before each token.
            heard: From `hear`, of B utterances, or of one that all rows listen to.
            phrases_NW: From `phrases`; no phrase at all leaves "none".
            hidden_BT: True where nothing is heard (padding); None hears everything.
        """
        for block, own in zip(self.blocks, heard, strict=True):
            states_BLD = block(states_BLD, own, hidden_BT)
        return self._logits(self.query(states_BLD), self.key(phrases_NW), self.none)

    def lm_logits(self, states_BLD: Tensor, phrases_NW: Tensor) -> Tensor:
        """(B, L, N + 1) logits of the language model's head, from its hidden states before each token."""
        return self._logits(self.lm_query(states_BLD), self.lm_key(phrases_NW), self.lm_none)

    def _logits(self, queries_BLA: Tensor, keys_NA: Tensor, none_A: Tensor) -> Tensor:
        keys = torch.cat([keys_NA, none_A[None]])
        logits: Tensor = queries_BLA @ keys.T / self.shape.key_size**0.5
        return logits


class _Look(nn.Module):
    """One more look at the audio: attention and a feed-forward layer, both residual."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.norm, self.norm_inner = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.seen, self.out = nn.Linear(size, size), nn.Linear(size, 2 * size), nn.Linear(size, size)
        self.inner = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def hear(self, audio_BTE: Tensor) -> Tensor:
        """(2, B, H, T, D / H) keys and values."""
        batch, time, _ = audio_BTE.shape
        split = self.seen(audio_BTE).view(batch, time, 2, self._num_heads, -1)
        seen: Tensor = split.permute(2, 0, 3, 1, 4)
        return seen

    def forward(self, states_BLD: Tensor, seen: Tensor, hidden_BT: Tensor | None) -> Tensor:
        batch, length, size = states_BLD.shape
        keys, values = seen[0], seen[1]
        queries = self.query(self.norm(states_BLD)).view(batch, length, self._num_heads, -1).transpose(1, 2)
        mask = None
        if hidden_BT is not None:
            mask = torch.zeros_like(hidden_BT, dtype=queries.dtype).masked_fill(hidden_BT, NOT_HEARD)[:, None, None]
        found = nn.functional.scaled_dot_product_attention(
            queries, keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), attn_mask=mask
        )
        states_BLD = states_BLD + self.out(found.transpose(1, 2).reshape(batch, length, size))
        added: Tensor = states_BLD + self.inner(self.norm_inner(states_BLD))
        return added


def save(head: CopyHead, directory: Path) -> None:
    """Writes config.json and the weights in float16."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(asdict(head.shape), indent=2, sort_keys=True) + "\n", "utf-8")
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, directory / WEIGHTS)
    (directory / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone


def load(directory: str | Path, *, device: str = "cpu") -> CopyHead:
    """Reads a copy head, in float32.

    Raises:
        ValueError: a file is missing or is no copy head; names it.
    """
    from safetensors.torch import load_file

    config, weights = Path(directory) / CONFIG, Path(directory) / WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise ValueError(f"copy head '{directory}': {path.name} is missing; train one by `ctxasr train copy_head`.")
    try:
        head = CopyHead(CopyHeadShape(**json.loads(config.read_text("utf-8"))))
        head.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    except (TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"copy head '{directory}' cannot be read: {error}") from error
    return head.to(device).eval()


def digest(directory: str | Path) -> str:
    """sha256 over config and weights.

    Raises:
        ValueError: a file is missing.
    """
    found = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        path = Path(directory) / name
        if not path.is_file():
            raise ValueError(f"copy head '{directory}': {name} is missing; train one by `ctxasr train copy_head`.")
        found.update(path.read_bytes())
    return found.hexdigest()
