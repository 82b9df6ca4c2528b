"""A tiny attention recogniser and a tiny LM of the same letters, and what both say of every text, one at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import tiny_seq2seq
import torch
import transformers as tf

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.shared_vocabulary import shared_tokens
from ctxasr_ray.models.tree_host import TreeHost
from ctxasr_ray.search.label_fusion import LmRows, RowLm
from ctxasr_ray.stage import Costs

PREFIX = np.array([tiny_seq2seq.START], np.int32)


def make_lm(directory: Path, tokenizer: Any, seed: int = 1) -> Path:
    """Writes a random Llama with widened weights and the tokenizer."""
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tiny_seq2seq.START,
        eos_token_id=tiny_seq2seq.END,
    )
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 1.4 / weight[0].numel() ** 0.5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class Judge:
    """The LM, asked as searches ask it and as a whole.

    Args:
        directory: From `make_lm`.
        recogniser: The recogniser's `Seq2SeqModel`.
        utterances_per_forward: Of the LM.
    """

    def __init__(self, directory: Path, recogniser: Any, utterances_per_forward: int = 4) -> None:
        self.model = tf.AutoModelForCausalLM.from_pretrained(directory).eval()
        self.lm = CausalLm(self.model, eos_token_id=tiny_seq2seq.END, utterances_per_forward=utterances_per_forward)
        self.costs = Costs()
        tokenizer = tf.AutoTokenizer.from_pretrained(directory)
        self.tokens = shared_tokens(
            tokenizer,
            tokenizer,
            ~recogniser.tokens.suppressed,
            recogniser_eos=recogniser.tokens.eos_id,
            lm_eos=tiny_seq2seq.END,
            name="tiny",
        )

    def rows(self, num_utterances: int, **options: Any) -> LmRows:
        """Behind the rows of some utterances."""
        scorer = TreeHost(self.lm).sessions(self.costs)
        lm = RowLm(
            scorer=scorer,
            tokens=self.tokens,
            prefix=PREFIX,
            eos_token_id=tiny_seq2seq.END,
            max_positions=self.lm.max_positions,
            costs=self.costs,
            **options,
        )
        return LmRows(lm, num_utterances)

    def following(self, text: Any) -> np.ndarray:
        """(L + 1, V) log-probs behind each prefix of a text, from one pass over the whole of it."""
        ids = torch.tensor([[*PREFIX.tolist(), *(int(self.tokens[t]) for t in text)]])
        with torch.inference_mode():
            found: np.ndarray = self.model(input_ids=ids).logits[0].double().log_softmax(-1).numpy()
        return found
