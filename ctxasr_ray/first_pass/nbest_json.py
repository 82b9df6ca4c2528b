"""N-best lists in JSON: NeMo manifests with beams, HyPoradise, mlm-scoring, and what `ctxasr export` writes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ctxasr_ray.corpora import nemo
from ctxasr_ray.corpora.lines import ManifestError, read_lines
from ctxasr_ray.first_pass.nbest_lists import IdRule, Listed, load_json, needed, number, plain, read_ids
from ctxasr_ray.nbest import Hypothesis, NBest, Score
from ctxasr_ray.schema import DATA_ERRORS, HYPOTHESIS, SCORE_KINDS

_RANK: Final = re.compile(r"hyp_(\d+)")
_TOKEN_FIELDS: Final = tuple(field.name for field in HYPOTHESIS if field.name.startswith("token_"))


def read_nemo_manifest(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """JSON lines with `beams`, pairs of text and score in either order; ids as `corpora.nemo` gives them.

    Raises:
        ManifestError: no manifest, or a line without beams.
    """
    ids = nemo.read(path)["utterance_id"].to_pylist()
    for utterance_id, (line, text) in zip(ids, read_lines(path), strict=True):
        beams = load_json(path, line, text).get("beams")
        if not isinstance(beams, list):
            raise ManifestError(path, "expected a list of [text, score]", line, "beams")
        pairs = [_beam(path, line, beam) for beam in beams]
        nbest = NBest(utterance_id=utterance_id, hypotheses=tuple(plain(text) for text, _ in pairs))
        yield Listed(f"{path}, line {line}", nbest, tuple((score,) for _, score in pairs))


def _beam(path: str, line: int, beam: Any) -> tuple[str, float]:
    texts = [cell for cell in beam if isinstance(cell, str)] if isinstance(beam, list) else []
    if len(texts) != 1 or len(beam) != 2:
        raise ManifestError(path, f"got {str(beam)[:60]}, expected [text, score]", line, "beams")
    score = next(cell for cell in beam if not isinstance(cell, str))
    return texts[0], number(path, line, "beams", score)


def read_hyporadise(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """A list of {"input": [texts], "output": reference}, without scores; repeats in `input` stay repeats.

    Ids are `utterance_id` of each entry, or come from `rule`.

    Raises:
        ManifestError: another shape, no ids, or other than as many entries as the rule's file has utterances.
    """
    entries = _document(path)
    if not isinstance(entries, list) or not entries:
        raise ManifestError(path, 'expected a list of objects {"input": [texts], "output": reference}')
    own = [entry.get("utterance_id") if isinstance(entry, dict) else None for entry in entries]
    if all(isinstance(utterance_id, str) for utterance_id in own):
        ids = [str(utterance_id) for utterance_id in own]
    else:
        ids = read_ids(needed(path, rule).path)
    if len(ids) != len(entries):
        raise ManifestError(path, f"has {len(entries)} entries, but the file that names them has {len(ids)} utterances")
    for index, (utterance_id, entry) in enumerate(zip(ids, entries, strict=True)):
        where = f"{path}, entry {index}"
        texts = entry.get("input") if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ManifestError(path, f"entry {index}: 'input' is no list of texts")
        nbest = NBest(utterance_id=utterance_id, hypotheses=tuple(plain(text) for text in texts))
        yield Listed(where, nbest, ((),) * len(texts))


def read_mlm_scoring(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """{id: {"hyp_1": {"score": number, "text": text}, ..., "ref": text}}; ranks as the keys count them.

    Raises:
        ManifestError: another shape.
    """
    document = _document(path)
    if not isinstance(document, dict) or not document:
        raise ManifestError(path, 'expected an object {id: {"hyp_1": {"score": number, "text": text}}}')
    for utterance_id, entry in document.items():
        ranked = []
        for key, value in entry.items() if isinstance(entry, dict) else [("", None)]:
            match = _RANK.fullmatch(key)
            if match and isinstance(value, dict) and isinstance(value.get("text"), str):
                score = number(path, None, f"{utterance_id}.{key}.score", value.get("score"))
                ranked.append((int(match[1]), value["text"], score))
            elif key != "ref":
                raise ManifestError(path, f"'{utterance_id}': got '{key}', expected hyp_N with a score and a text, ref")
        ranked.sort()
        nbest = NBest(utterance_id=utterance_id, hypotheses=tuple(plain(text) for _, text, _ in ranked))
        yield Listed(f"{path}, '{utterance_id}'", nbest, tuple((score,) for _, _, score in ranked))


def read_exported(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """What `report.export` writes: a HYPOTHESES row per line, which says itself what its scores are.

    Raises:
        ManifestError: a line of another shape.
    """
    for line, text in read_lines(path):
        row = load_json(path, line, text)
        if not isinstance(row, dict) or not isinstance(row.get("utterance_id"), str):
            raise ManifestError(path, "expected an object with utterance_id and hypotheses", line)
        where = f"{path}, line {line}"
        if row.get("error_type") not in (None, *DATA_ERRORS):
            raise ManifestError(path, f"expected one of {', '.join(DATA_ERRORS)}", line, "error_type")
        if row.get("error_type") is not None:
            failed = NBest(utterance_id=row["utterance_id"], error_type=row["error_type"], error=row.get("error"))
            yield Listed(where, failed, ())
            continue
        found = row.get("hypotheses")
        if not isinstance(found, list):
            raise ManifestError(path, "expected a list", line, "hypotheses")
        hypotheses = tuple(_hypothesis(path, line, entry) for entry in found)
        yield Listed(where, NBest(utterance_id=row["utterance_id"], hypotheses=hypotheses), ((),) * len(hypotheses))


def _hypothesis(path: str, line: int, entry: Any) -> Hypothesis:
    known = {field.name for field in HYPOTHESIS}
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not set(entry) <= known:
        raise ManifestError(path, f"expected text, scores and others of {sorted(known)}", line, "hypotheses")
    for name in (name for name in _TOKEN_FIELDS if entry.get(name) is not None):
        if not isinstance(entry[name], list):
            raise ManifestError(path, "expected a list of numbers", line, name)
        for cell in entry[name]:
            number(path, line, name, cell)
    fields = {**entry, "origin": "imported"}
    fields["scores"] = tuple(_score(path, line, score) for score in entry.get("scores", ()))
    if fields.get("search_score") is not None:
        fields["search_score"] = number(path, line, "search_score", fields["search_score"])
    return Hypothesis(**fields)


def _score(path: str, line: int, score: Any) -> Score:
    if (
        not isinstance(score, Mapping)
        or not isinstance(score.get("source"), str)
        or score.get("kind") not in SCORE_KINDS
    ):
        raise ManifestError(path, f"expected source, kind (one of {', '.join(SCORE_KINDS)}), log_prob", line, "scores")
    log_prob = number(path, line, "log_prob", score.get("log_prob"))
    return Score(source=score["source"], kind=score["kind"], log_prob=log_prob)


def _document(path: str) -> Any:
    lines = dict(read_lines(path))
    return load_json(path, None, "\n".join(lines.get(number, "") for number in range(1, max(lines) + 1)))
