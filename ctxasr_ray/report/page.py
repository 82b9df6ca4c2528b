"""RESULTS, COSTS, transcripts -> a report folder: one self-contained HTML page, results.json, markdown, figures.

Everything that comes from outside (transcripts, ids, names) is escaped by jinja2, escaped as JSON inside its script
element, or set as text by the page's script; a content security policy admits that one script only.
"""

import base64
import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray.report import cells as cell
from ctxasr_ray.report import curves, figures, pareto
from ctxasr_ray.report import fits as fitted
from ctxasr_ray.report.changes import Changes, most_changed
from ctxasr_ray.report.comparison import compare
from ctxasr_ray.report.costs import StepCost, by_step
from ctxasr_ray.report.detectors import find
from ctxasr_ray.report.drawing import Chart
from ctxasr_ray.report.findings import Finding
from ctxasr_ray.report.landscapes import Tuned, weight_landscapes
from ctxasr_ray.report.markdown import results_markdown
from ctxasr_ray.report.overview import condition_tables, corpora_as_settings, overview
from ctxasr_ray.report.slices import slices
from ctxasr_ray.report.tables import Line, headlines, legend, lines, main_lines, results_records

_HERE: Final = Path(__file__).parent
MAX_LANDSCAPES: Final = 4
"""Systems whose weights are drawn; every fit stands in the table."""
_MAX_NESTED: Final = 20_000
"""Characters of one unfolded provenance entry: a run of thousands of shards lists them all."""
log = logging.getLogger("ctxasr_ray")


def write_report(
    directory: Path,
    *,
    title: str,
    results: pa.Table,
    utterances: pa.Table,
    transcripts: Mapping[str, pa.Table],
    hypotheses: pa.Table | None,
    costs: Sequence[Mapping[str, Any]],
    fits: pa.Table | Mapping[str, pa.Table] | None,
    provenance: Mapping[str, Any],
    system_costs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    tuned: Sequence[Tuned] = (),
    contexts: Mapping[str, pa.Table] | None = None,
    findings: Sequence[Finding] = (),
) -> Path:
    """Writes `index.html`, `results.json`, `findings.json`, `results.md` and PNG figures; returns the page's path.

    What the detectors find is also logged, so that it stands on standard error.

    Args:
        directory: Made if missing; files of an earlier report in it are replaced.
        title: Heading of the page.
        results: RESULTS of the run.
        utterances: UTTERANCES of the splits that the page compares.
        transcripts: System name -> TRANSCRIPTS over those utterances; at best in the order of RESULTS.
        hypotheses: First-pass HYPOTHESES, shown beside changed utterances; None leaves them out.
        costs: One mapping per step and shard, as `costs.by_step` takes them.
        fits: FITS of the run, or system -> its FITS; None where nothing was fitted.
        provenance: JSON values; plain ones are listed, nested ones can be unfolded.
        system_costs: System -> receipts of every step that it needs, for accuracy against language-model calls.
        tuned: Per fitted system its fit and the tables behind it, for weight landscapes and for detectors.
        contexts: System -> the CONTEXT that it was given, for detectors.
        findings: Further findings, for example of an audit.

    Returns:
        `directory/index.html`, which opens without a network.

    Raises:
        ContractError: `results` breaks its schema, or tables of `tuned` do not belong together.
        OSError: the directory cannot be written.
    """
    records, steps = results_records(results), by_step(costs)
    rows, values = lines(records), fitted.fitted_values(fits)
    normaliser, alignment = way_of(records)
    compared = compare(utterances, transcripts, normaliser=normaliser, alignment=alignment)
    placed = [*rows, *corpora_as_settings(rows)]
    known = {key for row in placed for key in row.condition}
    by_condition = [
        *placed,
        *(row for row in slices(compared, baseline_of(records)) if not known & row.condition.keys()),
    ]
    charts = _charts(records, by_condition, steps, utterances, values, system_costs or {}, tuned)
    detected = find(
        records=records,
        lines=rows,
        utterances=utterances,
        transcripts=transcripts,
        normaliser=normaliser,
        comparison=compared,
        hypotheses=hypotheses,
        contexts=contexts,
        fusions={each.system: _fusion(next(iter(each.tables.values()))) for each in tuned},
    )
    found = [*findings, *detected]
    changes = most_changed(compared, directory=directory, hypotheses=hypotheses)
    page = _render(title, records, by_condition, charts, steps, utterances, values, changes, provenance, found)
    markdown = results_markdown(results, title=title, costs=steps)
    return _write_folder(directory, records, markdown, charts, found, page)


