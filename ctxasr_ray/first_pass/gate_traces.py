"""UTTERANCES, HYPOTHESES -> TRACES: what the gate of a fused search did at each token of the 1-best, on request.

The 1-best is forced, token by token, through both models and the search's own gate. Its traced fused log-probs add up
to the search's score of it where the search adds nothing else: no share of a CTC head, no copied phrase, no boost.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig, FindFused
from ctxasr_ray.first_pass.attention_keywords import AttentionKeywordsConfig
from ctxasr_ray.first_pass.gate_temperature import forced_logits
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.nbest import Hypothesis, read_nbest
from ctxasr_ray.recordings import heard_ahead
from ctxasr_ray.schema import TRACES, ContractError, conform
from ctxasr_ray.stage import Costs, Resources, StageConfig
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from ctxasr_ray.models.seq2seq import Seq2SeqModel
    from ctxasr_ray.search.gated_fusion import GatedRows, Heard

TOP: Final = 5
"""Candidates of each distribution that a trace holds."""
Trace = dict[str, Any]
"""One token: the columns of `report.columns.GATE_TRACE` behind step, utterance_id and index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTraceConfig:
    """Traces the gate over the 1-best of a gated search's own lists."""

    NAME: ClassVar[str] = "gate_trace"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {**AttentionConfig.READS, "hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "traces"

    search: AttentionFusedConfig
    """The search that wrote the lists; its LM is loaded beside the recogniser."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses a search whose gate cannot be seen from one hypothesis."""
        if self.search.fusion != "gated":
            raise ValueError(f"traces: fusion is '{self.search.fusion}', which has no gate; trace a gated search.")
        if self.search.opened_by != "row" and self.search.min_weight:
            raise ValueError(
                f"traces: opened_by is '{self.search.opened_by}', so whether the LM is asked depends on other rows of "
                "the beam, which are not kept; trace a search with opened_by row."
            )

        if self.search.lm_prompt is not None:
            raise ValueError(
                "traces: the LM is told each utterance's phrases and history (lm_prompt), which a trace is not given; "
                "trace a search without lm_prompt."
            )

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of both models."""
        return self.search.fingerprint()

    def build(self) -> "GateTrace":
        """Loads both models.

        Raises:
            ValueError: as the search.
        """
        model = self.search.first_pass.load()
        return GateTrace(self.search, model, FindFused(self.search, model, self.search.asked_lm().host()))


def traced(system: str, config: StageConfig) -> GateTraceConfig:
    """How the lists of a config are traced.

    Args:
        system: Whose lists, for the message.
        config: What wrote them.

    Raises:
        ValueError: there is no gate in it.
    """
    search = config.search if isinstance(config, PhraseCopyConfig) else config
    search = search.first_pass if isinstance(search, AttentionKeywordsConfig) else search
    if not isinstance(search, AttentionFusedConfig):
        raise ValueError(f"traces: '{system}' comes from {config.NAME}, which has no gate; trace a gated search.")
    return GateTraceConfig(search=search, resources=config.resources)


class GateTrace:
    """Built by `GateTraceConfig`; one call per shard.

    Args:
        config: Of the search.
        model: The recogniser.
        find: The search with its LM.
    """

    def __init__(self, config: AttentionFusedConfig, model: "Seq2SeqModel", find: FindFused) -> None:
        self._config, self._model, self._find = config, model, find
        self._unit = config.gate().unit

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One TRACES row per utterance; empty where there is no hypothesis, or, with `error`, no LM in its search.

        Args:
            tables: UTTERANCES, HYPOTHESES of the same rows.
            costs: Counts `tokens_traced` and what `TreeSessions` counts.

        Raises:
            ContractError: other rows, or a 1-best without token ids.
            OSError: a fault of the disk or network while reading audio.
        """
        utterances, hypotheses = tables
        same_rows("hypotheses", hypotheses, "utterances", utterances)
        languages, nbests = utterances.column("language").to_pylist(), read_nbest(hypotheses)
        rows: list[dict[str, Any]] = []
        for heard in heard_ahead(utterances, self._model.limits(self._config.first_pass.max_audio_s), 2, costs):
            nbest = nbests[heard.row]
            traces: list[Trace] = []
            prompt, unspoken = self._model.tokens.prompt_of(languages[heard.row], self._config.first_pass.language)
            kind, reason = heard.error or unspoken or (None, None)
            if heard.samples is not None and prompt is not None and nbest.hypotheses:
                best = nbest.hypotheses[0]
                if best.token_ids is None:
                    raise ContractError(
                        f"hypotheses, utterance '{nbest.utterance_id}': the 1-best has no token_ids; give the lists of "
                        "the gated search itself."
                    )
                traces, reason = self._traces(heard.samples, prompt, best, np.array(best.token_ids, np.int32), costs)
            lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) for one in traces]
            rows.append({"utterance_id": nbest.utterance_id, "traces": lines, "error_type": kind, "error": reason})
        return conform(pa.Table.from_pylist(rows, schema=TRACES), "traces")

    def _traces(
        self, samples: "npt.NDArray[np.float32]", prompt: Int32, best: Hypothesis, tokens: Int32, costs: Costs
    ) -> tuple[list[Trace], str | None]:
        """The traces of a hypothesis and its end, or why there are none; no end where the search did not reach it."""
        import torch

        model = self._model
        with costs.timed("model"):
            logits_LV = forced_logits(model, model.encode([samples])[0], prompt, tokens)
        ended = len(tokens) < min(self._config.first_pass.max_tokens, model.max_positions - len(prompt))
        written = [*tokens.tolist(), model.tokens.eos_id] if ended else tokens.tolist()
        traces: list[Trace] = []
        rows = self._find.rows(1, costs)
        try:
            gated = self._find.gated(rows, costs)
            for place, token in enumerate(written):
                with costs.timed("llm"), torch.inference_mode():
                    heard = gated.heard(logits_LV[place].log_softmax(-1)[None, None], asks_all=True)
                if rows.reasons:
                    return [], f"searched without {self._config.lm.source}: {rows.reasons[0]}"
                gated.advance([([token], [0])])
                words = best.token_words if place < len(tokens) else None
                word = None if words is None or words[place] < 0 else words[place]
                about = {"text": model.tokens.text(tokens[:place]), "word": word}
                traces.append({**about, **self._trace(gated, heard, token)})
        finally:
            rows.close()
        costs.count("tokens_traced", len(traces))
        return traces, None

    def _trace(self, gated: "GatedRows", heard: "Heard", token: int) -> Trace:
        assert heard.lm is not None, "asked about every row"
        w = float(heard.weights)
        leads = heard.lm if gated.leader == "lm" else heard.recogniser
        seen = {"recogniser": heard.recogniser, "lm": heard.lm, "fused": heard.fused}
        models = {name: _Distribution(self._model, log_probs_11V[0, 0]) for name, log_probs_11V in seen.items()}
        return {
            "token": self._model.tokens.pieces([token])[0],
            "token_id": token,
            "leader": gated.leader,
            "u": float(gated.gate.doubts(leads)),
            "unit": self._unit,
            "w": w,
            "lm_asked": gated.leader == "lm" or w > 0,
            **{f"{name}_log_prob": one.log_prob(token) for name, one in models.items()},
            **{f"{name}_rank": one.rank(token) for name, one in models.items()},
            **{f"{name}_top": one.top() for name, one in models.items()},
        }


@dataclass(frozen=True, slots=True)
class _Distribution:
    """One model's say of the next token.

    Args:
        model: The recogniser, whose pieces they are.
        log_probs: (V,) nats.
    """

    model: "Seq2SeqModel"
    log_probs: "torch.Tensor"

    def log_prob(self, token: int) -> float | None:
        """Of a token; None where it is excluded."""
        found = float(self.log_probs[token])
        return found if np.isfinite(found) else None

    def rank(self, token: int) -> int | None:
        """1 for the best token; None where it is excluded."""
        better = int((self.log_probs > self.log_probs[token]).sum())
        return None if self.log_prob(token) is None else better + 1

    def top(self) -> list[tuple[str, float]]:
        """The best tokens and their probabilities."""
        best = self.log_probs.topk(min(TOP, len(self.log_probs)))
        pieces = self.model.tokens.pieces(best.indices.tolist())
        return list(zip(pieces, best.values.exp().tolist(), strict=True))
