"""Log-mel features computed once, by the very extractor that inference uses, into float16 files that are mapped.

Letters of shapes: F frames of 10 ms, M mel bins.
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.training import cache
from ctxasr_ray.training.left_out import refuse_nothing
from ctxasr_ray.training.progress import bar
from ctxasr_ray.training.sources import Speech, described

SAMPLE_RATE_HZ = 16000
PART = 250
"""Utterances per file: the unit of parallel work and of resuming."""


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a source, mapped from disk.

    Args:
        names: (N,) utterance ids of what could be used.
        texts: (N,) training texts.
        lengths: (N,) frames of speech, without padding.
        left_out: Utterance -> why it cannot be used.
        digest: Of source and extractor: what is made of the features is made of that.
    """

    names: list[str]
    texts: list[str]
    lengths: npt.NDArray[np.int64]
    left_out: dict[str, str]
    digest: str
    _parts: list[npt.NDArray[np.float16]]
    _places: list[tuple[int, int, int]]

    def __len__(self) -> int:
        """Number of usable utterances."""
        return len(self.names)

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        """Gives a fresh (F, M) float32 copy; for a windowed extractor the last row is pure padding."""
        part, start, stop = self._places[index]
        return self._parts[part][start:stop].astype(np.float32)


def log_mel(extractor: Any, samples: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Computes what a model reads of one utterance, without repeating what is only padding.

    Args:
        extractor: `ParakeetFeatureExtractor`, or `WhisperFeatureExtractor`, whose window is fixed.
        samples: (num_samples,) at 16 kHz.

    Returns:
        (F, M) float32 and the number of frames of speech. For Whisper the last row is that of padding, and the
        rows of the window after it are equal to it.

    Raises:
        ValueError: the utterance is longer than the extractor's window.
    """
    window = getattr(extractor, "n_samples", None)
    if window is None:
        outputs = extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", return_attention_mask=True)
        frames = int(outputs["attention_mask"][0].sum())
        return outputs["input_features"][0, :frames].numpy(), frames
    if len(samples) > window:
        seconds = len(samples) / SAMPLE_RATE_HZ
        raise ValueError(f"{seconds:.2f} s is longer than the model's window of {window / SAMPLE_RATE_HZ:g} s")
    features_MF = extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_features"][0]
    # A frame reaches n_fft / 2 samples to each side: two frames past the end of speech there are only zeros.
    last = min(-(-len(samples) // extractor.hop_length) + 2, features_MF.shape[1] - 1)
    return np.ascontiguousarray(features_MF.T[: last + 1]), len(samples) // int(extractor.hop_length)


def compute(source: Speech, extractor: Any, directory: Path, *, num_processes: int) -> Features:
    """Computes the features of a source in several processes; parts of just these that are there already are kept.

    Args:
        source: What is spoken; it travels to the processes.
        extractor: A Hugging Face feature extractor.
        directory: Where the parts lie, the digest of what they are made of appended to its name; made if missing.
        num_processes: 0 computes in this process.

    Raises:
        ValueError: no recording can be used; says why.
    """
    made_of = {"source": described(source), "extractor": json.loads(extractor.to_json_string())}
    directory = cache.claim(directory, made_of)
    starts = range(0, len(source), PART)
    missing = [start for start in starts if not _index(directory, start).exists()]
    with bar("features", len(starts), len(starts) - len(missing)) as advance:
        if num_processes == 0:
            for start in missing:
                _compute_part(source, extractor, directory, start)
                advance("")
        elif missing:
            # spawn: a forked child of a process that has run torch may hang in its thread pool
            with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
                jobs = [pool.submit(_compute_part, source, extractor, directory, start) for start in missing]
                for job in as_completed(jobs):
                    job.result()
                    advance("")
    opened = _open(directory, starts, cache.digest(made_of))
    split = getattr(source, "split", "train")
    where = getattr(source, "path", "the corpus")
    remedy = f'give some of its rows "split": "{split}", and a reference where the training reads one'
    refuse_nothing(opened, f"recording of split '{split}' of {where}", opened.left_out, remedy)
    return opened


def _compute_part(source: Speech, extractor: Any, directory: Path, start: int) -> None:
    import torch

    torch.set_num_threads(1)
    names: list[str] = []
    texts: list[str] = []
    lengths: list[int] = []
    rows: list[npt.NDArray[np.float16]] = []
    left_out: dict[str, str] = {}
    for index in range(start, min(start + PART, len(source))):
        name = f"utterance {index}"
        try:
            example = source.example(index)
            name = example.name
            features_FM, frames = log_mel(extractor, example.samples)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        names.append(name)
        texts.append(example.text)
        lengths.append(frames)
        rows.append(features_FM.astype(np.float16))
    index_path = _index(directory, start)
    array = np.concatenate(rows) if rows else np.zeros((0, 1), np.float16)
    temporary = index_path.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, array)
    temporary.replace(index_path.with_suffix(".npy"))
    entry = {"names": names, "texts": texts, "lengths": lengths, "rows": [len(r) for r in rows], "left_out": left_out}
    temporary = index_path.with_suffix(f".{os.getpid()}.tmp.json")
    temporary.write_text(json.dumps(entry), "utf-8")
    temporary.replace(index_path)  # last: a part without its index is computed again


def _open(directory: Path, starts: range, digest: str) -> Features:
    names: list[str] = []
    texts: list[str] = []
    lengths: list[int] = []
    left_out: dict[str, str] = {}
    parts: list[npt.NDArray[np.float16]] = []
    places: list[tuple[int, int, int]] = []
    for number, start in enumerate(starts):
        path = _index(directory, start)
        index = json.loads(path.read_text("utf-8"))
        parts.append(np.load(path.with_suffix(".npy"), mmap_mode="r"))
        ends = np.cumsum(index["rows"], dtype=np.int64).tolist()
        places += [(number, end - rows, end) for end, rows in zip(ends, index["rows"], strict=True)]
        names += index["names"]
        texts += index["texts"]
        lengths += index["lengths"]
        left_out |= index["left_out"]
    return Features(names, texts, np.asarray(lengths, np.int64), left_out, digest, parts, places)


def _index(directory: Path, start: int) -> Path:
    return directory / f"part-{start // PART:05d}.json"
