"""Delayed against shallow fusion of a large LM: calls, seconds and errors, with the same beam, one thread.

Utterances of 10 to 20 s are spoken commands of the quickstart's test corpus, joined; their log-probs are those of the
shipped CTC model, 40 ms per frame. The LM is a Llama with random weights and the shipped LM's vocabulary, which costs
what a trained one of its size costs; what it would do to the errors is measured with the shipped LM instead.

Shallow fusion is the strong way: rows are scored after pruning only, when a word is complete, and no text twice.
Before any time counts, both must give every labelling that they share the same sum, and that of plain rescoring.
Run it without arguments: `python benchmarks/delayed_fusion.py`.
"""

# ruff: noqa: E402  # threads are pinned before numpy and torch are imported
from figures import Figure, Speedup, emit, interleaved, pin_threads

pin_threads(1)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from transformers import LlamaConfig, LlamaForCausalLM

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.models.causal_lm import CausalLm, load_causal_lm
from ctxasr_ray.models.checkpoint import load_tokenizer, resolve
from ctxasr_ray.models.ctc import CtcModel
from ctxasr_ray.models.list_trees import ScoreRequest
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.models.word_boundaries import WordBoundaries
from ctxasr_ray.models.word_tokens import WordTokens
from ctxasr_ray.search.ctc_beam import CtcBeamSearch
from ctxasr_ray.search.delayed_fusion import FixedInterval, ShortestHypothesis
from ctxasr_ray.search.lm_fusion import LmFusion, Trigger
from ctxasr_ray.search.lm_texts import FusedLm
from ctxasr_ray.search.lm_units import WordUnits
from ctxasr_ray.search.lockstep import FusedList, search_in_lockstep
from ctxasr_ray.search.shallow_fusion import EveryWord
from ctxasr_ray.stage import Costs

ASSETS = Path(__file__).parents[1] / "ctxasr_ray" / "assets"
BEAM, INTERVAL, LOCKSTEP, NUM_UTTERANCES, ROUNDS = 16, 32, 16, 16, 2
MIN_S, PAUSE_S = 10.0, 0.4
LM_WEIGHT, LENGTH_BONUS = 0.3, 2.0
"""With the shipped LM; within 0.15 % WER of the best of a small grid for shallow fusion on 60 utterances of dev, and
delayed fusion is given the same."""
RANDOM_WEIGHT = 0.02
"""Of the random LM: enough to change decisions, too little to drown the recogniser, so that both search real texts."""


@dataclass(frozen=True, slots=True)
class Material:
    """Joined utterances and what both fusions need."""

    log_probs: list[np.ndarray]
    references: list[str]
    model: CtcModel
    tokens: TextTokens


def material() -> Material:
    """Commands joined until they are at least 10 s long, with pauses of 0.4 s."""
    model, corpus = CtcModel(resolve(str(ASSETS / "ctc"))), SyntheticConfig()
    rate = model.sample_rate_hz
    log_probs: list[np.ndarray] = []
    references: list[str] = []
    index = 0
    while len(log_probs) < NUM_UTTERANCES:
        waves: list[np.ndarray] = []
        texts: list[str] = []
        while sum(len(wave) for wave in waves) < MIN_S * rate:
            if corpus.snr_db("test", index) in (None, 20.0, 10.0):
                spoken = corpus.spoken("test", index)
                waves += [spoken.samples, np.zeros(round(PAUSE_S * rate), np.float32)]
                texts.append(spoken.text)
            index += 1
        log_probs.append(model.log_probs([np.concatenate(waves)])[0])
        references.append(" ".join(texts))
    return Material(log_probs, references, model, TextTokens(load_tokenizer(resolve(str(ASSETS / "lm")))))


