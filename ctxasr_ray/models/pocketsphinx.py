"""PocketSphinx's model files, and decoders that know one's own words; the engine itself is loaded in functions."""

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray import audio
from ctxasr_ray.keywords.pronunciation import arpabet

SENTENCE_START, SENTENCE_END = "<s>", "</s>"
MIN_AUDIO_S = 0.05
"""Shorter audio has no frame."""
_PRIMER = np.random.default_rng(7).normal(0, 1000, 1600).astype(np.int16)
"""Heard before every utterance (10 ms of work): the order in which Gaussians are tried goes on from one utterance to
the next and decides ties, so that digital silence was "dog", "it" or nothing depending on what stood before it."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A PocketSphinx model: senones, an n-gram and a dictionary."""

    acoustic: Path
    """Folder with mdef, means, variances, ..."""
    language: Path
    """n-gram in binary or ARPA form."""
    dictionary: Path
    """CMU form: a word and its phones per line."""


def find_model(directory: str | None) -> ModelFiles:
    """The parts of a model folder, by their names; None is the en-us model in PocketSphinx's wheel.

    Args:
        directory: A folder with one *.lm.bin or *.lm, one *.dict and one folder that holds an mdef.

    Raises:
        ValueError: the folder or one of its parts is missing, or there are two of a kind; names it.
        RuntimeError: pocketsphinx is not installed.
    """
    root = Path(directory) if directory is not None else Path(_engine().get_model_path("en-us"))
    if not root.is_dir():
        raise ValueError(f"pocketsphinx model: {root} is not a folder; expected one with *.lm.bin, *.dict and mdef.")
    parts = {
        "acoustic model (a folder with mdef)": [path.parent for path in sorted(root.glob("*/mdef"))],
        "language model (*.lm.bin or *.lm)": sorted(
            path for path in (*root.glob("*.lm.bin"), *root.glob("*.lm")) if not path.name.endswith("-phone.lm.bin")
        ),
        "dictionary (*.dict)": sorted(root.glob("*.dict")),
    }
    for what, found in parts.items():
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise ValueError(f"pocketsphinx model {root}: expected one {what}, got {names}; leave exactly one there.")
    acoustic, language, dictionary = (found[0] for found in parts.values())
    return ModelFiles(acoustic, language, dictionary)


def fingerprint(directory: str | None, words: Sequence[str]) -> dict[str, str]:
    """Digests of the model's files, the engine's version, and the pronunciations of one's own words.

    Raises:
        ValueError, RuntimeError: as `find_model` and `pronunciations`.
    """
    files = find_model(directory)
    digests = {}
    for part, paths in (
        ("acoustic", sorted(path for path in files.acoustic.iterdir() if path.is_file())),
        ("language", [files.language]),
        ("dictionary", [files.dictionary]),
    ):
        hasher = hashlib.sha256()
        for path in paths:
            with path.open("rb") as stream:
                hasher.update(f"{path.name}\0".encode() + hashlib.file_digest(stream, "sha256").digest())
        digests[part] = hasher.hexdigest()
    if words:
        spoken = "\n".join(f"{word}={phones}" for word, phones in pronunciations(words))
        digests["words"] = hashlib.sha256(spoken.encode()).hexdigest()
    return {**digests, "engine": f"pocketsphinx {importlib.metadata.version('pocketsphinx')}"}


def pronunciations(words: Sequence[str]) -> list[tuple[str, str]]:
    """(word in lower case, phones) of one's own words, in their order.

    Args:
        words: `word`, pronounced by espeak-ng, or `word=Z IH M`. A word may come twice with other phones.

    Raises:
        ValueError: a phrase where a word is expected, or as `keywords.pronunciation.arpabet`.
    """
    made = []
    for entry in words:
        word, given, phones = entry.partition("=")
        word = word.strip().lower()
        if not word or len(word.split()) != 1 or "(" in word:
            raise ValueError(
                f"own word '{entry}': expected one word, or word=PHONES; the words of a phrase are given one by one."
            )
        made.append((word, " ".join(phones.split()) if given else arpabet(word)))
    return made


def load(files: ModelFiles, words: Sequence[str] = (), *, align: bool = False) -> Any:
    """A decoder that knows one's own words; it is not thread-safe.

    Args:
        files: The model.
        words: As for `pronunciations`; each is a unigram of uniform probability where the n-gram lacks it.
        align: For forced alignment, with scores that can be compared between texts, instead of recognition.

    Raises:
        ValueError: a pronunciation uses phones that the model lacks.
        RuntimeError: pocketsphinx is not installed or refuses the model.
    """
    if align:  # without compallsen each frame is normalised by its best active senone: texts do not compare
        decoder = open_decoder(files, bestpath=False, compallsen=True)
    else:
        decoder = open_decoder(files, lm=str(files.language))
    if words:
        _add(decoder, words, lm=None if align else decoder.get_lm("_default"))
    return decoder


def open_decoder(files: ModelFiles, **options: Any) -> Any:
    """A decoder with the model's acoustics and dictionary, and without a search unless an option names one.

    Args:
        files: The model.
        options: As PocketSphinx names them: lm, bestpath, ...

    Raises:
        RuntimeError: pocketsphinx is not installed or refuses the model.
    """
    model = {"hmm": str(files.acoustic), "dict": str(files.dictionary), "loglevel": "FATAL"}
    return _engine().Decoder(**{"lm": None, **model, **options})


