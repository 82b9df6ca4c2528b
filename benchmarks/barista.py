"""Keywords in real spoken orders: PocketSphinx that searches a diluted catalogue, and candidates by sound behind it.

The 150 orders of Picovoice's speech-to-intent benchmark, their own 77 phrases, and rare words of LibriSpeech (the lists
of Le et al., 2021) up to 1,000 and 10,000 phrases; then the recogniser without any list, whose N-best the recipe
`pocketsphinx_candidates` puts the 77 phrases into. Every setting is the default, chosen on synthetic speech of other
domains. Run it without arguments: `python benchmarks/barista.py`; four passes take about ten minutes of a quiet
core. Parts may be named: `python benchmarks/barista.py 77 1000 candidates`.
"""

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from figures import Figure, emit, pin_threads

pin_threads(1)

import pyarrow as pa  # noqa: E402  (the threads are pinned first)

from ctxasr_ray.candidates.keyword import KeywordCandidatesConfig  # noqa: E402
from ctxasr_ray.corpora import nemo  # noqa: E402
from ctxasr_ray.experiment import FirstPass  # noqa: E402
from ctxasr_ray.first_pass.pocketsphinx_keywords import PocketSphinxKeywordsConfig  # noqa: E402
from ctxasr_ray.keywords.catalogue import Catalogue, catalogue, load  # noqa: E402
from ctxasr_ray.keywords.context import ContextConfig  # noqa: E402
from ctxasr_ray.metrics.keywords import KeywordCounter  # noqa: E402
from ctxasr_ray.nbest import read_nbest  # noqa: E402
from ctxasr_ray.recipes.evaluation import pocketsphinx_candidates  # noqa: E402
from ctxasr_ray.stage import Costs  # noqa: E402

REAL = Path(os.environ.get("CTXASR_REAL", Path(__file__).parents[2] / "shared" / "real"))
GOALS = {77: (">= 0.80", ">= 0.90"), 1_000: (">= 0.70", ">= 0.80"), 10_000: (">= 0.58", ">= 0.66")}
CANDIDATES = "candidates"
CANDIDATES_GOALS = (">= 0.50", ">= 0.85")
PROGRESS_EVERY = 10

Figures: TypeAlias = list[Figure]
Goals: TypeAlias = tuple[str | None, str | None]
Told: TypeAlias = Mapping[str, int]


def diluted(own: Catalogue, rare: Catalogue, size: int) -> list[str]:
    """The catalogue's phrases and the first rare words of the one seeded order, up to a size."""
    others = (phrase for phrase, normal in zip(rare.phrases, rare.normalised, strict=True) if normal not in own.ids)
    return [*own.phrases, *(phrase for phrase, _ in zip(others, range(size - len(own)), strict=False))]


def heard(utterances: pa.Table, config: FirstPass, name: str) -> tuple[pa.Table, Costs, float]:
    """HYPOTHESES of every utterance, the counters, and seconds of this process."""
    stage, costs, lists = config.build(), Costs(), []
    table = utterances.select(["utterance_id", *config.READS["utterances"]])
    start = time.process_time()
    for row in range(0, table.num_rows, PROGRESS_EVERY):
        lists.append(stage(table.slice(row, PROGRESS_EVERY), costs=costs))
        print(f"{name}: {row + lists[-1].num_rows} of {table.num_rows} utterances", file=sys.stderr, flush=True)
    return pa.concat_tables(lists).combine_chunks(), costs, time.process_time() - start


