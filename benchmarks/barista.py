"""Keywords in real spoken orders, found by PocketSphinx that searches a catalogue diluted with words nobody says.

The 150 orders of Picovoice's speech-to-intent benchmark, their own 77 phrases, and rare words of LibriSpeech (the lists
of Le et al., 2021) up to 1,000 and 10,000 phrases. Every setting is the default, chosen on synthetic speech of another
domain. Run it without arguments: `python benchmarks/barista.py`; three passes take about ten minutes of a quiet core.
Sizes may be named: `python benchmarks/barista.py 77 1000`.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from figures import Figure, emit, pin_threads

pin_threads(1)

import pyarrow as pa  # noqa: E402  (the threads are pinned first)

from ctxasr_ray.corpora import nemo  # noqa: E402
from ctxasr_ray.first_pass.pocketsphinx_keywords import PocketSphinxKeywordsConfig  # noqa: E402
from ctxasr_ray.keywords.catalogue import Catalogue, catalogue, load  # noqa: E402
from ctxasr_ray.metrics.keywords import KeywordCounter  # noqa: E402
from ctxasr_ray.nbest import read_nbest  # noqa: E402
from ctxasr_ray.stage import Costs  # noqa: E402

REAL = Path(os.environ.get("CTXASR_REAL", Path(__file__).parents[2] / "shared" / "real"))
GOALS = {77: (">= 0.80", ">= 0.90"), 1_000: (">= 0.70", ">= 0.80"), 10_000: (">= 0.58", ">= 0.66")}
PROGRESS_EVERY = 10


def diluted(own: Catalogue, rare: Catalogue, size: int) -> list[str]:
    """The catalogue's phrases and the first rare words of the one seeded order, up to a size."""
    others = (phrase for phrase, normal in zip(rare.phrases, rare.normalised, strict=True) if normal not in own.ids)
    return [*own.phrases, *(phrase for phrase, _ in zip(others, range(size - len(own)), strict=False))]


def decoded(utterances: pa.Table, path: Path) -> tuple[list[str], Costs, float]:
    """The 1-best of every utterance, the counters, and seconds of this process per second of audio."""
    config = PocketSphinxKeywordsConfig(catalogue=str(path), num_hypotheses=1)
    stage, costs, texts = config.build(), Costs(), []
    table = utterances.select(["utterance_id", *config.READS["utterances"]])
    start = time.process_time()
    for row in range(0, table.num_rows, PROGRESS_EVERY):
        lists = read_nbest(stage(table.slice(row, PROGRESS_EVERY), costs=costs))
        texts += [nbest.hypotheses[0].text if nbest.hypotheses else "" for nbest in lists]
        print(f"{path.stem}: {len(texts)} of {table.num_rows} utterances", file=sys.stderr, flush=True)
    return texts, costs, (time.process_time() - start) / (costs.counters["audio_ms"] / 1000)


def figures_of(utterances: pa.Table, own: Catalogue, rare: Catalogue, size: int, folder: Path) -> list[Figure]:
    """Recall, precision and speed at one size of the catalogue."""
    path = folder / f"{size}_phrases.txt"
    path.write_text("\n".join(diluted(own, rare, size)) + "\n", encoding="utf-8")
    texts, costs, real_time_factor = decoded(utterances, path)
    counter = KeywordCounter(load(str(path)), "whisper_english")
    rows = zip(texts, utterances.column("keywords").to_pylist(), strict=True)
    counts = [counter.count(text, None, keywords) for text, keywords in rows]
    hits, missed, extra, alarms = (
        sum(getattr(one, part).total() for one in counts)
        for part in ("true_positives", "false_negatives", "false_positives", "false_alarms")
    )
    told = {"true_positives": hits, "false_negatives": missed, "false_positives": extra, "false_alarms": alarms}
    told |= {name: amount for name, amount in costs.counters.items() if name.startswith("phrases_")}
    recall_goal, precision_goal = GOALS.get(size, (None, None))
    recall, precision = hits / max(1, hits + missed), hits / max(1, hits + extra)
    return [
        Figure(name=f"barista_keyword_recall_{size}", value=recall, goal=recall_goal, unit="fraction", counters=told),
        Figure(name=f"barista_keyword_precision_{size}", value=precision, goal=precision_goal, unit="fraction"),
        Figure(name=f"barista_real_time_factor_{size}", value=real_time_factor, unit="s per s"),
    ]


def main() -> None:
    """Measures every size."""
    if not (REAL / "barista").is_dir():
        sys.exit(f"real speech is missing: {REAL / 'barista'} (set CTXASR_REAL to the folder that holds it)")
    utterances = nemo.read(REAL / "barista" / "manifest.jsonl")
    own = load(str(REAL / "barista" / "keywords.txt"))
    rare = catalogue((REAL / "is21" / "words" / "all_rare_words.txt").read_text(encoding="utf-8").splitlines())
    sizes = [int(size) for size in sys.argv[1:]] or list(GOALS)
    with tempfile.TemporaryDirectory(prefix="ctxasr-barista-") as folder:
        emit([figure for size in sizes for figure in figures_of(utterances, own, rare, size, Path(folder))])


if __name__ == "__main__":
    main()
