import io
import os
import pickle
import struct
import tarfile
import threading
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import archive, audio
from ctxasr_ray.corpora.manifest import read_corpus


def tone(duration_s=2.0, rate=16000, num_channels=1):
    """A different tone in each channel, with a little noise, so that windows and channels can be told apart."""
    seconds = np.arange(int(duration_s * rate)) / rate
    rng = np.random.default_rng(0)
    channels = [0.3 * np.sin(2 * np.pi * 200 * (k + 1) * seconds) for k in range(num_channels)]
    return (np.stack(channels, 1) + 0.02 * rng.standard_normal((len(seconds), num_channels))).astype(np.float32)


def written(path, samples, rate=16000, **format_):
    soundfile.write(path, samples, rate, **format_)
    return str(path)


def refusal(uri, **window):
    with pytest.raises(audio.AudioError) as caught:
        audio.load(str(uri), **window)
    return str(caught.value)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_every_format_and_rate_gives_16_khz_of_the_same_tone(tmp_path, extension, rate):
    samples = audio.load(written(tmp_path / f"a.{extension}", tone(rate=rate), rate))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - 32000) <= 1
    spectrum = np.abs(np.fft.rfft(samples[4000:28000]))
    assert abs(np.argmax(spectrum) * 16000 / 24000 - 200) < 2


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "PCM_U8"])
def test_every_bit_depth_gives_the_same_samples(tmp_path, subtype):
    expected = tone()[:, 0]
    tolerance = {"ULAW": 0.02, "PCM_U8": 0.01}.get(subtype, 1e-4)
    np.testing.assert_allclose(
        audio.load(written(tmp_path / "a.wav", tone(), subtype=subtype)), expected, atol=tolerance
    )


