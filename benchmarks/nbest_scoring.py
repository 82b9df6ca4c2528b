"""Token tree against the usual ways of scoring N-best lists with a causal LM, one thread.

Peers, all on the same model and the same numbers of threads:

- strong flat: equal texts merged, rows of all utterances sorted by length, the prefix's keys and values computed once
  and reused, the LM head only where a score is read and in the same chunks as ours;
- padded full logits: all N texts of 4 utterances as one padded batch in list order, log-softmax over all its logits
  (what rescorers commonly do; with one utterance per batch stated beside it);
- per hypothesis: every text alone behind its prefix.

The synthetic N-best lists are the N cheapest combinations of a few binary confusions (substitution, deletion,
insertion) per text; their trie ratio (flat tokens / nodes) is printed and set to that of real text: about 2.4 for
16-best and 2.9 for 50-best lists of GPT-2 tokens.
"""

# ruff: noqa: E402  # threads are pinned before numpy and torch are imported
from figures import Figure, Speedup, emit, interleaved, pin_threads

pin_threads(1)

import heapq
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.list_trees import ScoreRequest
from ctxasr_ray.nbest import flatten
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs

ROOT = Path(__file__).parents[1]
Scores = list[tuple[np.ndarray, np.ndarray]]
"""Per utterance (N,) log-probs and (N,) log-probs of the end of sequence."""

VOCABULARY, BOS, EOS = 16_000, 1, 2
ROUNDS = 5
FLAT_ROWS = 16
"""Rows per batch of the strong flat peer: the fastest of 8, 16, 32 and 64 here."""
CONFUSIONS = {1: 6, 16: 6, 50: 8}
"""Binary confusions per text, by N."""
SEEDS = {1: 0, 16: 0, 50: 4}
"""By N; few lists scatter widely, and these have the trie ratios of many: 2.41 (16 lists) and 2.92 (4 lists)."""


