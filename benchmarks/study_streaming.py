"""The shipped recogniser and language model on audio that arrives in chunks, for five searches.

Utterances are spoken commands of the quickstart's test voices. Frames come in chunks of 320 ms; after each the complete
words of the best hypothesis are shown. The recogniser has heard the whole utterance (its encoder looks both ways), so
what is compared is the search alone, and delays hold no computing time. One utterance at a time. The LM's weight and
the bonus per word are the same for all searches: the best of a few for shallow fusion on dev. Run it without arguments:
`python benchmarks/study_streaming.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, emit, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import torch  # noqa: E402

from ctxasr_ray.align import count, encode  # noqa: E402
from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.first_pass.ctc import CtcConfig  # noqa: E402
from ctxasr_ray.first_pass.ctc_lists import ctc_search  # noqa: E402
from ctxasr_ray.models.ctc import CtcModel  # noqa: E402
from ctxasr_ray.models.tree_host import TreeHost  # noqa: E402
from ctxasr_ray.models.word_boundaries import WordBoundaries  # noqa: E402
from ctxasr_ray.models.word_tokens import WordTokens  # noqa: E402
from ctxasr_ray.scorers.causal_lm import CausalLmConfig, CausalLmScorer  # noqa: E402
from ctxasr_ray.search.ctc_state import Floats  # noqa: E402
from ctxasr_ray.search.delayed_fusion import FixedInterval, ShortestHypothesis  # noqa: E402
from ctxasr_ray.search.lm_fusion import LmFusion, Trigger  # noqa: E402
from ctxasr_ray.search.lm_texts import FusedLm  # noqa: E402
from ctxasr_ray.search.lm_units import WordUnits  # noqa: E402
from ctxasr_ray.search.shallow_fusion import EveryWord  # noqa: E402
from ctxasr_ray.search.streaming import Streamed, stability, stream  # noqa: E402
from ctxasr_ray.stage import Costs  # noqa: E402

ASSETS = Path(__file__).parents[1] / "ctxasr_ray" / "assets"
CHUNK_MS, BEAM = 320, 16
WEIGHTS = ((0.25, 1.0), (0.25, 2.0), (0.5, 2.0), (0.5, 4.0))
"""Pairs of lm_weight and length_bonus."""
NUM_DEV, NUM_TEST = 30, 60
SYSTEMS: dict[str, Trigger | None] = {
    "none": None,
    "shallow": EveryWord(),
    "delayed_8_frames": FixedInterval(frames=8),
    "delayed_32_frames": FixedInterval(frames=32),
    "delayed_shortest": ShortestHypothesis(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Some utterances and the models that meet them."""

    log_probs: list[Floats]
    references: list[str]
    audio_s: float
    units: WordUnits
    recogniser: CtcModel
    lm: CausalLmScorer
    spelling: WordTokens


def material(split: str, num: int, recogniser: CtcModel, lm: CausalLmScorer) -> Material:
    """Speaks commands and hears them once."""
    corpus = SyntheticConfig()
    spoken = [corpus.spoken(split, place) for place in range(num)]
    return Material(
        log_probs=[recogniser.log_probs([one.samples])[0].astype(np.float64) for one in spoken],
        references=[one.text for one in spoken],
        audio_s=sum(len(one.samples) for one in spoken) / recogniser.sample_rate_hz,
        units=WordUnits(WordBoundaries.of_ctc(recogniser.vocabulary)),
        recogniser=recogniser,
        lm=lm,
        spelling=WordTokens(lm.tokens),
    )


