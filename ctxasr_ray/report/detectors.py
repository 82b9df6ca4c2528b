"""Tables of a run -> findings: faults that leave every number standing and make it mean something else.

Each detector is a plain function from tables to findings. `write_report` asks those whose tables it has, prints what
they find, and shows it on the page; a notebook may ask them one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.nbest import flatten, score_matrix
from ctxasr_ray.report.comparison import Comparison
from ctxasr_ray.report.findings import EXAMPLES, Finding, failed
from ctxasr_ray.report.lost_words import MOST_WORDS, LostWord, changed_words
from ctxasr_ray.report.overview import by_number, by_setting
from ctxasr_ray.report.tables import Line, Record, interval, number
from ctxasr_ray.schema import ContractError

_SAME: Final = 1e-9
"""Relative difference below which two sources count as one."""


def find(
    *,
    records: Sequence[Record],
    lines: Sequence[Line],
    utterances: pa.Table,
    transcripts: Mapping[str, pa.Table],
    normaliser: str,
    comparison: Comparison,
    hypotheses: pa.Table | None = None,
    contexts: Mapping[str, pa.Table] | None = None,
    fusions: Mapping[str, tuple[pa.Table, Sequence[pa.Table]]] | None = None,
) -> list[Finding]:
    """What all detectors find in the tables that are given; errors first.

    Args:
        records: RESULTS rows.
        lines: The same as lines.
        utterances: UTTERANCES that the systems were run on.
        transcripts: System -> TRANSCRIPTS.
        normaliser: Of the error rates.
        comparison: The words of these transcripts.
        hypotheses: HYPOTHESES of the first pass.
        contexts: System -> the CONTEXT that it was given.
        fusions: System -> the HYPOTHESES that it chooses from and the SCORES that it adds up.
    """
    contexts = contexts or {}
    baselines = {record["system"]: record["baseline"] for record in records if record["baseline"]}
    found = [
        *emptied_references(utterances, normaliser),
        *left_out(utterances, transcripts),
        *failed(transcripts),
        *sweep_without_effect(lines),
        *rare_better_overall_worse(lines, comparison),
        *never_matching(utterances, contexts, transcripts, hypotheses, normaliser),
    ]
    for system, context in contexts.items():
        baseline = baselines.get(system, "first_pass")
        if system in transcripts and baseline in transcripts and baseline != system:
            found += list_without_effect(system, context, transcripts[system], baseline, transcripts[baseline])
    for system, (lists, scores) in (fusions or {}).items():
        found += counted_twice(system, lists, scores)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - EXAMPLES:,} more" if len(names) > EXAMPLES else ""
    return ", ".join(f"'{name}'" for name in names[:EXAMPLES]) + rest


# -- references and rows


def emptied_references(utterances: pa.Table, normaliser: str) -> Iterator[Finding]:
    """Finds references that say something and normalise to nothing: every word heard there is an insertion."""
    known = [r for r in utterances.select(["utterance_id", "reference"]).to_pylist() if (r["reference"] or "").strip()]
    units = text.units([row["reference"] for row in known], normaliser, "word")
    emptied = [row["utterance_id"] for row, words in zip(known, units, strict=True) if not words.strip()]
    if emptied:
        share = len(emptied) / len(known)
        yield Finding(
            severity="error" if share > 0.01 else "warning",
            name="emptied_references",
            what="References normalise to nothing",
            where=f"normaliser {text.versioned(normaliser)}, utterances {_some(emptied)}",
            got=f"{len(emptied):,} of {len(known):,} references without a word left",
            expected="none, unless they hold only noises",
            remedy="Choose a normaliser of the corpus' language (basic keeps every script), or take these rows out.",
        )


def left_out(utterances: pa.Table, transcripts: Mapping[str, pa.Table]) -> Iterator[Finding]:
    """Finds systems whose transcripts lack utterances, or have utterances that the corpus does not know."""
    wanted = dict.fromkeys(utterances["utterance_id"].to_pylist())
    for system, table in transcripts.items():
        got = dict.fromkeys(table["utterance_id"].to_pylist())
        missing, extra = [i for i in wanted if i not in got], [i for i in got if i not in wanted]
        if missing:
            yield Finding(
                severity="error",
                name="left_out",
                what="A system leaves utterances out",
                where=f"system '{system}', utterances {_some(missing)}",
                got=f"{len(wanted) - len(missing):,} transcripts",
                expected=f"{len(wanted):,}",
                remedy="They are charged as all deleted. Run the system on them, or compare on a common corpus.",
            )
        if extra:
            yield Finding(
                severity="warning",
                name="left_out",
                what="A system has transcripts of unknown utterances",
                where=f"system '{system}', utterances {_some(extra)}",
                got=f"{len(extra):,} further transcripts",
                expected="only utterances of the corpus",
                remedy="They are counted nowhere. Check that ids are spelled alike and the lists are of this corpus.",
            )


# -- settings


def sweep_without_effect(lines: Sequence[Line]) -> Iterator[Finding]:
    """Finds settings whose values all give exactly the same numbers: the setting is not read, or does nothing."""
    groups: dict[tuple[str, str, str, str], dict[str, Line]] = {}
    for key, placed in by_setting(lines).items():
        for each in placed:
            groups.setdefault((key, each.line.corpus, each.line.split, each.name), {})[each.level] = each.line
    for (key, corpus, split, label), found in groups.items():
        same = len({_numbers(row) for row in found.values()}) == 1
        sizes = {record["num_utterances"] for row in found.values() for record in row.metrics.values()}
        if len(found) > 1 and same and len(sizes) == 1:
            levels = sorted(found, key=by_number)
            yield Finding(
                severity="warning",
                name="sweep_without_effect",
                what=f"The setting '{key}' has no effect",
                where=f"{corpus}, {split}, {label}",
                got=f"the same value in every metric for {', '.join(levels)}",
                expected="a difference in at least one utterance",
                remedy=f"Check that '{key}' reaches the stage: its tables should have as many stage hashes as values.",
            )


def _numbers(row: Line) -> tuple[Any, ...]:
    """Everything but what is measured by the clock."""
    found = ((metric, record["value"], str(record.get("counts"))) for metric, record in sorted(row.metrics.items()))
    return tuple(each for each in found if each[0] != "real_time_factor")


def rare_better_overall_worse(lines: Sequence[Line], comparison: Comparison) -> Iterator[Finding]:
    """Finds systems that win rare or biased words and lose words overall, and names the words that pay."""
    for row in lines:
        overall = row.metrics.get("wer")
        if overall is None or (overall["delta"] or 0.0) <= 0:
            continue
        for metric in ("rare_wer", "biased_wer"):
            record = row.metrics.get(metric)
            if record is not None and (record["delta"] or 0.0) < 0:
                sure = (overall["delta_ci_low"] or 0.0) > 0
                words, told = _payers(row, str(overall["baseline"]), comparison)
                yield Finding(
                    severity="warning" if sure else "note",
                    name="rare_better_overall_worse",
                    what=f"{metric} falls while wer rises",
                    where=f"{row.corpus}, {row.split}, {row.label}, against {overall['baseline']}",
                    got=f"{metric} {number(metric, record['delta'], signed=True)} points, "
                    f"wer {number('wer', overall['delta'], signed=True)} "
                    + interval("wer", overall["delta_ci_low"], overall["delta_ci_high"], signed=True)
                    + told,
                    expected="both lower",
                    remedy="Common words pay for rare ones: lower the boost, or tune on a mixture of both rates.",
                    words=tuple(words[:MOST_WORDS]),
                )


def _payers(row: Line, baseline: str, comparison: Comparison) -> tuple[list[LostWord], str]:
    """The words with more errors than before, and what they pay and others win in all; none of unknown utterances."""
    utterances = comparison.utterances
    chosen = [i for i, each in enumerate(utterances) if (each["corpus"], each["split"]) == (row.corpus, row.split)]
    if not chosen or not {row.system, baseline} <= set(comparison.systems):
        return [], ""
    changed = changed_words(comparison, baseline, row.system, chosen)
    paying, winning = ([w for w in changed if sign * w.more_errors > 0] for sign in (1, -1))
    paid, won = (sum(abs(word.more_errors) for word in words) for words in (paying, winning))
    most = ", ".join(f"'{word.word}' {word.more_errors:+,}" for word in paying[:EXAMPLES])
    return (
        paying,
        f"; words that pay: {len(paying):,}, {paid:,} errors more ({most}); that win: {len(winning):,}, {won:,} fewer",
    )


# -- phrase lists


def list_without_effect(
    system: str, context: pa.Table, transcripts: pa.Table, baseline: str, baseline_transcripts: pa.Table
) -> Iterator[Finding]:
    """Finds a system that was given phrases and writes word for word what its baseline writes.

    Args:
        system: Name of the system with the list.
        context: The CONTEXT that it was given.
        transcripts: Its TRANSCRIPTS.
        baseline: Name of the system without the list.
        baseline_transcripts: TRANSCRIPTS of that one.
    """
    rows = context.select(["phrases", "catalogue"]).to_pylist()
    num_with = sum(bool(row["phrases"]) or row["catalogue"] is not None for row in rows)
    own, other = (
        dict(zip(table["utterance_id"].to_pylist(), table["text"].to_pylist(), strict=True))
        for table in (transcripts, baseline_transcripts)
    )
    shared = own.keys() & other.keys()
    if num_with and shared and all(own[id_] == other[id_] for id_ in shared):
        yield Finding(
            severity="error",
            name="list_without_effect",
            what="A phrase list has no effect at all",
            where=f"system '{system}' against '{baseline}'",
            got=f"{len(shared):,} equal transcripts, though {num_with:,} utterances have phrases",
            expected="at least one changed transcript",
            remedy="Check that the list reaches the search, its weight is above 0, and its spelling is the model's.",
        )


def never_matching(
    utterances: pa.Table,
    contexts: Mapping[str, pa.Table],
    transcripts: Mapping[str, pa.Table],
    hypotheses: pa.Table | None,
    normaliser: str,
) -> Iterator[Finding]:
    """Finds phrases that cannot match: those that normalise to nothing, and spoken ones that nobody ever writes."""
    listed = {phrase for table in contexts.values() for row in table["phrases"].to_pylist() for phrase in row or ()}
    spoken = {phrase for row in utterances["keywords"].to_pylist() for phrase in row or ()}
    phrases = sorted(listed | spoken)
    normal = dict(zip(phrases, text.units(phrases, normaliser, "word"), strict=True))
    empty = [phrase for phrase in phrases if not normal[phrase].strip()]
    if empty:
        yield Finding(
            severity="error",
            name="never_matching",
            what="Phrases normalise to nothing and can never match",
            where=f"normaliser {text.versioned(normaliser)}, phrases {_some(empty)}",
            got=f"{len(empty):,} of {len(phrases):,} phrases without a word left",
            expected="none",
            remedy="Take them out of the list, or choose a normaliser that keeps their script.",
        )
    if not spoken or not transcripts:
        return
    # basic is ninety times faster than whisper_english, and N-best lists are long; it does not part ideographs.
    fast = normaliser if normaliser == "mandarin" else "basic"
    plain = dict(zip(sorted(spoken), text.units(sorted(spoken), fast, "word"), strict=True))
    checked = [phrase for phrase, words in plain.items() if words.strip()]
    written = _written(transcripts, hypotheses, fast)
    absent = [phrase for phrase in checked if f" {plain[phrase]} " not in written]
    if absent:
        yield Finding(
            severity="warning" if contexts and 2 * len(absent) > len(checked) else "note",
            name="never_matching",
            what="Spoken phrases that no system and no N-best list ever holds",
            where=f"phrases {_some(absent)}",
            got=f"{len(absent):,} of {len(checked):,} spoken phrases never written",
            expected="fewer, where a list is meant to help",
            remedy="Rescoring cannot choose what is in no list: widen the beam, or add keyword candidates.",
        )


def _written(transcripts: Mapping[str, pa.Table], hypotheses: pa.Table | None, normaliser: str) -> str:
    """Every distinct text that is written anywhere, normalised, one per line between spaces."""
    texts = {each for table in transcripts.values() for each in table["text"].to_pylist()}
    if hypotheses is not None:
        texts |= set(flatten(hypotheses).texts)
    units = text.units(sorted(texts), normaliser, "word")
    return "\n".join(f" {each} " for each in units)


# -- scores


def counted_twice(system: str, hypotheses: pa.Table, scores: Sequence[pa.Table]) -> Iterator[Finding]:
    """Finds a score that enters a fusion twice: under one name, or under two names with the same numbers.

    Args:
        system: Name of the fused system.
        hypotheses: HYPOTHESES that it chooses from.
        scores: SCORES on these hypotheses.
    """
    try:
        matrix = score_matrix(hypotheses, scores)
    except ContractError as error:
        if "added twice" not in str(error):
            raise
        yield _twice(system, "one source in two places", str(error))
        return
    known_HK = np.isfinite(matrix.values)
    for first, name in enumerate(matrix.sources):
        for second in range(first + 1, len(matrix.sources)):
            both = known_HK[:, first] & known_HK[:, second]
            a, b = matrix.values[both, first], matrix.values[both, second]
            if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
                continue
            factor = float(a @ b / (b @ b))
            if np.abs(a - factor * b).max() <= _SAME * np.abs(a).max():
                got = f"{len(a):,} hypotheses whose scores are equal, or differ by the factor {factor:.4g}"
                yield _twice(system, f"'{name}' and '{matrix.sources[second]}'", got)


def _twice(system: str, where: str, got: str) -> Finding:
    return Finding(
        severity="error",
        name="counted_twice",
        what="A score or boost is counted twice",
        where=f"system '{system}', {where}",
        got=got,
        expected="every source once",
        remedy="Leave one of them out: its weight is the sum of both, and its interval means nothing.",
    )
