"""HYPOTHESES, SCORES and NBEST_ERRORS on dev -> FITS: log-linear weights by exact minimum-error search.

The recogniser's weight is 1 and the others are relative to it, because only ratios decide. What the search does
stands in `weight_search`, what it minimises in `objective`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray import text
from ctxasr_ray.fusion.objective import Entry, parse_objective, read_counts
from ctxasr_ray.fusion.scoring import LENGTH_BONUS, Inputs, features, read_inputs, source_names
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.metrics.significance import Blocks, choose_blocks
from ctxasr_ray.nbest import ScoreMatrix, flatten, score_matrix
from ctxasr_ray.schema import FITS, conform
from ctxasr_ray.stage import Costs, Resources, check_fit_splits, refuse_other_splits

if TYPE_CHECKING:
    from ctxasr_ray.fusion.line_search import TuningSet

NUM_CONFIGURATIONS: Final = 1
"""A fit counts once, however many cells its lines crossed: test data meet only the one set of weights that dev chose,
so no correction for choosing among many applies to a test figure. Cells and lines stand in the receipt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsConfig:
    """Fits the weights of `log_linear` on dev; exact along every line it searches.

    Writes four rows, whose values are named by source (and `length_bonus`):

    | name | values | interval |
    |---|---|---|
    | weights | in the middle of the optimal cell | the whole stretch along each axis with the same objective |
    | weights/flat | the same | the stretch that costs at most `flat_tolerance` of the objective |
    | weights/bootstrap | median of the re-tuned weights | 95 % over resampled blocks of utterances |
    | weights/ties | number of separate optimal stretches along each axis | none |

    Only the first counts as a configuration. `objective` is written out in full, for example
    "wer|word|whisper_english|all"; its value is what was minimised, so F1 enters as 1 - F1.
    """

    NAME: ClassVar[str] = "weights"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses",),
        "scores": ("sources",),
        "nbest_errors": ("counts",),
        "utterances": ("split", "speaker_id", "session_id"),
    }
    WRITES: ClassVar[str] = "fits"

    splits: tuple[str, ...] = ("dev",)
    """Where to tune: dev or train. Test is refused."""
    objective: str = "wer"
    """What is minimised on these splits: wer, cer, biased_wer, unbiased_wer, rare_wer, keyword_f1_loss, any
    "metric|unit|normaliser|word_class" of NBEST_ERRORS, or a weighted sum: "0.7*wer + 0.3*keyword_f1_loss"."""
    fit_length_bonus: bool = True
    """Whether the number of words gets a weight."""
    unit: str = "word"
    """What `length_bonus` counts: word, or character for Chinese and Japanese."""
    normaliser: str = "whisper_english"
    """How words are normalised before they are counted, for the objective and for `length_bonus`."""
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Lowest and highest weight by source, relative to the recogniser's 1; None: no end, equal: fixed. Default: not
    negative for log_prob and bonus sources, free for opaque ones and `length_bonus`. Naming "<source>/eos" here
    gives the end of sequence a weight of its own."""
    fixed_source: str | None = None
    """The source whose weight is 1; None: the first of HYPOTHESES, or of SCORES for lists without scores."""
    num_restarts: int = 8
    """Random starts besides the first pass alone (none are needed for one free weight)."""
    num_directions: int = 4
    """Random directions in each round besides the axes."""
    num_bootstrap: int = 200
    """Replicates behind `weights/bootstrap`; 0 leaves that row out."""
    flat_tolerance: float = 0.01
    """Relative loss that `weights/flat` allows."""
    seed: int = 7
    """Draws starts, directions and replicates."""
    fit_name: str = "weights"
    """Name of the fit, and of its companion rows before the slash."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        check_fit_splits("weights", self.splits)
        parse_objective(self.objective, self.normaliser)
        text.versioned(self.normaliser)
        for name, bounds in self.bounds.items():
            ends = [end for end in bounds if end is not None]
            if not all(map(math.isfinite, ends)) or ends != sorted(ends):
                raise ValueError(
                    f"weights: bounds of '{name}' are {bounds[0]} and {bounds[1]}; expected a lower and a higher "
                    "number, or None where there is no end."
                )

    def fingerprint(self) -> Mapping[str, str]:
        """The version of the normaliser."""
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> "Weights":
        """Compiles nothing yet; the search loads numba on its first call."""
        return Weights(self)


