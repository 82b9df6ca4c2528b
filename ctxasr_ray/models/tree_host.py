"""A loaded causal LM that several searches of this process ask: `stage.TreeScorerHost`."""

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.tree_sessions import CACHE_LIMIT_BYTES, TreeSessions
from ctxasr_ray.stage import Costs


class TreeHost:
    """A model of this process.

    Args:
        lm: Loaded.
        cache_limit_bytes: Keys and values of each search; see `TreeSessions`.
    """

    def __init__(self, lm: CausalLm, cache_limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        self.lm, self._limit = lm, cache_limit_bytes

    @property
    def eos_token_id(self) -> int | None:
        """End of sequence, None if the model has none."""
        return self.lm.eos_token_id

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model takes, prefix included; None is no limit."""
        return self.lm.max_positions

    @property
    def position_bytes(self) -> int:
        """Keys and values of one position in a cache; 0 for a model that is asked without one."""
        return self.lm.position_bytes

    def sessions(self, costs: Costs) -> TreeSessions:
        """Token trees of one search."""
        return TreeSessions(self.lm, costs, self._limit)
