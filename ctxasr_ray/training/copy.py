"""A copy head beside a frozen recogniser and a frozen language model: which listed phrase starts before each token.

The two models read each reference once; what they make of it is kept (`copy_states`). Half of the time they read it
with some wrong tokens, as in a search. Each batch has one list of phrases: those spoken in it (some left out, so that
an unlisted name is heard too), others of equal sound and others by chance. A head that meets the names of one lexicon
again and again learns the utterances by heart: the speech has the names, voices and noises of many seeds.

Reference:
    CopyNE, arXiv:2305.12839: loss on the keyword that starts here, else "none". The distractors are ours.

Letters: L positions (tokens and the end), N phrases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.corpora.names import KINDS
from ctxasr_ray.corpora.sentences import lexicon
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.copy_states import Read, Readers
from ctxasr_ray.training.listed_phrases import alike, starts
from ctxasr_ray.training.sources import SyntheticSpeech

if TYPE_CHECKING:
    import torch

CONFIDENT: Final = 0.9
"""Probability from which dev figures count a phrase as copied; the filter of the method."""
TEMPERATURES: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MAX_WRONG: Final = 0.01
"""Wrong copies per spoken phrase that a temperature may make on dev."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyTask:
    """Cross entropy of the phrase that starts before each token, over the batch's list and "none", for both heads."""

    train: SyntheticSpeech
    """Speech whose names neither model has learnt by heart: other seeds than those of their trainings."""
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
        readers = Readers(config.recogniser, config.lm, config.wrong_tokens)
        held_out = [word for split in ("dev", "test") for word in lexicon(config.dev.corpus.seed, split).words]
        read, left_out = readers.read(config.train, parent / "train", num_processes, frozenset(held_out))
        unknown = _of_kinds(config) if config.without_kinds else frozenset[str]()
        self._train = [one for one in read if unknown.isdisjoint(one.text.split())]
        of_kinds = [one.name for one in read if not unknown.isdisjoint(one.text.split())]
        self.left_out = left_out | dict.fromkeys(of_kinds, "a name of a kind that is left out is spoken in it")
        self._dev, _ = readers.read(config.dev, parent / "dev", num_processes)
        self.lengths = np.asarray([len(one.audio) for one in self._train], np.int64)
        self._pool = sorted({phrase for one in self._train for phrase in one.spoken})
        self._alike = alike([readers.spell(phrase) for phrase in self._pool])
        self._places = {phrase: place for place, phrase in enumerate(self._pool)}
        self.model: Any = CopyHead(
            CopyHeadShape(vocab_size=readers.vocab_size, decoder_size=readers.decoder_size, lm_size=readers.lm_size)
        )
        self.model.ctc.load_state_dict(readers.ctc_head.state_dict())

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids."""
        return [self._train[i].name for i in indices]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Draws the list, and for each utterance which reading is shown."""
        read = [self._train[i] for i in indices]
        phrases = self._listed(read, rng)
        return _collated(read, phrases, [int(rng.random() < 0.5) for _ in read])

    def _listed(self, read: Sequence[Read], rng: np.random.Generator) -> list[tuple[int, ...]]:
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
        phrases = head.phrases([row[:length] for row, length in zip(tokens, lengths, strict=True)])
        heard = head.hear(batch["audio"], batch["hidden"])
        logits = head.recogniser_logits(batch["decoder_states"], heard, head.spot(heard, phrases), phrases)
        return logits, head.lm_logits(batch["lm_states"], phrases)

    def evaluate(self) -> dict[str, float]:
        """Measures on dev, the list being all phrases of dev: how many are copied where they start, and wrong copies.

        `dev_temperature` is what the logits of the recogniser's head are to be divided by: the one of `TEMPERATURES`
        that copies most phrases with `MAX_WRONG` wrong copies at most; `dev_copied` and `dev_wrong_copies` are as it
        makes them, `dev_lm_best` counts where the LM's best phrase is right; all are shares of the spoken phrases.
        """
        import torch

        phrases = sorted({phrase for one in self._dev for phrase in one.spoken})
        device = next(self.model.parameters()).device
        found = []
        for start in range(0, len(self._dev), 16):
            batch = _collated(self._dev[start : start + 16], phrases, [0] * len(self._dev[start : start + 16]))
            labels = batch["labels"].flatten()
            both = self._logits({name: tensor.to(device) for name, tensor in batch.items()})
            found.append((*(own.flatten(0, 1)[labels >= 0].cpu() for own in both), labels[labels >= 0]))
        logits, lm_logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        starts = labels < len(phrases)
        copies = {t: _copies(logits / t, labels) for t in TEMPERATURES}
        most = max(TEMPERATURES, key=lambda t: (copies[t][1] <= MAX_WRONG * int(starts.sum()), copies[t][0], t))
        return {
            "dev_copied": copies[most][0] / int(starts.sum()),
            "dev_wrong_copies": copies[most][1] / int(starts.sum()),
            "dev_lm_best": float((lm_logits[starts, :-1].argmax(-1) == labels[starts]).float().mean()),
            "dev_temperature": most,
        }

    def publish(self, directory: Path) -> None:
        """Writes the copy head."""
        from ctxasr_ray.models.copy_head import save

        save(self.model, directory)


def _copies(logits_PN: "torch.Tensor", labels_P: "torch.Tensor") -> tuple[int, int]:
    """Right and wrong copies."""
    best = logits_PN.softmax(-1).max(-1)
    copied_P = (best.indices < logits_PN.shape[1] - 1) & (best.values > CONFIDENT)
    right_P = best.indices == labels_P
    return int((copied_P & right_P).sum()), int((copied_P & ~right_P).sum())


def _of_kinds(config: CopyTask) -> frozenset[str]:
    """The words of the training's own names of the kinds that are left out."""
    words: set[str] = set()
    for turn in range(config.train.num_seeds):
        own = lexicon(config.train.corpus.seed + turn, config.train.split)
        words.update(word for kind in config.without_kinds for word in own.names[kind])
    return frozenset(words)


def _collated(
    read: Sequence[Read], phrases: Sequence[tuple[int, ...]], readings: Sequence[int]
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
