"""Which phrase of a list starts here: a pointer over phrases and "none", from a model's state before the next token.

Two heads share one encoder of phrases. The recogniser's adds two answers. What its decoder expects is a dot product of
its state and the whole phrase. What is heard is spotted once per utterance, whatever the decoder says: every token of a
phrase has a key, every key meets every frame, beside what the recogniser's own CTC head makes of token and frame, and a
phrase is as likely to start at a frame as its tokens, one after the other, are to be heard from there on; the decoder's
state then only says at which frame its next word starts. So a new name is found by its tokens, each of which was learnt
in many other names, and not by a vector of the whole. The
language model's head asks with its hidden state alone, and knows what kind of name may stand here, not which.

Reference:
    Zhou and Li 2025, arXiv:2507.12252, the phrase grain, and the authors' earlier CopyNE, arXiv:2305.12839: keywords
    behind a recurrent encoder, encoded once, a dot product over the root of its width, a softmax over phrases and
    "none". Two heads that are fused like tokens is our reading of the paper (known to us from prose). Spotting is ours:
    a late interaction of tokens and frames (as ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832, has of words) under
    the order that Viterbi's recursion keeps.

Letters: B rows, L positions, T encoder positions, F frames (a `STRIDE`-th of T), D width of states, W of a whole
phrase, N phrases, M tokens of the longest, A width of keys, P of places, V vocabulary.
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
from torch.nn import functional

from ctxasr_ray.token_tree import Int32

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
NOT_HEARD: Final = -1e9
"""Evidence behind the end of an utterance."""
STRIDE: Final = 4
"""Encoder positions of one frame: 80 ms."""
LEAST_CTC: Final = -12.0
"""Log-prob that a token of the CTC head has at least: where it is all but sure of something else it may be wrong."""
LONGEST_TOKEN: Final = 6
"""Frames after a token, at most, in which the next one is heard; in the next frame at the earliest."""


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
    phrase_size: int = 64
    """Of each direction of the recurrent encoder."""
    frame_size: int = 160
    key_size: int = 128
    place_size: int = 64
    dropout: float = 0.1
    """Of encoder states, while the head learns."""


@dataclass(frozen=True, slots=True)
class Phrases:
    """A list of phrases, encoded; each as it would be alone.

    Args:
        tokens: (N, M) int64, padded.
        keys: (N, M, A) of length 1, of these tokens.
        lengths: (N,) int64 tokens, on the CPU.
        whole: (N, W).
    """

    tokens: Tensor
    keys: Tensor
    lengths: Tensor
    whole: Tensor


@dataclass(frozen=True, slots=True)
class Heard:
    """What is heard of utterances.

    Args:
        frames: (B, F, A) what keys meet.
        ctc: (B, V, F) best log-prob of each token in a frame, by the recogniser's CTC head.
        places: (B, F, P) what the decoder finds its place by.
        hidden: (B, F) 0, and `NOT_HEARD` where there is nothing.
    """

    frames: Tensor
    ctc: Tensor
    places: Tensor
    hidden: Tensor


class CopyHead(nn.Module):
    """Log-probs of phrases and "none", which stands last.

    Args:
        shape: Sizes. `ctc` is to get the weights of the recogniser's CTC head, which stay as they are.
    """

    def __init__(self, shape: CopyHeadShape) -> None:
        super().__init__()
        self.shape = shape
        size, whole, key_size = shape.decoder_size, 2 * shape.phrase_size, shape.key_size
        self.embed = nn.Embedding(shape.vocab_size, shape.embedding_size)
        self.recurrent = nn.GRU(shape.embedding_size, shape.phrase_size, batch_first=True, bidirectional=True)
        self.token_key, self.key = nn.Linear(whole, key_size), nn.Linear(whole, key_size)
        self.norm, self.dropout = nn.LayerNorm(size), nn.Dropout(shape.dropout)
        self.nearby = nn.Conv1d(size, shape.frame_size, 2 * STRIDE + 1, stride=STRIDE, padding=STRIDE)
        self.around = nn.Conv1d(shape.frame_size, shape.frame_size, 3, padding=1)
        self.frame, self.place = nn.Linear(shape.frame_size, key_size), nn.Linear(shape.frame_size, shape.place_size)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(()))
        self.ctc = nn.Linear(size, shape.vocab_size).requires_grad_(False)
        self.ctc_scale, self.ctc_gain = (
            nn.Parameter(torch.tensor(0.5)),
            nn.Parameter(torch.full((shape.vocab_size,), 3.0)),
        )
        self.state = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU())
        self.query, self.none = nn.Linear(2 * size, key_size), nn.Linear(2 * size, 1)
        self.where = nn.Linear(2 * size, shape.place_size)
        self.lm_query = nn.Sequential(
            nn.LayerNorm(shape.lm_size), nn.Linear(shape.lm_size, whole), nn.GELU(), nn.Linear(whole, key_size)
        )
        self.lm_key = nn.Linear(whole, key_size)
        self.lm_none = nn.Parameter(torch.zeros(key_size))

    def phrases(self, phrases: Sequence[Int32]) -> Phrases:
        """Encodes token sequences: at least one, none of them empty."""
        lengths = torch.tensor([len(phrase) for phrase in phrases])
        tokens_NM = torch.zeros((len(phrases), int(lengths.max())), dtype=torch.int64)
        for row, phrase in enumerate(phrases):
            tokens_NM[row, : len(phrase)] = torch.from_numpy(np.asarray(phrase, np.int64))
        tokens_NM = tokens_NM.to(self.lm_none.device)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens_NM), lengths, batch_first=True, enforce_sorted=False
        )
        each, last_2NH = self.recurrent(packed)
        each_NMW, _ = nn.utils.rnn.pad_packed_sequence(each, batch_first=True)
        keys_NMA = functional.normalize(self.token_key(each_NMW), dim=-1)
        return Phrases(tokens_NM, keys_NMA, lengths, torch.cat([last_2NH[0], last_2NH[1]], dim=-1))

    def hear(self, audio_BTD: Tensor, hidden_BT: Tensor | None = None) -> Heard:
        """Makes frames of encoder states, once per utterance; each utterance as it would be alone.

        Args:
            audio_BTD: Encoder states.
            hidden_BT: True where nothing is heard (padding); None hears everything.
        """
        shown_BT = torch.ones_like(audio_BTD[..., 0])
        if hidden_BT is not None:
            shown_BT = shown_BT.masked_fill(hidden_BT, 0.0)
        shown_BF = shown_BT[:, ::STRIDE]
        states_BDT = (self.dropout(self.norm(audio_BTD)) * shown_BT[..., None]).transpose(1, 2)
        found_BCF = functional.gelu(self.nearby(states_BDT)) * shown_BF[:, None]
        found_BFC = (found_BCF + functional.gelu(self.around(found_BCF))).transpose(1, 2)
        frames_BFA = functional.normalize(self.frame(found_BFC), dim=-1) * self.log_scale.exp()
        with torch.no_grad():
            ctc_BTV = self.ctc(audio_BTD).log_softmax(-1).clamp(min=LEAST_CTC)
            ctc_BTV = ctc_BTV.masked_fill(shown_BT[..., None] == 0, LEAST_CTC)
            ctc_BVF = functional.max_pool1d(ctc_BTV.transpose(1, 2), STRIDE, ceil_mode=True)
        return Heard(frames_BFA, ctc_BVF, self.place(found_BFC), (1 - shown_BF) * NOT_HEARD)

    def spot(self, heard: Heard, phrases: Phrases) -> Tensor:
        """(B, N, F) evidence that each phrase starts at each frame: the best sum over its tokens, in nats.

        Args:
            heard: From `hear`.
            phrases: From `phrases`.
        """
        order = torch.argsort(phrases.lengths, descending=True, stable=True)
        lengths = phrases.lengths[order]
        frames_BAF = heard.frames.transpose(1, 2)
        best_BNF = None
        for behind in range(int(lengths[0])):  # the last tokens of all phrases, those before them, and so on
            longer = int((lengths > behind).sum())
            at = order[:longer], lengths[:longer] - 1 - behind
            tokens_n, keys_nA = phrases.tokens[at], phrases.keys[at]
            own_BnF = keys_nA @ frames_BAF - self.bias + heard.hidden[:, None]
            own_BnF = own_BnF + self.ctc_scale * (heard.ctc[:, tokens_n] + self.ctc_gain[tokens_n, None])
            if best_BNF is None:
                best_BNF = own_BnF
                continue
            after = functional.pad(best_BNF[:, :longer, 1:], (0, LONGEST_TOKEN), value=NOT_HEARD)
            own_BnF = own_BnF + functional.max_pool1d(after, LONGEST_TOKEN, stride=1)
            best_BNF = torch.cat([own_BnF, best_BNF[:, longer:]], dim=1)
        assert best_BNF is not None, "a list has a phrase, and a phrase a token"
        return best_BNF[:, torch.argsort(order)]

    def recogniser_logits(self, states_BLD: Tensor, heard: Heard, spotted_BNF: Tensor, phrases: Phrases) -> Tensor:
        """(B, L, N + 1) logits of the recogniser's head.

        Args:
            states_BLD: Decoder states before each token.
            heard: From `hear`.
            spotted_BNF: From `spot`.
            phrases: From `phrases`.
        """
        asked = self.state(states_BLD)
        near_BLF = self.where(asked) @ heard.places.transpose(1, 2) / self.shape.place_size**0.5
        where_BLF = (near_BLF + heard.hidden[:, None]).softmax(-1)
        top_BN = spotted_BNF.amax(-1).detach()  # taken out of the sum over frames, which then never overflows
        likely_BNF = (spotted_BNF - top_BN[..., None]).exp()
        heard_BLN = (where_BLF @ likely_BNF.transpose(1, 2) + 1e-9).log() + top_BN[:, None]
        expected_BLN = self.query(asked) @ self.key(phrases.whole).T / self.shape.key_size**0.5
        return torch.cat([heard_BLN + expected_BLN, self.none(asked)], dim=-1)

    def lm_logits(self, states_BLD: Tensor, phrases: Phrases) -> Tensor:
        """(B, L, N + 1) logits of the language model's head, from its hidden states before each token."""
        keys_NA = torch.cat([self.lm_key(phrases.whole), self.lm_none[None]])
        logits: Tensor = self.lm_query(states_BLD) @ keys_NA.T / self.shape.key_size**0.5
        return logits


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
