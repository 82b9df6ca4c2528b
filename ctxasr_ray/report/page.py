"""RESULTS, COSTS, transcripts -> a report folder: one self-contained HTML page, results.json, markdown, figures.

Everything that comes from outside (transcripts, ids, names) is escaped by jinja2, escaped as JSON inside its script
element, or set as text by the page's script; a content security policy admits that one script only.
"""

import base64
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray.report import cells as cell
from ctxasr_ray.report import figures
from ctxasr_ray.report import fits as fitted
from ctxasr_ray.report.changes import Changes, most_changed
from ctxasr_ray.report.comparison import compare
from ctxasr_ray.report.costs import StepCost, by_step
from ctxasr_ray.report.drawing import Chart
from ctxasr_ray.report.markdown import results_markdown
from ctxasr_ray.report.slices import slices
from ctxasr_ray.report.tables import headlines, legend, lines, results_records

_HERE: Final = Path(__file__).parent
_MAX_NESTED: Final = 20_000
"""Characters of one unfolded provenance entry: a run of thousands of shards lists them all."""


def write_report(
    directory: Path,
    *,
    title: str,
    results: pa.Table,
    utterances: pa.Table,
    transcripts: Mapping[str, pa.Table],
    hypotheses: pa.Table | None,
    costs: Sequence[Mapping[str, Any]],
    fits: pa.Table | None,
    provenance: Mapping[str, Any],
) -> Path:
    """Writes `index.html`, `results.json`, `results.md` and PNG figures, and returns the path of the page.

    Args:
        directory: Made if missing; files of an earlier report in it are replaced.
        title: Heading of the page.
        results: RESULTS of the run.
        utterances: UTTERANCES of the splits that the page compares.
        transcripts: System name -> TRANSCRIPTS over those utterances; at best in the order of RESULTS.
        hypotheses: First-pass HYPOTHESES, shown beside changed utterances; None leaves them out.
        costs: One mapping per step and shard, as `costs.by_step` takes them.
        fits: FITS of the run, None where nothing was fitted.
        provenance: JSON values; plain ones are listed, nested ones can be unfolded.

    Returns:
        `directory/index.html`, which opens without a network.

    Raises:
        ContractError: `results` breaks its schema.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    records = results_records(results)
    rows = lines(records)
    steps = by_step(costs)
    values = fitted.fitted_values(fits)
    normaliser, alignment = way_of(records)
    compared = compare(utterances, transcripts, normaliser=normaliser, alignment=alignment)
    drawn = [
        figures.error_rates(rows),
        figures.error_kinds(rows),
        *slices(compared),
        figures.seconds_by_step(steps),
        figures.error_against_cost(rows),
        fitted.fitted_chart(values, _sizes(utterances)),
        *figures.sweeps(rows),
    ]
    charts = [chart for chart in drawn if chart is not None]
    changes = most_changed(compared, directory=directory, hypotheses=hypotheses)
    _write(directory / "results.json", json.dumps(records, ensure_ascii=False, indent=1) + "\n")
    _write(directory / "results.md", results_markdown(results, title=title, costs=steps))
    for chart in charts:
        chart.png(directory)
    page = _render(title, records, charts, steps, utterances, values, changes, provenance)
    _write(directory / "index.html", page)
    return directory / "index.html"


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
    charts: Sequence[Chart],
    steps: Sequence[StepCost],
    utterances: pa.Table,
    values: Sequence[fitted.FittedValue],
    changes: Changes,
    provenance: Mapping[str, Any],
) -> str:
    import jinja2
    from markupsafe import Markup

    script = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    audio_s = audio_seconds(utterances)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    rows = lines(records)
    return environment.get_template("page.html").render(
        title=title,
        headlines=headlines(records),
        facts=_facts(records, utterances, audio_s),
        **cell.results(rows, records),
        legend=legend(rows),
        charts=[
            {"name": chart.name, "title": chart.title, "caption": chart.caption, "svg": Markup(chart.svg())}
            for chart in charts
        ],
        cost_heads=cell.COST_HEADS,
        costs=cell.costs(steps, audio_s),
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
    facts.append(("configurations tried", f"{tried:,}"))
    failed = max((record["num_failed"] for record in records), default=0)
    if failed:
        facts.append(("failed utterances", f"{failed:,}"))
    return facts
