"""A key and value cache to which nodes are appended in place, and from which live ones are gathered.

transformers' own layer copies the whole cache at every append. Letters: B rows, H key heads, K slots, D head width.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class _FilledError(Exception):
    """Ends a forward pass whose keys and values are all there; never leaves `ArenaCache.filling`."""


class ArenaLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer in a buffer that doubles when it is full; `keys` and `values` are views."""

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.used = 0
        self.ends_pass = False
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the new slots and returns views of all slots, (B, H, K, D) each."""
        states = (key_states, value_states)
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = [s.new_empty((*s.shape[:2], 0, s.shape[3])) for s in states]
        if self.used + new > self._buffers[0].shape[-2]:
            room = max(64, 2 * self._buffers[0].shape[-2], self.used + new)
            self._buffers = [self._moved(b, room) for b in self._buffers]
        for buffer, state in zip(self._buffers, states, strict=True):
            buffer.narrow(2, self.used, new).copy_(state)
        self.used += new
        self._set_views()
        if self.ends_pass:
            raise _FilledError
        return self.keys, self.values

    def gather(self, rows: torch.Tensor, slots_BK: torch.Tensor) -> None:
        """Keeps some rows, and of each of them some slots in the order given; what was there before is freed."""
        for i, buffer in enumerate(self._buffers):
            index = slots_BK[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
            self._buffers[i] = buffer[rows].gather(2, index)
        self.used = slots_BK.shape[1]
        self._set_views()

    def num_bytes(self) -> int:
        """Bytes allocated, used or not."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def _moved(self, buffer: torch.Tensor, room: int) -> torch.Tensor:
        larger = buffer.new_empty((*buffer.shape[:2], room, buffer.shape[3]))
        larger[:, :, : self.used] = buffer[:, :, : self.used]
        return larger

    def _set_views(self) -> None:
        self.keys, self.values = (buffer.narrow(2, 0, self.used) for buffer in self._buffers)


class ArenaCache(Cache):  # type: ignore[misc]
    """One `ArenaLayer` per decoder layer, for `past_key_values`."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[ArenaLayer() for _ in range(num_layers)])

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Around a forward pass that only fills the cache: it ends once the last layer has its keys and values."""
        self.layers[-1].ends_pass = True
        try:
            with contextlib.suppress(_FilledError):
                yield
        finally:
            self.layers[-1].ends_pass = False

    def gather(self, rows: torch.Tensor, slots_BK: torch.Tensor) -> None:
        """Keeps some rows, and of each of them some slots.

        Args:
            rows: (B,) int64 old rows.
            slots_BK: (B, K) int64 old slots; a short row repeats any slot, which the mask must hide.
        """
        for layer in self.layers:
            layer.gather(rows.to(layer.device), slots_BK.to(layer.device))

    def num_bytes(self) -> int:
        """Bytes allocated by all layers."""
        return sum(layer.num_bytes() for layer in self.layers)

    def position_bytes(self) -> int:
        """Bytes of one slot of one row in all layers; the cache is not empty."""
        return sum(side[:1, :, :1].nbytes for layer in self.layers for side in (layer.keys, layer.values))
