"""Phrase lists of a run -> findings: entries that can never match, and entries that may not do what is meant."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ctxasr_ray.keywords.catalogue import UNWRITABLE, CatalogueOptions
from ctxasr_ray.report.findings import Finding

NEVER_MATCHES: Final = ("no_phrases", "lost_in_normalising")
"""Findings of a catalogue that take phrases out of the run; blank lines and duplicates lose nothing."""
QUIET: Final = ("blank", "duplicate", "near_duplicate", "one_character", "common_word")
"""Findings that any long list has; CONTEXT's receipts count them."""
_LOST: Final = "They are left out; mend the list or choose a normaliser that keeps them."
_NEMO: Final = "They are searched as they stand. If underscores join spellings, declare --catalogue-format nemo."
_ODD: Final = "They are searched as they stand; keywords/catalogue.py says what each kind means."


def odd_phrases(configs: Iterable[object]) -> list[Finding]:
    """What is odd about the catalogues that some stages take, each list once.

    Args:
        configs: Of the stages of a run; those without a catalogue say nothing.
    """
    found = []
    options = [config for config in configs if isinstance(config, CatalogueOptions)]
    for own in {(config.catalogue, config.normaliser): config for config in options}.values():
        phrases = own.phrases()
        for finding in () if phrases is None else phrases.findings:
            if finding.kind in QUIET:
                continue
            lost = finding.kind in NEVER_MATCHES
            shown = ", ".join(repr(example[:40]) for example in finding.examples)
            found.append(
                Finding(
                    severity="warning" if lost else "note",
                    name="odd_phrases",
                    what="Phrases of the list can never match" if lost else "Phrases of the list look odd",
                    where=f"{own.catalogue}: {shown}{', ...' if finding.count > len(finding.examples) else ''}",
                    got=f"{finding.count:,} {finding.kind}",
                    expected="none",
                    remedy=_LOST if lost else _NEMO if finding.kind == "looks_like_nemo" else _ODD,
                )
            )
    return found


def unwritable_phrases(costs: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What of their phrases the recognisers of a run cannot write; once for steps that lack the same phrases.

    Args:
        costs: As `store.Store.costs` gives them, with what each receipt has `named`.
    """
    by_step: dict[str, Mapping[str, Any]] = {}
    for receipt in costs:
        named = receipt.get("named", {}).get(UNWRITABLE)
        if named and named["count"] > by_step.get(receipt["step"], {"count": 0})["count"]:
            by_step[receipt["step"]] = named
    steps: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for step, named in by_step.items():
        steps.setdefault((named["count"], tuple(named["examples"])), []).append(f"'{step}'")
    return [
        Finding(
            severity="warning",
            name=UNWRITABLE,
            what="Phrases that the recogniser cannot write can never match",
            where=f"{'step' if len(which) == 1 else 'steps'} {', '.join(which)}: "
            f"{', '.join(repr(phrase[:40]) for phrase in examples)}{', ...' if count > len(examples) else ''}",
            got=f"{count:,} {'phrase' if count == 1 else 'phrases'} in one shard",
            expected="none",
            remedy="They take no part in this search. Write them in the recogniser's letters, or take a recogniser "
            "of their language.",
        )
        for (count, examples), which in steps.items()
    ]
