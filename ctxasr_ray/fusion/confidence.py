"""UTTERANCES, TRANSCRIPTS on dev -> FITS: the temperature under which word confidence can be believed.

Confidence is sigmoid(logit(p) / temperature), p the smallest token probability of the word. The TRANSCRIPTS must be
those of temperature 1; `LogLinearConfig.temperature_fit` then gives every system that reads the fit its confidences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.metrics.calibration import fit_temperature
from ctxasr_ray.metrics.joined_windows import WINDOW_COLUMNS, WORD_COLUMNS
from ctxasr_ray.metrics.judged_words import judge
from ctxasr_ray.schema import FITS, conform
from ctxasr_ray.stage import Costs, Resources, Stage, check_fit_splits, refuse_other_splits

TEMPERATURE: Final = "temperature"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceConfig:
    """Fits one temperature by the likelihood of which words are right; reads UTTERANCES, then TRANSCRIPTS.

    Where no word has a confidence (a recogniser without tokens) or no reference is known, the temperature stays 1 and
    the fit has no objective value.
    """

    NAME: ClassVar[str] = "confidence"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("split", *WINDOW_COLUMNS),
        "transcripts": WORD_COLUMNS,
    }
    WRITES: ClassVar[str] = "fits"

    splits: tuple[str, ...] = ("dev",)
    """Where to fit: dev or train. Test is refused."""
    normaliser: str = "whisper_english"
    """One of `text.NORMALISERS`."""
    fit_name: str = "confidence"
    """Name of the fit."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        check_fit_splits("confidence", self.splits)

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version.

        Raises:
            ValueError: an unknown normaliser.
        """
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> Stage:
        """Returns the fitting function; there is no model to load."""
        self.fingerprint()
        return self._fit

    def _fit(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, transcripts = tables
        refuse_other_splits("confidence", utterances, self.splits)
        words = judge(utterances, transcripts, self.normaliser)
        known = words.known
        temperature, loss = (
            fit_temperature(words.confidence[known], words.is_right[known]) if known.any() else (1.0, np.nan)
        )
        costs.count("words", int(known.sum()))
        costs.count("unplaced_words", words.unplaced)
        fit = {
            "name": self.fit_name,
            "values": [(TEMPERATURE, temperature)],
            "interval": [],
            "objective": f"nll|word|{self.normaliser}|all",
            "objective_value": None if np.isnan(loss) else loss,
            "split": "+".join(self.splits),
            "parents": ["utterances", "transcripts"],
            "num_configurations": 1,
        }
        return conform(pa.Table.from_pylist([fit], schema=FITS), "fits")