@dataclass(frozen=True, slots=True)
class Weights:
    """The built stage, a barrier: all shards of the tuning splits at once."""

    config: WeightsConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """Fits the weights.

        Args:
            tables: HYPOTHESES, then SCORES tables on exactly these hypotheses, NBEST_ERRORS, and UTTERANCES
                if the bootstrap is to keep speakers together; rows of the tuning splits only.
            costs: Counts utterances that cannot be moved (empty lists, missing scores) and the search's work.

        Returns:
            FITS.

        Raises:
            ValueError: a row outside the tuning splits, or nothing to tune.
            ContractError: tables that do not belong together.
        """
        from ctxasr_ray.fusion.weight_search import WeightSearch, percentile_intervals  # numba takes 0.5 s to load

        config, inputs = self.config, read_inputs(tables)
        if inputs.utterances is not None:
            refuse_other_splits("weights", inputs.utterances, config.splits)
        tuning_set, bounds_D2 = read_tuning_set(config, inputs)
        search = WeightSearch(
            tuning_set=tuning_set,
            bounds=bounds_D2,
            seed=config.seed,
            num_restarts=config.num_restarts,
            num_directions=config.num_directions,
            flat_tolerance=config.flat_tolerance,
        )
        with costs.timed("search"):
            best = search.run()
        centres, value = best.weights.tolist(), best.value
        cells, flat = ([(i.low, i.high) for i in intervals] for intervals in (best.cells, best.flat))
        rows: list[tuple[str, list[float], list[Any] | None, float | None]]
        rows = [
            ("", centres, cells, value),
            ("/flat", centres, flat, value),
            ("/ties", [float(t) for t in best.ties], None, value),
        ]
        if config.num_bootstrap:
            blocks = _blocks(inputs)
            with costs.timed("bootstrap"):
                replicates_RD = search.bootstrap(best.weights, blocks.index, config.num_bootstrap)
            intervals_D2 = percentile_intervals(replicates_RD).tolist()
            rows.append(("/bootstrap", np.median(replicates_RD, axis=0).tolist(), intervals_D2, None))
            costs.count("num_blocks", blocks.num_blocks)
        costs.count("utterances", inputs.hypotheses.num_rows)
        costs.count("unmovable", int(np.sum(~tuning_set.scored())))
        for name in ("num_lines", "num_corners", "num_cells"):
            costs.count(name, getattr(best.work, name))
        parents = ["hypotheses", *(f"scores:{s}" for t in inputs.scores for s in _sources(t)), "nbest_errors"]
        objective = " + ".join(map(str, parse_objective(config.objective, config.normaliser)))
        fits = [
            {
                "name": config.fit_name + suffix,
                "values": list(zip(best.names, values, strict=True)),
                "interval": list(zip(best.names, intervals, strict=True)) if intervals else [],
                "objective": objective,
                "objective_value": objective_value,
                "split": "+".join(config.splits),
                "parents": parents,
                "num_configurations": 0 if suffix else NUM_CONFIGURATIONS,
            }
            for suffix, values, intervals, objective_value in rows
        ]
        return conform(pa.Table.from_pylist(fits, schema=FITS), "fits")


def read_tuning_set(config: WeightsConfig, inputs: Inputs) -> tuple["TuningSet", npt.NDArray[np.float64]]:
    """Scores in one matrix, errors once per hypothesis, and the bounds of each weight.

    Args:
        config: Names the objective, the bounds and the fixed source.
        inputs: HYPOTHESES, SCORES and NBEST_ERRORS of the tuning splits.

    Returns:
        The set, and (D, 2) lowest and highest weights in the order of its names; equal for the fixed source.

    Raises:
        ValueError: no NBEST_ERRORS, no score at all, or bounds or a fixed source that no table has.
        ContractError: tables that do not belong together.
    """
    from ctxasr_ray.fusion.line_search import TuningSet

    if inputs.nbest_errors is None:
        raise ValueError("weights: no NBEST_ERRORS among the inputs; add the step that counts errors per hypothesis.")
    same_rows("nbest_errors", inputs.nbest_errors, "hypotheses", inputs.hypotheses)
    flat = flatten(inputs.hypotheses)
    matrix = score_matrix(inputs.hypotheses, inputs.scores)
    names = _names(config, matrix)
    num_units_H = None
    if LENGTH_BONUS in names:
        entry = Entry.find(inputs.nbest_errors, config.unit, config.normaliser, "all")
        num_units_H = entry.parallel("num_units", flat.offsets, flat.utterance_ids)
    counts = read_counts(
        inputs.nbest_errors, flat.offsets, flat.utterance_ids, parse_objective(config.objective, config.normaliser)
    )
    tuning_set = TuningSet(features(matrix, names, num_units_H), counts)
    return tuning_set, _bounds(config, matrix, names)


def _names(config: WeightsConfig, matrix: ScoreMatrix) -> list[str]:
    """The fixed source, the other sources, the sources named in the bounds, the length bonus."""
    sources = source_names(matrix)
    if not sources:
        raise ValueError("weights: the hypotheses have no scores and there are no SCORES inputs; nothing to weight.")
    fixed = config.fixed_source or sources[0]
    if fixed not in sources:
        raise ValueError(f"weights: fixed_source '{fixed}' is no source; got {sources}.")
    own_eos = [s for s in matrix.sources if s in config.bounds and s not in sources]
    names = [fixed, *(s for s in sources if s != fixed), *own_eos, *[LENGTH_BONUS] * config.fit_length_bonus]
    unknown = [n for n in config.bounds if n not in names]
    if unknown or fixed in config.bounds:
        raise ValueError(
            f"weights: bounds are given for {unknown or [fixed]}; expected some of {names[1:]} ('{fixed}' is 1)."
        )
    return names


def _bounds(config: WeightsConfig, matrix: ScoreMatrix, names: list[str]) -> npt.NDArray[np.float64]:
    kinds = dict(zip(matrix.sources, matrix.kinds, strict=True))
    bounds = [(1.0, 1.0)]
    for name in names[1:]:
        positive = kinds.get(name) in ("log_prob", "bonus")
        low, high = config.bounds.get(name, (0.0 if positive else None, None))
        bounds.append((-np.inf if low is None else low, np.inf if high is None else high))
    return np.array(bounds, dtype=np.float64)


def _sources(scores: pa.Table) -> list[str]:
    flat = scores.column("sources").combine_chunks().flatten()
    return list(dict.fromkeys(pc.struct_field(flat, ["source"]).to_pylist()))


def _blocks(inputs: Inputs) -> Blocks:
    """Who is resampled together, as in the metrics: speakers if they are known."""
    unknown = [None] * inputs.hypotheses.num_rows
    if inputs.utterances is None:
        return choose_blocks(unknown, unknown)
    same_rows("utterances", inputs.utterances, "hypotheses", inputs.hypotheses)
    speakers, sessions = (inputs.utterances.column(name).to_pylist() for name in ("speaker_id", "session_id"))
    return choose_blocks(speakers, sessions)
