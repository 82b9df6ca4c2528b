"""N-best lists in text files: ESPnet directories, NeMo beams as TSV, SRILM lists, one transcript per system."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ctxasr_ray.corpora.lines import ManifestError, read_lines, refuse_duplicates
from ctxasr_ray.first_pass.nbest_lists import IdRule, Listed, Reader, needed, number, plain, read_ids
from ctxasr_ray.metrics.transcript_files import read_hypotheses
from ctxasr_ray.nbest import NBest

_RANK: Final = re.compile(r"(\d+)best_recog")


def read_espnet(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """`{n}best_recog/{text,score}` anywhere below a folder, as `asr_inference --nbest N` leaves them.

    A list ends at its first missing rank. `logdir/output.*` of parallel jobs are read as one.

    Raises:
        ManifestError: no such folder, an id twice in one rank, a text without score, a rank without the one above it.
    """
    ranks: dict[int, dict[str, tuple[str, float, str]]] = {}
    for folder in sorted(Path(path).rglob("*best_recog")):
        match = _RANK.fullmatch(folder.name)
        if match and folder.is_dir():
            _read_rank(folder, ranks.setdefault(int(match[1]), {}))
    if not ranks:
        raise ManifestError(path, "holds no folder 1best_recog with text and score in it; name ESPnet's output folder")
    for rank in sorted(ranks):
        orphans = sorted(set(ranks[rank]) - set(ranks.get(rank - 1, {}))) if rank > 1 else []
        if orphans:
            raise ManifestError(
                ranks[rank][orphans[0]][2], f"'{orphans[0]}' has rank {rank} and no rank {rank - 1}; copy all ranks"
            )
    for utterance_id, first in ranks[1].items():
        rows = [ranks[rank][utterance_id] for rank in sorted(ranks) if utterance_id in ranks[rank]]
        hypotheses = tuple(plain(text) for text, _, _ in rows)
        yield Listed(
            first[2],
            NBest(utterance_id=utterance_id, hypotheses=hypotheses),
            tuple((score,) for _, score, _ in rows),
        )


def _read_rank(folder: Path, found: dict[str, tuple[str, float, str]]) -> None:
    texts = _pairs(folder / "text")
    scores = _pairs(folder / "score")
    for name, own, other in (("score", scores, texts), ("text", texts, scores)):
        missing = sorted(set(other) - set(own))
        if missing:
            raise ManifestError(folder / name, f"has no line for '{missing[0]}'; a missing score is not 0")
    for utterance_id, (line, text) in texts.items():
        if utterance_id in found:
            raise ManifestError(
                folder / "text", f"'{utterance_id}' stands in {found[utterance_id][2]} already; name one output", line
            )
        score_line, cell = scores[utterance_id]
        score = number(folder / "score", score_line, "score", cell)
        found[utterance_id] = (text, score, f"{folder / 'text'}, line {line}")


def _pairs(path: Path) -> dict[str, tuple[int, str]]:
    """Utterance id -> line number and the rest of the line; a rank that no list reaches is an empty file."""
    if path.is_file() and not path.stat().st_size:
        return {}
    rows = [(line, text.split(maxsplit=1)) for line, text in read_lines(path)]
    refuse_duplicates(path, ((line, cells[0]) for line, cells in rows))
    return {cells[0]: (line, "".join(cells[1:]).strip()) for line, cells in rows}


def read_nemo_tsv(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """`text TAB score`, a fixed number of rows per utterance in the order of the manifest, which `rule` names.

    Raises:
        ManifestError: no rule, or not exactly that many rows: the lists would shift against the utterances.
    """
    rule = needed(path, rule)
    width = rule.rows_per_utterance or 0
    assert width > 0, "the config asks for it"
    ids = read_ids(rule.path)
    rows = list(read_lines(path))
    if len(rows) != len(ids) * width:
        raise ManifestError(
            path,
            f"has {len(rows)} rows, expected {len(ids)} utterances of {rule.path} x {width} rows each; name the "
            "manifest that was decoded, and the beam size as rows_per_utterance",
        )
    for index, utterance_id in enumerate(ids):
        mine = rows[index * width : (index + 1) * width]
        hypotheses, values = [], []
        for line, row in mine:
            text, tab, cell = row.rpartition("\t")
            if not tab:
                raise ManifestError(path, "got one column, expected text, tab, score", line)
            hypotheses.append(plain(text))
            values.append((number(path, line, "score", cell),))
        where = f"{path}, line {mine[0][0]}"
        yield Listed(where, NBest(utterance_id=utterance_id, hypotheses=tuple(hypotheses)), tuple(values))


def read_srilm(path: str, rule: IdRule | None) -> Iterator[Listed]:
    """A folder of lists, one file per utterance (`ID`, `ID.nbest`, also .gz): `acoustic lm nwords words...` per line.

    `<s>` and `</s>` around the words are marks of the format and left out; the number of words is not read. A file
    without lines is an empty list.

    Raises:
        ManifestError: no file, two files of one utterance, a Decipher list, or a line without its three numbers.
    """
    folder = Path(path)
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    if not files:
        raise ManifestError(path, "is no folder with one SRILM list per utterance")
    for file in files:
        utterance_id = re.sub(r"\.nbest$", "", file.name.removesuffix(".gz"))
        hypotheses, values = [], []
        for line, row in read_lines(file) if file.stat().st_size else ():
            if row.startswith("NBestList"):
                raise ManifestError(file, f"is a Decipher list ({row.split()[0]}); write SRILM's own format", line)
            cells = row.split()
            if len(cells) < 3:
                raise ManifestError(file, "expected: acoustic score, LM score, number of words, words", line)
            number(file, line, "nwords", cells[2])
            values.append((number(file, line, "acoustic", cells[0]), number(file, line, "lm", cells[1])))
            hypotheses.append(plain(" ".join(word for word in cells[3:] if word not in ("<s>", "</s>"))))
        yield Listed(str(file), NBest(utterance_id=utterance_id, hypotheses=tuple(hypotheses)), tuple(values))


def one_best(form: str) -> Reader:
    """A reader of one transcript per utterance, without scores: kaldi, trn, tsv or is21 (see `transcript_files`)."""

    def read(path: str, rule: IdRule | None) -> Iterator[Listed]:
        for utterance_id, text in read_hypotheses(path, form, ()).items():
            yield Listed(path, NBest(utterance_id=utterance_id, hypotheses=(plain(text),)), ((),))

    return read
