"""Names of systems and metrics -> what a reader must know: family, bound or not, setting, which way is better.

A system is named `family` or `family/variant`: `first_pass`, `oracle/attention`, `keyword_boost/list_1000`.
"""

import re
from collections.abc import Mapping
from typing import Final

from ctxasr_ray.metrics.rates import HIGHER_IS_BETTER

BOUNDS: Final = ("oracle",)
"""Families that look at the reference: what a list allows, not what a system reaches."""

_SETTINGS: Final[Mapping[str, str]] = {"n": "num_hypotheses", "list": "list_size"}
"""Short names of settings in a variant -> their names among the conditions."""

LABELS: Final[Mapping[str, str]] = {
    "wer": "WER",
    "cer": "CER",
    "mer": "MER",
    "biased_wer": "B-WER",
    "unbiased_wer": "U-WER",
    "rare_wer": "R-WER",
    "oracle_wer": "oracle WER",
    "keyword_f1": "keyword F1",
    "distractor_false_alarms": "false alarms",
    "real_time_factor": "RTF",
    "orthographic_wer": "O-WER",
    "confidence_ece": "ECE",
    "confidence_nce": "NCE",
    "confidence_auc": "AUC",
    "confidently_wrong_repaired": "repaired",
    "oracle_gap_closed": "gap closed",
    "keyword_leaks": "leaks",
    "confidently_wrong_repairable": "repairable",
    "gate_lockout": "locked out",
}
"""Short names for column heads; other metrics keep their own."""

MEANINGS: Final[Mapping[str, str]] = {
    "wer": "word error rate",
    "cer": "character error rate",
    "mer": "mixed error rate: words, and characters of scripts without spaces",
    "biased_wer": "errors on the words of the utterance's true keywords",
    "unbiased_wer": "errors on all other words",
    "rare_wer": "errors on rare words",
    "keyword_f1": "harmonic mean of keyword precision and recall",
    "keyword_recall": "true keywords that were written",
    "keyword_precision": "written catalogue phrases that were spoken",
    "distractor_false_alarms": "catalogue phrases written though not spoken",
    "keyword_leaks": "keywords written though nothing that was said sounds like them",
    "recall@1": "true keywords that stand first in the shortlist",
    "recall@8": "true keywords among the first 8 of the shortlist",
    "recall@64": "true keywords among the first 64 of the shortlist",
    "confidently_wrong_repairable": "share of the baseline's confidently wrong words that some hypothesis has right",
    "gate_lockout": "share of the tokens of confidently wrong words whose gate weight is below 0.05",
    "real_time_factor": "seconds of work per second of audio, model loading apart",
    "orthographic_wer": "errors on raw words, case and punctuation included",
    "confidence_ece": "expected calibration error of word confidence",
    "confidence_nce": "normalised cross entropy of word confidence",
    "confidence_auc": "does confidence tell right words from wrong ones: area under the curve",
    "confidently_wrong": "share of written words that are wrong with a confidence of at least 0.9",
    "confidently_wrong_repaired": "share of the baseline's confidently wrong words that this system has right",
    "harmful_edits": "share of the words that the baseline had right and this system has wrong",
    "helpful_edits": "share of the words that the baseline had wrong and this system has right",
    "oracle_gap_closed": "share of the words wrong in the 1-best but not in the oracle that this system has right",
}
"""One line for people who see a metric for the first time."""

_LEADING: Final = (
    "wer", "orthographic_wer", "rare_wer", "mer", "cer", "biased_wer", "unbiased_wer", "keyword_f1", "keyword_recall",
    "keyword_precision", "distractor_false_alarms", "keyword_leaks", "recall@1", "recall@8", "recall@64",
)  # fmt: skip
_PERCENT: Final = re.compile(
    r"(^|_)(wer|cer|mer|f1|recall|precision|coverage|ece|auc|rate|share|closed|accuracy|oracle|wrong|repaired|repairable|lockout|edits|reliability)(@\d+)?($|_)"
)


def family(system: str) -> str:
    """The name before the first slash."""
    return system.partition("/")[0]


def is_bound(system: str) -> bool:
    """Whether a row is a bound (an oracle) and not a system."""
    return family(system) in BOUNDS


def setting(system: str) -> tuple[str, str, str] | None:
    """`keyword_boost/list_1000` -> ("keyword_boost", "list_size", "1000"); None where no variant names a number."""
    found = re.fullmatch(r"(.+)/([a-z][a-z_]*?)_?(\d+(?:\.\d+)?)", system)
    if found is None or (len(found[2]) < 3 and found[2] not in _SETTINGS):
        return None  # v2 is a version, not a setting
    return found[1], _SETTINGS.get(found[2], found[2]), found[3]


def label(metric: str) -> str:
    """A metric's short name for a column head."""
    return LABELS.get(metric, metric.replace("_", " "))


def meaning(metric: str) -> str:
    """A metric in words, and which way is better."""
    way = "higher is better" if higher_is_better(metric) else "lower is better"
    return f"{MEANINGS.get(metric, metric.replace('_', ' '))}; {way}"


def higher_is_better(metric: str) -> bool:
    """Whether a larger value is the better one; error rates, false alarms and costs are the other way round."""
    return metric.partition("@")[0] in HIGHER_IS_BETTER


def is_percent(metric: str) -> bool:
    """Whether people read the metric in percent; stored values are always fractions."""
    return bool(_PERCENT.search(metric)) and not metric.endswith(("_factor", "nce"))


def rank(metric: str) -> tuple[int, str]:
    """Sorts metrics as a reader looks for them: error rates, keywords, others by name, the real-time factor last."""
    if metric == "real_time_factor":
        return (len(_LEADING) + 1, metric)
    return (_LEADING.index(metric), "") if metric in _LEADING else (len(_LEADING), metric)
