"""N-best lists behind the speech units of their utterance: the token tree against the usual ways, one thread.

The model is that of `nbest_scoring.py` (17 M random parameters, a third of them in the head, as in GPT-2); the lines
`small_...` are of a model with the width and depth of the shipped LM, whose head over 16,000 tokens costs more than its
body and is shared by no two texts. What stands before the texts is the layout of `models.speech_lm`: <s> <speech>
250 units </speech> <text>, other units for each utterance. Peers, on the same model:

- per hypothesis: every text alone behind its units;
- prefix KV: the keys and values of the units computed once per utterance and reused for its texts, sorted by length
  in batches of the fastest size (`nbest_scoring.strong_flat`, one utterance at a time).

Lists and their trie ratios are those of `nbest_scoring.py`.
"""

from figures import emit
from nbest_scoring import (
    BOS,
    CONFUSIONS,
    SEEDS,
    VOCABULARY,
    Scores,
    measure,
    nbest,
    per_hypothesis,
    random_lm,
    strong_flat,
)

# isort: split
# nbest_scoring pins the threads, which must come before numpy and torch.
from collections.abc import Sequence

import numpy as np
import torch

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.list_trees import ScoreRequest

NUM_UNITS, LENGTH = 200, 250
"""Units of the quantiser, and units per utterance: some 13 s of speech at 25 Hz, runs merged."""
SPEECH, SPEECH_END, TEXT = range(VOCABULARY - NUM_UNITS - 3, VOCABULARY - NUM_UNITS)


def heard_lists(utterances: int, n: int) -> list[ScoreRequest]:
    """Synthetic lists, each behind 250 random units of its own."""
    rng, speech = np.random.default_rng(SEEDS[n]), np.random.default_rng(1)
    requests = []
    for _ in range(utterances):
        units = VOCABULARY - NUM_UNITS + speech.integers(0, NUM_UNITS, LENGTH)
        prefix = np.array([BOS, SPEECH, *units, SPEECH_END, TEXT], np.int32)
        requests.append(ScoreRequest(prefix, nbest(rng, n, CONFUSIONS[n])))
    return requests


def prefix_kv(lm: CausalLm, requests: Sequence[ScoreRequest]) -> Scores:
    """The units' keys and values once per utterance, distinct texts in batches behind them."""
    return [strong_flat(lm, [request])[0] for request in requests]


def main() -> None:
    """Prints every figure."""
    torch.set_num_threads(1)
    lm, small = random_lm(), random_lm(hidden=192, layers=4)
    assert lm.refusal is None
    assert small.refusal is None
    sixteen, fifty = heard_lists(4, 16), heard_lists(2, 50)
    of = "speech_scoring"
    emit(
        [
            measure("n16_over_per_hypothesis", lm, sixteen, per_hypothesis, ">= 8.0", family=of),
            measure("n50_over_per_hypothesis", lm, fifty, per_hypothesis, ">= 15.0", rounds=3, family=of),
            measure("n16_over_prefix_kv", lm, sixteen, prefix_kv, ">= 1.6", family=of),
            measure("n50_over_prefix_kv", lm, fifty, prefix_kv, ">= 1.6", family=of),
            measure("small_n16_over_per_hypothesis", small, sixteen, per_hypothesis, ">= 8.0", family=of),
            measure("small_n50_over_per_hypothesis", small, fifty, per_hypothesis, ">= 15.0", rounds=3, family=of),
        ]
    )


if __name__ == "__main__":
    main()