@pytest.mark.parametrize("extension", ["wav", "flac"])
@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 28000), length=st.integers(1, 8000))
def test_a_window_is_a_slice_of_the_whole(tmp_path_factory, extension, start, length):
    path = tmp_path_factory.getbasetemp() / f"window.{extension}"
    if not path.exists():
        written(path, tone())
    whole = audio.load(str(path))
    window = audio.load(str(path), start_s=start / 16000, duration_s=length / 16000)
    np.testing.assert_array_equal(window, whole[start : start + length])


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path):
    samples = tone(70.0, 44100)
    path = written(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    np.testing.assert_allclose(audio.load(path), soxr.resample(samples[:, 0], 44100, 16000), atol=1e-5)


def test_channels_are_chosen_or_mixed_down_only_when_asked(tmp_path):
    samples = tone(num_channels=3)
    path = written(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_array_equal(audio.load(path, channel=2), samples[:, 2])
    np.testing.assert_allclose(audio.load(path, channel=audio.MIX_DOWN), samples.mean(1), atol=1e-6)
    message = refusal(path)
    assert "3 channels and none was chosen" in message
    assert "set `channel` to 0..2" in message
    assert "-1 to mix them down" in message
    assert "channel 3 was asked for" in refusal(path, channel=3)


def test_mono_needs_no_channel_and_takes_channel_0_or_a_mix(tmp_path):
    path = written(tmp_path / "a.wav", tone())
    np.testing.assert_array_equal(audio.load(path), audio.load(path, channel=0))
    np.testing.assert_array_equal(audio.load(path), audio.load(path, channel=-1))


def test_silence_is_audio(tmp_path):
    assert not audio.load(written(tmp_path / "a.wav", np.zeros(16000, np.float32))).any()


def test_loud_float_files_stay_within_full_scale(tmp_path):
    samples = audio.load(written(tmp_path / "a.wav", 3 * tone(), subtype="FLOAT"))
    assert np.abs(samples).max() <= 1.0


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_a_truncated_file_is_refused_whatever_its_format(tmp_path, extension):
    whole = Path(written(tmp_path / f"a.{extension}", tone(8.0))).read_bytes()
    cut = tmp_path / f"cut.{extension}"
    cut.write_bytes(whole[: len(whole) // 2])
    message = refusal(cut)
    assert str(cut) in message
    assert "truncated" in message or "cannot be decoded" in message


def test_a_wav_from_a_pipe_has_no_length_and_is_read(tmp_path):
    path = Path(written(tmp_path / "a.wav", tone()))
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFF000):
        data[place : place + 4] = struct.pack("<I", unknown)
        path.write_bytes(data)
        assert len(audio.load(str(path))) == 32000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zero.wav", b"", "empty (0 bytes)"),
        ("text.wav", b"this is not audio at all\n" * 50, "cannot be decoded"),
        ("text.raw", b"this is not audio at all\n" * 50, "cannot be decoded"),
        ("image.flac", b"\x89PNG\r\n\x1a\n" + bytes(500), "cannot be decoded"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "cannot be decoded"),
    ],
)
def test_what_is_not_audio_is_refused_with_path_and_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert reason in message


def test_a_header_without_samples_is_refused(tmp_path):
    assert "holds no samples" in refusal(written(tmp_path / "a.wav", np.zeros(0, np.float32)))


def test_missing_files_folders_and_impossible_paths_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.wav")
    assert "folder" in refusal(tmp_path)
    assert "no path" in refusal("a\0b.wav")
    assert "no path" in refusal("nosuch://bucket/a.wav")


def test_numbers_that_are_none_are_refused(tmp_path):
    samples = tone()
    samples[100] = np.nan
    assert "not finite" in refusal(written(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_a_window_beyond_the_end_is_refused_but_rounding_is_not(tmp_path):
    path = written(tmp_path / "a.wav", tone())
    assert len(audio.load(path, start_s=1.0, duration_s=1.1)) == 16000
    assert "ends at 2.000 s" in refusal(path, start_s=1.0, duration_s=2.0)
    assert "ends at 2.000 s" in refusal(path, start_s=2.0)
    assert "start >= 0" in refusal(path, start_s=-1.0)
    assert "duration > 0" in refusal(path, duration_s=0.0)


def long_wav(path, hours):
    """A WAV of zeros that takes no space on disk: its end is a hole."""
    size = int(hours * 3600) * 16000 * 2
    with open(path, "wb") as file:
        format_ = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
        file.write(struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + format_ + struct.pack("<4sI", b"data", size))
        file.truncate(44 + size)
    return str(path)


def test_a_window_of_a_three_hour_file_takes_little_memory(tmp_path):
    path = long_wav(tmp_path / "long.wav", 3)
    tracemalloc.start()
    samples = audio.load(path, start_s=10000.0, duration_s=5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 80000
    assert peak < 2_000_000
    assert audio.probe(path).duration_s == 3 * 3600


def test_more_than_four_hours_at_once_are_refused(tmp_path):
    assert "5.0 hours at once; at most 4" in refusal(long_wav(tmp_path / "day.wav", 5))


def packed(path, *members):
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if content else None)
    return str(path)


def flac(samples):
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, format="FLAC")
    return stream.getvalue()


def test_members_of_a_tar_are_read_in_place(tmp_path):
    first, second = tone(1.0), tone(3.0)
    path = packed(tmp_path / "a.tar", ("x/1.flac", flac(first)), ("./2.flac", flac(second)))
    np.testing.assert_allclose(audio.load(f"{path}#x/1.flac"), first[:, 0], atol=1e-4)
    np.testing.assert_allclose(audio.load(f"{path}#2.flac", start_s=1.0), second[16000:, 0], atol=1e-4)
    assert audio.probe(f"{path}#./2.flac").duration_s == 3.0
    assert "no member 'y'" in refusal(f"{path}#y")
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


def test_a_member_never_gives_bytes_of_its_neighbours(tmp_path):
    path = packed(tmp_path / "a.tar", ("0", b"before" * 99), ("1", b"mine"), ("2", b"after" * 99))
    with archive.open_binary(f"{path}#1") as stream:
        assert stream.read() == b"mine"
        with pytest.raises(ValueError, match="before the member"):
            stream.seek(-3, os.SEEK_SET)
        assert stream.seek(100) == 100
        assert stream.read() == b""


def test_a_tar_that_was_replaced_is_indexed_again(tmp_path):
    path = packed(tmp_path / "a.tar", ("1.flac", flac(tone(1.0))))
    audio.load(f"{path}#1.flac")
    packed(tmp_path / "a.tar", ("0.flac", bytes(99999)), ("1.flac", flac(tone(2.0))))
    assert len(audio.load(f"{path}#1.flac")) == 32000


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil.flac", "outside"),
        ("a/../../evil.flac", "outside"),
        ("/etc/evil.flac", "outside"),
        ("..\\evil.flac", "outside"),
        ("C:\\evil.flac", "outside"),
        (special("link.flac", tarfile.SYMTYPE, "/etc/passwd"), "link to '/etc/passwd'"),
        (special("hard.flac", tarfile.LNKTYPE, "good.flac"), "link to 'good.flac'"),
        (special("device", tarfile.CHRTYPE), "device"),
        (special("pipe", tarfile.FIFOTYPE), "device"),
        (special("bomb.flac", tarfile.GNUTYPE_SPARSE), "is sparse, so that it may claim any size"),
    ],
)
def test_an_unsafe_archive_is_refused_as_a_whole_and_nothing_is_written(tmp_path, member, reason):
    (tmp_path / "in").mkdir()
    path = packed(tmp_path / "in" / "a.tar", ("good.flac", flac(tone())), (member, b"x"))
    assert reason in refusal(f"{path}#good.flac")
    with pytest.raises(audio.AudioError, match="refused"):
        archive.check_archive(path)
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["a.tar"]


