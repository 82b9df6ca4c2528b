"""LibriHeavy: Lhotse cuts whose supervisions hold the book's text, with case and punctuation -> UTTERANCES."""

import re
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora import lhotse
from ctxasr_ray.corpora.lines import ManifestError, split_of

PREFIX: Final = "libriheavy_cuts_"
"""How the names of its manifests begin; then comes the subset."""
_APOSTROPHES: Final = str.maketrans("‘’", "''")
_NOT_SPOKEN: Final = re.compile(r"[^A-Za-z0-9']+")


def read(path: str | Path, corpus: str | None = None, *, is_normalised: bool = False) -> pa.Table:
    """Reads one manifest, as published or as its scripts extract it (`cases_and_punc`, `upper_no_punc`).

    Args:
        path: `libriheavy_cuts_SUBSET.jsonl.gz`. Its recordings lie in `download/librilight` of the manifest's folder or
            of the working directory.
        corpus: Name of the corpus; by default that of the file.
        is_normalised: The text in capitals, without punctuation, as `upper_no_punc` has it; else the book's.

    Returns:
        UTTERANCES in the order of the cuts; small, medium and large are train. `asr_text` among the attributes is
        what the recogniser heard with which the book was aligned. The text before the cut is left out: it is that of
        the cuts before.

    Raises:
        ManifestError: as `lhotse.read`, or a supervision that has neither a text nor two `custom.texts`.
    """
    subset = Path(path).name.split(".")[0].removeprefix(PREFIX)
    split = "train" if subset in ("small", "medium", "large") else split_of(subset.replace("_", "-"))
    table = lhotse.read(path, corpus, partial(_told, Path(path), is_normalised))
    place = table.schema.get_field_index("split")
    return table.set_column(place, schema.UTTERANCES.field("split"), pa.array([split] * len(table), pa.string()))


def _told(path: Path, is_normalised: bool, cut: dict[str, Any], number: int) -> dict[str, Any]:
    """The cut with a text for each supervision."""
    supervisions = []
    for supervision in cut["supervisions"]:
        custom = dict(supervision.get("custom") or {})
        texts = [supervision["text"]] if supervision.get("text") is not None else custom.get("texts")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            problem = (
                f"'{cut['id']}' has neither a text nor custom.texts, a list of the book's text and the recognised one"
            )
            raise ManifestError(path, f"{problem}; name it as kind lhotse if it is no cut of LibriHeavy", number)
        text = " ".join(_NOT_SPOKEN.sub(" ", texts[0].translate(_APOSTROPHES)).upper().split())
        custom |= {"asr_text": texts[1]} if len(texts) > 1 else {}
        language = "en" if supervision.get("language") == "English" else supervision.get("language")
        text = text if is_normalised else texts[0].strip()
        supervisions.append({**supervision, "text": text, "custom": custom, "language": language})
    return {**cut, "supervisions": supervisions}
