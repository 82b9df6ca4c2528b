"""UTTERANCES -> HYPOTHESES with any CTC model: forward pass, prefix beam search, exact forced scores.

Audio is decoded ahead of the model in one thread, the search runs behind it in others.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.first_pass.ctc_lists import ctc_hypotheses, ctc_search
from ctxasr_ray.first_pass.lists import check_list_size, failed, not_finite
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.nbest import NBest, hypotheses_table
from ctxasr_ray.recordings import COLUMNS, Heard, heard_batches
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.search.ctc_beam import CtcBeamSearch


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcConfig(CtcOptions):
    """First pass with a CTC model from a Hugging Face directory or hub id."""

    NAME: ClassVar[str] = "ctc"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS}
    WRITES: ClassVar[str] = "hypotheses"

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
    resources: Resources = field(default_factory=Resources)
    """`num_cpus` is also the number of search threads."""

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        self.check()
        check_list_size(self.num_hypotheses, self.beam_size)

    def build(self) -> "CtcFirstPass":
        """Loads the model and the search."""
        model = self.load()
        return CtcFirstPass(self, model, ctc_search(self, model))


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
        (utterances,) = tables
        ids = utterances.column("utterance_id").to_pylist()
        done: list[NBest | Future[tuple[NBest, float, int]]] = [NBest(utterance_id=one) for one in ids]
        num_threads = max(1, int(self._config.resources.num_cpus))
        limits, size = self._model.limits(self._config.max_audio_s), self._config.batch_size

        def refuse(row: int, error: tuple[str, str]) -> None:
            done[row] = failed(ids[row], error)

        with ThreadPoolExecutor(num_threads, thread_name_prefix="ctc-search") as pool:
            for batch in heard_batches(utterances, limits, size, costs, refuse):
                self._run_batch(batch, ids, done, pool, costs)
            return hypotheses_table([self._collect(entry, costs) for entry in done])

    def _run_batch(
        self,
        batch: Sequence[Heard],
        ids: Sequence[str],
        done: "list[NBest | Future[tuple[NBest, float, int]]]",
        pool: ThreadPoolExecutor,
        costs: Costs,
    ) -> None:
        """One forward pass; the searches go to the pool, so that they overlap with the next pass on a GPU."""
        with costs.timed("model"):
            log_probs = self._model.log_probs([heard.samples for heard in batch if heard.samples is not None])
        costs.count("forwards")
        for heard, log_probs_TV in zip(batch, log_probs, strict=True):
            costs.count("frames", len(log_probs_TV))
            if np.isfinite(log_probs_TV).all():
                done[heard.row] = pool.submit(self._nbest, ids[heard.row], log_probs_TV)
            else:
                done[heard.row] = failed(ids[heard.row], ("model_limit", not_finite(self._config.dtype)))

    def _nbest(self, utterance_id: str, log_probs_TV: npt.NDArray[np.float32]) -> tuple[NBest, float, int]:
        """(list, seconds, labellings left out because a more probable one has the same text)."""
        start = time.perf_counter()
        found = self._search.search(log_probs_TV)
        config = self._config
        hypotheses = ctc_hypotheses(
            self._model, log_probs_TV, found, source=config.source, num_hypotheses=config.num_hypotheses
        )
        texts = {self._model.vocabulary.text(one.token_ids) for one in found}
        nbest = NBest(utterance_id=utterance_id, hypotheses=hypotheses)
        return nbest, time.perf_counter() - start, len(found) - len(texts)

    def _collect(self, entry: "NBest | Future[tuple[NBest, float, int]]", costs: Costs) -> NBest:
        if isinstance(entry, NBest):
            return entry
        nbest, seconds, duplicates = entry.result()
        costs.seconds["search"] = costs.seconds.get("search", 0.0) + seconds
        costs.count("hypotheses", len(nbest.hypotheses))
        costs.count("labellings_of_equal_text", duplicates)
        return nbest