def found(part: str, hypotheses: pa.Table, utterances: pa.Table, phrases: Path, goals: Goals, told: Told) -> Figures:
    """Recall and precision of the first text of every list."""
    texts = [nbest.hypotheses[0].text if nbest.hypotheses else "" for nbest in read_nbest(hypotheses)]
    counter = KeywordCounter(load(str(phrases)), "whisper_english")
    rows = zip(texts, utterances.column("keywords").to_pylist(), strict=True)
    counts = [counter.count(text, None, keywords) for text, keywords in rows]
    hits, missed, extra, alarms = (
        sum(getattr(one, part).total() for one in counts)
        for part in ("true_positives", "false_negatives", "false_positives", "false_alarms")
    )
    counters = {"true_positives": hits, "false_negatives": missed, "false_positives": extra, "false_alarms": alarms}
    recall, precision = hits / max(1, hits + missed), hits / max(1, hits + extra)
    recall_goal, precision_goal = goals
    return [
        Figure(
            name=f"barista_keyword_recall_{part}",
            value=recall,
            goal=recall_goal,
            unit="fraction",
            counters={**counters, **told},
        ),
        Figure(name=f"barista_keyword_precision_{part}", value=precision, goal=precision_goal, unit="fraction"),
    ]


def in_search(utterances: pa.Table, own: Catalogue, rare: Catalogue, size: int, folder: Path) -> Figures:
    """Recall, precision and speed of a search of the phrases, at one size of the catalogue."""
    path = folder / f"{size}_phrases.txt"
    path.write_text("\n".join(diluted(own, rare, size)) + "\n", encoding="utf-8")
    config = PocketSphinxKeywordsConfig(catalogue=str(path), num_hypotheses=1)
    hypotheses, costs, seconds = heard(utterances, config, path.stem)
    told = {name: amount for name, amount in costs.counters.items() if name.startswith("phrases_")}
    speed = seconds / (costs.counters["audio_ms"] / 1000)
    return [
        *found(str(size), hypotheses, utterances, path, GOALS.get(size, (None, None)), told),
        Figure(name=f"barista_real_time_factor_{size}", value=speed, unit="s per s"),
    ]


def by_sound(utterances: pa.Table) -> Figures:
    """The same of the recogniser alone, and of candidates behind it that hold its own phrases."""
    recipe, phrases = pocketsphinx_candidates(), REAL / "barista" / "keywords.txt"
    branch = recipe.branches["keyword_candidates"]
    assert branch.shortlist is not None, "the recipe cuts the list"
    assert isinstance(branch.nbest, KeywordCandidatesConfig), "the recipe makes candidates"
    lists, costs, seconds = heard(utterances, recipe.first_pass, "candidates")
    start = time.process_time()
    context = ContextConfig(catalogue=str(phrases)).build()(utterances, costs=Costs())
    shortlist = replace(branch.shortlist, catalogue=str(phrases)).build()(lists, context, costs=costs)
    made = replace(branch.nbest, catalogue=str(phrases)).build()(lists, shortlist, costs=costs)
    behind_s, audio_s = time.process_time() - start, costs.counters["audio_ms"] / 1000
    told = {name: costs.counters[name] for name in ("phrases_kept", "candidates")}
    return [
        *found("first_pass", lists, utterances, phrases, (None, None), {}),
        *found("candidates_77", made, utterances, phrases, CANDIDATES_GOALS, told),
        Figure(
            name="barista_real_time_factor_candidates_77",
            value=(seconds + behind_s) / audio_s,
            unit="s per s",
            counters={"behind_first_pass": round(behind_s / audio_s, 5)},
        ),
    ]


def main() -> None:
    """Measures every part."""
    if not (REAL / "barista").is_dir():
        sys.exit(f"real speech is missing: {REAL / 'barista'} (set CTXASR_REAL to the folder that holds it)")
    utterances = nemo.read(REAL / "barista" / "manifest.jsonl")
    own = load(str(REAL / "barista" / "keywords.txt"))
    rare = catalogue((REAL / "is21" / "words" / "all_rare_words.txt").read_text(encoding="utf-8").splitlines())
    parts = sys.argv[1:] or [*map(str, GOALS), CANDIDATES]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="ctxasr-barista-") as folder:
        for part in parts:
            if part == CANDIDATES:
                figures += by_sound(utterances)
            else:
                figures += in_search(utterances, own, rare, int(part), Path(folder))
    emit(figures)


if __name__ == "__main__":
    main()
