"""What every per-shard stage keeps, one test per promise: schema, ids, order, empty lists, single rows, slices.

A new stage is one more entry of `STAGES`.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from test_scorer_causal_lm import bpe, saved
from test_speech_lm import saved_speech_lm
from test_speech_units import quantiser
from tiny_ctc import make, noise
from tiny_fusion import make_lm
from tiny_seq2seq import make as make_seq2seq
from tiny_seq2seq import tokenizer as letters
from tiny_speech_llm import make as make_speech_llm

from ctxasr_ray.candidates.history import HistoryConfig
from ctxasr_ray.candidates.keyword import KeywordCandidatesConfig
from ctxasr_ray.candidates.plausible import PlausibleConfig
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.candidates.top import TopConfig
from ctxasr_ray.candidates.union import UnionConfig
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.attention_keywords import AttentionKeywordsConfig
from ctxasr_ray.first_pass.attention_words import AttentionWordsConfig
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
from ctxasr_ray.first_pass.ctc_keywords import CtcKeywordsConfig
from ctxasr_ray.first_pass.gate_traces import GateTraceConfig
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.first_pass.pocketsphinx import PocketSphinxConfig
from ctxasr_ray.first_pass.pocketsphinx_keywords import PocketSphinxKeywordsConfig
from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.compositional_oracle import CompositionalOracleConfig
from ctxasr_ray.metrics.confident_errors import ConfidentErrorsConfig
from ctxasr_ray.metrics.edits import EditCountsConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.keywords import KeywordCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.shortlist_recall import ShortlistRecallConfig
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.schema import conform
from ctxasr_ray.scorers.attention import AttentionScorerConfig
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.ctc import CtcScorerConfig
from ctxasr_ray.scorers.pocketsphinx import PocketSphinxScorerConfig
from ctxasr_ray.scorers.speech_llm import SpeechLlmScorerConfig
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.stage import Costs, StageConfig

World = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A stage, the names of the tables that it is called with, and the numbers it may only repeat to a tolerance."""

    config: Callable[[World], StageConfig]
    inputs: tuple[str, ...]
    tolerance: float = 0.0


def _ctc(world: World) -> CtcConfig:
    return CtcConfig(model=world["ctc"], beam_size=8, num_hypotheses=4, batch_size=2)


def _gated(world: World) -> AttentionFusedConfig:
    recogniser = AttentionConfig(model=world["seq2seq"], max_tokens=8, batch_size=2)
    return AttentionFusedConfig(first_pass=recogniser, lm=CausalLmConfig(model=world["letters_lm"]))


