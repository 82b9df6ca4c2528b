"""Every table of a run as an Arrow schema: the only contract between stages.

A per-utterance table has `utterance_id` first (non-null, unique) and exactly the rows of its shard, in the
shard's order. Text is raw; a `log_prob` is a natural logarithm, higher is better, summed over tokens,
unnormalised, unweighted and from one source only; end of sequence stands apart.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION: Final = 2
"""Raised when a column changes its name, type or meaning; part of every stage hash."""

SPLITS: Final = ("train", "dev", "test")
ORIGINS: Final = ("search", "keyword", "union", "imported")
SCORE_KINDS: Final = ("log_prob", "bonus", "opaque", "search")
DATA_ERRORS: Final = ("audio", "text", "model_limit", "quarantined")
"""Faults of the data: the row stays, with its reason. Faults of the world raise and are retried."""


class ContractError(Exception):
    """A table breaks its schema: says what, where, got, expected and the remedy."""


def _required(name: str, type_: pa.DataType) -> pa.Field:
    return pa.field(name, type_, nullable=False)


_ID = _required("utterance_id", pa.string())
_ERROR = (pa.field("error_type", pa.string()), pa.field("error", pa.string()))
_COUNTS = tuple(
    _required(name, pa.int64()) for name in ("hits", "substitutions", "deletions", "insertions", "reference_length")
)

UTTERANCES: Final = pa.schema(
    [
        _ID,
        _required("corpus", pa.string()),
        _required("split", pa.string()),  # one of SPLITS
        pa.field("speaker_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("recording_id", pa.string()),
        pa.field("window_index", pa.int32()),
        pa.field("channel", pa.int32()),  # null: the only channel; -1: mix down
        _required("audio_uri", pa.string()),  # path, URL or archive.tar#member
        _required("start_s", pa.float64()),
        pa.field("duration_s", pa.float64()),  # null: to the end
        pa.field("reference", pa.string()),  # raw; null: unknown
        pa.field("language", pa.string()),
        pa.field("keywords", pa.list_(pa.string())),  # truly spoken: read by metrics only; null: unknown
        pa.field("attributes", pa.map_(pa.string(), pa.string())),  # SNR, voice, accent, domain
    ]
)

CONTEXT: Final = pa.schema(
    [
        _ID,
        pa.field("catalogue", pa.string()),  # digest of a file committed once
        pa.field("num_distractors", pa.int32()),
        pa.field("phrase_ids", pa.list_(pa.int32())),
        pa.field("phrases", pa.list_(pa.string())),
        pa.field("weights", pa.list_(pa.float32())),
        pa.field("origins", pa.list_(pa.string())),
        pa.field("history", pa.string()),  # 1-best of the session's earlier utterances
    ]
)

SCORE: Final = pa.struct(
    [
        _required("source", pa.string()),
        _required("kind", pa.string()),  # one of SCORE_KINDS
        _required("log_prob", pa.float64()),
    ]
)
HYPOTHESIS: Final = pa.struct(
    [
        _required("text", pa.string()),  # raw; an empty hypothesis is "", never null
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("token_log_probs", pa.list_(pa.float32())),  # the recogniser's own, temperature 1, nats
        pa.field("token_entropies", pa.list_(pa.float32())),  # nats, over the full vocabulary
        pa.field("token_start_s", pa.list_(pa.float32())),
        pa.field("token_end_s", pa.list_(pa.float32())),
        pa.field("token_words", pa.list_(pa.int32())),  # index in text.split() of each token's word, -1 for none
        _required("scores", pa.list_(SCORE)),  # the recogniser's exact forced scores, one per source
        pa.field("search_score", pa.float64()),  # a record of the search; fusion never weights it
        _required("origin", pa.string()),  # one of ORIGINS
    ]
)
HYPOTHESES: Final = pa.schema([_ID, _required("hypotheses", pa.list_(HYPOTHESIS)), *_ERROR])

SCORE_SOURCE: Final = pa.struct(
    [
        _required("source", pa.string()),
        _required("kind", pa.string()),
        _required("log_probs", pa.list_(pa.float64())),  # parallel to hypotheses; a missing score is null, never 0
        pa.field("eos_log_probs", pa.list_(pa.float64())),
        pa.field("num_tokens", pa.list_(pa.int32())),  # without BOS and EOS
        pa.field("reasons", pa.list_(pa.string())),  # why a score is null; null where it is not
    ]
)
SCORES: Final = pa.schema([_ID, _required("sources", pa.list_(SCORE_SOURCE)), *_ERROR])

HYPOTHESIS_ERRORS: Final = pa.struct(
    [
        _required("unit", pa.string()),  # word, character, or phrase for keywords
        _required("normaliser", pa.string()),
        _required("word_class", pa.string()),  # all, biased, unbiased, rare, keyword
        pa.field("reference_length", pa.int32()),  # null: no reference, no errors
        pa.field("alignment", pa.string()),  # costs of the alignment: unit or nist; null where none was made
        pa.field("errors", pa.list_(pa.int32())),  # one per hypothesis; null for keywords
        pa.field("substitutions", pa.list_(pa.int32())),  # null where only the total was counted
        pa.field("num_units", pa.list_(pa.int32())),  # length of each hypothesis in units, for the length bonus
        pa.field("true_positives", pa.list_(pa.int32())),  # keywords only
        pa.field("false_positives", pa.list_(pa.int32())),
        pa.field("false_negatives", pa.list_(pa.int32())),
    ]
)
NBEST_ERRORS: Final = pa.schema([_ID, _required("counts", pa.list_(HYPOTHESIS_ERRORS))])

WORD: Final = pa.struct(
    [
        _required("word", pa.string()),
        pa.field("start_s", pa.float32()),
        pa.field("end_s", pa.float32()),
        pa.field("confidence", pa.float32()),
        _required("origin", pa.string()),
    ]
)
TRANSCRIPTS: Final = pa.schema(
    [
        _ID,
        _required("text", pa.string()),
        pa.field("hypothesis_index", pa.int32()),  # null: the list was empty
        pa.field("fused_scores", pa.list_(pa.float64())),  # parallel to hypotheses
        _required("words", pa.list_(WORD)),
        _required("num_unscored", pa.int32()),  # 1 where a scorer failed and the first-pass 1-best was kept
        *_ERROR,
    ]
)

ERROR_COUNT: Final = pa.struct(
    [
        _required("metric", pa.string()),
        _required("unit", pa.string()),
        _required("normaliser", pa.string()),
        _required("word_class", pa.string()),
        _required("alignment", pa.string()),  # costs of the alignment: unit or nist
        *_COUNTS,
    ]
)
ERRORS: Final = pa.schema([_ID, _required("counts", pa.list_(ERROR_COUNT))])  # no reference: an empty list

RESULTS: Final = pa.schema(
    [
        _required("corpus", pa.string()),
        _required("split", pa.string()),
        _required("system", pa.string()),
        _required("condition", pa.map_(pa.string(), pa.string())),
        _required("metric", pa.string()),
        _required("unit", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        _required("counts", pa.map_(pa.string(), pa.int64())),
        pa.field("baseline", pa.string()),  # the system that delta and p_value compare with
        pa.field("delta", pa.float64()),  # value - baseline's value; negative is better for error rates
        pa.field("delta_ci_low", pa.float64()),
        pa.field("delta_ci_high", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("p_value_adjusted", pa.float64()),  # for all systems of the metric and their num_configurations
        pa.field("p_value_matched_pairs", pa.float64()),  # second opinion: MAPSSWE over utterances
        pa.field("probability_of_improvement", pa.float64()),
        _required("num_utterances", pa.int64()),
        _required("num_failed", pa.int64()),
        _required("num_unscored", pa.int64()),
        pa.field("num_blocks", pa.int64()),
        _required("num_configurations", pa.int64()),
        _required("signature", pa.string()),
    ]
)

FITS: Final = pa.schema(
    [
        _required("name", pa.string()),
        _required("values", pa.map_(pa.string(), pa.float64())),
        _required("interval", pa.map_(pa.string(), pa.list_(pa.float64()))),  # [low, high] per value
        _required("objective", pa.string()),
        pa.field("objective_value", pa.float64()),
        _required("split", pa.string()),
        _required("parents", pa.list_(pa.string())),  # names of the tables that it read
        _required("num_configurations", pa.int64()),
    ]
)

UNITS: Final = pa.schema(
    [
        _ID,
        _required("units", pa.list_(pa.int32())),
        _required("run_lengths", pa.list_(pa.int32())),
        _required("frame_rate_hz", pa.float64()),
        *_ERROR,
    ]
)
TRACES: Final = pa.schema([_ID, _required("traces", pa.list_(pa.string())), *_ERROR])  # JSON, one per token

TABLES: Final[Mapping[str, pa.Schema]] = {
    "utterances": UTTERANCES,
    "context": CONTEXT,
    "hypotheses": HYPOTHESES,
    "scores": SCORES,
    "nbest_errors": NBEST_ERRORS,
    "transcripts": TRANSCRIPTS,
    "errors": ERRORS,
    "results": RESULTS,
    "fits": FITS,
    "units": UNITS,
    "traces": TRACES,
}
"""Table name -> schema. COSTS travel in each receipt (`storage/table_files.py`), outside equality and hashes."""


def conform(table: pa.Table, name: str) -> pa.Table:
    """Casts a table to its schema, or says which utterance and column break it.

    Args:
        table: Any column order; extra columns are an error, as are missing non-nullable ones.
            Missing nullable columns become nulls.
        name: A key of `TABLES`.

    Returns:
        One-chunk table with exactly the columns, order and types of `TABLES[name]`.

    Raises:
        ContractError: unknown, missing or mistyped columns, nulls where none may be, duplicate or
            null ids, or a float that is nan or infinite. No row is ever dropped to make it fit.
    """
    schema = TABLES[name]
    extra = [c for c in table.column_names if c not in schema.names]
    if extra:
        raise ContractError(f"{name}: unexpected columns {extra}; expected {schema.names}. Remove them in the stage.")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise ContractError(f"{name}: column '{field.name}' is missing; expected {field.type}.")
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            column = table.column(field.name).combine_chunks().cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            got = table.schema.field(field.name).type
            raise ContractError(f"{name}, column '{field.name}': got {got}, expected {field.type}: {error}") from error
        columns.append(column)
    ids = columns[0] if schema.names[0] == "utterance_id" else None
    for field, column in zip(schema, columns, strict=True):
        _check(name, field.name, field, column, ids, np.arange(table.num_rows))
    if ids is not None and pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids).to_pylist()
        twice = [c["values"] for c in counts if c["counts"] > 1][:3]
        raise ContractError(f"{name}: utterance_id {twice} stands more than once; ids must be unique in a shard.")
    return pa.table(columns, schema=schema)


def _check(name: str, path: str, field: pa.Field, array: pa.Array, ids: pa.Array | None, rows: np.ndarray) -> None:
    """Walks nested values; `rows[i]` is the table row that holds `array[i]`."""

    def fail(index: int, got: str, expected: str) -> None:
        row = int(rows[index])
        where = f"row {row}" if ids is None else f"utterance '{ids[row].as_py()}' (row {row})"
        raise ContractError(
            f"{name}, {where}, column '{path}': got {got}, expected {expected}. Fix the stage that writes it."
        )

    valid = np.asarray(array.is_valid())
    if not field.nullable and not valid.all():
        fail(int(np.argmin(valid)), "null", f"a {field.type}")
    if pa.types.is_floating(field.type):
        finite = np.asarray(pc.fill_null(pc.is_finite(array), True))
        if not finite.all():
            index = int(np.argmin(finite))
            fail(index, str(array[index].as_py()), "a finite number, or null where none is known")
    elif pa.types.is_list(field.type) or pa.types.is_map(field.type):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)) if pa.types.is_list(field.type) else None
        if lengths is None:
            return  # map values are strings and numbers without a rule of their own
        _check(name, f"{path}[]", field.type.value_field, array.flatten(), ids, np.repeat(rows, lengths))
    elif pa.types.is_struct(field.type):
        present = rows[valid]
        kept = array.filter(array.is_valid())
        for child in field.type:
            _check(name, f"{path}.{child.name}", child, kept.field(child.name), ids, present)