def streamed(heard: Material, trigger: Trigger | None, weights: tuple[float, float], costs: Costs) -> list[Streamed]:
    """All utterances, one after another."""
    config = CtcConfig(model=str(ASSETS / "ctc"), beam_size=BEAM, num_hypotheses=1)
    search = ctc_search(config, heard.recogniser, heard.units.kinds)
    host, fusions = TreeHost(heard.lm.lm), []
    if trigger is not None:
        lm = FusedLm(
            scorer=host.sessions(costs),
            spelling=heard.spelling,
            prefix=heard.lm.tokens.prefix,
            eos_token_id=host.eos_token_id,
            max_positions=host.max_positions,
            costs=costs,
        )
        fusions = [LmFusion(lm=lm, units=heard.units, trigger=trigger, lm_weight=weights[0], length_bonus=weights[1])]
    chunk_frames = round(CHUNK_MS / 1000 / heard.recogniser.frame_duration_s)
    found = []
    for one in heard.log_probs:
        found += stream(search, [one], fusions, heard.units, chunk_frames)
    return found


def word_error_rate(heard: Material, found: list[Streamed]) -> float:
    """In percent."""
    references, hypotheses = encode("word", heard.references, [" ".join(one.final) for one in found])
    counts = count(references, hypotheses)
    errors = counts.substitutions.sum() + counts.deletions.sum() + counts.insertions.sum()
    return 100 * float(errors) / sum(len(text.split()) for text in heard.references)


def figures_of(name: str, heard: Material, weights: tuple[float, float]) -> list[Figure]:
    """Four figures of one search."""
    costs = Costs()
    found = streamed(heard, SYSTEMS[name], weights, costs)
    seen = stability(found)
    delays_ms = 1000 * heard.recogniser.frame_duration_s * seen.delays
    calls = costs.counters.get("llm_calls", 0)
    words = {"words_shown": seen.num_shown, "words_withdrawn": seen.num_withdrawn}
    late = {f"p{level}_ms": round(float(np.percentile(delays_ms, level))) for level in (10, 50, 90, 99)}
    work = {
        key: costs.counters.get(key, 0) for key in ("llm_calls", "triggers", "nodes", "tokens_flat", "peak_kv_bytes")
    }
    conditions = {"utterances": len(found), "audio_s": round(heard.audio_s, 1), "chunk_ms": CHUNK_MS, "beam": BEAM}
    if SYSTEMS[name] is not None:
        conditions |= {"lm_weight": weights[0], "length_bonus": weights[1]}
    return [
        Figure(name=f"streaming_{name}_withdrawn_share", value=seen.withdrawn_share, unit="fraction", counters=words),
        Figure(name=f"streaming_{name}_word_delay_ms", value=late["p50_ms"], unit="ms", counters=late),
        Figure(name=f"streaming_{name}_llm_calls_per_second", value=calls / heard.audio_s, unit="1/s", counters=work),
        Figure(name=f"streaming_{name}_wer", value=word_error_rate(heard, found), unit="%", counters=conditions),
    ]


def main() -> None:
    """Prints the figures."""
    torch.set_num_threads(1)
    recogniser = CtcConfig(model=str(ASSETS / "ctc"), device="cpu").load()
    lm = CausalLmConfig(model=str(ASSETS / "lm"), device="cpu").build()
    dev = material("dev", NUM_DEV, recogniser, lm)
    shallow = {pair: word_error_rate(dev, streamed(dev, SYSTEMS["shallow"], pair, Costs())) for pair in WEIGHTS}
    weights = min(shallow, key=lambda pair: shallow[pair])
    print(f"WER on dev by lm_weight and length_bonus: {shallow}; {weights} is taken", file=sys.stderr)
    test = material("test", NUM_TEST, recogniser, lm)
    rows = {name: figures_of(name, test, weights) for name in SYSTEMS}
    print(f"{'search':<18} {'withdrawn':>10} {'delay p50':>10} {'delay p90':>10} {'LLM calls/s':>12} {'WER':>7}")
    for name, (share, delay, calls, wer) in rows.items():
        print(
            f"{name:<18} {100 * share.value:>9.1f}% {delay.value:>7.0f} ms {delay.counters['p90_ms']:>7} ms "
            f"{calls.value:>12.2f} {wer.value:>6.1f}%"
        )
    emit([figure for row in rows.values() for figure in row])


if __name__ == "__main__":
    main()