STAGES = {
    "ctc": Case(lambda w: _ctc(w), ("utterances",), 1e-4),
    "attention": Case(lambda w: AttentionConfig(model=w["seq2seq"], max_tokens=8, batch_size=2), ("utterances",), 1e-3),
    "ctc_fused": Case(
        lambda w: CtcFusedConfig(first_pass=_ctc(w), lm=CausalLmConfig(model=w["lm"]), interval=4),
        ("utterances",),
        1e-3,
    ),
    "ctc_keywords": Case(
        lambda w: CtcKeywordsConfig(first_pass=_ctc(w), catalogue=w["phrases"]), ("utterances", "context"), 1e-3
    ),
    "ctc_keywords/fused": Case(
        lambda w: CtcKeywordsConfig(
            first_pass=CtcFusedConfig(first_pass=_ctc(w), lm=CausalLmConfig(model=w["lm"]), interval=4),
            catalogue=w["phrases"],
        ),
        ("utterances", "context"),
        1e-3,
    ),
    "attention_fused": Case(lambda w: _gated(w), ("utterances",), 1e-3),
    "gate_trace": Case(lambda w: GateTraceConfig(search=_gated(w)), ("utterances", "gated")),
    "attention_words": Case(
        lambda w: AttentionWordsConfig(
            first_pass=AttentionConfig(model=w["seq2seq"], max_tokens=8, batch_size=2),
            lm=CausalLmConfig(model=w["lm"]),
            interval=3,
        ),
        ("utterances",),
        1e-3,
    ),
    "attention_keywords": Case(
        lambda w: AttentionKeywordsConfig(
            first_pass=AttentionConfig(model=w["seq2seq"], max_tokens=8, batch_size=2), catalogue=w["phrases"]
        ),
        ("utterances", "context"),
        1e-3,
    ),
    "phrase_copy": Case(
        lambda w: PhraseCopyConfig(
            search=AttentionConfig(model=w["seq2seq"], max_tokens=8, batch_size=2),
            catalogue=w["phrases"],
            reward=30.0,
            first_within=50.0,
        ),
        ("utterances", "context"),
        1e-3,
    ),
    "phrase_copy/told": Case(
        lambda w: PhraseCopyConfig(
            search=replace(_gated(w), lm_prompt="{keywords} "), catalogue=w["phrases"], confidence=1.0
        ),
        ("utterances", "context"),
        1e-3,
    ),
    "attention_scorer": Case(lambda w: AttentionScorerConfig(model=w["seq2seq"]), ("utterances", "hypotheses"), 1e-3),
    "ctc_scorer": Case(lambda w: CtcScorerConfig(model=w["ctc"], batch_size=2), ("utterances", "hypotheses"), 1e-4),
    "imported": Case(lambda w: ImportedConfig(paths=(w["lists"],), format="kaldi"), ("utterances",)),
    "context": Case(lambda w: ContextConfig(catalogue=w["phrases"], num_distractors=2), ("utterances",)),
    "shortlist": Case(lambda w: ShortlistConfig(catalogue=w["phrases"], max_phrases=2), ("hypotheses", "context")),
    "history": Case(lambda w: HistoryConfig(), ("utterances", "hypotheses", "context")),
    "plausible": Case(
        lambda w: PlausibleConfig(recogniser=CtcOptions(model=w["ctc"]), catalogue=w["phrases"], max_phrases=2),
        ("utterances", "context"),
    ),
    "shortlist_recall": Case(lambda w: ShortlistRecallConfig(), ("utterances", "context")),
    "confident_errors": Case(
        lambda w: ConfidentErrorsConfig(), ("utterances", "transcripts", "transcripts", "hypotheses")
    ),
    "keyword_candidates": Case(lambda w: KeywordCandidatesConfig(catalogue=w["phrases"]), ("hypotheses", "context")),
    "top": Case(lambda w: TopConfig(num_hypotheses=1), ("hypotheses",)),
    "union": Case(lambda w: UnionConfig(), ("hypotheses", "elsewhere")),
    "causal_lm": Case(lambda w: CausalLmConfig(model=w["lm"]), ("hypotheses",), 1e-4),
    "speech_units": Case(lambda w: SpeechUnitsConfig(encoder=w["ctc"], quantiser=w["quantiser"]), ("utterances",)),
    "speech_lm": Case(lambda w: SpeechLmConfig(model=w["speech_lm"]), ("hypotheses", "units"), 1e-4),
    "speech_llm": Case(lambda w: SpeechLlmConfig(model=w["speech_llm"], max_tokens=6), ("utterances",), 1e-3),
    "speech_llm_scorer": Case(
        lambda w: SpeechLlmScorerConfig(model=w["speech_llm"]), ("utterances", "hypotheses"), 1e-4
    ),
    "nbest_errors": Case(lambda w: NbestErrorsConfig(), ("hypotheses", "utterances")),
    "nbest_errors/keywords": Case(
        lambda w: NbestErrorsConfig(classes=(("phrase", "keyword"), ("word", "biased"))), ("hypotheses", "utterances")
    ),
    "log_linear/first_pass": Case(lambda w: LogLinearConfig(), ("hypotheses",)),
    "log_linear": Case(
        lambda w: LogLinearConfig(weights={"ctc": 1.0, "causal_lm": 0.5, "length_bonus": 0.1}), ("hypotheses", "scores")
    ),
    "error_rate": Case(lambda w: ErrorCountsConfig(), ("utterances", "transcripts")),
    "oracle": Case(lambda w: OracleConfig(), ("nbest_errors",)),
    "compositional_oracle": Case(lambda w: CompositionalOracleConfig(), ("hypotheses", "utterances")),
    "keyword_counts": Case(lambda w: KeywordCountsConfig(), ("utterances", "transcripts")),
    "edit_counts": Case(lambda w: EditCountsConfig(), ("utterances", "transcripts", "transcripts")),
}


