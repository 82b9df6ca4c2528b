"""UTTERANCES -> HYPOTHESES with any CTC model: forward pass, prefix beam search, exact forced scores.

Audio is decoded ahead of the model in one thread, the search runs behind it in others.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import audio
from ctxasr_ray.models import checkpoint
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.stage import Costs, Resources, runtime_field

if TYPE_CHECKING:
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.search.ctc_beam import CtcBeamSearch


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcConfig:
    """First pass with a CTC model from a Hugging Face directory or hub id."""

    NAME: ClassVar[str] = "ctc"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("audio_uri", "start_s", "duration_s", "channel"),
    }
    WRITES: ClassVar[str] = "hypotheses"

    model: str = field(metadata={"identity": False})
    """Directory or hub id of a model that `AutoModelForCTC` loads. Its fingerprint is in the hash, not its place."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id; its commit is in the fingerprint."""
    dtype: str = "float32"
    """Of the forward pass: float32, bfloat16 or float16; log-probs and sums are never below float32."""
    source: str = "ctc"
    """Name of the exact forced score in `scores`."""
    beam_size: int = 100
    """Prefixes that the search keeps after each frame."""
    num_hypotheses: int = 50
    """Longest N-best list; texts in it are distinct. At most `beam_size`."""
    max_labels_per_frame: int = 32
    """New labels that a prefix may write in one frame: the most probable ones."""
    min_label_log_prob: float = -10.0
    """Nats; a less probable label is not written in a frame unless it is the frame's most probable."""
    beam_threshold: float = 20.0
    """Nats below the best prefix at which a prefix is dropped."""
    blank_skip_prob: float | None = 0.9999
    """Frames with a more probable blank are taken to be blank; None searches every frame."""
    max_audio_s: float = 120.0
    """Longer audio is a `model_limit` row: attention over it would not fit; cut the recording into windows."""
    device: str = runtime_field("auto")
    """As torch writes it; "auto" is CUDA where the actor has a GPU, else the CPU."""
    batch_size: int = runtime_field(8)
    """Utterances per forward pass; of equal length only, where padding would change a model's results."""
    resources: Resources = field(default_factory=Resources)
    """`num_cpus` is also the number of search threads."""

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        if not 1 <= self.num_hypotheses <= self.beam_size:
            raise ValueError(
                f"num_hypotheses is {self.num_hypotheses}, beam_size {self.beam_size}; expected 1 to beam_size. "
                "Raise beam_size: a beam cannot hold more hypotheses than rows."
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is '{self.dtype}'; expected float32, bfloat16 or float16.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of weights, tokenizer and preprocessor, or the hub commit."""
        return checkpoint.fingerprint(self.model, self.revision)

    def build(self) -> "CtcFirstPass":
        """Loads the model and the search."""
        import torch

        from ctxasr_ray.models.ctc import CtcModel
        from ctxasr_ray.search.ctc_beam import CtcBeamSearch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = CtcModel(checkpoint.resolve(self.model, self.revision), dtype=self.dtype, device=device)
        search = CtcBeamSearch(
            blank_id=model.vocabulary.blank_id,
            num_labels=len(model.vocabulary.pieces),
            beam_size=self.beam_size,
            max_labels_per_frame=self.max_labels_per_frame,
            min_label_log_prob=self.min_label_log_prob,
            beam_threshold=self.beam_threshold,
            blank_skip_prob=self.blank_skip_prob,
            suppressed=model.vocabulary.suppressed,
        )
        return CtcFirstPass(self, model, search)


@dataclass(frozen=True, slots=True)
class _Row:
    utterance_id: str
    audio_uri: str
    start_s: float
    duration_s: float | None
    channel: int | None


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One row's audio, or why there is none."""

    row: _Row
    samples: npt.NDArray[np.float32] | None
    error_type: str | None
    error: str | None
    seconds: float


class CtcFirstPass:
    """Built by `CtcConfig`; one call per shard."""

    def __init__(self, config: CtcConfig, model: "CtcModel", search: "CtcBeamSearch") -> None:
        """Takes a loaded model and a search over its labels."""
        self._config, self._model, self._search = config, model, search

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, HYPOTHESES out: same rows, same order, each list best first by exact forced score.

        Token times count from the start of the utterance (its `start_s`), not of the recording.

        Raises:
            OSError: a fault of the disk or network while reading audio; faults of the audio itself are rows.
        """
        rows = [_Row(**row) for row in tables[0].select(list(_Row.__slots__)).to_pylist()]
        done: list[NBest | Future[tuple[NBest, float, int]]] = []
        batch: list[tuple[int, _Decoded]] = []
        num_threads = max(1, int(self._config.resources.num_cpus))
        with ThreadPoolExecutor(num_threads, thread_name_prefix="ctc-search") as pool:
            for decoded in self._decoded_ahead(rows):
                costs.seconds["decode"] = costs.seconds.get("decode", 0.0) + decoded.seconds
                if decoded.samples is None:
                    done.append(_failed(decoded.row, decoded.error_type, decoded.error))
                    continue
                costs.count("audio_ms", round(1000 * len(decoded.samples) / self._model.sample_rate_hz))
                batch.append((len(done), decoded))
                done.append(_failed(decoded.row, None, None))
                if len(batch) == self._config.batch_size:
                    self._run_batch(batch, done, pool, costs)
                    batch = []
            self._run_batch(batch, done, pool, costs)
            return hypotheses_table([self._collect(entry, costs) for entry in done])

    def _decoded_ahead(self, rows: Sequence[_Row]) -> Iterator[_Decoded]:
        """Rows in order, with the next two batches being decoded while one is worked on."""
        ahead: deque[Future[_Decoded]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="ctc-audio") as pool:
            for row in rows:
                ahead.append(pool.submit(self._decode, row))
                if len(ahead) > 2 * self._config.batch_size:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _decode(self, row: _Row) -> _Decoded:
        start = time.perf_counter()
        samples, error_type, error = None, None, None
        try:
            duration_s = row.duration_s
            if duration_s is None:
                duration_s = audio.probe(row.audio_uri).duration_s - row.start_s
            if duration_s > self._config.max_audio_s:
                error_type = "model_limit"
                error = (
                    f"{row.audio_uri}: {duration_s:.1f} s of audio, the limit is {self._config.max_audio_s} s; cut it "
                    "into windows (start_s, duration_s), or raise max_audio_s where the memory allows."
                )
            else:
                samples = audio.load(
                    row.audio_uri,
                    start_s=row.start_s,
                    duration_s=row.duration_s,
                    channel=row.channel,
                    sample_rate_hz=self._model.sample_rate_hz,
                )
        except audio.AudioError as fault:
            error_type, error = "audio", str(fault)
        if samples is not None and len(samples) < self._model.min_samples:
            error_type = "model_limit"
            error = (
                f"{row.audio_uri}: {1000 * len(samples) / self._model.sample_rate_hz:.0f} ms of audio, the model needs "
                f"at least {1000 * self._model.min_samples / self._model.sample_rate_hz:.0f} ms."
            )
            samples = None
        return _Decoded(row, samples, error_type, error, time.perf_counter() - start)

    def _run_batch(
        self,
        batch: Sequence[tuple[int, _Decoded]],
        done: list[Any],
        pool: ThreadPoolExecutor,
        costs: Costs,
    ) -> None:
        """One forward pass; the searches go to the pool, so that they overlap with the next pass on a GPU."""
        if not batch:
            return
        with costs.timed("model"):
            log_probs = self._model.log_probs([decoded.samples for _, decoded in batch if decoded.samples is not None])
        costs.count("forwards")
        for (place, decoded), log_probs_TV in zip(batch, log_probs, strict=True):
            costs.count("frames", len(log_probs_TV))
            if np.isfinite(log_probs_TV).all():
                done[place] = pool.submit(self._nbest, decoded.row, log_probs_TV)
            else:
                done[place] = _failed(
                    decoded.row,
                    "model_limit",
                    f"{decoded.row.audio_uri}: the model's log-probs are not finite in {self._config.dtype}; "
                    "use dtype float32.",
                )

    def _nbest(self, row: _Row, log_probs_TV: npt.NDArray[np.float32]) -> tuple[NBest, float, int]:
        """(list, seconds, labellings left out because a more probable one has the same text)."""
        from ctxasr_ray.search.ctc_alignment import ctc_alignments, entropies
        from ctxasr_ray.search.ctc_forced import ctc_forward_scores

        start = time.perf_counter()
        blank_id, vocabulary = self._model.vocabulary.blank_id, self._model.vocabulary
        found = self._search.search(log_probs_TV)
        scores = ctc_forward_scores(log_probs_TV, [f.token_ids for f in found], blank_id)
        forced = [-np.inf if score.log_prob is None else score.log_prob for score in scores]
        texts: dict[str, int] = {}
        for n in sorted(range(len(found)), key=lambda n: -forced[n]):
            texts.setdefault(vocabulary.text(found[n].token_ids), n)
        kept = list(texts.items())[: self._config.num_hypotheses]
        alignments = ctc_alignments(log_probs_TV, [found[n].token_ids for _, n in kept], blank_id)
        entropy_T = entropies(log_probs_TV)
        hypotheses = []
        for (text, n), alignment in zip(kept, alignments, strict=True):
            assert alignment is not None, "what the search found has an alignment"
            peaks = alignment.peak_frame
            hypotheses.append(
                Hypothesis(
                    text=text,
                    token_ids=found[n].token_ids.tolist(),
                    token_log_probs=log_probs_TV[peaks, found[n].token_ids].tolist(),
                    token_entropies=entropy_T[peaks].tolist(),
                    token_start_s=(alignment.start_frame * self._model.frame_duration_s).tolist(),
                    token_end_s=(alignment.end_frame * self._model.frame_duration_s).tolist(),
                    token_words=vocabulary.token_words(found[n].token_ids),
                    scores=(Score(source=self._config.source, kind="log_prob", log_prob=forced[n]),),
                    search_score=found[n].log_prob,
                )
            )
        nbest = NBest(utterance_id=row.utterance_id, hypotheses=hypotheses)
        return nbest, time.perf_counter() - start, len(found) - len(texts)

    def _collect(self, entry: "NBest | Future[tuple[NBest, float, int]]", costs: Costs) -> NBest:
        if isinstance(entry, NBest):
            return entry
        nbest, seconds, duplicates = entry.result()
        costs.seconds["search"] = costs.seconds.get("search", 0.0) + seconds
        costs.count("hypotheses", len(nbest.hypotheses))
        costs.count("labellings_of_equal_text", duplicates)
        return nbest


def _failed(row: _Row, error_type: str | None, error: str | None) -> NBest:
    return NBest(utterance_id=row.utterance_id, error_type=error_type, error=error)
