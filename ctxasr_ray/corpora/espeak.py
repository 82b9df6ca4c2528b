"""Speech synthesis in this process through espeak-ng, the same samples for the same request, whatever was said before.

espeak-ng keeps the phase of its wave generator between requests, so the library is loaded anew for each one
(about 3 ms): from a private copy, because a library that another part of the process holds open is never unloaded.
"""

import atexit
import ctypes
import functools
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ: Final = 22050

_RETRIEVE: Final = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, in this thread
_CHARACTERS_UTF8: Final = 1
_POSITION_CHARACTER: Final = 1
_RATE, _VOLUME, _PITCH, _PITCH_RANGE = 1, 2, 3, 4
_VOLUME_WITHOUT_CLIPPING: Final = 50
_RANDOM_SEED: Final = 7
_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK: Final = threading.Lock()  # espeak-ng crashes when two threads call it


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A speaker of espeak-ng."""

    accent: str
    """Language variant, for example en-gb-scotland."""
    variant: str
    """Voice variant, for example f2."""
    pitch: int
    """0 to 99."""
    pitch_range: int
    """0 (monotone) to 99."""
    words_per_minute: int
    """80 to 450."""

    @property
    def name(self) -> str:
        """The name that espeak-ng knows."""
        return f"{self.accent}+{self.variant}"


def say(text: str, voice: Voice) -> npt.NDArray[np.int16]:
    """Synthesises one sentence; calls from many threads wait for each other.

    Args:
        text: In the letters of the voice's language.
        voice: Who speaks.

    Returns:
        (num_samples,) int16 at `SAMPLE_RATE_HZ`.

    Raises:
        RuntimeError: espeakng-loader is not installed, or espeak-ng refuses the voice.
    """
    with _LOCK:
        library, data = _private_copy()
        espeak = ctypes.CDLL(str(library))
        chunks: list[npt.NDArray[np.int16]] = []

        def receive(samples: "ctypes._Pointer[ctypes.c_short]", num_samples: int, _events: int | None) -> int:
            if samples and num_samples > 0:
                chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
            return 0

        callback = _CALLBACK(receive)
        try:
            if espeak.espeak_Initialize(_RETRIEVE, 0, data.encode(), 0) != SAMPLE_RATE_HZ:
                raise RuntimeError(f"espeak-ng cannot read its voices in {data}; reinstall espeakng-loader")
            espeak.espeak_SetSynthCallback(callback)
            espeak.espeak_ng_SetRandSeed(ctypes.c_long(_RANDOM_SEED))
            ctypes.CDLL(None).srand(_RANDOM_SEED)  # the Klatt voices draw from the C library
            if espeak.espeak_SetVoiceByName(voice.name.encode()) != 0:
                raise RuntimeError(f"espeak-ng has no voice '{voice.name}'; see `espeak-ng --voices=variant`")
            for parameter, value in (
                (_RATE, voice.words_per_minute),
                (_VOLUME, _VOLUME_WITHOUT_CLIPPING),
                (_PITCH, voice.pitch),
                (_PITCH_RANGE, voice.pitch_range),
            ):
                espeak.espeak_SetParameter(parameter, value, 0)
            line = text.encode()
            espeak.espeak_Synth(line, len(line) + 1, 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None)
        finally:
            espeak.espeak_Terminate()
            ctypes.CDLL(None).dlclose(ctypes.c_void_p(espeak._handle))
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int16)


@functools.cache
def _private_copy() -> tuple[Path, str]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise RuntimeError(
            "speech synthesis needs espeakng-loader: pip install 'ctxasr-ray[speech-synthesis]'"
        ) from error
    folder = Path(tempfile.mkdtemp(prefix="ctxasr-espeak-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(shutil.copy(espeakng_loader.get_library_path(), folder)), str(espeakng_loader.get_data_path())
