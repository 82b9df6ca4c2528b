"""What a copy head makes of a kind of name that it has never met: heads trained with and without drugs.

    ctxasr train copy_head --task.without-kinds drug --directory runs/train/copy_head_without_drugs
    python benchmarks/study_copy_kinds.py

The same steps and speech, less the utterances in which a drug is spoken; no drug is ever listed. Both are asked in the
same search, on the same lists, as is the head that needs no training. Tables lie in `runs/studies`; the page is
`results/copy_head_kinds.md`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from figures import Figure, emit, pin_threads

pin_threads(1)

from finished_runs import RESULTS, Finished, KeywordsFound, figures_of  # noqa: E402  (the threads are pinned first)

from ctxasr_ray.recipes import studies  # noqa: E402

SYSTEMS: Final = {
    "first_pass/joint": "no list",
    "phrase_copy/list_100": "head without training",
    "phrase_copy/list_100_trained": "trained head",
    "phrase_copy/list_100_trained_without_drugs": "trained without drugs",
}
METRICS: Final = ("wer", "biased_wer", "unbiased_wer", "keyword_f1", "keyword_recall", "distractor_false_alarms")
PAGE: Final = RESULTS / "copy_head_kinds.md"
HEADER: Final = """# A kind of name that the copy head has never met

Two copy heads of one recipe, the second trained on the same speech less the utterances with a drug in them and never
shown a drug in a list (`ctxasr train copy_head --task.without-kinds drug`); joint CTC-attention search of the showcase,
lists of each utterance's own phrases and 100 others, test, 300 utterances. Made by `python
benchmarks/study_copy_kinds.py`. Recall / F1 in % by kind of phrase:
"""


def page(found: dict[str, dict[str, KeywordsFound]]) -> str:
    """The table, a row per system."""
    kinds = sorted({kind for one in found.values() for kind in one})
    spoken = {kind: max(one[kind].right + one[kind].missed for one in found.values() if kind in one) for kind in kinds}
    lines = [
        "| | " + " | ".join(f"{kind} ({spoken[kind]} spoken)" for kind in kinds) + " |",
        "|---|" + "---:|" * len(kinds),
    ]
    for system, title in SYSTEMS.items():
        own = [found[system].get(kind, KeywordsFound()) for kind in kinds]
        lines.append(f"| {title} | " + " | ".join(f"{100 * k.recall:.1f} / {100 * k.f1:.1f}" for k in own) + " |")
    return HEADER + "\n" + "\n".join(lines) + "\n"


def figures(run: Finished, found: dict[str, dict[str, KeywordsFound]]) -> Iterator[Figure]:
    """Every system's metrics, and its recall and F1 by kind."""
    for system in SYSTEMS:
        prefix = "copy_kinds_" + system.replace("/", "_")
        yield from figures_of(run, prefix, system, METRICS)
        for kind, own in found[system].items():
            told: dict[str, int | float | str] = {"right": own.right, "wrong": own.wrong, "missed": own.missed}
            yield Figure(name=f"{prefix}_keyword_recall_{kind}", value=own.recall, unit="fraction", counters=told)
            yield Figure(name=f"{prefix}_keyword_f1_{kind}", value=own.f1, unit="fraction")


def main() -> None:
    """Runs the study, writes the page and prints the figures."""
    head = Path(studies.HEAD_WITHOUT_DRUGS)
    if not head.is_dir():
        raise SystemExit(
            f"no copy head at {head}; run `ctxasr train copy_head --task.without-kinds drug --directory {head.parent}`."
        )
    run = Finished("study_copy_kinds", studies.study_copy_kinds())
    found = {system: run.by_type(system) for system in SYSTEMS}
    PAGE.write_text(page(found), "utf-8")
    emit(list(figures(run, found)))


if __name__ == "__main__":
    main()
