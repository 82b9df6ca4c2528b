"""Phrase lists of a run -> findings: entries that can never match, and entries that may not do what is meant."""

from collections.abc import Iterable
from typing import Final

from ctxasr_ray.keywords.catalogue import CatalogueOptions
from ctxasr_ray.report.findings import Finding

NEVER_MATCHES: Final = ("no_phrases", "lost_in_normalising")
"""Findings of a catalogue that take phrases out of the run; blank lines and duplicates lose nothing."""
QUIET: Final = ("blank", "duplicate", "near_duplicate", "one_character", "common_word")
"""Findings that any long list has; CONTEXT's receipts count them."""


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
                    remedy="They are left out; mend the list or choose a normaliser that keeps them."
                    if lost
                    else "They are searched as they stand; keywords/catalogue.py says what each kind means.",
                )
            )
    return found
