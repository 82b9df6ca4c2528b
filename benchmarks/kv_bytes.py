"""Bytes of keys and values per utterance that delayed fusion, shallow fusion and rescoring hold, by beam and length.

Exact counters, so a busy machine changes nothing: of each utterance the most positions that its token tree held at
once, prefix included, times the bytes of a position of the shipped LM (float32), without padding. Rescoring keeps no
cache: its one pass over the list holds one layer at a time. Commands of the test corpus are joined to 5, 10 and 20 s.
Run it without arguments: `python benchmarks/kv_bytes.py`.
"""

from figures import Figure, emit, pin_threads

pin_threads(1)

import numpy as np  # noqa: E402  (the threads are pinned first)

from ctxasr_ray.corpora.synthetic import SyntheticConfig  # noqa: E402
from ctxasr_ray.experiment import asset  # noqa: E402
from ctxasr_ray.first_pass.ctc import CtcConfig  # noqa: E402
from ctxasr_ray.first_pass.ctc_lists import ctc_search  # noqa: E402
from ctxasr_ray.first_pass.search_lms import SearchLm, words_of  # noqa: E402
from ctxasr_ray.models.list_trees import ScoreRequest  # noqa: E402
from ctxasr_ray.models.tree_host import TreeHost  # noqa: E402
from ctxasr_ray.scorers.causal_lm import CausalLmConfig  # noqa: E402
from ctxasr_ray.search.delayed_fusion import FixedInterval, ShortestHypothesis  # noqa: E402
from ctxasr_ray.search.lm_fusion import Trigger  # noqa: E402
from ctxasr_ray.search.lockstep import search_in_lockstep  # noqa: E402
from ctxasr_ray.search.shallow_fusion import EveryWord  # noqa: E402
from ctxasr_ray.stage import Costs  # noqa: E402

BEAMS, LENGTHS_S, NUM_UTTERANCES = (5, 20, 50), (5, 10, 20), 4
TRIGGERS: dict[str, Trigger] = {
    "shallow": EveryWord(),
    "delayed_8": FixedInterval(frames=8),
    "delayed_32": FixedInterval(frames=32),
    "delayed_shortest": ShortestHypothesis(),
}
LM_WEIGHT, LENGTH_BONUS = 0.3, 2.0


def waves(length_s: float, rate: int) -> list[np.ndarray]:
    """Commands joined until they are as long as asked, or a little longer."""
    corpus, made, index = SyntheticConfig(), [], 0
    while len(made) < NUM_UTTERANCES:
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < length_s * rate:
            if corpus.snr_db("test", index) in (None, 20.0, 10.0):
                parts.append(corpus.spoken("test", index).samples)
            index += 1
        made.append(np.concatenate(parts))
    return made


def figures_of(length_s: int, beam: int) -> list[Figure]:
    """Mean bytes per utterance by way, with the work that goes with them."""
    config, lm_config = (
        CtcConfig(model=asset("ctc"), beam_size=beam, num_hypotheses=beam),
        CausalLmConfig(model=asset("lm")),
    )
    model, scorer = config.load(), lm_config.build()
    host = TreeHost(scorer.lm)  # type: ignore[arg-type]  # of transformers
    tokens, units, spelling = words_of(model.vocabulary, "spaces", lm_config)
    log_probs = [model.log_probs([wave])[0] for wave in waves(length_s, model.sample_rate_hz)]
    search = ctc_search(config, model, units.kinds)
    work: dict[str, list[dict[str, int]]] = {}
    for name, trigger in TRIGGERS.items():
        heard = SearchLm(
            config=lm_config,
            host=host,
            tokens=tokens,
            units=units,
            spelling=spelling,
            trigger=trigger,
            lm_weight=LM_WEIGHT,
            length_bonus=LENGTH_BONUS,
        )
        fusion = heard.fusion(Costs())
        found = [search_in_lockstep(search, [search.checked(one)], [fusion])[0].work for one in log_probs]
        work[name] = [{"llm_calls": w.llm_calls, "nodes": w.nodes, "kv_bytes": w.kv_bytes} for w in found]
    lists = [[model.vocabulary.text(one.token_ids) for one in search.search(search.checked(own))] for own in log_probs]
    requests = [ScoreRequest(tokens.prefix, tokens.encode(list(dict.fromkeys(own)))) for own in lists]
    work["rescoring"] = [one.counters for one in scorer.lm.score(requests)]
    return [
        Figure(
            name=f"kv_bytes_{name}_beam_{beam}_{length_s}s",
            value=float(np.mean([one["kv_bytes"] for one in own])),
            unit="bytes",
            counters={
                "largest": max(one["kv_bytes"] for one in own),
                "llm_calls": float(np.mean([one["llm_calls"] for one in own])),
                "nodes": float(np.mean([one["nodes"] for one in own])),
                "utterances": len(own),
                "position_bytes": host.position_bytes,
            },
        )
        for name, own in work.items()
    ]


def main() -> None:
    """All lengths and beams."""
    emit([figure for length_s in LENGTHS_S for beam in BEAMS for figure in figures_of(length_s, beam)])


if __name__ == "__main__":
    main()