def _write_folder(
    directory: Path,
    records: Sequence[Mapping[str, Any]],
    markdown: str,
    charts: Sequence[Chart],
    found: Sequence[Finding],
    page: str,
) -> Path:
    """Writes what was made, the page last; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    _speak_up(directory, found)
    _write(directory / "results.json", json.dumps(records, ensure_ascii=False, indent=1) + "\n")
    _write(directory / "results.md", markdown)
    for chart in charts:
        chart.png(directory)
    _write(directory / "index.html", page)
    return directory / "index.html"


def _speak_up(directory: Path, findings: Sequence[Finding]) -> None:
    """Writes findings.json and logs what is more than a note, so that it stands on standard error."""
    for finding in findings:
        log.log(logging.INFO if finding.severity == "note" else logging.WARNING, "%s", finding)
    rows = [asdict(each) for each in findings]
    _write(directory / "findings.json", json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _charts(
    records: Sequence[Mapping[str, Any]],
    rows: Sequence[Line],
    steps: Sequence[StepCost],
    utterances: pa.Table,
    values: Sequence[fitted.FittedValue],
    system_costs: Mapping[str, Sequence[Mapping[str, Any]]],
    tuned: Sequence[Tuned],
) -> list[Chart]:
    """Every figure that has its rows."""
    drawn = [
        figures.error_rates(rows),
        pareto.against_real_time_factor(rows),
        pareto.against_calls(rows, system_costs),
        *curves.by_setting(rows),
        *curves.confident_by_setting(corpora_as_settings(rows)),
        figures.error_kinds(rows),
        curves.reliability(records),
        fitted.fitted_chart(values, _sizes(utterances)),
        *(weight_landscapes(each) for each in tuned[:MAX_LANDSCAPES]),
        figures.seconds_by_step(steps),
    ]
    return [chart for chart in drawn if chart is not None]


def _fusion(tables: Sequence[pa.Table]) -> tuple[pa.Table, list[pa.Table]]:
    """HYPOTHESES and the SCORES among what a fit read."""
    return tables[0], [table for table in tables if "sources" in table.column_names]


def baseline_of(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The system that the others are compared with; None where none is."""
    return next((record["baseline"] for record in records if record["baseline"]), None)


def way_of(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Normaliser and alignment that the signatures name; `whisper_english` and `unit` where none does."""
    signatures = " ".join(record["signature"] for record in records)
    normaliser = re.search(r"\bnorm:([a-z_]+)", signatures)
    alignment = re.search(r"\balign:(unit|nist)\b", signatures)
    return (normaliser.group(1) if normaliser else "whisper_english", alignment.group(1) if alignment else "unit")


def _write(path: Path, content: str) -> None:
    """Replaces the file as a whole: a reader never sees half a page."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def json_for_script(value: Any) -> str:
    """JSON that can stand inside a script element: no `</script>`, no comment opening, no bare line separators."""
    out = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        out = out.replace(mark, f"\\u{ord(mark):04x}")
    return out


def _render(
    title: str,
    records: Sequence[Mapping[str, Any]],
    by_condition: Sequence[Line],
    charts: Sequence[Chart],
    steps: Sequence[StepCost],
    utterances: pa.Table,
    values: Sequence[fitted.FittedValue],
    changes: Changes,
    provenance: Mapping[str, Any],
    findings: Sequence[Finding],
) -> str:
    import jinja2
    from markupsafe import Markup

    script = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    audio_s = audio_seconds(utterances)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = _breakable
    rows = main_lines(lines(records))
    return environment.get_template("page.html").render(
        title=title,
        headlines=headlines(records),
        facts=_facts(records, utterances, audio_s),
        findings=findings,
        splits=list(dict.fromkeys(row.split for row in rows)),
        overview=overview(rows),
        conditions=condition_tables(by_condition),
        **cell.results(rows, records),
        legend=legend(rows),
        charts=[
            {"name": chart.name, "title": chart.title, "caption": chart.caption, "svg": Markup(chart.svg())}
            for chart in charts
        ],
        cost_heads=cell.COST_HEADS,
        costs=cell.costs(steps, audio_s),
        utterance_heads=cell.UTTERANCE_HEADS,
        utterance_costs=cell.utterance_costs(steps),
        audio_s=audio_s,
        fits=cell.fits(values),
        changes=changes,
        changes_json=Markup(json_for_script(changes.as_json())),
        provenance_plain=[(k, _when(k, v)) for k, v in provenance.items() if not isinstance(v, (Mapping, list, tuple))],
        provenance_nested=[
            (k, _cut(json.dumps(v, indent=2, ensure_ascii=False, default=str)))
            for k, v in provenance.items()
            if isinstance(v, (Mapping, list, tuple))
        ],
        signatures=list(dict.fromkeys(record["signature"] for record in records)),
        css=Markup((_HERE / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _breakable(name: str) -> str:
    """A system's name, escaped, that may go on in the next line behind `/` and `_` and nowhere else."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[/_])(?=.)", Markup("<wbr>"), escape(name)))


def _sizes(utterances: pa.Table) -> dict[str, int]:
    return dict(Counter(utterances["split"].to_pylist()))


def _when(name: str, value: Any) -> Any:
    """Seconds since the epoch as a date."""
    if name.endswith("_at") and isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value))
    return value


def _cut(text: str) -> str:
    if len(text) <= _MAX_NESTED:
        return text
    return f"{text[:_MAX_NESTED]}\n... {len(text) - _MAX_NESTED:,} further characters stand in provenance.json"


def audio_seconds(utterances: pa.Table) -> float | None:
    """Seconds of audio in all utterances, None where a duration is missing."""
    durations = utterances["duration_s"]
    return None if durations.null_count or not len(durations) else float(pa.compute.sum(durations).as_py())


def _facts(records: Sequence[Mapping[str, Any]], utterances: pa.Table, audio_s: float | None) -> list[tuple[str, str]]:
    facts = [("corpus", ", ".join(dict.fromkeys(record["corpus"] for record in records)))]
    facts += [(f"utterances, {split}", f"{number:,}") for split, number in _sizes(utterances).items()]
    if audio_s is not None:
        facts.append(("audio", f"{audio_s / 3600:.2f} h" if audio_s >= 600 else f"{audio_s:.0f} s"))
    facts.append(("systems", str(len({record["system"] for record in records}))))
    tried = max((record["num_configurations"] for record in records), default=0)
    if tried > 1:
        facts.append(("configurations tried", f"{tried:,}"))
    failed = max((record["num_failed"] for record in records), default=0)
    if failed:
        facts.append(("failed utterances", f"{failed:,}"))
    return facts