def random_lm(tokens: TextTokens, utterances_per_forward: int = 0) -> CausalLm:
    """A Llama of 20 M parameters over the shipped vocabulary; 0 is a pass per utterance on a CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens.tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    print(f"random LM: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    return CausalLm(
        model,
        eos_token_id=tokens.eos_token_id,
        special_ids=tokens.special_ids,
        utterances_per_forward=utterances_per_forward,
    )


class Decoder:
    """The same beam with one LM and any trigger."""

    def __init__(self, made: Material, lm: CausalLm, lm_weight: float, length_bonus: float) -> None:
        self.made, self.lm, self.weight, self.bonus = made, lm, lm_weight, length_bonus
        self.units = WordUnits(WordBoundaries.of_ctc(made.model.vocabulary))
        self.spelling = WordTokens(made.tokens)

    def __call__(self, trigger: Trigger | None, lockstep: int, costs: Costs | None = None) -> list[FusedList]:
        """All utterances; None fuses nothing."""
        costs = costs or Costs()
        fused = FusedLm(
            scorer=TreeSessions(self.lm, costs),
            spelling=self.spelling,
            prefix=self.made.tokens.prefix,
            eos_token_id=self.lm.eos_token_id,
            max_positions=self.lm.max_positions,
            costs=costs,
        )
        fusions = [] if trigger is None else [self._fusion(fused, trigger)]
        vocabulary = self.made.model.vocabulary
        search = CtcBeamSearch(
            blank_id=vocabulary.blank_id,
            num_labels=len(vocabulary.pieces),
            beam_size=BEAM,
            suppressed=vocabulary.suppressed,
            label_kinds=self.units.kinds,
        )
        found: list[FusedList] = []
        for start in range(0, len(self.made.log_probs), lockstep):
            batch = [search.checked(one) for one in self.made.log_probs[start : start + lockstep]]
            found += search_in_lockstep(search, batch, fusions)
        return found

    def _fusion(self, lm: FusedLm, trigger: Trigger) -> LmFusion:
        return LmFusion(lm=lm, units=self.units, trigger=trigger, lm_weight=self.weight, length_bonus=self.bonus)

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of labels."""
        return self.made.model.vocabulary.text(ids)

    def wer(self, found: Sequence[FusedList]) -> float:
        """Word error rate of the best labellings, in percent."""
        pairs = zip(found, self.made.references, strict=True)
        errors = sum(Levenshtein.distance(self.text(f.labellings[0].token_ids).split(), r.split()) for f, r in pairs)
        return 100 * errors / sum(len(r.split()) for r in self.made.references)


def check(decoder: Decoder, lists: Sequence[list[FusedList]]) -> None:
    """Every labelling has the sum of plain rescoring, whichever way it was searched.

    Raises:
        AssertionError: it has not.
    """
    worst = 0.0
    for found in lists:
        for own in found:
            texts = [decoder.text(one.token_ids) for one in own.labellings]
            request = ScoreRequest(decoder.made.tokens.prefix, decoder.made.tokens.encode(texts))
            (scores,) = decoder.lm.score([request])
            for one, text, log_prob, eos in zip(
                own.labellings, texts, scores.log_probs, scores.eos_log_probs, strict=True
            ):
                expected = decoder.weight * (log_prob + eos) + decoder.bonus * len(text.split())
                worst = max(worst, abs(one.fusion - expected))
    if worst > 1e-3:
        raise AssertionError(f"a fused sum differs from plain rescoring by {worst:.2g} nats")
    print(f"all sums equal those of plain rescoring within {worst:.1g} nats", flush=True)


def speed(decoder: Decoder, calls: dict[str, Costs]) -> list[Figure]:
    """Seconds and counters of the ways to search."""
    shallow, delayed = EveryWord(), FixedInterval(frames=INTERVAL)
    figures = []

    def figure(name: str, goal: str | None, peer: str, measured: Speedup, ours: str, theirs: str) -> Figure:
        counters: dict[str, int | float | str] = {**measured.counters()}
        for key in ("llm_calls", "nodes", "tokens_forwarded", "tokens_flat", "peak_kv_bytes", "triggers"):
            counters[f"{key}_ours"] = calls[ours].counters[key]
            counters[f"{key}_peer"] = calls[theirs].counters[key]
        return Figure(name=name, value=measured.median, goal=goal, unit="x", peer=peer, counters=counters)

    rows = (
        ("delayed_fusion_speed_single", ">= 1.7", "shallow", shallow, 1, "delayed", delayed, 1),
        ("delayed_fusion_speed_lockstep_over_single", ">= 2.2", "shallow", shallow, 1, "delayed", delayed, LOCKSTEP),
        ("delayed_fusion_speed_lockstep", None, "shallow", shallow, LOCKSTEP, "delayed", delayed, LOCKSTEP),
    )
    for name, goal, peer, first, first_lockstep, ours, second, second_lockstep in rows:
        measured = interleaved(
            lambda t=first, n=first_lockstep: decoder(t, n),  # type: ignore[misc]  # mypy: lambda with defaults
            lambda t=second, n=second_lockstep: decoder(t, n),  # type: ignore[misc]
            rounds=ROUNDS,
            warm_up=0,  # all ways have run for their counters
        )
        print(f"{name}: {measured.median:.2f}", flush=True)
        against = f"shallow fusion, {first_lockstep} in lock-step"
        figures.append(figure(name, goal, against, measured, f"{ours} {second_lockstep}", f"{peer} {first_lockstep}"))
    return figures


