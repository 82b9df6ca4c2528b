"""UTTERANCES -> HYPOTHESES with any attention recogniser: Whisper, Moonshine, Speech2Text, and what steps like them.

The encoder runs once per utterance; the search keeps its beams in one growing token tree. Audio is decoded ahead of
the model in a second thread.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from ctxasr_ray.first_pass.lists import check_list_size, failed, not_finite
from ctxasr_ray.first_pass.token_times import Encoded, Span, token_times
from ctxasr_ray.models.recogniser import Seq2SeqOptions
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table
from ctxasr_ray.recordings import COLUMNS, Heard, heard_batches
from ctxasr_ray.stage import Costs, Resources, runtime_field
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ctxasr_ray.models.seq2seq import Seq2SeqModel
    from ctxasr_ray.search.fusion import Work
    from ctxasr_ray.search.label_beam import LabelHypothesis
    from ctxasr_ray.search.label_fusion import RowFusion
    from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
    from ctxasr_ray.search.phrase_copy import PhraseCopy


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig(Seq2SeqOptions):
    """First pass with an attention recogniser from a Hugging Face directory or hub id."""

    NAME: ClassVar[str] = "attention"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": (*COLUMNS, "language")}
    WRITES: ClassVar[str] = "hypotheses"

    source: str = "attention"
    """Name of the text's score in `scores`; that of its end is `<source>/eos`."""
    beam_size: int = 5
    """Hypotheses that go on at each step."""
    num_hypotheses: int = 5
    """Longest N-best list; texts in it are distinct. At most `beam_size`."""
    max_tokens: int = 224
    """Longest text; hypotheses that reach it stay without having ended, and are counted as `unended`. The decoder's
    positions may allow fewer."""
    ctc_weight: float = 0.0
    """Share of the CTC head's score in what the search ranks by, in [0, 1); needs a model with such a head. The text's
    exact score by that head then stands in `scores` as `<source>_ctc`."""
    length_penalty: float = 0.0
    """Hypotheses are ranked by their sum over length ** this; 0 ranks by the sum."""
    batch_size: int = runtime_field(0)
    """Utterances in one encoder pass and one search; 0 is 1 on a CPU and 16 elsewhere."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        self.check()
        check_list_size(self.num_hypotheses, self.beam_size)
        if self.max_tokens < 1 or self.batch_size < 0 or self.length_penalty < 0:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, batch_size {self.batch_size}, length_penalty {self.length_penalty}; "
                "expected at least 1, 0 and 0."
            )
        if not 0 <= self.ctc_weight < 1:
            raise ValueError(f"ctc_weight is {self.ctc_weight}; expected 0 or more, and less than 1.")

    def build(self) -> "AttentionFirstPass":
        """Loads the model and checks that it can be started as asked and stepped through exactly."""
        model = self.load()
        return AttentionFirstPass(self, model, Find(self.search(model)))

    def search(self, model: "Seq2SeqModel") -> "LabelSynchronousSearch":
        """The beam that the fields describe."""
        from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch

        return LabelSynchronousSearch(
            model,
            beam_size=self.beam_size,
            max_tokens=self.max_tokens,
            length_penalty=self.length_penalty,
            ctc_weight=self.ctc_weight,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found for one utterance.

    Args:
        hypotheses: Best first.
        scores: Per hypothesis what belongs to it besides the recogniser's own scores; empty is nothing.
        reason: Why the search was not quite as asked, without having failed.
        work: What it asked of a language model, where that is counted by utterance.
    """

    hypotheses: "Sequence[LabelHypothesis]"
    scores: Sequence[tuple[Score, ...]] = ()
    reason: str | None = None
    work: "Work | None" = None


Beside = Callable[[Sequence[int]], "RowFusion"]
"""Makes a further fusion of some of the utterances of a search, which are named by their places."""
FindLists = Callable[[Sequence[Encoded], Int32, Costs], list[Found]]
"""Searches utterances with encoder states of equal length behind one prompt."""


@dataclass(frozen=True, slots=True)
class Find:
    """A search without fusion; a `FindLists`.

    Args:
        search: The beam.
    """

    search: "LabelSynchronousSearch"

    def __call__(
        self,
        heard: Sequence[Encoded],
        prompt: Int32,
        costs: Costs,
        fusion: "RowFusion | None" = None,
        copy: "PhraseCopy | None" = None,
    ) -> list[Found]:
        """Counts `decoder_steps`."""
        import torch

        before = self.search.steps
        ctc = [one.ctc_log_probs for one in heard if one.ctc_log_probs is not None]
        found = self.search.search(torch.cat([one.states for one in heard]), prompt, ctc, fusion, copy)
        costs.count("decoder_steps", self.search.steps - before)
        return [Found(own) for own in found]


