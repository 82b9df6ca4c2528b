"""What a frozen recogniser and a frozen language model make of spoken sentences, read once and kept on disk.

Letters: U utterances, L positions (tokens and the end), T encoder positions, D and G widths of the two models' states.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint
from ctxasr_ray.token_tree import Int32
from ctxasr_ray.training import cache
from ctxasr_ray.training.sources import SyntheticSpeech

if TYPE_CHECKING:
    from ctxasr_ray.training.features import Features

Half = npt.NDArray[np.float16]
PART: Final = 500
"""Utterances whose states lie in one file."""


@dataclass(frozen=True, slots=True)
class Read:
    """What the models made of one utterance, and what is spoken in it.

    Args:
        name: Its id.
        text: The reference.
        audio: (T, D) encoder states.
        states: Per reading of the text, right and wrong, its (L, D) decoder and (L, G) LM states.
        tokens: (L - 1,) of the reference.
        spoken: Phrases as token tuples.
    """

    name: str
    text: str
    audio: Half
    states: Sequence[tuple[Half, Half]]
    tokens: Int32
    spoken: tuple[tuple[int, ...], ...]


class Readers:
    """Both frozen models, reading references.

    Args:
        recogniser: Hugging Face directory.
        lm: Hugging Face directory, of the same tokenizer.
        wrong_tokens: Share of the tokens of the wrong reading that are replaced.

    Raises:
        ValueError: their tokenizers differ, or the recogniser has no CTC head.
    """

    def __init__(self, recogniser: str, lm: str, wrong_tokens: float) -> None:
        from transformers import AutoModelForCausalLM

        from ctxasr_ray.models import attention

        self._wrong_tokens = wrong_tokens
        models = {"recogniser": checkpoint.fingerprint(recogniser), "lm": checkpoint.fingerprint(lm)}
        self._made_of = {**models, "wrong_tokens": wrong_tokens}
        self._recogniser = attention.load(checkpoint.resolve(recogniser))
        self._lm = checkpoint.load_model(AutoModelForCausalLM, checkpoint.resolve(lm))
        self._tokenizer = self._recogniser.tokenizer
        self.vocab_size, self.lm_size = len(self._tokenizer), int(self._lm.config.hidden_size)
        self.decoder_size = int(self._recogniser.model.config.hidden_size)
        if self._recogniser.ctc_head is None:
            raise ValueError(f"'{recogniser}' has no CTC head, with whose evidence a copy head begins.")
        self.ctc_head = self._recogniser.ctc_head
        lm_tokenizer = checkpoint.load_tokenizer(checkpoint.resolve(lm))
        if lm_tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise ValueError(f"'{lm}' does not write with the tokenizer of '{recogniser}'.")

    def spell(self, phrase: Sequence[int]) -> str:
        """The text of a phrase."""
        return str(self._tokenizer.decode(list(phrase)))

    def read(
        self,
        source: SyntheticSpeech,
        directory: Path,
        num_processes: int,
        held_out: frozenset[str] = frozenset(),
    ) -> tuple[list[Read], dict[str, str]]:
        """Reads every utterance of a source; what lies in the directory already is not read again.

        Args:
            source: What is spoken.
            directory: Of features and states; made if missing.
            num_processes: For the features.
            held_out: Words of which none may be spoken.

        Returns:
            What was read, and the other utterances with their reasons.
        """
        from ctxasr_ray.training import features
        from ctxasr_ray.training.progress import bar

        spoken = features.compute(source, self._recogniser.extractor, directory, num_processes=num_processes)
        said = [source.sentence(i) for i in range(len(source))]
        keywords = {one.text: one.keywords for one in said}
        left_out = dict(spoken.left_out)
        found: list[Read] = []
        claimed = self._claimed(directory, spoken, held_out)
        parts = range(0, len(spoken), PART)
        with bar("states", len(parts)) as advance:
            for number, start in enumerate(parts):
                kept = []
                for index in range(start, min(start + PART, len(spoken))):
                    if held_out.isdisjoint(spoken.texts[index].split()):
                        kept.append(index)
                    else:
                        left_out[spoken.names[index]] = "a name of dev or test is spoken in it"
                if kept:
                    found += self._part(claimed / f"part-{number:04d}.npz", spoken, kept, keywords, number)
                advance("")
        return found, left_out

    def _claimed(self, directory: Path, spoken: "Features", held_out: frozenset[str]) -> Path:
        """The folder of states that are made of just this."""
        left_out = cache.digest(sorted(held_out))
        return cache.claim(directory / "states", {**self._made_of, "features": spoken.digest, "left_out": left_out})

    def _part(
        self, path: Path, spoken: "Features", kept: Sequence[int], keywords: Mapping[str, Sequence[str]], number: int
    ) -> Iterator[Read]:
        tokens = [self._tokens(spoken.texts[index]) for index in kept]
        if not path.exists():
            rng = np.random.default_rng(number)
            self._write(path, [self._states(spoken, i, ids, rng) for i, ids in zip(kept, tokens, strict=True)])
        with np.load(path) as file:
            audio, both = file["audio"], [(file[f"decoder_{n}"], file[f"lm_{n}"]) for n in range(2)]
            frames = np.split(audio, np.cumsum(file["frames"])[:-1])
        stops = np.cumsum([len(ids) + 1 for ids in tokens]).tolist()
        for place, (index, ids) in enumerate(zip(kept, tokens, strict=True)):
            own = slice(stops[place] - len(ids) - 1, stops[place])
            phrases = tuple(tuple(self._tokens(phrase).tolist()) for phrase in keywords[spoken.texts[index]])
            states = [(decoder[own], lm[own]) for decoder, lm in both]
            yield Read(spoken.names[index], spoken.texts[index], frames[place], states, ids, phrases)

    def _tokens(self, text: str) -> Int32:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def _states(
        self, spoken: "Features", index: int, ids: Int32, rng: np.random.Generator
    ) -> tuple[Half, list[tuple[Half, Half]]]:
        import torch

        from ctxasr_ray.models.attention import ctc_frames

        recogniser = self._recogniser
        wrong = np.where(rng.random(len(ids)) < self._wrong_tokens, rng.permutation(ids), ids)
        rows = spoken[index]
        window = int(recogniser.extractor.nb_max_frames)
        padded = np.concatenate([rows, np.repeat(rows[-1:], window - len(rows), axis=0)]).T
        with torch.inference_mode():
            audio_1TD = recogniser.encode(torch.from_numpy(np.ascontiguousarray(padded))[None])
            inputs = torch.from_numpy(
                np.stack([np.append(recogniser.start_id, one) for one in (ids, wrong)]).astype(int)
            )
            both = recogniser.model.model.decoder(input_ids=inputs, encoder_hidden_states=audio_1TD.expand(2, -1, -1))
            hidden = self._lm.base_model(input_ids=inputs, use_cache=False)
        pairs = zip(both.last_hidden_state, hidden.last_hidden_state, strict=True)
        kept = ctc_frames(int(spoken.lengths[index]))
        return audio_1TD[0, :kept].half().numpy(), [(own.half().numpy(), lm.half().numpy()) for own, lm in pairs]

    @staticmethod
    def _write(path: Path, read: Sequence[tuple[Half, list[tuple[Half, Half]]]]) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            "audio": np.concatenate([audio for audio, _ in read]),
            "frames": np.asarray([len(audio) for audio, _ in read]),
        }
        for number in range(2):
            arrays[f"decoder_{number}"] = np.concatenate([states[number][0] for _, states in read])
            arrays[f"lm_{number}"] = np.concatenate([states[number][1] for _, states in read])
        part = path.with_suffix(".part.npz")
        np.savez(part, allow_pickle=False, **arrays)
        part.replace(path)
