"""The attention first pass and its forced scorer: lists that mean what their columns say, any batch, bad audio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import tiny_seq2seq
import torch

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table, read_nbest, score_matrix
from ctxasr_ray.schema import TABLES
from ctxasr_ray.scorers.attention import AttentionScorerConfig
from ctxasr_ray.search.ctc_alignment import ctc_alignments
from ctxasr_ray.search.ctc_forced import ctc_forward_score
from ctxasr_ray.stage import Costs, StageConfig, identity

torch.set_num_threads(1)
LENGTHS_S = (0.6, 1.4, 1.4, 1.9)


@pytest.fixture(scope="module", params=tiny_seq2seq.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(
        tiny_seq2seq.make(
            request.param, tmp_path_factory.mktemp(request.param), ends_like=tiny_seq2seq.OFTEN[request.param]
        )
    )


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("many")
    return str(tiny_seq2seq.make("whisper", folder, ends_like="o", **tiny_seq2seq.multilingual()))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("audio")
    paths = [str(folder / f"{n}.wav") for n in range(len(LENGTHS_S))]
    for path, samples in zip(paths, tiny_seq2seq.noises(LENGTHS_S), strict=True):
        soundfile.write(path, samples, 16000)
    return paths


def utterances(paths: list[str], **columns: list[Any]) -> pa.Table:
    rows = len(paths)
    values: dict[str, list[Any]] = {
        "utterance_id": [f"u{n}" for n in range(rows)],
        "audio_uri": list(paths),
        "start_s": [0.0] * rows,
        "duration_s": [None] * rows,
        "channel": [None] * rows,
        "language": [None] * rows,
        **columns,
    }
    return pa.table({name: pa.array(v, TABLES["utterances"].field(name).type) for name, v in values.items()})


def run(config: AttentionConfig, table: pa.Table) -> tuple[list[NBest], Costs]:
    costs = Costs()
    return read_nbest(config.build()(table, costs=costs)), costs


def words_of_letters(recogniser: Seq2SeqModel, ids: Sequence[int]) -> list[int]:
    """By hand: every token of the tiny models is one letter or a space."""
    words: list[int] = []
    inside = False
    for letter in recogniser.tokens._tokenizer.convert_ids_to_tokens(list(ids)):
        started = not inside and letter != " "
        inside = letter != " "
        words.append((max(words, default=-1) + started) if inside else -1)
    return words


def test_lists_are_distinct_best_first_and_score_as_their_columns_say(model: str, recordings: list[str]) -> None:
    nbests, costs = run(
        AttentionConfig(model=model, beam_size=6, num_hypotheses=4, max_tokens=20), utterances(recordings)
    )
    recogniser = Seq2SeqModel(resolve(model))
    assert [nbest.utterance_id for nbest in nbests] == ["u0", "u1", "u2", "u3"]
    for nbest, path in zip(nbests, recordings, strict=True):
        assert 1 < len(nbest.hypotheses) <= 4
        assert len({h.text for h in nbest.hypotheses}) == len(nbest.hypotheses)
        ranks = [h.search_score for h in nbest.hypotheses]
        assert ranks == sorted(ranks, reverse=True)  # type: ignore[type-var]
        states = recogniser.encode([soundfile.read(path, dtype="float32")[0]])[0]
        texts = [np.array(h.token_ids, np.int32) for h in nbest.hypotheses]
        forced = recogniser.forced_scores(states, recogniser.tokens.prompt(None), texts)
        for i, h in enumerate(nbest.hypotheses):
            assert [(s.source, s.kind) for s in h.scores] == [("attention", "log_prob"), ("attention/eos", "log_prob")]
            assert h.scores[0].log_prob == pytest.approx(forced.log_probs[i], abs=1e-3)
            assert h.scores[1].log_prob == pytest.approx(forced.eos_log_probs[i], abs=1e-3)
            assert h.token_ids is not None
            assert h.token_log_probs is not None
            assert len(h.token_ids) == len(h.token_log_probs) == len(h.token_entropies or ())
            assert sum(h.token_log_probs) == pytest.approx(h.scores[0].log_prob, abs=1e-3)
            assert h.text == recogniser.tokens.text(h.token_ids)
            assert h.token_words == words_of_letters(recogniser, h.token_ids)
    assert costs.counters["hypotheses"] == sum(len(n.hypotheses) for n in nbests)
    assert costs.counters["audio_ms"] == round(1000 * sum(LENGTHS_S))
    assert costs.counters["decoder_steps"] > 0
    assert set(costs.seconds) == {"decode", "model", "search", "times"}


def test_tokens_have_times_in_order_within_the_utterance(model: str, recordings: list[str]) -> None:
    nbests, costs = run(AttentionConfig(model=model, max_tokens=12), utterances(recordings))
    for nbest, length_s in zip(nbests, LENGTHS_S, strict=True):
        for h in nbest.hypotheses:
            starts, ends = np.array(h.token_start_s), np.array(h.token_end_s)
            assert len(starts) == len(ends) == len(h.token_ids or ())
            assert (starts <= ends).all()
            assert (ends[:-1] == starts[1:]).all(), "a token lasts until the next begins"
            assert (starts >= 0).all()
            assert (ends < length_s + 0.1).all()
    assert "times" in costs.seconds


def test_a_ctc_head_gives_times_and_a_score_of_its_own(tmp_path: Path, recordings: list[str]) -> None:
    made = tiny_seq2seq.make("whisper", tmp_path, ends_like="o")
    without = AttentionConfig(model=str(made))
    before = without.fingerprint()
    tiny_seq2seq.add_ctc_head(made, spread=0.3, blank=9.0)
    assert without.fingerprint() != before
    recogniser = Seq2SeqModel(resolve(str(made)))
    joint, _ = run(AttentionConfig(model=str(made), ctc_weight=0.4, max_tokens=12), utterances(recordings))
    compared = 0
    for nbest, path in zip(joint, recordings, strict=True):
        waveform = soundfile.read(path, dtype="float32")[0]
        states = recogniser.encode([waveform])[0]
        frames = recogniser.ctc_log_probs(states, recogniser.num_frames(states, len(waveform)))
        for h in nbest.hypotheses:
            assert h.token_ids is not None
            assert [s.source for s in h.scores] == ["attention", "attention/eos", "attention_ctc"]
            forced = ctc_forward_score(frames, h.token_ids, recogniser.ctc_blank_id).log_prob
            assert h.scores[2].log_prob == pytest.approx(forced, abs=1e-3)
            (alignment,) = ctc_alignments(frames, [h.token_ids], recogniser.ctc_blank_id)
            assert alignment is not None
            np.testing.assert_allclose(h.token_start_s or [], alignment.start_frame * 0.02, atol=1e-6)
            np.testing.assert_allclose(h.token_end_s or [], alignment.end_frame * 0.02, atol=1e-6)
            ended = 0.6 * (h.scores[0].log_prob + h.scores[1].log_prob) + 0.4 * h.scores[2].log_prob
            if h.search_score == pytest.approx(ended, abs=1e-3):
                compared += 1
    assert compared > 2, "a hypothesis that ended is ranked by the weighted sum of its two scores"
    plain, _ = run(without, utterances(recordings))
    assert [s.source for s in plain[0].hypotheses[0].scores] == ["attention", "attention/eos"]
    assert [h.text for h in plain[0].hypotheses] != [h.text for h in joint[0].hypotheses]


def test_results_do_not_depend_on_the_batch(model: str, recordings: list[str]) -> None:
    lists = [
        run(AttentionConfig(model=model, beam_size=4, num_hypotheses=4, batch_size=n), utterances(recordings))[0]
        for n in (1, 3)
    ]
    for one, other in zip(*lists, strict=True):
        assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
        scores = [[s.log_prob for h in nbest.hypotheses for s in h.scores] for nbest in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_bad_rows_keep_their_place_and_their_reason(whisper: str, recordings: list[str], tmp_path: Path) -> None:
    samples = tiny_seq2seq.noises([2.5, 0.05])
    for name, wave in zip(("long", "short"), samples, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    paths = [recordings[0], *(str(tmp_path / f"{n}.wav") for n in ("long", "broken", "short")), *recordings[1:3]]
    table = utterances(paths, language=["en", "en", "en", "en", "xx", None])
    nbests, _ = run(AttentionConfig(model=whisper), table)
    assert [n.error_type for n in nbests] == [None, "model_limit", "audio", *["model_limit"] * 3]
    assert nbests[0].hypotheses
    assert "2.50 s of audio, the limit is 2 s; the model hears no more at once" in (nbests[1].error or "")
    assert "prepare --segment" in (nbests[1].error or "")
    assert "50 ms of audio" in (nbests[3].error or "")
    assert "language 'xx'" in (nbests[4].error or "")
    assert "no language is given" in (nbests[5].error or "")


def test_a_language_of_the_config_holds_for_every_row(whisper: str, recordings: list[str]) -> None:
    fixed, _ = run(AttentionConfig(model=whisper, language="de"), utterances(recordings[:1], language=["en"]))
    own, _ = run(AttentionConfig(model=whisper), utterances(recordings[:1] * 2, language=["de", "en"]))
    assert fixed[0].hypotheses == own[0].hypotheses
    assert own[0].hypotheses != own[1].hypotheses
    with pytest.raises(ValueError, match="language 'xx'"):
        AttentionConfig(model=whisper, language="xx").build()


def test_a_forced_score_is_what_the_search_said_of_the_same_tokens(model: str, recordings: list[str]) -> None:
    table = utterances(recordings)
    config = AttentionConfig(model=model, beam_size=4, num_hypotheses=4, source="search")
    hypotheses = config.build()(table, costs=Costs())
    scorer = AttentionScorerConfig(model=model)
    assert isinstance(scorer, StageConfig)
    scores = scorer.build()(table, hypotheses.select(["utterance_id", "hypotheses"]), costs=Costs())
    matrix = score_matrix(hypotheses, [scores])
    assert matrix.sources == ["search", "search/eos", "attention", "attention/eos"]
    spelled = Seq2SeqModel(resolve(model)).tokens
    compared = 0
    for row, h in enumerate(h for nbest in read_nbest(hypotheses) for h in nbest.hypotheses):
        if h.token_ids == spelled.encode([h.text])[0].tolist():
            np.testing.assert_allclose(matrix.values[row, :2], matrix.values[row, 2:], atol=1e-3)
            compared += 1
    assert compared > 4


def test_what_cannot_be_scored_has_a_reason(whisper: str, recordings: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    table = utterances([recordings[0], str(tmp_path / "broken.wav")], language=["en", "en"])
    texts = ["a cab", "Z", "", "ab" * 30]
    hypotheses = hypotheses_table(
        [
            NBest(utterance_id="u0", hypotheses=[Hypothesis(text=text) for text in texts]),
            NBest(utterance_id="u1", hypotheses=[Hypothesis(text="a cab")]),
        ]
    )
    rows = AttentionScorerConfig(model=whisper).build()(table, hypotheses, costs=Costs()).to_pylist()
    (first,), (second,) = rows[0]["sources"], rows[1]["sources"]
    assert [value is None for value in first["log_probs"]] == [False, True, False, True]
    assert first["log_probs"][2] == 0.0
    assert first["num_tokens"] == [5, 1, 0, 60]
    assert first["reasons"][1] == "text: the model's vocabulary cannot spell 'Z'"
    assert first["reasons"][3].startswith("model_limit: 64 tokens")
    assert rows[1]["error_type"] == "audio"
    assert second["log_probs"] == [None]
    assert "broken.wav" in second["reasons"][0]


def test_the_identity_is_what_changes_numbers(whisper: str) -> None:
    config = AttentionConfig(model=whisper, batch_size=4, device="cpu")
    assert "model" not in identity(config)
    assert identity(config) == identity(AttentionConfig(model="elsewhere"))
    assert identity(config) != identity(AttentionConfig(model=whisper, beam_size=6))
    before = config.fingerprint()
    path = Path(whisper) / "generation_config.json"
    original = path.read_text()
    path.write_text(original.replace('"max_length": 40', '"max_length": 39'))
    assert config.fingerprint() != before
    path.write_text(original)
    with pytest.raises(ValueError, match="expected 1 to beam_size"):
        AttentionConfig(model=whisper, beam_size=2)
    with pytest.raises(ValueError, match=r"ctc_weight is 1\.0; expected 0 or more, and less than 1"):
        AttentionConfig(model=whisper, ctc_weight=1.0)