def main() -> None:
    """Checks, counts, times, and emits the figures."""
    made = material()
    seconds = [0.04 * len(one) for one in made.log_probs]
    print(f"{len(seconds)} utterances of {min(seconds):.1f} to {max(seconds):.1f} s, beam {BEAM}", flush=True)
    decoder = Decoder(made, random_lm(made.tokens), RANDOM_WEIGHT, 0.1)
    ways: dict[str, tuple[Trigger, int]] = {
        "shallow 1": (EveryWord(), 1),
        "delayed 1": (FixedInterval(frames=INTERVAL), 1),
        "shortest 1": (ShortestHypothesis(), 1),
        f"shallow {LOCKSTEP}": (EveryWord(), LOCKSTEP),
        f"delayed {LOCKSTEP}": (FixedInterval(frames=INTERVAL), LOCKSTEP),
    }
    calls = {name: Costs() for name in ways}
    lists = {name: decoder(*way, calls[name]) for name, way in ways.items()}
    shared = Decoder(made, random_lm(made.tokens, LOCKSTEP), RANDOM_WEIGHT, 0.1)
    calls["delayed in shared passes"] = Costs()
    lists["delayed in shared passes"] = shared(*ways[f"delayed {LOCKSTEP}"], calls["delayed in shared passes"])
    check(decoder, [lists["shallow 1"], lists["delayed 1"], lists["delayed in shared passes"]])
    counted = {name: costs.counters["llm_calls"] for name, costs in calls.items()}
    print(f"LLM calls: {counted}", flush=True)
    figures = [
        Figure(
            name="delayed_fusion_llm_calls",
            value=counted["delayed 1"] / counted["shallow 1"],
            goal="<= 0.30",
            unit="of shallow",
            peer="shallow fusion of words, survivors only, cached",
            counters={name.replace(" ", "_"): number for name, number in counted.items()},
        ),
        Figure(
            name="delayed_fusion_llm_calls_lockstep",
            value=counted["delayed in shared passes"] / counted["shallow 1"],
            unit="of shallow",
            peer="shallow fusion, one utterance at a time",
            counters={"calls": counted["delayed in shared passes"], "utterances_in_lockstep": LOCKSTEP},
        ),
        *speed(decoder, calls),
        trained(made),
    ]
    emit(figures)


def trained(made: Material) -> Figure:
    """Errors with the shipped LM, which knows the language."""
    checkpoint = resolve(str(ASSETS / "lm"))
    lm = load_causal_lm(
        checkpoint,
        eos_token_id=made.tokens.eos_token_id,
        special_ids=made.tokens.special_ids,
        utterances_per_forward=LOCKSTEP,
    )
    decoder = Decoder(made, lm, LM_WEIGHT, LENGTH_BONUS)
    triggers: dict[str, Trigger | None] = {
        "none": None,
        "shallow": EveryWord(),
        "delayed": FixedInterval(frames=INTERVAL),
        "shortest": ShortestHypothesis(),
        "rescoring": FixedInterval(frames=10**6),
    }
    wer = {name: round(decoder.wer(decoder(trigger, LOCKSTEP)), 3) for name, trigger in triggers.items()}
    print(f"WER with the shipped LM: {wer}", flush=True)
    return Figure(
        name="delayed_fusion_wer_minus_shallow",
        value=wer["delayed"] - wer["shallow"],
        goal="<= 0.1",
        unit="% WER",
        peer="shallow fusion, same weights",
        counters={f"wer_{name}": value for name, value in wer.items()},
    )


if __name__ == "__main__":
    main()
