"""Gated fusion against the same search that asks its LM about every row: forwards of the LM, equal lists.

The shipped attention recogniser and LM, the showcase's beam of 16, the first test utterances of the quickstart's corpus
(all noise levels), one at a time. A forward is one pass of the LM, whatever the number of rows in it; a list's last
one, for scores that the search did not need, is counted. Both sides have the same weights: what is skipped weighs
nothing.
Run it without arguments: `python benchmarks/gate.py`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from figures import Figure, emit, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)
import numpy.typing as npt  # noqa: E402
import pyarrow as pa  # noqa: E402

from ctxasr_ray.corpora import nemo, synthetic  # noqa: E402
from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.first_pass.attention import AttentionFirstPass  # noqa: E402
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig, FindFused  # noqa: E402
from ctxasr_ray.nbest import NBest, read_nbest  # noqa: E402
from ctxasr_ray.recipes.showcase import showcase  # noqa: E402
from ctxasr_ray.search.gated_fusion import GatedRows, ShallowRows  # noqa: E402
from ctxasr_ray.search.label_fusion import LmRows, Steps  # noqa: E402
from ctxasr_ray.stage import Costs  # noqa: E402

NUM_UTTERANCES: Final = 24
GATES: Final = (("row", 0.0), ("row", 0.2), ("best_row", 0.1), ("best_row", 0.2))
"""What opens the gate, and its least weight; the last one is held to the goal."""
TOLERANCE: Final = 1e-3
"""Nats between scores of equal lists: passes of other sizes round otherwise."""


class EveryRow:
    """Rows of an LM of which every one is asked about, and those that a gate shuts out are then withheld."""

    def __init__(self, rows: LmRows) -> None:
        """Takes the rows of the search."""
        self._rows = rows

    @property
    def num_rows(self) -> list[int]:
        """As `LmRows`."""
        return self._rows.num_rows

    def advance(self, steps: Steps) -> None:
        """As `LmRows`, and asks about the new rows even if the gate will not."""
        self._rows.advance(steps)
        self.log_probs(np.zeros((len(self.num_rows), max(self.num_rows)), np.bool_))

    def keep(self, utterances: list[int]) -> None:
        """As `LmRows`."""
        self._rows.keep(utterances)

    def log_probs(self, asked_UB: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """As `LmRows`."""
        found, given = self._rows.log_probs(np.arange(asked_UB.shape[1]) < np.array(self.num_rows)[:, None])
        return np.where(asked_UB[..., None], found, np.float32(-np.inf)), given & asked_UB


class Ungated(FindFused):
    """The same search and the same weights, and an LM that is asked about every row."""

    def _fusion(self, rows: LmRows, costs: Costs) -> GatedRows | ShallowRows:
        return replace(super()._fusion(rows, costs), lm=EveryRow(rows))  # type: ignore[arg-type]  # what a gate needs


def searched(config: AttentionFusedConfig, utterances: pa.Table, way: type[FindFused]) -> tuple[list[NBest], Costs]:
    """Lists, and what they cost."""
    model, costs = config.first_pass.load(), Costs()
    stage = AttentionFirstPass(config.first_pass, model, way(config, model, config.asked_lm().host()))
    return read_nbest(stage(utterances, costs=costs)), costs


def check_equal(ours: list[NBest], theirs: list[NBest]) -> None:
    """Equal texts in equal order, equal scores."""
    for one, other in zip(ours, theirs, strict=True):
        assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses], one.utterance_id
        for a, b in zip(one.hypotheses, other.hypotheses, strict=True):
            assert abs((a.search_score or 0.0) - (b.search_score or 0.0)) < TOLERANCE, one.utterance_id


def figures(utterances: pa.Table) -> list[Figure]:
    """One figure per gate."""
    gated = showcase().branches["gated_fusion"].nbest
    assert isinstance(gated, AttentionFusedConfig)
    found = []
    for opened_by, min_weight in GATES:
        config = replace(gated, opened_by=opened_by, min_weight=min_weight)  # type: ignore[arg-type]  # names of GATES
        ours, costs = searched(config, utterances, FindFused)
        theirs, every = searched(config, utterances, Ungated)
        check_equal(ours, theirs)
        told = {name: costs.counters[name] for name in ("llm_calls", "tokens_forwarded", "lm_rows")}
        told |= {f"{name}_ungated": every.counters[name] for name in ("llm_calls", "tokens_forwarded")}
        found.append(
            Figure(
                name=f"gate_llm_calls_{opened_by}_{min_weight:g}",
                value=told["llm_calls"] / told["llm_calls_ungated"],
                goal="<= 0.5" if (opened_by, min_weight) == GATES[-1] else None,
                unit="x",
                peer="the same weights, every row asked about",
                counters={**told, "utterances": len(ours), "beam": config.first_pass.beam_size},
            )
        )
    return found


def main() -> None:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="ctxasr-gate-") as folder:
        manifest = synthetic.prepare(SyntheticConfig(num_dev=0, num_test=NUM_UTTERANCES), Path(folder))
        emit(figures(nemo.read(manifest)))


if __name__ == "__main__":
    main()
