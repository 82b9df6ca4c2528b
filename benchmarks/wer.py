"""Counting word errors in bulk against jiwer, and against rapidfuzz called pair by pair.

Same raw texts in, same hits, substitutions, deletions and insertions out, checked before any time counts. Run it
without arguments: `python benchmarks/wer.py`.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from figures import Figure, emit, interleaved, pin_threads

pin_threads(1)

import jiwer  # noqa: E402  (the threads are pinned first)
import numpy as np  # noqa: E402
import rapidfuzz  # noqa: E402
from rapidfuzz.distance import Levenshtein  # noqa: E402

from ctxasr_ray import align, text  # noqa: E402

SEED = 7
NUM_PAIRS = 20_000
NUM_LISTS, LIST_SIZE = 200, 50
Totals = tuple[int, int, int, int]


def sentences(num: int, rng: random.Random) -> list[list[str]]:
    """Sentences of 5 to 35 words out of 20,000, common ones more often."""
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
    return [rng.choices(vocabulary, weights, k=rng.randint(5, 35)) for _ in range(num)]


def misheard(words: list[str], rng: random.Random, confusions: list[str], rate: float) -> str:
    """Substitutions, deletions and insertions in the proportion 3 : 1 : 1, at a word error rate of about `rate`."""
    heard = []
    for word in words:
        draw = rng.random() / rate
        if draw < 0.6:
            heard.append(rng.choice(confusions))
        elif draw >= 0.8:
            heard.append(word)
        if 0.8 <= draw < 1.0:
            heard.append(rng.choice(confusions))
    return " ".join(heard)


def jiwer_totals(references: list[str], hypotheses: list[str]) -> Totals:
    """The peer: one call with all pairs."""
    found = jiwer.process_words(references, hypotheses)
    return found.hits, found.substitutions, found.deletions, found.insertions


def encoded(references: list[str], hypotheses: list[str]) -> tuple[align.Encoded, ...]:
    """Raw texts as our aligner takes them."""
    return align.encode("word", text.units(references, "none", "word"), text.units(hypotheses, "none", "word"))


def our_totals(references: list[str], hypotheses: list[str]) -> Totals:
    """Ours, from the same raw texts."""
    counts = align.count(*encoded(references, hypotheses))
    return tuple(int(a.sum()) for a in (counts.hits, counts.substitutions, counts.deletions, counts.insertions))


def our_errors(references: list[str], hypotheses: list[str], rows: np.ndarray) -> int:
    """Ours for N-best lists, as NBEST_ERRORS counts them; `rows` names the reference of each hypothesis."""
    said, heard = encoded(references, hypotheses)
    return int(align.distances(said[rows], heard).sum())


def pairwise_distance(references: list[str], hypotheses: list[str]) -> int:
    """The strong peer: rapidfuzz on lists of words, pair by pair, totals only."""
    return sum(Levenshtein.distance(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True))


def speedup(
    name: str, peer: str, goal: str | None, first: Callable[[], object], second: Callable[[], object], num_pairs: int
) -> Figure:
    """Times two callables after their answers were found equal.

    Raises:
        SystemExit: they are not.
    """
    if first() != second():
        sys.exit(f"{name}: {first()} (peer) is not {second()} (ours); a faster wrong answer is no figure")
    timed = interleaved(first, second)
    counters = {
        "cpu_ratio": round(cpu_seconds(first) / cpu_seconds(second), 2),
        "pairs": num_pairs,
        "pairs_per_s": round(num_pairs / timed.seconds_second),
        "answer": str(second()),
    }
    return Figure(name=name, value=timed.median, goal=goal, unit="x", peer=peer, counters=timed.counters() | counters)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Processor seconds of the best of three calls: what a machine that others use at the same time does not blur."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def is21_pairs() -> tuple[list[str], list[str]] | None:
    """Five published systems on LibriSpeech test-clean, where the real material is at hand."""
    root = Path(os.environ.get("CTXASR_REAL", Path(__file__).parents[2] / "shared" / "real")) / "is21"
    if not root.exists():
        return None
    lines = (root / "ref/test-clean.biasing_100.tsv").read_text("utf-8").splitlines()
    truth = {line.split("\t")[0]: line.split("\t")[1] for line in lines}
    references, hypotheses = [], []
    for path in sorted((root / "hyp").glob("*.tsv")):
        for line in path.read_text("utf-8").splitlines():
            utterance_id, *heard = line.split("\t")
            references.append(truth[utterance_id])
            hypotheses.append(heard[0] if heard else "")
    return references, hypotheses


def main() -> None:
    """Prints the figures."""
    rng = random.Random(SEED)
    said = sentences(NUM_PAIRS, rng)
    confusions = [word for words in said[:2000] for word in words]
    references = [" ".join(words) for words in said]
    hypotheses = [misheard(words, rng, confusions, 0.12) for words in said]
    lists = [misheard(words, rng, confusions, 0.12) for words in said[:NUM_LISTS] for _ in range(LIST_SIZE)]
    rows = np.repeat(np.arange(NUM_LISTS), LIST_SIZE)
    repeated = [references[row] for row in rows]
    jiwer_name, rapidfuzz_name = "jiwer " + version("jiwer"), f"rapidfuzz {rapidfuzz.__version__}, pair by pair"
    figures = [
        speedup(
            "wer_distinct_pairs_vs_jiwer",
            jiwer_name,
            ">= 5",
            lambda: jiwer_totals(references, hypotheses),
            lambda: our_totals(references, hypotheses),
            NUM_PAIRS,
        ),
        speedup(
            "wer_nbest_vs_jiwer",
            jiwer_name,
            ">= 20",
            lambda: sum(jiwer_totals(repeated, lists)[1:]),
            lambda: our_errors(references[:NUM_LISTS], lists, rows),
            len(lists),
        ),
        speedup(
            "wer_distinct_pairs_vs_rapidfuzz_words",
            rapidfuzz_name,
            None,
            lambda: pairwise_distance(references, hypotheses),
            lambda: our_errors(references, hypotheses, np.arange(NUM_PAIRS)),
            NUM_PAIRS,
        ),
    ]
    real = is21_pairs()
    if real is not None:
        figures.append(
            speedup(
                "wer_librispeech_vs_jiwer",
                jiwer_name,
                None,
                lambda: jiwer_totals(*real),
                lambda: our_totals(*real),
                len(real[0]),
            )
        )
    emit(figures)


def version(package: str) -> str:
    """The installed version of a package."""
    from importlib import metadata

    return metadata.version(package)


if __name__ == "__main__":
    main()
