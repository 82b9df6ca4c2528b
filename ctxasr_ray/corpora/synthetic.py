"""A seeded corpus of spoken commands full of rare names -> audio files, a manifest and a context file.

Speakers and rare names are disjoint between splits; every split holds every noise level. An utterance is a function
of (config, split, index), so processes share the work without talking to each other.
"""

import io
import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ctxasr_ray.corpora import espeak, noise
from ctxasr_ray.corpora.names import listed, pick
from ctxasr_ray.corpora.sentences import Sentence, lexicon, phrase, sentence
from ctxasr_ray.stage import identity

SAMPLE_RATE_HZ: Final = 16000
MIN_DURATION_S: Final = 3.0
MAX_DURATION_S: Final = 8.0
MANIFEST: Final = "manifest.jsonl"
CONTEXT: Final = "context.jsonl"
PREPARED: Final = "prepared.json"
PREPARED_VERSION: Final = 1
"""Raised when the same config gives other utterances."""

ACCENTS: Final = listed("en-us en en-gb-scotland en-029 en-gb-x-rp en-us-nyc en-gb-x-gbclan en-gb-x-gbcwmd")
VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "test": listed("f2 m3 Alicia Andy max steph linda paul gustave john Gene quincy belinda travis boris"),
    "dev": listed("f4 m5 Annie norbert zac shelby ian klatt6"),
    "train": listed(
        "f1 f3 f5 m1 m2 m4 m6 m7 m8 Alex Andrea Denis Diogo Henrique Hugo Jacky Lee Marco Mario Michael Mike "
        "Nguyen Reed RicishayMax RicishayMax2 RicishayMax3 Storm Tweaky adam anika announcer antonio aunty "
        "benjamin caleb david ed edward edward2 grandma grandpa iven iven2 iven3 iven4 klatt klatt2 klatt3 "
        "klatt4 marcelo michel miguel mike2 pablo pedro rob robert sandro victor"
    ),
}
"""Split -> timbres. A timbre belongs to one split, so that a speaker of test is new in more than pitch and rate."""
NUM_VOICES: Final[Mapping[str, int]] = {"train": 4 * len(VARIANTS["train"]), "dev": 15, "test": 30}


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance: the truth, the context list apart from it, and the audio."""

    utterance_id: str
    text: str
    """Lower case; of the English corpus a to z, apostrophe and spaces."""
    keywords: tuple[str, ...]
    """Rare phrases truly spoken."""
    distractors: tuple[str, ...]
    """Phrases of the same kinds that are not spoken; names of this split, and of train."""
    voice: str
    """Name of the espeak-ng voice."""
    speaker_id: str
    snr_db: float | None
    """None: clean."""
    samples: npt.NDArray[np.float32]
    """(num_samples,) at 16 kHz, on the grid of 16-bit audio, so that a file holds exactly these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Which utterances there are; equal configs give equal samples in every process."""

    CORPUS: ClassVar[str] = "synthetic"
    LANGUAGE: ClassVar[str] = "en"
    ACCENTS: ClassVar[tuple[str, ...]] = ACCENTS
    TIMBRES: ClassVar[Mapping[str, tuple[str, ...]]] = VARIANTS

    seed: int = 7
    """Of names, sentences, voices and noise."""
    snrs_db: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0, 0.0)
    """Noise levels, taken in turn so that each voice has each of them; None is clean."""
    num_distractors: int = 100
    """Length of the context list besides the phrases spoken."""
    num_train: int = 0
    """Utterances of train that `prepare` writes."""
    num_dev: int = 150
    """Utterances of dev that `prepare` writes."""
    num_test: int = 300
    """Utterances of test that `prepare` writes."""

    def sentence(self, split: str, index: int) -> Sentence:
        """Gives the text and keywords of an utterance without speaking it."""
        return sentence(self.seed, split, index)

    def training_sentences(self, num: int) -> Iterator[str]:
        """Gives the texts of the first `num` utterances of train; none of them is ever in dev or test."""
        return (self.sentence("train", index).text for index in range(num))

    def snr_db(self, split: str, index: int) -> float | None:
        """Gives the noise level of an utterance; None is clean."""
        return self.snrs_db[(index + index // NUM_VOICES[split]) % len(self.snrs_db)]

    def distractors(self, split: str, index: int) -> tuple[str, ...]:
        """Draws phrases that are not spoken: two of three of the split's own names, the others of train's."""
        rng = random.Random(f"{self.seed}/{split}/{index}/distractors")
        spoken = set(self.sentence(split, index).keywords)
        drawn: dict[str, None] = {}
        while len(drawn) < self.num_distractors:
            said = self.phrase(rng, split if rng.random() < 2 / 3 else "train")
            if said not in spoken:
                drawn[said] = None
        return tuple(drawn)

    def catalogue(self, num: int) -> list[str]:
        """Draws one list for everybody: distinct phrases of dev, test and train in equal shares, in a seeded order."""
        rng = random.Random(f"{self.seed}/catalogue")
        drawn: dict[str, None] = {}
        while len(drawn) < num:
            drawn[self.phrase(rng, rng.choice(("dev", "test", "train")))] = None
        return list(drawn)

    def phrase(self, rng: random.Random, split: str) -> str:
        """Draws one name of a split, as it may be spoken."""
        kind = pick(rng, ("person", "person", "surname", "town", "product", "drug"))
        return phrase(kind, rng, lexicon(self.seed, split))

    def rare_words(self, split: str) -> frozenset[str]:
        """Every word of the split's names that no other split has."""
        return lexicon(self.seed, split).words

    def spoken(self, split: str, index: int) -> Spoken:
        """Speaks one utterance.

        Args:
            split: train, dev or test.
            index: 0 or more; there is no end.

        Returns:
            The utterance, 3 to 8 s long, with a peak below full scale.

        Raises:
            RuntimeError: the extra `speech-synthesis` is not installed.
        """
        said = self.sentence(split, index)
        speaker_id, voice = self._voices(split)[index % NUM_VOICES[split]]
        rng = np.random.default_rng([self.seed, _SPLIT_NUMBER[split], index])
        samples = _speech(said.text, voice, rng)
        snr_db = self.snr_db(split, index)
        if snr_db is not None:
            samples = noise.add_noise(samples, self._noise(split, len(samples), rng), snr_db)
        peak = 10 ** (rng.uniform(-12, -1) / 20)
        samples *= peak / np.abs(samples).max()
        return Spoken(
            utterance_id=f"{split}-{index:06d}",
            text=said.text,
            keywords=said.keywords,
            distractors=self.distractors(split, index),
            voice=voice.name,
            speaker_id=speaker_id,
            snr_db=snr_db,
            samples=(np.round(samples * 32768) / 32768).astype(np.float32),
        )

    def _noise(self, split: str, num_samples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        colour = noise.COLOURS[rng.integers(len(noise.COLOURS))]
        if colour != "babble":
            return noise.coloured(colour, num_samples, rng)
        crowd = []
        for index in rng.integers(2**20, size=4):
            _, voice = self._voices(split)[index % NUM_VOICES[split]]
            crowd.append(_speech(self.sentence(split, int(index)).text, voice, rng))
        return noise.babble(crowd, num_samples)

    def _voices(self, split: str) -> tuple[tuple[str, espeak.Voice], ...]:
        return voices(self.seed, split, self.ACCENTS, self.TIMBRES[split])


_SPLIT_NUMBER: Final = {"train": 0, "dev": 1, "test": 2}


@cache
def voices(
    seed: int, split: str, accents: tuple[str, ...], timbres: tuple[str, ...]
) -> tuple[tuple[str, espeak.Voice], ...]:
    """Gives the speakers of a split: (speaker_id, voice), each timbre in several accents, pitches and rates."""
    rng = random.Random(f"{seed}/voices/{split}")
    made = []
    for number in range(NUM_VOICES[split]):
        turn, place = divmod(number, len(timbres))
        voice = espeak.Voice(
            accent=accents[(3 * turn + place) % len(accents)],
            variant=timbres[place],
            pitch=30 + int(rng.random() * 41),
            pitch_range=30 + int(rng.random() * 41),
            words_per_minute=145 + int(rng.random() * 51),
        )
        made.append((f"{split}-{number:03d}-{voice.accent}-{voice.variant}", voice))
    return tuple(made)


def _speech(text: str, voice: espeak.Voice, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Speaks clean, with silence around it and a slightly different rate each time, `MIN_` to `MAX_DURATION_S` long."""
    before_s, after_s = rng.uniform(0.1, 0.35, size=2)
    rate = voice.words_per_minute * rng.uniform(0.95, 1.05)
    for _ in range(4):
        spoken = espeak.say(
            text,
            espeak.Voice(
                accent=voice.accent,
                variant=voice.variant,
                pitch=voice.pitch,
                pitch_range=voice.pitch_range,
                words_per_minute=round(rate),
            ),
        )
        room_s = MAX_DURATION_S - before_s - after_s
        duration_s = len(spoken) / espeak.SAMPLE_RATE_HZ
        if duration_s <= room_s:
            break
        rate *= 1.05 * duration_s / room_s
    else:
        raise AssertionError(f"{voice.name} cannot say {text!r} within {MAX_DURATION_S} s")
    samples = soxr.resample(spoken.astype(np.float32) / 32768, espeak.SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    before, after = int(before_s * SAMPLE_RATE_HZ), int(after_s * SAMPLE_RATE_HZ)
    after = max(after, int(MIN_DURATION_S * SAMPLE_RATE_HZ) - before - len(samples))
    return np.pad(samples, (before, after)).astype(np.float32)


def prepare(config: SyntheticConfig, directory: Path) -> Path:
    """Writes the corpus: FLAC files, a NeMo manifest with the truth, and the context lists apart from it.

    Args:
        config: What to write.
        directory: Made if missing; `audio/<split>/`, `context.jsonl` (utterance_id and phrases, spoken and
            distractors in one seeded order), `manifest.jsonl` and, last, `prepared.json` go into it. Where that
            one stands already, with the same config, nothing is done.

    Returns:
        The manifest, which `corpora.nemo` reads.

    Raises:
        RuntimeError: the extra `speech-synthesis` is not installed.
    """
    receipt = json.dumps({"version": PREPARED_VERSION, "config": identity(config)}, indent=1)
    done = directory / PREPARED
    if done.exists() and done.read_text("ascii") == receipt:
        return directory / MANIFEST
    done.unlink(missing_ok=True)
    rows, lists = [], []
    for split, num in (("train", config.num_train), ("dev", config.num_dev), ("test", config.num_test)):
        folder = directory / "audio" / split
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(num):
            spoken = config.spoken(split, index)
            path = folder / f"{spoken.utterance_id}.flac"
            audio = io.BytesIO()
            soundfile.write(audio, spoken.samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
            _publish(path, audio.getvalue())
            rows.append(_manifest_row(config, spoken, split, path.relative_to(directory).as_posix()))
            phrases = [*spoken.keywords, *spoken.distractors]
            random.Random(f"{config.seed}/{spoken.utterance_id}/order").shuffle(phrases)
            lists.append({"utterance_id": spoken.utterance_id, "phrases": phrases})
    for name, lines in ((CONTEXT, lists), (MANIFEST, rows)):
        _publish(directory / name, "".join(json.dumps(line) + "\n" for line in lines).encode("ascii"))
    _publish(done, receipt.encode("ascii"))
    return directory / MANIFEST


def _publish(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: another run may be preparing or reading the same corpus."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def _manifest_row(config: SyntheticConfig, spoken: Spoken, split: str, audio: str) -> dict[str, object]:
    condition = "clean" if spoken.snr_db is None else f"{spoken.snr_db:g}"
    return {
        "utterance_id": spoken.utterance_id,
        "audio_filepath": audio,
        "duration": len(spoken.samples) / SAMPLE_RATE_HZ,
        "text": spoken.text,
        "corpus": config.CORPUS,
        "split": split,
        "speaker_id": spoken.speaker_id,
        "language": config.LANGUAGE,
        "keywords": list(spoken.keywords),
        "attributes": {"snr_db": condition, "voice": spoken.voice},
    }
