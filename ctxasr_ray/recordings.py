"""Windows of recordings, decoded ahead of the model that hears them; what cannot be decoded keeps its reason."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import audio
from ctxasr_ray.stage import Costs

CUT_OR_RAISE: Final = "cut it into windows (`ctxasr prepare --segment`), or raise max_audio_s where the memory allows."
"""Remedy for audio that only a config's limit refuses."""
COLUMNS: Final = ("audio_uri", "start_s", "duration_s", "channel")
"""Columns of UTTERANCES, besides `utterance_id`, that say what is heard."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model can hear.

    Args:
        sample_rate_hz: What it is given.
        min_samples: Shorter audio is a `model_limit`.
        max_s: Longer audio is a `model_limit`; seconds.
        remedy: Ends the message about audio that is too long.
    """

    sample_rate_hz: int
    min_samples: int
    max_s: float
    remedy: str


@dataclass(frozen=True, slots=True)
class Heard:
    """One row's samples at the model's rate, or the fault of its data.

    Args:
        row: Row of the UTTERANCES table.
        samples: (num_samples,) float32 mono, or None.
        error: (error_type, message) where there are no samples.
    """

    row: int
    samples: npt.NDArray[np.float32] | None
    error: tuple[str, str] | None


def heard_ahead(utterances: pa.Table, limits: Limits, num_ahead: int, costs: Costs) -> Iterator[Heard]:
    """Rows in order, each decoded in a second thread while the caller works on those before.

    Args:
        utterances: With the columns of `COLUMNS`.
        limits: Of the model.
        num_ahead: Rows that may wait decoded.
        costs: Gets the seconds of decoding, as `decode`, of every row that is handed on.

    Raises:
        OSError: a fault of the disk or network; faults of the audio itself are `Heard.error`.
    """
    ahead: deque[Future[tuple[Heard, float]]] = deque()

    def next_one() -> Heard:
        heard, seconds = ahead.popleft().result()
        costs.seconds["decode"] = costs.seconds.get("decode", 0.0) + seconds
        return heard

    rows = utterances.select(list(COLUMNS)).to_pylist()
    with ThreadPoolExecutor(1, thread_name_prefix="audio") as pool:
        for index, row in enumerate(rows):
            ahead.append(pool.submit(_hear, index, row, limits))
            if len(ahead) > num_ahead:
                yield next_one()
        while ahead:
            yield next_one()


def heard_batches(
    utterances: pa.Table, limits: Limits, size: int, costs: Costs, refuse: Callable[[int, tuple[str, str]], None]
) -> Iterator[list[Heard]]:
    """Rows that can be heard, in order, `size` at a time; twice as many wait decoded.

    Args:
        utterances: As for `heard_ahead`.
        limits: As for `heard_ahead`.
        size: Rows of a batch; the last one may be shorter.
        costs: Also counts `audio_ms`, what is handed on.
        refuse: Called with the row and (error_type, message) of each row that cannot be heard.

    Raises:
        OSError: as `heard_ahead`.
    """
    batch: list[Heard] = []
    for heard in heard_ahead(utterances, limits, 2 * size, costs):
        if heard.error is not None:
            refuse(heard.row, heard.error)
            continue
        assert heard.samples is not None
        costs.count("audio_ms", round(1000 * len(heard.samples) / limits.sample_rate_hz))
        batch.append(heard)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _hear(index: int, row: dict[str, object], limits: Limits) -> tuple[Heard, float]:
    start = time.perf_counter()
    try:
        samples, error = _samples(limits=limits, **row)  # type: ignore[arg-type]  # columns of a checked table
    except audio.AudioError as fault:
        samples, error = None, ("audio", str(fault))
    return Heard(index, samples, error), time.perf_counter() - start


def _samples(
    *, audio_uri: str, start_s: float, duration_s: float | None, channel: int | None, limits: Limits
) -> tuple[npt.NDArray[np.float32] | None, tuple[str, str] | None]:
    rate = limits.sample_rate_hz
    known_s = audio.probe(audio_uri).duration_s - start_s if duration_s is None else duration_s
    num_samples = round(known_s * rate)
    samples = None
    if num_samples <= limits.max_s * rate:
        samples = audio.load(audio_uri, start_s=start_s, duration_s=duration_s, channel=channel, sample_rate_hz=rate)
        num_samples = len(samples)
    if num_samples > limits.max_s * rate:
        message = f"{audio_uri}: {num_samples / rate:.2f} s of audio, the limit is {limits.max_s:g} s; {limits.remedy}"
        return None, ("model_limit", message)
    if num_samples < limits.min_samples:
        message = (
            f"{audio_uri}: {1000 * num_samples / rate:.0f} ms of audio, the model needs at least "
            f"{1000 * limits.min_samples / rate:.0f} ms."
        )
        return None, ("model_limit", message)
    return samples, None