if importlib.util.find_spec("pocketsphinx"):  # an extra
    STAGES["pocketsphinx"] = Case(lambda w: PocketSphinxConfig(num_hypotheses=4), ("utterances",))
    STAGES["pocketsphinx_keywords"] = Case(
        lambda w: PocketSphinxKeywordsConfig(catalogue=w["phrases"], num_hypotheses=4), ("utterances",)
    )
    STAGES["pocketsphinx_scorer"] = Case(lambda w: PocketSphinxScorerConfig(), ("utterances", "hypotheses"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five utterances: two recordings, a silent one, one that is not audio, one without a reference."""
    folder = tmp_path_factory.mktemp("world")
    samples = {"a": noise(1, 1.0), "b": noise(2, 0.7), "silent": np.zeros(8000, np.float32), "unheard": noise(3, 0.5)}
    for name, wave in samples.items():
        soundfile.write(folder / f"{name}.wav", wave, 16000)
    (folder / "broken.wav").write_bytes(b"no audio at all")
    (folder / "lists").write_text("a call anna at noon\nsilent\nb stop it\n")
    (folder / "phrases.txt").write_text("hannah noon\nanna\nzimbrato\n")
    ids = ["a", "b", "silent", "broken", "unheard"]
    references = ["call anna at noon", "stop", "wait", "never heard", None]
    utterances = pa.Table.from_pylist(
        [
            {
                "utterance_id": id_,
                "corpus": "made",
                "split": "dev",
                "audio_uri": str(folder / f"{id_}.wav"),
                "start_s": 0.0,
                "reference": reference,
                "keywords": None if id_ == "silent" else ["Anna", "stop it"],
            }
            for id_, reference in zip(ids, references, strict=True)
        ]
    )
    texts = [["call anna at noon", "call hannah at noon", ""], ["stop"], [], None, ["so", "so"]]
    nbests = [
        NBest(utterance_id=id_, error_type="audio", error="not audio")
        if own is None
        else NBest(
            utterance_id=id_,
            hypotheses=[
                Hypothesis(text=t, scores=[Score(source="ctc", kind="log_prob", log_prob=-1.0 - i)])
                for i, t in enumerate(own)
            ],
        )
        for id_, own in zip(ids, texts, strict=True)
    ]
    made: dict[str, Any] = {
        "ctc": str(make("parakeet-4x", folder / "ctc")),
        "seq2seq": str(make_seq2seq("whisper", folder / "seq2seq")),
        "letters_lm": str(make_lm(folder / "letters_lm", letters())),
        "phrases": str(folder / "phrases.txt"),
        "lm": saved(folder / "lm", bpe())[0],
        "speech_llm": str(make_speech_llm(folder / "speech_llm")),
        "utterances": conform(utterances, "utterances"),
        "hypotheses": hypotheses_table(nbests),
        "lists": str(folder / "lists"),
        "speech_lm": saved_speech_lm(folder / "speech_lm", num_units=8)[0],
    }
    made["quantiser"] = str(quantiser(Path(made["ctc"]), folder / "units.safetensors"))
    made["elsewhere"] = called(STAGES["imported"].config(made), [made["utterances"]])
    made["gated"] = called(STAGES["attention_fused"].config(made), [made["utterances"]])
    for name in ("causal_lm", "nbest_errors", "log_linear", "speech_units", "context"):
        config = STAGES[name].config(made)
        made[config.WRITES] = called(config, [made[table] for table in STAGES[name].inputs])
    return made


def called(config: StageConfig, tables: list[pa.Table]) -> pa.Table:
    """The stage on exactly the columns that its config declares to read, as an executor calls it."""
    names = {"hypotheses": "hypotheses", "sources": "scores", "audio_uri": "utterances", "text": "transcripts"}
    names |= {"units": "units", "phrases": "context"}
    handed = []
    for table in tables:
        kind = next((names[c] for c in table.column_names if c in names), "nbest_errors")
        handed.append(table.select(["utterance_id", *config.READS[kind]]))
    return config.build()(*handed, costs=Costs())


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(expected, float) and tolerance:
        assert got == pytest.approx(expected, abs=tolerance)
    else:
        assert got == expected


@pytest.mark.parametrize("name", STAGES)
def test_rows_and_order_are_those_of_the_input(world: World, name: str) -> None:
    case = STAGES[name]
    config = case.config(world)
    tables = [world[table] for table in case.inputs]
    order = [4, 2, 0, 3, 1]
    out = called(config, [table.take(order) for table in tables])
    assert out.equals(conform(out, config.WRITES))
    assert out["utterance_id"].to_pylist() == ["unheard", "silent", "a", "broken", "b"]
    straight = called(config, tables)
    assert_same(out.to_pylist(), straight.take(order).to_pylist(), case.tolerance)


@pytest.mark.parametrize("name", STAGES)
def test_a_row_alone_says_what_it_says_among_others(world: World, name: str) -> None:
    case = STAGES[name]
    config = case.config(world)
    tables = [world[table] for table in case.inputs]
    together = called(config, tables).to_pylist()
    alone = [called(config, [table.slice(row, 1) for table in tables]).to_pylist() for row in range(5)]
    assert_same([row for one in alone for row in one], together, case.tolerance)


@pytest.mark.parametrize("name", STAGES)
def test_a_slice_of_a_table_is_read_from_where_it_starts(world: World, name: str) -> None:
    case = STAGES[name]
    config = case.config(world)
    tables = [world[table] for table in case.inputs]
    whole = called(config, tables)
    assert_same(
        called(config, [table.slice(1, 3) for table in tables]).to_pylist(),
        whole.slice(1, 3).to_pylist(),
        case.tolerance,
    )


@pytest.mark.parametrize("name", STAGES)
def test_no_rows_give_no_rows(world: World, name: str) -> None:
    case = STAGES[name]
    config = case.config(world)
    out = called(config, [world[table].slice(0, 0) for table in case.inputs])
    assert out.num_rows == 0
    assert out.schema.equals(conform(out, config.WRITES).schema)


@pytest.mark.parametrize("name", STAGES)
def test_a_config_is_an_identity_and_a_table_name(world: World, name: str) -> None:
    from ctxasr_ray.schema import TABLES
    from ctxasr_ray.stage import identity

    config = STAGES[name].config(world)
    assert isinstance(config, StageConfig)
    assert config.WRITES in TABLES
    assert all(set(columns) <= set(TABLES[table].names) for table, columns in config.READS.items())
    assert identity(config)["type"] == type(config).__name__
    assert str(Path(world["ctc"]).parent) not in str(identity(config)), "a model is its digest, wherever it lies"