def random_lm(vocabulary: int = VOCABULARY, hidden: int = 384, layers: int = 6) -> CausalLm:
    """A Llama with random weights, wide enough that scores differ by nats."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 1.4 / parameter.shape[1] ** 0.5)
    return CausalLm(model, eos_token_id=EOS)


def nbest(rng: np.random.Generator, n: int, confusions: int) -> list[np.ndarray]:
    """The n cheapest combinations of binary confusions of one random text of 15 to 35 tokens."""
    text = [[int(t)] for t in rng.integers(3, VOCABULARY, rng.integers(15, 36))]
    places = rng.choice(len(text), confusions, replace=False)
    others = [rng.integers(3, VOCABULARY, rng.choice([0, 1, 1, 1, 2])).tolist() for _ in places]
    prices = rng.exponential(size=confusions)
    combinations = ((sum(p for i, p in enumerate(prices) if c >> i & 1), c) for c in range(2**confusions))
    lists = []
    for _, chosen in heapq.nsmallest(n, combinations):
        words = list(text)
        for i, place in enumerate(places):
            if chosen >> i & 1:
                words[place] = others[i]
        lists.append(np.array([token for word in words for token in word], np.int32))
    return lists


def make_requests(utterances: int, n: int, prefix: int = 1) -> list[ScoreRequest]:
    """Synthetic lists behind BOS, or behind a prompt of `prefix` tokens."""
    rng = np.random.default_rng(SEEDS[n])
    prompt = np.array([BOS, *rng.integers(3, VOCABULARY, prefix - 1)], np.int32)
    return [ScoreRequest(prompt, nbest(rng, n, CONFUSIONS[n])) for _ in range(utterances)]


@torch.inference_mode()
def strong_flat(lm: CausalLm, requests: Sequence[ScoreRequest], costs: Costs | None = None) -> Scores:
    """Distinct texts only, sorted by length over all utterances, prefix cached, head where read and in chunks."""
    costs = costs or Costs()
    prefix = requests[0].prefix
    assert all(np.array_equal(r.prefix, prefix) for r in requests), "this peer takes one prompt for all"
    distinct: dict[tuple[int, ...], int] = {}
    owners = [[distinct.setdefault(tuple(s.tolist()), len(distinct)) for s in r.sequences] for r in requests]
    texts = sorted(distinct, key=len)
    log_probs, ends = np.zeros(len(texts)), np.zeros(len(texts))
    context = DynamicCache()
    top = lm.body.base(input_ids=torch.tensor(prefix[None].astype(np.int64)), past_key_values=context, use_cache=True)
    costs.count("tokens_forwarded", len(prefix))
    for start in range(0, len(texts), FLAT_ROWS):
        rows = texts[start : start + FLAT_ROWS]
        lengths = np.array([len(t) for t in rows])
        tokens = np.zeros((len(rows), lengths.max()), np.int64)
        inside = np.arange(lengths.max()) < lengths[:, None]
        tokens[inside] = np.concatenate([np.array(t) for t in rows])
        cache = DynamicCache()
        for layer, own in enumerate(context.layers):
            cache.update(own.keys.expand(len(rows), -1, -1, -1), own.values.expand(len(rows), -1, -1, -1), layer)
        # Right padding behind a causal mask needs no mask of its own.
        hidden = lm.body.base(input_ids=torch.from_numpy(tokens), past_key_values=cache, use_cache=True)[0]
        costs.count("tokens_forwarded", tokens.size)
        states = torch.cat([top[0][0, -1:], hidden[torch.from_numpy(inside)]])
        row_ends = np.cumsum(lengths)
        before = np.arange(1, row_ends[-1] + 1) - 1
        before[row_ends[:-1]] = 0
        before[0] = 0
        picks, normalisers = lm.head.read(
            states,
            np.concatenate([before, row_ends]),
            np.concatenate([tokens[inside], np.full(len(rows), EOS)]),
            costs,
        )
        values = picks - normalisers[np.concatenate([before, row_ends])]
        log_probs[start : start + len(rows)] = np.add.reduceat(values[: row_ends[-1]], row_ends - lengths)
        ends[start : start + len(rows)] = values[row_ends[-1] :]
    place = {distinct[text]: i for i, text in enumerate(texts)}
    at = [np.array([place[i] for i in own]) for own in owners]
    return [(log_probs[i], ends[i]) for i in at]


def padded_full_logits(lm: CausalLm, requests: Sequence[ScoreRequest], utterances: int = 4) -> Scores:
    """All texts of a few utterances as one padded batch in list order, log-softmax over all logits."""
    batches = [requests[i : i + utterances] for i in range(0, len(requests), utterances)]
    return [scores for batch in batches for scores in _padded_batch(lm, batch)]


def padded_full_logits_per_utterance(lm: CausalLm, requests: Sequence[ScoreRequest]) -> Scores:
    """The same, one utterance per batch, which saves most of the padding."""
    return padded_full_logits(lm, requests, utterances=1)


@torch.inference_mode()
def _padded_batch(lm: CausalLm, requests: Sequence[ScoreRequest]) -> Scores:
    rows = [[*request.prefix, *sequence] for request in requests for sequence in request.sequences]
    lengths = np.array([len(row) for row in rows])
    tokens = torch.zeros((len(rows), int(lengths.max())), dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    mask = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None]
    log_probs = lm.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits.log_softmax(-1)
    taken = log_probs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0].double() * mask[:, 1:]
    totals = taken[:, len(requests[0].prefix) - 1 :].sum(1).numpy()
    ends = log_probs[torch.arange(len(rows)), torch.from_numpy(lengths) - 1, EOS].double().numpy()
    bounds = np.cumsum([len(request.sequences) for request in requests])[:-1]
    return list(zip(np.split(totals, bounds), np.split(ends, bounds), strict=True))


@torch.inference_mode()
def per_hypothesis(lm: CausalLm, requests: Sequence[ScoreRequest]) -> Scores:
    """Every hypothesis alone and unpadded behind its prefix, logits of its own positions only: also the reference."""
    results = []
    for request in requests:
        pairs = []
        for sequence in request.sequences:
            tokens = torch.tensor([[*request.prefix, *sequence]])
            keep = torch.arange(len(request.prefix) - 1, tokens.shape[1])
            logits = lm.model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
            log_probs = logits.log_softmax(-1)
            own = tokens[0, len(request.prefix) :, None]
            pairs.append((float(log_probs[:-1].gather(1, own).double().sum()), float(log_probs[-1, EOS])))
        results.append((np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])))
    return results


def ours(lm: CausalLm, requests: Sequence[ScoreRequest], costs: Costs | None = None) -> Scores:
    """The token tree."""
    return [(s.log_probs, s.eos_log_probs) for s in lm.score(requests, costs)]


def check_equal(name: str, got: Scores, expected: Scores) -> float:
    """Largest difference in nats; stops the benchmark above 1e-3 or where another hypothesis wins."""
    worst = 0.0
    for (log_probs, ends), (reference, reference_ends) in zip(got, expected, strict=True):
        worst = max(worst, np.abs(log_probs - reference).max(), np.abs(ends - reference_ends).max())
        if int(np.argmax(log_probs + ends)) != int(np.argmax(reference + reference_ends)):
            sys.exit(f"{name}: another hypothesis wins than with scoring one by one; no time is reported.")
    if worst > 1e-3:
        sys.exit(f"{name}: scores differ by {worst:.2g} nats from scoring one by one; no time is reported.")
    return worst


_references: dict[tuple[int, int], tuple[Scores, Sequence[ScoreRequest]]] = {}
"""Scores one by one of each workload, which is kept with them so that its id stays its own."""


def measure(
    name: str,
    lm: CausalLm,
    requests: Sequence[ScoreRequest],
    peer: Callable[[CausalLm, Sequence[ScoreRequest]], Scores],
    goal: str | None,
    rounds: int = ROUNDS,
    family: str = "nbest_scoring",
) -> Figure:
    """One ratio, after both sides gave the scores of the reference."""
    key = (id(lm), id(requests))
    if key not in _references:
        _references[key] = (per_hypothesis(lm, requests), requests)
    expected, costs = _references[key][0], Costs()
    worst = check_equal(f"{name}, ours", ours(lm, requests, costs), expected)
    check_equal(f"{name}, {peer.__name__}", peer(lm, requests), expected)
    speed: Speedup = interleaved(lambda: peer(lm, requests), lambda: ours(lm, requests), rounds)
    counted = costs.counters
    prefixes = sum(len(r.prefix) for r in requests)
    texts = sum(len(r.sequences) * len(r.prefix) for r in requests)
    figure = Figure(
        name=f"{family}_{name}",
        value=round(speed.median, 3),
        goal=goal,
        unit="x",
        peer=peer.__name__,
        counters={
            "trie_ratio": round((counted["tokens_flat"] - texts) / max(1, counted["nodes"] - prefixes), 3),
            **counted,
            "largest_difference_nats": float(f"{worst:.1e}"),
            **speed.counters(),
        },
    )
    print(f"{figure.name}: {figure.value:.2f}x over {peer.__name__} (goal {goal})", flush=True)
    return figure


def peak_logits(goal: str) -> Figure:
    """The logits buffer of a 50-best list over a vocabulary of 151,936 tokens, as Qwen's."""
    lm = random_lm(vocabulary=151_936, hidden=64, layers=1)
    costs = Costs()
    (request,) = make_requests(1, 50)
    lm.score([request], costs)
    rows = costs.counters["head_rows"]
    return Figure(
        name="nbest_scoring_peak_logits_megabytes",
        value=round(costs.counters["peak_logits_bytes"] / 2**20, 2),
        goal=goal,
        unit="MB",
        peer="full logits of the padded batch",
        counters={
            "full_logits_megabytes": round(sum(map(len, request.sequences)) * 151_936 * 4 / 2**20),
            "tree_logits_megabytes_unchunked": round(rows * 151_936 * 4 / 2**20),
            **costs.counters,
        },
    )


