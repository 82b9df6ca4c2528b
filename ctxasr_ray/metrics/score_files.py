"""Reference and hypothesis files -> RESULTS: the same counting, intervals and signatures as in a run."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray.metrics.counts import errors_table
from ctxasr_ray.metrics.error_rate import count_metrics
from ctxasr_ray.metrics.spoken import Spoken
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.metrics.transcript_files import read_hypotheses, read_references
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.schema import RESULTS, UTTERANCES, conform
from ctxasr_ray.stage import Costs

BIASED: Final = ("biased_wer", "unbiased_wer")
NO_LISTS: Final = WordLists(common_words=None)
log = logging.getLogger("ctxasr_ray")
_SHOWN: Final = 5
"""Ids of one side only that are named; all are counted."""
_LENGTHS: Final = (0, 1, 6, 11, 21, 41)
"""Least number of words of each length group."""


def score_files(
    references: str | Path,
    hypotheses: Sequence[str | Path],
    *,
    form: str = "tsv",
    normaliser: str = "none",
    alignment: str = "unit",
    metrics: Sequence[str] = ("wer", "cer"),
    baseline: str | None = None,
    group_by: str | None = None,
    word_lists: WordLists = NO_LISTS,
    num_replicates: int = 10_000,
    seed: int = 7,
) -> pa.Table:
    """Scores any number of systems on one reference file, all of them against one baseline.

    Utterances are joined by id. One that a system leaves out is all deletions and counted in `missing_utterances`;
    one that the references do not have is counted in `extra_utterances` and changes nothing else.

    Args:
        references: Local path or URL.
        hypotheses: One file per system, `path` or `name=path`; without a name a system is called like its file.
        form: One of `transcript_files.FORMATS`.
        normaliser: One of `text.NORMALISERS`; files are scored as they are unless one is asked for.
        alignment: One of `align.ALIGNMENTS`.
        metrics: Some of `counts.METRICS`; biased_wer and unbiased_wer come by themselves where the references have
            keywords.
        baseline: System that the others are compared with; by default the first.
        group_by: speaker_id, session_id, length (words of the raw reference) or an attribute of the references:
            rows for every group follow those for all, told apart by `condition`.
        word_lists: Common and rare words; by default no word is common, because published references give the rare
            words themselves.
        num_replicates: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        RESULTS; the corpus is called like the reference file.

    Raises:
        ValueError: an unknown option, two systems of one name, or a file that cannot be taken as it is.
        ContractError: the files share not one id.
    """
    spoken = read_references(references, form)
    systems = _named(hypotheses)
    if baseline is not None and baseline not in systems:
        raise ValueError(f"baseline '{baseline}' is not among the systems {list(systems)}.")
    texts = {name: _heard(name, path, form, spoken, references) for name, path in systems.items()}
    utterances = _utterances(spoken, Path(references).stem)
    errors = [_errors(spoken, found, metrics, normaliser, alignment, word_lists) for found in texts.values()]
    config = SummaryConfig(
        systems=tuple(systems),
        baseline=baseline or next(iter(systems)),
        splits=("test",),
        word_lists=word_lists,
        num_replicates=num_replicates,
        seed=seed,
    )
    whole = config.build()(utterances, *errors, costs=Costs())
    if group_by is None:
        return whole
    return pa.concat_tables([whole, _by_group(group_by, _groups(spoken, group_by), config, utterances, errors)])


def json_rows(results: pa.Table) -> list[dict[str, Any]]:
    """RESULTS as flat rows: `metric`, `value` (a fraction), `reference_length`, `substitutions`... in one object."""
    rows = []
    for row in results.to_pylist():
        counts = dict(row.pop("counts"))
        rows.append(
            {"system": row.pop("system"), "metric": row.pop("metric"), "value": row.pop("value")} | counts | row
        )
        rows[-1]["condition"] = dict(row["condition"])
    return rows


def _heard(system: str, path: str, form: str, spoken: Sequence[Spoken], references: str | Path) -> Mapping[str, str]:
    """The texts of a system by id; ids of one side only are named."""
    found = read_hypotheses(path, form, spoken)
    if found.keys().isdisjoint(s.utterance_id for s in spoken):
        raise ValueError(
            f"{path}: shares no utterance id with {references}; for example '{next(iter(found), '')}' there and "
            f"'{spoken[0].utterance_id}' here. Give files of one corpus."
        )
    _speak_up(system, {s.utterance_id: None for s in spoken}, found)
    return found


def _by_group(
    group_by: str, groups: Sequence[str], config: SummaryConfig, utterances: pa.Table, errors: Sequence[pa.Table]
) -> pa.Table:
    """RESULTS of each group, which stands in `condition`."""
    corpus = utterances.column("corpus")[0].as_py()
    ordered = utterances.take(pa.array(sorted(range(len(groups)), key=lambda row: _order(groups[row]))))
    by_group = ordered.set_column(
        ordered.schema.get_field_index("corpus"), UTTERANCES.field("corpus"), pa.array(sorted(groups, key=_order))
    )
    with warnings.catch_warnings():
        # A group has few speakers by nature; the signatures say what was resampled, and the whole has warned.
        warnings.filterwarnings("ignore", message="fewer than")
        rows = config.build()(by_group, *errors, costs=Costs()).to_pylist()
    for row in rows:
        row["condition"], row["corpus"] = [(group_by, row["corpus"])], corpus
    return pa.Table.from_pylist(rows, schema=RESULTS)


def _speak_up(system: str, expected: Mapping[str, object], found: Mapping[str, str]) -> None:
    """Names ids of one side only on standard error."""
    missing = [f"'{name}'" for name in expected if name not in found]
    extra = [f"'{name}'" for name in found if name not in expected]
    for ids, said in ((missing, "it leaves out, charged as all deleted"), (extra, "without a reference, not counted")):
        if ids:
            shown = ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
            log.warning("system '%s': %s utterances %s: %s", system, f"{len(ids):,}", said, shown)


def _named(hypotheses: Sequence[str | Path]) -> dict[str, str]:
    if not hypotheses:
        raise ValueError("no hypothesis file is given; expected at least one, as path or name=path.")
    systems: dict[str, str] = {}
    for given in map(str, hypotheses):
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = Path(given).name.removesuffix(Path(given).suffix), given
        if name in systems:
            raise ValueError(f"system '{name}' is {systems[name]} and {path}; give one of them a name, as name=path.")
        systems[name] = path
    return systems


def _utterances(spoken: Sequence[Spoken], corpus: str) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "utterance_id": [s.utterance_id for s in spoken],
        "corpus": [corpus] * len(spoken),
        "split": ["test"] * len(spoken),
        "speaker_id": [s.speaker_id for s in spoken],
        "session_id": [s.session_id for s in spoken],
        "audio_uri": [""] * len(spoken),
        "start_s": [0.0] * len(spoken),
        "reference": [s.text for s in spoken],
        "keywords": [s.keywords for s in spoken],
    }
    arrays = {name: pa.array(values, UTTERANCES.field(name).type) for name, values in columns.items()}
    return conform(pa.table(arrays), "utterances")


def _errors(
    spoken: Sequence[Spoken],
    texts: Mapping[str, str],
    metrics: Sequence[str],
    normaliser: str,
    alignment: str,
    word_lists: WordLists,
) -> pa.Table:
    """ERRORS of the utterances that the system has, then its own extra ones, which no reference counts."""
    present = [s for s in spoken if s.utterance_id in texts]
    known = {s.utterance_id for s in present}
    extra = [utterance_id for utterance_id in texts if utterance_id not in known]
    references = [s.text for s in present] + [None] * len(extra)
    ids = [s.utterance_id for s in present] + extra
    heard = [texts[utterance_id] for utterance_id in ids]
    keywords = [s.keywords for s in present] + [None] * len(extra)
    names = [*metrics, *(m for m in BIASED if m not in metrics and any(s.keywords is not None for s in spoken))]
    classes = word_lists.load(normaliser)
    found = count_metrics(
        names, references, heard, keywords, normaliser=normaliser, alignment=alignment, classes=classes
    )
    return errors_table(ids, found)


def _groups(spoken: Sequence[Spoken], group_by: str) -> list[str]:
    """The group of each utterance; `unknown` where nothing is known."""
    groups = []
    for one in spoken:
        if group_by == "length":
            bucket = int(np.searchsorted(_LENGTHS, len((one.text or "").split()), side="right")) - 1
            upper = f"-{_LENGTHS[bucket + 1] - 1}" if bucket + 1 < len(_LENGTHS) else "+"
            value: str | None = f"{_LENGTHS[bucket]}{upper}"
        elif group_by in ("speaker_id", "session_id"):
            value = getattr(one, group_by)
        else:
            value = one.attributes.get(group_by)
        groups.append(value or "unknown")
    if set(groups) == {"unknown"}:
        known = sorted({name for one in spoken for name in one.attributes})
        raise ValueError(
            f"group_by '{group_by}': no reference has it; there are speaker_id, session_id, length, {known}."
        )
    return groups


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by size, before words by alphabet."""
    try:
        return False, float(value.split("-")[0].rstrip("+")), value
    except ValueError:
        return True, 0.0, value
