"""Words -> phones: espeak-ng's phonemes, and their spelling in the ARPABET of CMU dictionaries.

For recognisers that need a pronunciation of a word they have never seen, and for matching by sound.
"""

import ctypes
import functools
import re
import shutil
import tempfile
import threading
import unicodedata
from typing import Any, Final

ARPABET: Final = frozenset({
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
})  # fmt: skip
"""The 39 phones of the CMU dictionary, without stress."""

IPA_TO_ARPABET: Final = {
    # vowels and diphthongs
    "i": "IY", "iː": "IY", "iːː": "IY", "ɪ": "IH", "ᵻ": "IH", "e": "EY", "eɪ": "EY", "ɛ": "EH", "æ": "AE", "a": "AA",
    "aː": "AA", "ɑ": "AA", "ɑː": "AA", "ɒ": "AA", "ɔ": "AO", "ɔː": "AO", "o": "OW", "oː": "OW", "oʊ": "OW", "əʊ": "OW",
    "ʊ": "UH", "u": "UW", "uː": "UW", "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ɚ": "ER", "ɜː": "ER", "ɜ": "ER", "aɪ": "AY",
    "aʊ": "AW", "ɔɪ": "OY", "iə": "IY AH", "aɪə": "AY AH", "aɪɚ": "AY ER",
    # vowels that carry an r or an l, syllabic consonants
    "ɑːɹ": "AA R", "ɔːɹ": "AO R", "oːɹ": "AO R", "ɛɹ": "EH R", "ɪɹ": "IH R", "ʊɹ": "UH R", "əl": "AH L", "n̩": "AH N",
    "m̩": "AH M", "l̩": "AH L",
    # consonants
    "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "ɡ": "G", "tʃ": "CH", "dʒ": "JH", "f": "F", "v": "V", "θ": "TH",
    "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH", "h": "HH", "m": "M", "n": "N", "ŋ": "NG", "l": "L", "ɫ": "L",
    "ɹ": "R", "r": "R", "w": "W", "j": "Y", "ɾ": "T", "ʔ": "T", "x": "K", "ç": "HH", "ɬ": "L",
}  # fmt: skip
"""espeak-ng's American English, without stress marks, as one or two phones of `ARPABET`."""

_UTF8, _IPA, _SEPARATOR = 1, 0x02, ord("_") << 8
_FLAG: Final = re.compile(r"\([a-z-]+\)")
"""A switch of language inside a line, for example (en)...(cmn)."""
_STRESS: Final = "ˈˌ"
_LOCK: Final = threading.Lock()  # espeak-ng crashes when two threads call it
_SELECTED: Final[dict[str, str]] = {}
"""The voice that the library speaks with; guarded by the lock."""


def phonemes(text: str, voice: str = "en-us") -> tuple[str, ...]:
    """The IPA phones of a text, without stress marks and word bounds; calls from many threads wait for each other.

    Args:
        text: In the letters of the voice's language; numbers and abbreviations are read out.
        voice: As espeak-ng names it: en-us, en-gb, de, cmn, ...

    Raises:
        RuntimeError: espeakng-loader is not installed, or espeak-ng has no such voice.
    """
    buffer = ctypes.create_string_buffer(text.encode())
    place = ctypes.c_void_p(ctypes.addressof(buffer))
    clauses = []
    with _LOCK:
        espeak = _library()
        if _SELECTED.get("voice") != voice:  # 1 ms, twenty times what a word takes
            if espeak.espeak_SetVoiceByName(voice.encode()) != 0:
                raise RuntimeError(f"espeak-ng has no voice '{voice}'; `espeak-ng --voices` lists them.")
            _SELECTED["voice"] = voice
        while place.value:  # one clause per call
            clauses.append(espeak.espeak_TextToPhonemes(ctypes.byref(place), _UTF8, _IPA | _SEPARATOR).decode())
    phones = _FLAG.sub("_", "_".join(clauses)).replace(" ", "_").split("_")
    return tuple(bare for phone in phones if (bare := phone.strip(_STRESS)))


def arpabet(word: str, voice: str = "en-us") -> str:
    """A pronunciation as CMU dictionaries write it, for example "Z IH M B R AA T OW" for zimbrato.

    Args:
        word: One word or more, in Latin letters.
        voice: An English voice of espeak-ng.

    Returns:
        Phones of `ARPABET`, separated by spaces.

    Raises:
        ValueError: other letters, nothing to pronounce, or a phone that the table lacks; names it and the remedy.
        RuntimeError: as `phonemes`.
    """
    foreign = sorted({c for c in word if c.isalpha() and not unicodedata.name(c, "").startswith("LATIN")})
    if foreign:
        raise ValueError(f"'{word}': espeak-ng's {voice} would spell out {foreign}; write it in Latin letters.")
    phones = phonemes(word, voice)
    unknown = sorted({phone for phone in phones if phone not in IPA_TO_ARPABET})
    if unknown or not phones:
        what = f"phones {unknown} have no ARPABET" if unknown else "nothing to pronounce"
        raise ValueError(f"'{word}': {what}; give the pronunciation yourself, for example {word}=Z IH M.")
    return " ".join(IPA_TO_ARPABET[phone] for phone in phones)


@functools.cache
def _library() -> Any:
    """The library, started once from a copy of its own: whoever else speaks in this process cannot change its voice."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise RuntimeError("pronunciations need espeakng-loader: pip install 'ctxasr-ray[speech-synthesis]'") from error
    with tempfile.TemporaryDirectory(prefix="ctxasr-espeak-") as folder:
        espeak = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
    if espeak.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0) <= 0:
        raise RuntimeError(f"espeak-ng cannot read {espeakng_loader.get_data_path()}; reinstall espeakng-loader")
    espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
    espeak.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int]
    return espeak