def first_word_divergence(utterances: int, n: int) -> list[ScoreRequest]:
    """The tree's worst case: no two texts share a beginning."""
    rng = np.random.default_rng(5)
    lists = [[rng.integers(3, VOCABULARY, 25).astype(np.int32) for _ in range(n)] for _ in range(utterances)]
    return [ScoreRequest(np.array([BOS], np.int32), own) for own in lists]


def quickstart_lists() -> list[Figure]:
    """The quickstart's own LM on its own N-best lists, where a run of it lies in `runs/quickstart`."""
    model, tables = ROOT / "ctxasr_ray/assets/lm", sorted(ROOT.glob("runs/quickstart/hypotheses/*/*.parquet"))
    if not (model / "config.json").exists() or not tables:
        print("no run of the quickstart in runs/quickstart: its lists are left out (make quickstart)", flush=True)
        return []
    stage = CausalLmConfig(model=str(model)).build()
    requests = []
    for table in tables:
        flat = flatten(pq.read_table(table))
        ids = stage.tokens.encode(flat.texts)
        own = [ids[a:b] for a, b in zip(flat.offsets[:-1], flat.offsets[1:], strict=True)]
        requests += [ScoreRequest(stage.tokens.prefix, kept) for texts in own if (kept := [t for t in texts if len(t)])]
    return [measure("quickstart_lists_over_strong_flat", stage.lm, requests[:60], strong_flat, None)]


def main() -> None:
    """Prints every figure."""
    torch.set_num_threads(1)
    lm = random_lm()
    assert lm.refusal is None
    print(
        f"Llama, {sum(p.numel() for p in lm.model.parameters()) / 1e6:.1f} M random parameters, one thread", flush=True
    )
    sixteen, fifty = make_requests(16, 16), make_requests(4, 50)
    behind = make_requests(2, 16, prefix=250)
    one = make_requests(40, 1)
    same = [ScoreRequest(r.prefix, [r.sequences[0]] * 16) for r in sixteen]
    figures = [
        measure("n16_over_strong_flat", lm, sixteen, strong_flat, ">= 2.0"),
        measure("n50_over_strong_flat", lm, fifty, strong_flat, ">= 2.4"),
        measure("n16_over_padded_full_logits", lm, sixteen, padded_full_logits, ">= 3.0", 3),
        measure("n50_over_padded_full_logits", lm, fifty, padded_full_logits, ">= 3.0", 3),
        measure("n16_over_padded_full_logits_per_utterance", lm, sixteen, padded_full_logits_per_utterance, None, 3),
        measure("n16_prefix250_over_per_hypothesis", lm, behind, per_hypothesis, ">= 8.0"),
        measure("n16_prefix250_over_strong_flat", lm, behind, strong_flat, None),
        measure("n1_over_strong_flat", lm, one, strong_flat, None, rounds=3),
        measure("n16_all_identical_over_strong_flat", lm, same, strong_flat, None, rounds=3),
        measure("n16_first_word_divergence_over_strong_flat", lm, first_word_divergence(4, 16), strong_flat, None, 3),
        peak_logits("<= 64"),
        *quickstart_lists(),
    ]
    emit(figures)


if __name__ == "__main__":
    main()
