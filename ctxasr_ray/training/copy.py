"""A copy head beside a frozen recogniser and a frozen language model: which listed phrase starts before each token.

The two models read each reference once; what they make of it is kept. Half of the time they read it with some wrong
tokens, as in a search. Each batch has one list of phrases: those spoken in it (some left out, so that an unlisted name
is heard too), others of equal sound and others by chance.

Reference:
    CopyNE, arXiv:2305.12839: loss on the keyword that starts here, else "none". The distractors are ours.

Letters: B utterances, L positions (tokens and the end), T encoder positions, D and G widths of the two models' states,
N phrases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.corpora.names import KINDS
from ctxasr_ray.corpora.sentences import lexicon
from ctxasr_ray.models import checkpoint
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.token_tree import Int32
from ctxasr_ray.training.listed_phrases import alike, starts
from ctxasr_ray.training.sources import SyntheticSpeech

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.training.features import Features

CONFIDENT: Final = 0.9
"""Probability from which dev figures count a phrase as copied; the filter of the method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyTask:
    """Cross entropy of the phrase that starts before each token, over the batch's list and "none", for both heads."""

    train: SyntheticSpeech
    """Speech whose names the recogniser has not learnt by heart: another seed than its own training's."""
    dev: SyntheticSpeech
    recogniser: str
    """Hugging Face directory of the attention recogniser; frozen."""
    lm: str
    """Hugging Face directory of a language model of the same tokenizer; frozen."""
    wrong_tokens: float = 0.12
    """Share of a history's tokens that are replaced, in the half that has wrong ones."""
    unlisted: float = 0.15
    """Share of spoken phrases that the list lacks."""
    num_alike: int = 3
    """Phrases spelled like each spoken one."""
    num_random: int = 3
    """Further phrases per utterance."""
    without_kinds: tuple[str, ...] = ()
    """Kinds of `corpora.names.KINDS` that are neither spoken nor listed, to see how the head takes to unknown ones."""
    states_directory: str | None = runtime_field(None)
    """Where features and states lie; None keeps them in the run's directory."""

    def __post_init__(self) -> None:
        if unknown := set(self.without_kinds) - set(KINDS):
            raise ValueError(f"without_kinds names {sorted(unknown)}; kinds are {', '.join(KINDS)}.")

    def build(self, directory: Path, num_processes: int) -> "CopyTraining":
        """Lets both models read train and dev and makes a head with random weights."""
        return CopyTraining(self, directory, num_processes)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the models made of one utterance, and what is spoken in it.

    Args:
        audio: (T, D) encoder states.
        states: Per reading of the text, right and wrong, its (L, D) decoder and (L, G) LM states.
        tokens: (L - 1,) of the reference.
        spoken: Phrases as token tuples.
    """

    name: str
    audio: npt.NDArray[np.float16]
    states: Sequence[tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]]
    tokens: Int32
    spoken: tuple[tuple[int, ...], ...]


class CopyTraining:
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: CopyTask, directory: Path, num_processes: int) -> None:
        """Prepares states and phrases.

        Args:
            config: The task.
            directory: Of the run.
            num_processes: For the features.
        """
        from ctxasr_ray.models.copy_head import CopyHead, CopyHeadShape

        self._config = config
        parent = directory / "states" if config.states_directory is None else Path(config.states_directory)
        readers = _Readers(config)
        held_out = _held_out(config)
        left_out: dict[str, str] = {}
        self._train = readers.read(config.train, parent / "train", num_processes, held_out, left_out)
        self._dev = readers.read(config.dev, parent / "dev", num_processes, frozenset(), {})
        self.left_out = left_out
        self.lengths = np.asarray([len(one.audio) for one in self._train], np.int64)
        self._pool = sorted({phrase for one in self._train for phrase in one.spoken})
        self._alike = alike([readers.spell(phrase) for phrase in self._pool])
        self._places = {phrase: place for place, phrase in enumerate(self._pool)}
        self.model: Any = CopyHead(
            CopyHeadShape(vocab_size=readers.vocab_size, decoder_size=readers.decoder_size, lm_size=readers.lm_size)
        )

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids."""
        return [self._train[i].name for i in indices]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Draws the list, and for each utterance which reading is shown."""
        read = [self._train[i] for i in indices]
        phrases = self._listed(read, rng)
        return _collated(read, phrases, [int(rng.random() < 0.5) for _ in read])

    def _listed(self, read: Sequence[_Read], rng: np.random.Generator) -> list[tuple[int, ...]]:
        spoken = sorted({phrase for one in read for phrase in one.spoken})
        unlisted = {phrase for phrase in spoken if rng.random() < self._config.unlisted}
        listed = dict.fromkeys(phrase for phrase in spoken if phrase not in unlisted)
        for phrase in spoken:
            near = self._alike[self._places[phrase]]
            if len(near):
                listed |= dict.fromkeys(self._pool[int(i)] for i in rng.choice(near, self._config.num_alike))
        others = rng.integers(len(self._pool), size=self._config.num_random * len(read))
        listed |= dict.fromkeys(self._pool[int(i)] for i in others)
        return [phrase for phrase in listed if phrase not in unlisted]

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives the utterances."""
        return {"utterances": len(batch["labels"])}

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives the sum over positions of both heads' cross entropy, in nats per utterance."""
        import torch

        logits, lm_logits = self._logits(batch)
        labels_BL = batch["labels"]
        total = sum(
            torch.nn.functional.cross_entropy(own.float().flatten(0, 1), labels_BL.flatten(), reduction="sum")
            for own in (logits, lm_logits)
        )
        return torch.as_tensor(total) / counts["utterances"]

    def _logits(self, batch: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
        head = self.model
        lengths = batch["phrase_lengths"].tolist()
        tokens = batch["phrases"].cpu().numpy()
        phrases_NW = head.phrases([row[:length] for row, length in zip(tokens, lengths, strict=True)])
        heard = head.hear(batch["audio"])
        logits = head.recogniser_logits(batch["decoder_states"], heard, phrases_NW, batch["hidden"])
        return logits, head.lm_logits(batch["lm_states"], phrases_NW)

    def evaluate(self) -> dict[str, float]:
        """Measures on dev, the list being all phrases of dev: how many are copied where they start, and wrong copies.

        `dev_copied` and `dev_lm_best` are shares of the spoken phrases (the LM's: that its best phrase is right);
        `dev_wrong_copies` is per spoken phrase.
        """
        phrases = sorted({phrase for one in self._dev for phrase in one.spoken})
        spoken = right = wrong = lm_right = 0
        for start in range(0, len(self._dev), 16):
            batch = _collated(self._dev[start : start + 16], phrases, [0] * len(self._dev[start : start + 16]))
            device = next(self.model.parameters()).device
            logits, lm_logits = self._logits({name: tensor.to(device) for name, tensor in batch.items()})
            labels = batch["labels"].numpy()
            best = logits.softmax(-1).max(-1)
            probs, copied = best.values.cpu().numpy(), best.indices.cpu().numpy()
            starts = (labels >= 0) & (labels < len(phrases))
            taken = (labels >= 0) & (copied < len(phrases)) & (probs > CONFIDENT)
            spoken += int(starts.sum())
            right += int((taken & (copied == labels)).sum())
            wrong += int((taken & (copied != labels)).sum())
            lm_right += int((starts & (lm_logits[..., :-1].argmax(-1).cpu().numpy() == labels)).sum())
        return {"dev_copied": right / spoken, "dev_wrong_copies": wrong / spoken, "dev_lm_best": lm_right / spoken}

    def publish(self, directory: Path) -> None:
        """Writes the copy head."""
        from ctxasr_ray.models.copy_head import save

        save(self.model, directory)


class _Readers:
    """Both frozen models, reading references."""

    def __init__(self, config: CopyTask) -> None:
        from transformers import AutoModelForCausalLM

        from ctxasr_ray.models import attention

        self._config = config
        self._recogniser = attention.load(checkpoint.resolve(config.recogniser))
        self._lm = checkpoint.load_model(AutoModelForCausalLM, checkpoint.resolve(config.lm))
        self._tokenizer = self._recogniser.tokenizer
        self.vocab_size, self.lm_size = len(self._tokenizer), int(self._lm.config.hidden_size)
        self.decoder_size = int(self._recogniser.model.config.hidden_size)
        lm_tokenizer = checkpoint.load_tokenizer(checkpoint.resolve(config.lm))
        if lm_tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise ValueError(f"'{config.lm}' does not write with the tokenizer of '{config.recogniser}'.")

    def spell(self, phrase: Sequence[int]) -> str:
        """The text of a phrase."""
        return str(self._tokenizer.decode(list(phrase)))

    def read(
        self,
        source: SyntheticSpeech,
        directory: Path,
        num_processes: int,
        held_out: frozenset[str],
        left_out: dict[str, str],
    ) -> list[_Read]:
        """Reads every utterance of a source; `left_out` gets the others with their reasons."""
        import torch

        from ctxasr_ray.training import features
        from ctxasr_ray.training.progress import bar

        spoken = features.compute(source, self._recogniser.extractor, directory, num_processes=num_processes)
        left_out |= spoken.left_out
        said = [source.corpus.sentence(source.split, source.first + i) for i in range(len(source))]
        keywords = {one.text: one.keywords for one in said}
        found = []
        rng = np.random.default_rng(len(source))
        with bar("states", len(spoken)) as advance, torch.inference_mode():
            for index, (name, text) in enumerate(zip(spoken.names, spoken.texts, strict=True)):
                advance("")
                if not held_out.isdisjoint(text.split()):
                    left_out[name] = "a name of dev or test, or of a kind that is left out, is spoken in it"
                    continue
                found.append(self._read(name, text, keywords[text], spoken, index, rng))
        return found

    def _read(
        self,
        name: str,
        text: str,
        keywords: Sequence[str],
        spoken: "Features",
        index: int,
        rng: np.random.Generator,
    ) -> _Read:
        import torch

        from ctxasr_ray.models.attention import ctc_frames

        recogniser = self._recogniser
        ids = np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        wrong = np.where(rng.random(len(ids)) < self._config.wrong_tokens, rng.permutation(ids), ids)
        rows = spoken[index]
        window = int(recogniser.extractor.nb_max_frames)
        padded = np.concatenate([rows, np.repeat(rows[-1:], window - len(rows), axis=0)]).T
        audio_1TD = recogniser.encode(torch.from_numpy(np.ascontiguousarray(padded))[None])
        states = []
        inputs = torch.from_numpy(np.stack([np.append(recogniser.start_id, one) for one in (ids, wrong)]).astype(int))
        both = recogniser.model.model.decoder(input_ids=inputs, encoder_hidden_states=audio_1TD.expand(2, -1, -1))
        hidden = self._lm.base_model(input_ids=inputs, use_cache=False)
        for own, lm_own in zip(both.last_hidden_state, hidden.last_hidden_state, strict=True):
            states.append((own.half().numpy(), lm_own.half().numpy()))
        kept = ctc_frames(int(spoken.lengths[index]))
        phrases = tuple(tuple(self._tokenizer(k, add_special_tokens=False)["input_ids"]) for k in keywords)
        return _Read(name, audio_1TD[0, :kept].half().numpy(), states, ids, phrases)


def _held_out(config: CopyTask) -> frozenset[str]:
    """Names of dev and test, and those of the training's kinds that are left out."""
    own, corpus = config.train.corpus, config.dev.corpus
    words = {word for split in ("dev", "test") for word in lexicon(corpus.seed, split).words}
    for kind in config.without_kinds:
        words |= set(lexicon(own.seed, config.train.split).names[kind])
    return frozenset(words)


def _collated(
    read: Sequence[_Read], phrases: Sequence[tuple[int, ...]], readings: Sequence[int]
) -> "dict[str, torch.Tensor]":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from ctxasr_ray.training.objectives import IGNORED

    def padded(arrays: Sequence[npt.NDArray[Any]], value: float = 0.0) -> "torch.Tensor":
        return pad_sequence([torch.from_numpy(np.asarray(a)) for a in arrays], batch_first=True, padding_value=value)

    states = [one.states[reading] for one, reading in zip(read, readings, strict=True)]
    labels = [np.asarray(starts(one.tokens.tolist(), phrases), np.int64) for one in read]
    return {
        "audio": padded([one.audio for one in read]).float(),
        "hidden": padded([np.zeros(len(one.audio), np.bool_) for one in read], 1.0),
        "decoder_states": padded([own for own, _ in states]).float(),
        "lm_states": padded([own for _, own in states]).float(),
        "labels": padded(labels, IGNORED),
        "phrases": padded([np.asarray(phrase, np.int64) for phrase in phrases]),
        "phrase_lengths": torch.tensor([len(phrase) for phrase in phrases]),
    }
