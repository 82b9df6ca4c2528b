"""UTTERANCES -> HYPOTHESES with a CTC model and a language model inside its search, beside it in one actor.

The list is in the order of what the search maximised, exactly: forced CTC score + lm_weight * log P_LM (end of sequence
included) + length_bonus * words (or labels). All parts stand apart in `scores`, so that fusion can weight them anew.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_lists import ctc_hypotheses, ctc_search
from ctxasr_ray.first_pass.lists import failed, not_finite
from ctxasr_ray.first_pass.search_lms import (
    FirstPassLm,
    SearchLm,
    labels_of,
    prefixed,
    refuse_unknown_trigger,
    word_trigger,
    words_of,
)
from ctxasr_ray.nbest import NBest, hypotheses_table
from ctxasr_ray.recordings import COLUMNS, Heard, heard_batches
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, Resources, TreeScorerHost, runtime_field

if TYPE_CHECKING:
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.search.ctc_beam import CtcBeamSearch
    from ctxasr_ray.search.fusion import Fusion
    from ctxasr_ray.search.lm_fusion import Trigger


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcFusedConfig:
    """First pass with a CTC model whose search asks a causal LM, by shallow or by delayed fusion."""

    NAME: ClassVar[str] = "ctc_fused"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS}
    WRITES: ClassVar[str] = "hypotheses"

    first_pass: CtcConfig
    """The recogniser and its beam; the same config as a stage of its own is the run without fusion."""
    lm: CausalLmConfig
    """The language model, its text form, its prompt and the name of its scores. The same config as a scorer gives the
    same numbers under the same name, which fusion refuses to add twice."""
    fusion: Literal["delayed", "shallow"] = "delayed"
    """Delayed: at a trigger, about many units at once. Shallow: by words whenever a surviving hypothesis has a new one,
    by labels for every candidate before it is pruned."""
    units: Literal["words", "labels"] = "words"
    """What the LM is asked about: words, tokenised anew by its own tokenizer, or the recogniser's labels, where the
    LM has a token for each of them (a character LM). Then "word" below means label, and a text is scored as its labels
    are written, doubled spaces included."""
    trigger: Literal["fixed_interval", "shortest_hypothesis"] = "fixed_interval"
    """Of delayed fusion: every `interval` frames, or whenever the shortest hypothesis has one more word."""
    interval: int = 32
    """Frames of the recogniser between two triggers of kind fixed_interval."""
    scored: Literal["common_words", "own_last_word"] = "common_words"
    """What delayed fusion scores at a trigger: all hypotheses to the number of words that they have in common, or each
    to its own last complete word (then one that has just finished a word pays for it, and its rivals do not)."""
    lm_weight: float = 0.5
    """Of the LM's log-prob in the search, end of sequence included (the paper's lambda)."""
    length_bonus: float = 0.0
    """Nats per word that the LM has scored (the paper's beta)."""
    first_pass_lm: FirstPassLm | None = None
    """A small LM that is heard at every word while the main one waits; None has none."""
    label_prior: str | None = field(default=None, metadata={"identity": False})
    """A .npy file of one log-prob per label, taken off in step with the LM's score; its digest is in the hash."""
    prior_weight: float = 0.0
    """Of the label prior."""
    segmentation: Literal["spaces", "characters"] = "spaces"
    """What a word is; characters for Chinese and Japanese, see `models.word_boundaries`."""
    utterances_in_lockstep: int = runtime_field(16)
    """Utterances that are searched side by side; as many of them share a call of the LM as its
    `utterances_per_forward` says."""
    lm_pool: Resources | None = runtime_field(None)
    """Actors of the LM's own on a cluster, which all actors of the stage share; None loads it beside the recogniser."""
    lm_connect: Callable[[], TreeScorerHost] | None = runtime_field(None)
    """Set by the executor where there is such a pool."""
    resources: Resources = field(default_factory=Resources)
    """Of the actor that holds the recogniser, and the LM if it has no pool; those of `first_pass` and `lm` are not
    used."""

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        refuse_unknown_trigger(self)
        if self.units not in ("words", "labels"):
            raise ValueError(f"units is '{self.units}'; expected words or labels.")
        if self.units == "labels" and (self.first_pass_lm is not None or self.label_prior is not None):
            raise ValueError("units are labels: first_pass_lm and label_prior go with words; set both to None.")
        if self.interval < 1 or self.utterances_in_lockstep < 1:
            raise ValueError(
                f"interval is {self.interval}, utterances_in_lockstep {self.utterances_in_lockstep}; expected at "
                "least 1."
            )
        if self.lm.source == self.first_pass.source:
            raise ValueError(f"lm.source and first_pass.source are both '{self.lm.source}'; give them two names.")
        if self.first_pass_lm is not None and self.first_pass_lm.lm.source in (self.lm.source, self.first_pass.source):
            raise ValueError(
                f"first_pass_lm.lm.source is '{self.first_pass_lm.lm.source}', which another score has; give it a name."
            )
        if (self.label_prior is None) != (self.prior_weight == 0.0):
            raise ValueError(f"label_prior is {self.label_prior}, prior_weight {self.prior_weight}; give both or none.")

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of both models and of the label prior."""
        parts = {"": self.first_pass.fingerprint(), "lm_": self.lm.fingerprint()}
        if self.first_pass_lm is not None:
            parts["first_pass_lm_"] = self.first_pass_lm.lm.fingerprint()
        digests = prefixed(parts)
        if self.label_prior is not None:
            digests["label_prior"] = hashlib.sha256(Path(self.label_prior).read_bytes()).hexdigest()
        return digests

    def build(self) -> "CtcFusedFirstPass":
        """Loads both models.

        Raises:
            ValueError: as the two configs, or a label prior that does not fit the labels.
        """
        host = self.asked_lm().host() if self.lm_connect is None else self.lm_connect()
        return CtcFusedFirstPass(self, self.first_pass.load(), host)

    def asked_lm(self) -> CausalLmConfig:
        """The LM as it is loaded; on a CPU each utterance has its own passes: padding costs more than it saves."""
        return self.lm

    def trigger_of_search(self) -> "Trigger | None":
        """The trigger that the fields describe; None is shallow fusion by label."""
        return None if self.fusion == "shallow" and self.units == "labels" else word_trigger(self)


class CtcFusedFirstPass:
    """Built by `CtcFusedConfig`; one call per shard.

    Args:
        config: The config.
        model: The recogniser.
        host: The language model.
    """

    def __init__(self, config: CtcFusedConfig, model: "CtcModel", host: TreeScorerHost) -> None:
        self._config, self._model = config, model
        self._lms = [self._main(host)]
        if (small := config.first_pass_lm) is not None:
            self._lms.append(self._small(small))

    def _main(self, host: TreeScorerHost) -> SearchLm:
        config, vocabulary = self._config, self._model.vocabulary
        if config.units == "labels":
            tokens, units, spelling = labels_of(vocabulary, config.lm)
        else:
            tokens, units, spelling = words_of(vocabulary, config.segmentation, config.lm)
        return SearchLm(
            config=config.lm,
            host=host,
            tokens=tokens,
            units=units,
            spelling=spelling,
            trigger=config.trigger_of_search(),
            lm_weight=config.lm_weight,
            length_bonus=config.length_bonus,
            label_prior=_label_prior(config.label_prior, len(vocabulary.pieces)),
            prior_weight=config.prior_weight,
        )

    def _small(self, small: FirstPassLm) -> SearchLm:
        from ctxasr_ray.search.shallow_fusion import EveryWord

        tokens, units, spelling = words_of(self._model.vocabulary, self._config.segmentation, small.lm)
        return SearchLm(
            config=small.lm,
            host=small.lm.host(),
            tokens=tokens,
            units=units,
            spelling=spelling,
            trigger=EveryWord(),
            lm_weight=small.lm_weight,
            length_bonus=small.length_bonus,
        )

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES in, HYPOTHESES out: same rows, same order, each list best first by what the search maximised.

        An utterance that the LM cannot serve is searched without it: its hypotheses lack the LM's scores, and `error`
        says why, without an `error_type`.

        Args:
            tables: UTTERANCES.
            costs: Counts what `search.fusion.Work` says of each utterance; in all `audio_ms`, `forwards`, `frames`,
                `hypotheses`, `utterances_unfused`, and what `search.lm_texts.FusedLm` and
                `models.tree_sessions.TreeSessions` count; seconds of `decode`, `model`, `search` (with the LM) and
                `lists`.

        Raises:
            OSError: a fault of the disk or network while reading audio; faults of the audio itself are rows.
        """
        (utterances,) = tables
        ids = utterances.column("utterance_id").to_pylist()
        done = [NBest(utterance_id=one) for one in ids]
        fusions = [lm.fusion(costs) for lm in self._lms]
        search = ctc_search(self._config.first_pass, self._model, fusions[0].kinds)
        limits = self._model.limits(self._config.first_pass.max_audio_s)

        def refuse(row: int, error: tuple[str, str]) -> None:
            done[row] = failed(ids[row], error)

        for batch in heard_batches(utterances, limits, self._config.utterances_in_lockstep, costs, refuse):
            self._run_batch(batch, ids, done, search, fusions, costs)
        return hypotheses_table(done)

    def _run_batch(
        self,
        batch: Sequence[Heard],
        ids: Sequence[str],
        done: list[NBest],
        search: "CtcBeamSearch",
        lm_fusions: "Sequence[Fusion]",
        costs: Costs,
    ) -> None:
        """Forward passes of the recogniser, then all utterances' searches side by side."""
        from ctxasr_ray.search.lockstep import search_in_lockstep

        log_probs = self._log_probs(batch, costs)
        finite = [np.isfinite(one).all() for one in log_probs]
        for heard, one in zip(batch, finite, strict=True):
            if not one:
                done[heard.row] = failed(ids[heard.row], ("model_limit", not_finite(self._config.first_pass.dtype)))
        kept = [(heard.row, one) for heard, one, good in zip(batch, log_probs, finite, strict=True) if good]
        with costs.timed("search"):
            fusions = [*lm_fusions, *self._further([ids[row] for row, _ in kept])]
            found = search_in_lockstep(search, [search.checked(one) for _, one in kept], fusions)
        with costs.timed("lists"):
            for (row, log_probs_TV), own in zip(kept, found, strict=True):
                hypotheses = ctc_hypotheses(
                    self._model,
                    log_probs_TV,
                    own.labellings,
                    source=self._config.first_pass.source,
                    num_hypotheses=self._config.first_pass.num_hypotheses,
                    scores=own.scores,
                )
                reason = "; ".join(f"searched without {name}: {why}" for name, why in own.left_out.items()) or None
                costs.count("utterances_unfused", bool(own.left_out))
                costs.count_utterance(ids[row], asdict(own.work))
                costs.count("hypotheses", len(hypotheses))
                done[row] = NBest(utterance_id=ids[row], hypotheses=hypotheses, error=reason)

    def _further(self, ids: Sequence[str]) -> "Sequence[Fusion]":
        """Fusions beside the language models, for some utterances that are searched side by side."""
        return ()

    def _log_probs(self, batch: Sequence[Heard], costs: Costs) -> list[npt.NDArray[np.float32]]:
        samples = [heard.samples for heard in batch if heard.samples is not None]
        size, log_probs = self._config.first_pass.batch_size, []
        for start in range(0, len(samples), size):
            with costs.timed("model"):
                log_probs += self._model.log_probs(samples[start : start + size])
            costs.count("forwards")
        costs.count("frames", sum(len(one) for one in log_probs))
        return log_probs


def _label_prior(path: str | None, num_labels: int) -> npt.NDArray[np.float64] | None:
    if path is None:
        return None
    prior: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    if prior.shape != (num_labels,) or not np.isfinite(prior).all() or (prior > 0).any():
        raise ValueError(
            f"label prior {path}: got shape {prior.shape}, {prior.dtype}; expected ({num_labels},) finite natural "
            "logarithms of probabilities, one per label of the recogniser."
        )
    return prior.astype(np.float64)