def open_ngram(decoder: Any, path: Path) -> Any:
    """An n-gram in binary or ARPA form, apart from any search.

    Args:
        decoder: Whose weights and logarithms it takes.
        path: The file; it is not needed afterwards.

    Raises:
        RuntimeError: PocketSphinx refuses the file.
    """
    return _engine().NGramModel(decoder.config, decoder.logmath, str(path))


def _add(decoder: Any, words: Sequence[str], lm: Any) -> None:
    for word, phones in pronunciations(words):
        name, variant = word, 1
        while (known := decoder.lookup_word(name)) is not None and known != phones:
            variant += 1
            name = f"{word}({variant})"
        if known is None:
            try:
                decoder.add_word(name, phones, update=False)
            except RuntimeError as error:
                raise ValueError(
                    f"own word '{word}': the model refuses the phones '{phones}'; expected phones of its own set, "
                    "for example Z IH M for ARPABET."
                ) from error
        if lm is not None and lm.prob([word]) <= decoder.logmath.get_zero():
            lm.add_word(word, 1.0)  # half of the wheel's dictionary is unknown to its n-gram and never recognised
    if lm is not None:  # the search tree is made anew, once
        decoder.add_lm("_default", lm)
        decoder.activate_search("_default")


class ModelLimitError(ValueError):
    """Audio that the recogniser cannot take: too long or too short."""


def read_samples(row: Mapping[str, Any], *, sample_rate_hz: int, max_audio_s: float) -> npt.NDArray[np.float32]:
    """The audio of an UTTERANCES row.

    Args:
        row: audio_uri, start_s, duration_s, channel.
        sample_rate_hz: The model's.
        max_audio_s: The longest that is taken.

    Returns:
        (num_samples,) float32 in [-1, 1].

    Raises:
        AudioError: a fault of the recording.
        ModelLimitError: shorter than a frame, or longer than `max_audio_s`.
    """
    uri, start_s, duration_s = row["audio_uri"], row["start_s"], row["duration_s"]
    if duration_s is None:
        duration_s = audio.probe(uri).duration_s - start_s
    if duration_s > max_audio_s:
        raise ModelLimitError(
            f"{uri}: {duration_s:.1f} s of audio, the limit is {max_audio_s} s; cut it into windows "
            "(`ctxasr prepare --segment`), or raise max_audio_s where the memory allows."
        )
    samples = audio.load(
        uri,
        start_s=start_s,
        duration_s=row["duration_s"],
        channel=row["channel"],
        sample_rate_hz=sample_rate_hz,
    )
    if len(samples) < MIN_AUDIO_S * sample_rate_hz:
        length_ms = 1000 * len(samples) / sample_rate_hz
        raise ModelLimitError(
            f"{uri}: {length_ms:.0f} ms of audio, the model needs at least {1000 * MIN_AUDIO_S:.0f} ms."
        )
    return samples


def hear(decoder: Any, samples: npt.NDArray[np.float32]) -> None:
    """Runs a decoder over one utterance; what it heard before does not matter.

    Args:
        decoder: From `load`.
        samples: (num_samples,) float32 in [-1, 1] at the model's rate, at least one.
    """
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    for heard in (_PRIMER, pcm):
        decoder.reinit_feat()  # its noise estimate would go on from the utterance before
        decoder.start_utt()
        decoder.process_raw(heard.tobytes(), full_utt=True)
        decoder.end_utt()


class Trigram:
    """A language model of the decoder, exact and unweighted.

    Args:
        decoder: From `load` or `open_decoder`.
        ngram: From `open_ngram`; None is the one that `load` searches with.
    """

    def __init__(self, decoder: Any, ngram: Any = None) -> None:
        ngram = decoder.get_lm("_default") if ngram is None else ngram
        self._prob, self._to_ln = ngram.prob, decoder.logmath.log_to_ln
        self.weight = float(decoder.config["bestpathlw"])
        """Of ln P in the recogniser's own last search, over its lattice."""
        self.word_penalty = math.log(decoder.config["wip"]) * self.weight / float(decoder.config["lw"])
        """Nats per word there."""

    def log_prob(self, word: str, history: tuple[str, ...]) -> float:
        """Natural logarithm of P(word | up to two words before it, the older one first)."""
        return float(self._to_ln(self._prob([word, *reversed(history)])))

    def weighted(self, word: str, history: tuple[str, ...]) -> float:
        """What the recogniser adds to its acoustic score for a word when it searches its lattice."""
        return self.weight * self.log_prob(word, history) + self.word_penalty

    def sentence(self, words: Sequence[str]) -> tuple[float, float]:
        """(ln P of the words, ln P of the end of the sentence behind them)."""
        whole = (SENTENCE_START, *words, SENTENCE_END)
        log_probs = [self.log_prob(whole[i], whole[max(0, i - 2) : i]) for i in range(1, len(whole))]
        return sum(log_probs[:-1]), log_probs[-1]


class WordSearch:
    """A decoder that searches single words under its own trigram.

    Args:
        decoder: From `load`.
    """

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.search_model = self.language_model = Trigram(decoder)
        self.num_phrases = 0
        self.unwritable: Sequence[str] = ()

    def written(
        self, names: Sequence[str], start_s: Sequence[float], end_s: Sequence[float]
    ) -> tuple[Sequence[str], Sequence[float], Sequence[float]]:
        """The entries themselves: each is a word."""
        return names, start_s, end_s


def _engine() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise RuntimeError("this recogniser needs pocketsphinx: pip install 'ctxasr-ray[pocketsphinx]'") from error
    return pocketsphinx
