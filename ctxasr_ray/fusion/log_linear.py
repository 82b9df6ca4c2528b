"""HYPOTHESES, SCORES and weights -> TRANSCRIPTS: the hypothesis with the highest weighted sum of log-probs.

score(h) = sum over sources of weight * log P_source(h) + length_bonus * words(h). The paper's letters for shallow and
N-best fusion, lambda and beta, are a source's weight and the length bonus here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray import text
from ctxasr_ray.fusion.scoring import (
    LENGTH_BONUS,
    Features,
    Inputs,
    features,
    fused_scores,
    read_inputs,
    read_scores,
    recogniser,
    winners,
)
from ctxasr_ray.fusion.words import read_words
from ctxasr_ray.nbest import FlatNBest, flatten
from ctxasr_ray.schema import conform
from ctxasr_ray.stage import Costs, Resources, light


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLinearConfig:
    """Picks one hypothesis per utterance; without SCORES, FITS and weights it is the first-pass 1-best."""

    NAME: ClassVar[str] = "log_linear"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses", "error_type", "error"),
        "scores": ("sources",),
        "fits": ("name", "values"),
    }
    WRITES: ClassVar[str] = "transcripts"

    weights: Mapping[str, float] | None = None
    """Source -> weight, and `length_bonus`; "<source>/eos" goes with its source unless it is named, and the
    recogniser's own score weighs 1 unless it is named. None: from FITS. A weight of 0 leaves a source out, also
    where its score is missing."""
    fit_name: str = "weights"
    """The fitted value in FITS that holds the weights."""
    unit: str = "word"
    """What `length_bonus` counts: word, or character for Chinese and Japanese. As in the fit."""
    normaliser: str = "whisper_english"
    """How words are normalised before they are counted, one of `text.NORMALISERS`. As in the fit."""
    temperature: float = 1.0
    """Divides the logit of a word's smallest token probability to give its confidence."""
    temperature_fit: str | None = None
    """The fitted value in FITS that holds the temperature in place of `temperature`; see `fusion/confidence.py`."""
    resources: Resources = field(default_factory=light)

    def __post_init__(self) -> None:
        text.versioned(self.normaliser)
        if self.unit not in ("word", "character"):
            raise ValueError(f"log_linear: unit '{self.unit}' is unknown; choose word or character.")
        if not self.temperature > 0:
            raise ValueError(
                f"log_linear: temperature {self.temperature} is not above 0; 1 leaves probabilities as is."
            )
        bad = {k: v for k, v in (self.weights or {}).items() if not np.isfinite(v)}
        if bad or (self.weights is not None and not self.weights):
            raise ValueError(
                f"log_linear: weights {bad or dict(self.weights or {})}; expected finite numbers by source."
            )

    def fingerprint(self) -> Mapping[str, str]:
        """The version of the normaliser: other words give another length bonus."""
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> "LogLinear":
        """Nothing to load."""
        return LogLinear(self)