def test_a_member_that_claims_more_than_the_archive_holds_is_no_bomb(tmp_path):
    info = tarfile.TarInfo("bomb.wav")
    info.size = 2**40
    path = tmp_path / "a.tar"
    path.write_bytes(tarfile.TarInfo.tobuf(info) + b"RIFF" + bytes(2000))
    assert "truncated" in refusal(f"{path}#bomb.wav")


def test_a_truncated_archive_still_gives_its_whole_members(tmp_path):
    path = packed(tmp_path / "a.tar", ("1.flac", flac(tone(1.0))), ("2.flac", flac(tone(4.0))))
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    assert len(audio.load(f"{path}#1.flac")) == 16000
    assert "truncated" in refusal(f"{path}#2.flac")


def test_compressed_archives_and_other_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    assert "decompress it" in refusal(f"{tmp_path}/a.tar.gz#x.flac")
    os.rename(tmp_path / "a.tar.gz", tmp_path / "b.tar")
    assert "no plain tar" in refusal(f"{tmp_path}/b.tar#x.flac")


def test_a_hash_in_a_plain_path_is_no_archive(tmp_path):
    path = written(tmp_path / "take#2.wav", tone())
    assert len(audio.load(path)) == 32000


def test_a_url_is_read_like_a_file(tmp_path):
    written(tmp_path / "a.flac", tone())
    packed(tmp_path / "a.tar", ("1.flac", flac(tone(1.0))))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        assert len(audio.load(f"{root}/a.flac")) == 32000
        assert len(audio.load(f"{root}/a.tar#1.flac")) == 16000
        assert "does not exist" in refusal(f"{root}/none.flac")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        audio.load(f"{root}/a.flac")


def test_s3_is_read_like_a_file_and_a_missing_object_is_a_missing_recording(monkeypatch):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir("recordings")
        with fsspec.open("s3://recordings/a.flac", "wb") as file:
            file.write(flac(tone(3.0)))
        with fsspec.open("s3://recordings/m.jsonl", "wb") as file:
            file.write(b'{"audio_filepath": "a.flac"}')
        row = read_corpus("s3://recordings/m.jsonl").to_pylist()[0]
        assert (row["audio_uri"], row["duration_s"]) == ("s3://recordings/a.flac", 3.0)
        assert len(audio.load(row["audio_uri"], start_s=1.0, duration_s=1.0)) == 16000
        assert "does not exist" in refusal("s3://recordings/none.flac")
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


class FlakyFile(io.BytesIO):
    """Fails after the header, like a network that goes away."""

    def read(self, size=-1):
        if self.tell() > 2000:
            raise ConnectionResetError("the network went away")
        return super().read(size)


class FlakyFileSystem(fsspec.AbstractFileSystem):
    protocol = "flaky"
    cachable = False
    content = b""

    def _open(self, path, mode="rb", **_):
        return FlakyFile(self.content)


def test_a_network_that_fails_in_the_middle_is_no_fault_of_the_recording():
    FlakyFileSystem.content = flac(tone(8.0))
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    with pytest.raises(ConnectionResetError):
        audio.load("flaky://a.flac")


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff", "tar"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_never_a_crash(tmp_path_factory, extension, data):
    folder = tmp_path_factory.getbasetemp()
    whole = folder / f"whole.{extension}"
    if not whole.exists():
        if extension == "tar":
            packed(whole, ("x.flac", flac(tone(0.2))), ("y.flac", flac(tone(0.1))))
        else:
            written(whole, tone(0.3, num_channels=1))
    content = bytearray(whole.read_bytes())
    header = st.integers(0, min(len(content), 600 if extension != "tar" else 2000) - 1)
    for place in data.draw(st.lists(header, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    damaged = folder / f"damaged.{extension}"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    uri = f"{damaged}#x.flac" if extension == "tar" else str(damaged)
    try:
        samples = audio.load(uri, channel=audio.MIX_DOWN)
    except audio.AudioError as error:
        samples, reason = None, error.reason
        assert error.uri.startswith(str(damaged))  # noqa: PT017  # both outcomes are right
        assert reason
    if samples is not None:
        assert np.isfinite(samples).all()
        assert np.abs(samples).max(initial=0.0) <= 1.0


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(audio.AudioError("a.wav", "is empty")))
    assert (error.uri, error.reason, str(error)) == ("a.wav", "is empty", "a.wav: is empty")
