"""The N-best formats of other tools, by name.

| format | what it is | scores to declare | ids |
|---|---|---|---|
| espnet | folder with `{n}best_recog/{text,score}` | score | in the file |
| nemo_tsv | `text TAB score`, equally many rows per utterance | score | `ids_path` |
| nemo_manifest | NeMo JSON lines with `beams` | score | as `corpora.nemo` names lines |
| hyporadise | JSON list of {"input": texts, "output": reference} | none | `utterance_id`, or `ids_path` |
| mlm_scoring | JSON {id: {"hyp_1": {"score", "text"}, "ref"}} | score | in the file |
| srilm | folder of lists, one file per utterance | acoustic, lm | names of the files |
| kaldi, trn, tsv, is21 | one transcript per utterance, one file per system | none | in the file |
| nbest | what `ctxasr export` writes | none: the file says what they are | in the file |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ctxasr_ray.first_pass import nbest_json, nbest_text
from ctxasr_ray.first_pass.nbest_lists import Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class NBestFormat:
    """How lists of one format are read."""

    read: Reader
    scores: tuple[str, ...] = ()
    """Numbers that stand beside each text and mean nothing before the config says what they are."""
    ids_from_elsewhere: bool = False
    """Its lists may name no utterance."""
    one_per_file: bool = False
    """Several files are several systems: an id may stand in each, and its list has one text of each."""


FORMATS: Final[Mapping[str, NBestFormat]] = {
    "espnet": NBestFormat(read=nbest_text.read_espnet, scores=("score",)),
    "nemo_tsv": NBestFormat(read=nbest_text.read_nemo_tsv, scores=("score",), ids_from_elsewhere=True),
    "nemo_manifest": NBestFormat(read=nbest_json.read_nemo_manifest, scores=("score",)),
    "hyporadise": NBestFormat(read=nbest_json.read_hyporadise, ids_from_elsewhere=True),
    "mlm_scoring": NBestFormat(read=nbest_json.read_mlm_scoring, scores=("score",)),
    "srilm": NBestFormat(read=nbest_text.read_srilm, scores=("acoustic", "lm")),
    **{
        form: NBestFormat(read=nbest_text.one_best(form), one_per_file=True) for form in ("kaldi", "trn", "tsv", "is21")
    },
    "nbest": NBestFormat(read=nbest_json.read_exported),
}