class AttentionFirstPass:
    """Built by `AttentionConfig`, and around another search by `AttentionFusedConfig`; one call per shard.

    Args:
        config: Of the recogniser and its lists.
        model: Loaded.
        find: Over that model.
    """

    def __init__(self, config: AttentionConfig, model: "Seq2SeqModel", find: FindLists) -> None:
        self._config, self._model, self._find = config, model, find
        on_cpu = model.device.type == "cpu"
        self._batch_size = config.batch_size or (1 if on_cpu else 16)

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, HYPOTHESES out: same rows, same order, each list best first by search score.

        Raises:
            OSError: a fault of the disk or network while reading audio; faults of the audio itself are rows.
        """
        (utterances,) = tables
        ids = utterances.column("utterance_id").to_pylist()
        languages = utterances.column("language").to_pylist()
        nbests = [NBest(utterance_id=utterance_id) for utterance_id in ids]
        limits = self._model.limits(self._config.max_audio_s)

        def refuse(row: int, error: tuple[str, str] | None) -> None:
            nbests[row] = failed(ids[row], error)

        for heard in heard_batches(utterances, limits, self._batch_size, costs, refuse):
            batch: list[tuple[Heard, Int32]] = []
            for one in heard:
                prompt, error = self._model.tokens.prompt_of(languages[one.row], self._config.language)
                if prompt is None:
                    refuse(one.row, error)
                else:
                    batch.append((one, prompt))
            self._run(batch, nbests, costs)
        return hypotheses_table(nbests)

    def _run(self, batch: Sequence[tuple[Heard, Int32]], nbests: list[NBest], costs: Costs) -> None:
        """Encodes a batch; utterances with states of equal length and one prompt are searched together."""
        with costs.timed("model"):
            heard = self._hear([heard.samples for heard, _ in batch if heard.samples is not None])
        together: dict[tuple[int, bytes, int], list[int]] = {}
        for place, (_, prompt) in enumerate(batch):
            apart = 0 if self._model.many_utterances else place
            together.setdefault((heard[place].states.shape[1], prompt.tobytes(), apart), []).append(place)
        for places in together.values():
            prompt = batch[places[0]][1]
            with costs.timed("search"):
                found = self._search([batch[p][0].row for p in places], [heard[p] for p in places], prompt, costs)
            for place, own in zip(places, found, strict=True):
                row = batch[place][0].row
                if own.work is not None:
                    costs.count_utterance(nbests[row].utterance_id, asdict(own.work))
                nbests[row] = self._nbest(nbests[row].utterance_id, own, heard[place], prompt, costs)

    def _search(self, rows: Sequence[int], heard: Sequence[Encoded], prompt: Int32, costs: Costs) -> list[Found]:
        """Searches some rows of the table together."""
        return self._find(heard, prompt, costs)

    def _hear(self, waveforms: "Sequence[npt.NDArray[np.float32]]") -> list[Encoded]:
        encoded = []
        for states_1TD, waveform in zip(self._model.encode(waveforms), waveforms, strict=True):
            num_frames = self._model.num_frames(states_1TD, len(waveform))
            ctc = self._model.ctc_log_probs(states_1TD, num_frames) if self._model.has_ctc_head else None
            encoded.append(Encoded(states_1TD, num_frames, ctc))
        return encoded

    def _nbest(self, utterance_id: str, found: Found, heard: Encoded, prompt: Int32, costs: Costs) -> NBest:
        if not found.hypotheses:
            return failed(utterance_id, ("model_limit", not_finite(self._config.dtype)))
        distinct: dict[str, tuple[LabelHypothesis, tuple[Score, ...]]] = {}
        for one, scores in zip(found.hypotheses, found.scores or [()] * len(found.hypotheses), strict=True):
            distinct.setdefault(self._model.tokens.text(one.token_ids), (one, scores))
        kept = [(text, *pair) for text, pair in distinct.items()][: self._config.num_hypotheses]
        with costs.timed("times"):
            times = token_times(self._model, heard, prompt, [one.token_ids for _, one, _ in kept])
        costs.count("hypotheses", len(kept))
        costs.count("unended", sum(not one.ended for _, one, _ in kept))
        costs.count("labellings_of_equal_text", len(found.hypotheses) - len(distinct))
        ctc = self._ctc_scores([one for _, one, _ in kept], heard)
        return NBest(
            utterance_id=utterance_id,
            hypotheses=[
                self._hypothesis(text, one, span, (*own, *scores))
                for (text, one, scores), span, own in zip(kept, times, ctc, strict=True)
            ],
            error=found.reason,
        )

    def _ctc_scores(self, found: "Sequence[LabelHypothesis]", heard: Encoded) -> list[tuple[Score, ...]]:
        """The exact score of every text by the CTC head, where the search used it; none for a text that it excludes."""
        from ctxasr_ray.search.ctc_forced import ctc_forward_scores

        if not self._config.ctc_weight or heard.ctc_log_probs is None:
            return [()] * len(found)
        source, blank_id = f"{self._config.source}_ctc", self._model.ctc_blank_id
        scores = ctc_forward_scores(heard.ctc_log_probs, [one.token_ids for one in found], blank_id)
        return [
            () if s.log_prob is None else (Score(source=source, kind="log_prob", log_prob=s.log_prob),) for s in scores
        ]

    def _hypothesis(
        self, text: str, found: "LabelHypothesis", span: Span | None, further: tuple[Score, ...]
    ) -> Hypothesis:
        source = self._config.source
        return Hypothesis(
            text=text,
            token_ids=found.token_ids.tolist(),
            token_log_probs=found.token_log_probs.tolist(),
            token_entropies=found.token_entropies.tolist(),
            token_start_s=None if span is None else span.start_s.tolist(),
            token_end_s=None if span is None else span.end_s.tolist(),
            token_words=self._model.tokens.words(found.token_ids),
            scores=(
                Score(source=source, kind="log_prob", log_prob=float(found.token_log_probs.sum())),
                Score(source=f"{source}/eos", kind="log_prob", log_prob=found.eos_log_prob),
                *further,
            ),
            search_score=found.score,
        )
