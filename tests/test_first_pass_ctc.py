"""The CTC first pass: every family, any batch, bad audio, and lists that mean what their columns say."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import tiny_ctc
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.ctc import CtcModel
from ctxasr_ray.models.ctc_vocabulary import vocabulary
from ctxasr_ray.nbest import NBest, read_nbest
from ctxasr_ray.schema import TABLES
from ctxasr_ray.search.ctc_forced import ctc_forward_score
from ctxasr_ray.stage import Costs, Resources, StageConfig, identity

torch.set_num_threads(1)
LENGTHS_S = (0.3, 0.77, 1.4, 1.4, 2.0)
PADDED = {"wav2vec2", "hubert", "wavlm", "wav2vec2-bert", "parakeet-4x", "parakeet-8x"}
FRAMES_S = {"wav2vec2-bert-adapter": 0.04, "parakeet-4x": 0.04, "parakeet-8x": 0.08}


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ctc.make("parakeet-4x", tmp_path_factory.mktemp("parakeet"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    paths = [folder / f"{n}.wav" for n in range(len(LENGTHS_S))]
    for n, path in enumerate(paths):
        soundfile.write(path, tiny_ctc.noise(n, LENGTHS_S[n]), 16000)
    return paths


def utterances(paths: list[Path], **columns: list[object]) -> pa.Table:
    rows = len(paths)
    values: dict[str, list[object]] = {
        "utterance_id": [f"u{n}" for n in range(rows)],
        "audio_uri": [str(p) for p in paths],
        "start_s": [0.0] * rows,
        "duration_s": [None] * rows,
        "channel": [None] * rows,
        **columns,
    }
    return pa.table({name: pa.array(v, TABLES["utterances"].field(name).type) for name, v in values.items()})


def run(config: CtcConfig, table: pa.Table) -> tuple[list[NBest], Costs]:
    costs = Costs()
    return read_nbest(config.build()(table, costs=costs)), costs


@pytest.mark.parametrize("family", tiny_ctc.FAMILIES)
def test_log_probs_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    model = CtcModel(resolve(str(tiny_ctc.make(family, tmp_path))))
    waveforms = [tiny_ctc.noise(n, seconds) for n, seconds in enumerate(LENGTHS_S)]
    alone = [model.log_probs([waveform])[0] for waveform in waveforms]
    together = model.log_probs(waveforms)
    assert model.pads_safely == (family in PADDED)
    assert model.frame_duration_s == pytest.approx(FRAMES_S.get(family, 0.02), rel=1e-6)
    for waveform, one, batched in zip(waveforms, alone, together, strict=True):
        assert one.dtype == np.float32
        assert one.shape == batched.shape
        assert len(one) * model.frame_duration_s == pytest.approx(len(waveform) / 16000, abs=0.1)
        np.testing.assert_allclose(batched, one, atol=1e-4)  # float32 sums in another order; a wrong mask costs > 0.5
        np.testing.assert_allclose(np.exp(one.astype(np.float64)).sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["parakeet-4x", "wav2vec2-conformer"])
def test_half_precision_is_close_and_does_not_hide_what_padding_does(family: str, dtype: str, tmp_path: Path) -> None:
    path = str(tiny_ctc.make(family, tmp_path))
    half, full = CtcModel(resolve(path), dtype=dtype), CtcModel(resolve(path))
    waveform = tiny_ctc.noise(0, 1.5)
    got, expected = half.log_probs([waveform])[0], full.log_probs([waveform])[0]
    assert got.dtype == np.float32
    assert np.abs(got - expected).mean() < 0.1
    assert half.pads_safely == full.pads_safely == (family in PADDED)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["parakeet-4x", "wav2vec2", "wav2vec2-group-norm"])
def test_a_gpu_gives_the_log_probs_of_the_cpu(family: str, tmp_path: Path) -> None:
    path = str(tiny_ctc.make(family, tmp_path))
    waveforms = [tiny_ctc.noise(n, seconds) for n, seconds in enumerate(LENGTHS_S)]
    expected = CtcModel(resolve(path)).log_probs(waveforms)
    for got, one in zip(CtcModel(resolve(path), device="cuda").log_probs(waveforms), expected, strict=True):
        np.testing.assert_allclose(got, one, atol=0.05)  # TF32 in convolutions


def test_a_family_that_padding_changes_would_be_wrong_by_nats(tmp_path: Path) -> None:
    model = CtcModel(resolve(str(tiny_ctc.make("wav2vec2-group-norm", tmp_path))))
    waveforms = [tiny_ctc.noise(0, 0.5), tiny_ctc.noise(1, 2.0)]
    right = model.log_probs(waveforms)[0]
    model.pads_safely = True
    assert np.abs(model.log_probs(waveforms)[0] - right).max() > 0.5


def test_lists_are_distinct_and_best_first_by_the_exact_forced_score(parakeet: Path, recordings: list[Path]) -> None:
    config = CtcConfig(model=str(parakeet), beam_size=20, num_hypotheses=15, source="tiny")
    nbests, costs = run(config, utterances(recordings))
    model = CtcModel(resolve(str(parakeet)))
    assert [n.utterance_id for n in nbests] == [f"u{n}" for n in range(len(recordings))]
    for n, nbest in enumerate(nbests):
        log_probs = model.log_probs([tiny_ctc.noise(n, LENGTHS_S[n])])[0]
        scores = [h.scores[0].log_prob for h in nbest.hypotheses]
        assert len(scores) == 15
        assert scores == sorted(scores, reverse=True)
        assert len({h.text for h in nbest.hypotheses}) == 15
        for h in nbest.hypotheses:
            assert [(s.source, s.kind) for s in h.scores] == [("tiny", "log_prob")]
            assert h.token_ids is not None
            forced = ctc_forward_score(log_probs, h.token_ids, 0).log_prob
            assert h.scores[0].log_prob == pytest.approx(forced, abs=0.02)  # 16-bit WAV against float noise
            assert h.search_score is not None
            assert h.search_score <= h.scores[0].log_prob + 1e-9
    assert costs.counters["hypotheses"] == 15 * len(recordings)
    assert costs.counters["audio_ms"] == round(1000 * sum(LENGTHS_S))
    assert costs.counters["frames"] == sum(len(model.log_probs([tiny_ctc.noise(0, s)])[0]) for s in LENGTHS_S)
    assert set(costs.seconds) == {"decode", "model", "search"}


def test_token_columns_are_the_recognisers_own_at_the_peak_frame(parakeet: Path, recordings: list[Path]) -> None:
    nbests, _ = run(CtcConfig(model=str(parakeet), beam_size=5, num_hypotheses=5), utterances(recordings[:1]))
    model = CtcModel(resolve(str(parakeet)))
    samples, _ = soundfile.read(recordings[0], dtype="float32")
    log_probs = model.log_probs([samples])[0].astype(np.float64)
    entropy = -(np.exp(log_probs) * log_probs).sum(axis=1)
    for h in nbests[0].hypotheses:
        columns = (h.token_ids, h.token_log_probs, h.token_entropies, h.token_start_s, h.token_end_s)
        assert h.token_ids
        assert len({len(column or ()) for column in columns}) == 1
        end_before = 0.0
        for token, log_prob, uncertainty, start_s, end_s in zip(*columns, strict=True):  # type: ignore[arg-type]
            frames = slice(round(start_s / model.frame_duration_s), round(end_s / model.frame_duration_s))
            peak = frames.start + int(np.argmax(log_probs[frames, token]))
            assert log_prob == pytest.approx(log_probs[peak, token], abs=1e-5)
            assert uncertainty == pytest.approx(entropy[peak], abs=1e-4)
            assert end_before - 1e-6 <= start_s < end_s <= len(log_probs) * model.frame_duration_s + 1e-6
            end_before = end_s


@pytest.mark.parametrize("family", ["parakeet-4x", "wav2vec2-group-norm"])
def test_tables_do_not_depend_on_batch_size_threads_or_slices(
    family: str, tmp_path: Path, recordings: list[Path]
) -> None:
    config = CtcConfig(model=str(tiny_ctc.make(family, tmp_path)), beam_size=10, num_hypotheses=10, batch_size=1)
    table = utterances(recordings)
    expected, _ = run(config, table)
    threads = Resources(num_cpus=3)
    other = CtcConfig(model=config.model, beam_size=10, num_hypotheses=10, batch_size=4, resources=threads)
    for got in (run(other, table)[0], [run(config, table.slice(n, 1))[0][0] for n in range(len(recordings))]):
        for a, b in zip(expected, got, strict=True):
            assert [h.text for h in a.hypotheses] == [h.text for h in b.hypotheses]
            scores = [[h.scores[0].log_prob for h in n.hypotheses] for n in (a, b)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-2)
    assert run(config, table.slice(0, 0))[0] == []


def test_bad_audio_keeps_its_row_with_path_and_reason(parakeet: Path, recordings: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "stereo.wav", np.zeros((16000, 2)), 16000)
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 4), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    names = ["missing.wav", "text.wav", "stereo.wav", "short.wav", "long.wav", "silent.wav"]
    paths = [recordings[0], *(tmp_path / name for name in names), recordings[1]]
    config = CtcConfig(model=str(parakeet), beam_size=4, num_hypotheses=4, max_audio_s=3.0)
    nbests, _ = run(config, utterances(paths))
    assert [n.error_type for n in nbests] == [None, "audio", "audio", "audio", "model_limit", "model_limit", None, None]
    for path, nbest in zip(paths, nbests, strict=True):
        if nbest.error_type:
            assert not nbest.hypotheses
            assert str(path) in (nbest.error or "")
    assert "at least 80 ms" in (nbests[4].error or "")
    assert "the limit is 3 s; cut it into windows" in (nbests[5].error or "")
    alone, _ = run(config, utterances([recordings[0], recordings[1]]))
    for a, b in ((nbests[0], alone[0]), (nbests[-1], alone[1])):
        assert [h.text for h in a.hypotheses] == [h.text for h in b.hypotheses]


def test_a_window_is_heard_and_its_times_count_from_its_start(
    parakeet: Path, recordings: list[Path], tmp_path: Path
) -> None:
    samples, _ = soundfile.read(recordings[4], dtype="float32")
    soundfile.write(tmp_path / "cut.wav", samples[8000:24000], 16000)
    config = CtcConfig(model=str(parakeet), beam_size=4, num_hypotheses=4)
    window, _ = run(config, utterances([recordings[4]], start_s=[0.5], duration_s=[1.0]))
    cut, _ = run(config, utterances([tmp_path / "cut.wav"]))
    assert [h.text for h in window[0].hypotheses] == [h.text for h in cut[0].hypotheses]
    assert window[0].hypotheses[0].token_start_s == cut[0].hypotheses[0].token_start_s


def test_identity_is_the_checkpoint_and_the_search_not_the_place_or_the_speed(parakeet: Path, tmp_path: Path) -> None:
    config = CtcConfig(model=str(parakeet))
    moved = tiny_ctc.make("parakeet-4x", tmp_path / "elsewhere")
    other = CtcConfig(model=str(moved), batch_size=3, device="cpu")
    assert isinstance(config, StageConfig)
    assert identity(config) == identity(other)
    assert config.fingerprint() == other.fingerprint()
    assert identity(config) != identity(CtcConfig(model=str(parakeet), beam_threshold=9.0))
    tiny_ctc.save_letters(moved, [*tiny_ctc.LETTERS[:5], *"zyxwvutsrqponmlkjihgfedcba'"])
    assert config.fingerprint()["tokenizer"] != other.fingerprint()["tokenizer"]
    with pytest.raises(ValueError, match="num_hypotheses is 9, beam_size 4"):
        CtcConfig(model=str(parakeet), beam_size=4, num_hypotheses=9)


def _fast_tokenizer(pieces: list[str], decoder: decoders.Decoder, directory: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.save_pretrained(directory)
    return fast


@pytest.mark.parametrize(
    ("pieces", "decoder", "ids", "text", "words", "starts"),
    [
        (
            ["<pad>", "<unk>", "▁he", "▁", "llo", "l"],
            decoders.Metaspace(),
            [2, 5, 4, 3, 4],
            "helllo llo",
            [0, 0, 0, -1, 1],
            [2, 3],
        ),
        (
            ["<pad>", "<unk>", " ", "a", "b", "'"],
            decoders.Fuse(),
            [2, 3, 3, 2, 2, 4, 5, 2],
            "aa b'",
            [-1, 0, 0, -1, -1, 1, 1, -1],
            [2],
        ),
        (
            ["<pad>", "<unk>", "▁a", "<0xC3>", "<0xA9>", "b"],
            decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]),
            [2, 3, 4, 5],
            "aéb",
            [0, 0, 0, 0],
            [2],
        ),
    ],
    ids=["word-start pieces", "characters and a space", "bytes of one character in two pieces"],
)
def test_vocabularies_follow_the_tokenizers_convention_for_words(
    pieces: list[str],
    decoder: decoders.Decoder,
    ids: list[int],
    text: str,
    words: list[int],
    starts: list[int],
    parakeet: Path,
    tmp_path: Path,
) -> None:
    read = vocabulary(resolve(str(parakeet)), _fast_tokenizer(pieces, decoder, tmp_path), len(pieces), 0)
    assert read.text(ids) == text
    assert read.token_words(ids) == words
    assert read.suppressed == (1,)
    assert np.flatnonzero(read.starts_word()).tolist() == starts


def test_word_delimiters_become_single_spaces(parakeet: Path) -> None:
    letters = CtcModel(resolve(str(parakeet))).vocabulary
    ids = [tiny_ctc.LETTERS.index(c) for c in "|hello||it's|me|"]
    assert letters.text(ids) == "hello it's me"
    assert letters.suppressed == (1, 2, 3)
    assert letters.text([]) == ""


def test_a_window_that_starts_behind_the_end_says_where_the_recording_ends(
    parakeet: Path, recordings: list[Path]
) -> None:
    nbests, _ = run(CtcConfig(model=str(parakeet)), utterances(recordings[:1], start_s=[5.0]))
    assert nbests[0].error_type == "audio"
    assert "ends at 0.300 s, but 5.000 to" in (nbests[0].error or "")