@dataclass(frozen=True, slots=True)
class LogLinear:
    """The built stage; all utterances of a shard at once."""

    config: LogLinearConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """Fuses one shard.

        Args:
            tables: HYPOTHESES, then SCORES tables on exactly these hypotheses, then FITS if weights or the temperature
                are fitted.
            costs: Counts `utterances`, `changed` (not the first hypothesis) and `unscored`.

        Returns:
            TRANSCRIPTS. An empty list gives "" without an index; a missing score, or a search that left out its
            language model, keeps the first hypothesis and `num_unscored` 1; an error row keeps its reason.

        Raises:
            ValueError: SCORES without weights, weights from both FITS and the config, a fit that FITS lacks.
            ContractError: a source without weight, a weight without source, other hypotheses.
        """
        inputs = read_inputs(tables)
        flat = flatten(inputs.hypotheses)
        weights = self._weights(inputs)
        if weights is None:
            winner_U = np.where(np.diff(flat.offsets) > 0, flat.offsets[:-1], -1)
            failed, said = (np.asarray(inputs.hypotheses[name].is_valid()) for name in ("error_type", "error"))
            unscored_U = said & ~failed  # a fusion inside the search was left out, and says why
            fused = pa.nulls(len(winner_U), pa.list_(pa.float64()))
        else:
            shard = self._features(inputs, flat, weights)
            fused_H = fused_scores(shard.values, np.array(list(weights.values())))
            winner_U, unscored_U = winners(flat.offsets, fused_H)
            fused = _lists(flat.offsets, fused_H, null_U=unscored_U)
        costs.count("utterances", len(winner_U))
        costs.count("changed", int(np.sum((winner_U >= 0) & (winner_U != flat.offsets[:-1]))))
        costs.count("unscored", int(unscored_U.sum()))
        return conform(self._table(inputs, flat, winner_U, unscored_U, fused), "transcripts")

    def _weights(self, inputs: Inputs) -> dict[str, float] | None:
        fixed = self.config.weights
        fits = inputs.fits
        if fits is not None and self.config.temperature_fit is not None:
            names = pc.not_equal(fits.column("name"), self.config.temperature_fit)
            fits = fits.filter(names) if fits.filter(names).num_rows else None
        if fixed is not None and fits is not None:
            raise ValueError("log_linear: weights come from the config and from FITS; give exactly one of the two.")
        if fixed is not None:
            return {**dict.fromkeys(recogniser(inputs.hypotheses), 1.0), **fixed}
        if fits is None:
            if inputs.scores:
                raise ValueError(
                    f"log_linear: {len(inputs.scores)} SCORES inputs but no weights; add the step that fits them "
                    "or set `weights`."
                )
            return None
        return read_fit(fits, self.config.fit_name)

    def _temperature(self, inputs: Inputs) -> float:
        name = self.config.temperature_fit
        if name is None:
            return self.config.temperature
        if inputs.fits is None:
            raise ValueError(f"log_linear: temperature_fit '{name}' is named but no FITS table is an input; add it.")
        return read_fit(inputs.fits, name)["temperature"]

    def _features(self, inputs: Inputs, flat: FlatNBest, weights: Mapping[str, float]) -> Features:
        matrix = read_scores(inputs, list(weights))
        num_units_H = None
        if LENGTH_BONUS in weights:
            num_units_H = count_units(flat.texts, self.config.normaliser, self.config.unit)
        return features(matrix, list(weights), num_units_H)

    def _table(
        self,
        inputs: Inputs,
        flat: FlatNBest,
        winner_U: npt.NDArray[np.int64],
        unscored_U: npt.NDArray[np.bool_],
        fused: pa.Array,
    ) -> pa.Table:
        hypotheses = inputs.hypotheses.column("hypotheses").combine_chunks().flatten()
        chosen = pa.array(winner_U, mask=winner_U < 0)
        return pa.table(
            {
                "utterance_id": inputs.hypotheses.column("utterance_id"),
                "text": pc.fill_null(pc.struct_field(hypotheses, ["text"]).take(chosen), ""),
                "hypothesis_index": pa.array(winner_U - flat.offsets[:-1], pa.int32(), mask=winner_U < 0),
                "fused_scores": fused,
                "words": read_words(hypotheses, winner_U, self._temperature(inputs)),
                "num_unscored": pa.array(unscored_U.astype(np.int32)),
                "error_type": inputs.hypotheses.column("error_type"),
                "error": inputs.hypotheses.column("error"),
            }
        )


def read_fit(fits: pa.Table, name: str) -> dict[str, float]:
    """The values of one fit.

    Raises:
        ValueError: FITS does not hold exactly one fit of that name.
    """
    rows = [row for row in fits.select(["name", "values"]).to_pylist() if row["name"] == name]
    if len(rows) != 1:
        held = fits.column("name").to_pylist()
        raise ValueError(f"fits: {len(rows)} rows are named '{name}', expected one; got {held}. Set `fit_name`.")
    return {str(key): float(value) for key, value in rows[0]["values"]}


def count_units(texts: list[str], normaliser: str, unit: str) -> npt.NDArray[np.float64]:
    """(H,) normalised words or characters of each text.

    Raises:
        ValueError: an unknown normaliser or unit.
    """
    if unit not in ("word", "character"):
        raise ValueError(f"unit '{unit}' is unknown; choose word or character.")
    normal = text.units(texts, normaliser, "word" if unit == "word" else "character")
    return np.array([len(t.split()) if unit == "word" else len(t) for t in normal], dtype=np.float64)


def _lists(
    offsets: npt.NDArray[np.int64], values_H: npt.NDArray[np.float64], null_U: npt.NDArray[np.bool_]
) -> pa.Array:
    """Parallel lists, null where a list could not be scored as a whole."""
    lengths = np.where(null_U, 0, np.diff(offsets))
    kept = values_H[~np.repeat(null_U, np.diff(offsets))]
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, kept, mask=pa.array(null_U))
