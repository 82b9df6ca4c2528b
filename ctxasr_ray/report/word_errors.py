"""UTTERANCES and TRANSCRIPTS -> one row per aligned word: what was said, what was written, how sure the system was."""

from typing import TYPE_CHECKING

from ctxasr_ray import align, text

if TYPE_CHECKING:
    import pandas as pd


def word_errors(utterances: "pd.DataFrame", transcripts: "pd.DataFrame", normaliser: str) -> "pd.DataFrame":
    """Aligns the words of transcripts with their references and keeps each written word's confidence.

    Args:
        utterances: UTTERANCES as a frame (`frames.table(run, "utterances")`); rows without reference are left out.
        transcripts: TRANSCRIPTS of one system as a frame; a failed or missing one counts as all deleted.
        normaliser: One of `text.NORMALISERS`, for both sides. Confidence needs words that normalise one by one: where
            the transcript normalises to other words than its words do (numbers, contractions), it is missing.

    Returns:
        Columns utterance_id, op (hit, substitution, deletion, insertion), reference_word (missing for insertions),
        word (missing for deletions), confidence (of the word; missing where unknown), one row per aligned pair.

    Raises:
        ValueError: an unknown normaliser.
    """
    import pandas as pd

    known = utterances[utterances["reference"].notna()]
    said = transcripts.set_index("utterance_id")
    references = text.units(known["reference"].tolist(), normaliser, "word")
    rows = [said.loc[id_] if id_ in said.index else None for id_ in known["utterance_id"]]
    heard = [row["text"] if row is not None and pd.isna(row["error_type"]) else "" for row in rows]
    written = text.units(heard, normaliser, "word")
    found = []
    for id_, reference, hypothesis, row in zip(known["utterance_id"], references, written, rows, strict=True):
        expected, words = reference.split(), hypothesis.split()
        confidences = _confidences(words, [] if row is None else list(row["words"]), normaliser)
        for op, at, place in align.align(expected, words):
            wanted = None if at is None else expected[at]
            word, sure = (None, None) if place is None else (words[place], confidences[place])
            found.append((id_, op, wanted, word, sure))
    names = ["utterance_id", "op", "reference_word", "word", "confidence"]
    made = pd.DataFrame(found, columns=names)
    return made.astype({"confidence": "float64"})


def _confidences(words: list[str], known: list[dict[str, object]], normaliser: str) -> list[float | None]:
    """One confidence per normalised word, None where the words of the transcript cannot be told apart in it."""
    parts = [each.split() for each in text.units([str(word["word"]) for word in known], normaliser, "word")]
    flat = [(part, word["confidence"]) for word, own in zip(known, parts, strict=True) for part in own]
    if [part for part, _ in flat] != words:
        return [None] * len(words)
    return [None if sure is None else float(str(sure)) for _, sure in flat]
