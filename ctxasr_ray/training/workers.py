"""Who trains: one process alone, or a group of them, each with a copy (DDP) or a piece (FSDP2) of the model.

Whoever starts the group (Ray Train, torchrun) has initialised `torch.distributed` before.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel


class Workers(Protocol):
    """A worker's view of its group. Every worker makes the same calls in the same order."""

    @property
    def device(self) -> torch.device:
        """Of this process."""
        ...

    @property
    def rank(self) -> int:
        """From 0; the first writes log and checkpoints."""
        ...

    @property
    def size(self) -> int:
        """Processes of the group."""
        ...

    def first(self) -> contextlib.AbstractContextManager[None]:
        """A block that the first worker has left before the others enter it: what it writes there, they read."""
        ...

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds up numbers over the workers."""
        ...

    def spread(self, module: Any) -> Any:
        """Puts a module, weights equal everywhere, on the devices; its gradients are means over the workers."""
        ...

    def part(self, module: Any, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """A block with the forward and backward of one part of a batch; gradients travel with the last."""
        ...

    def whole(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """A block in which the model inside of a spread module is called directly, by every worker."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """This process."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def first(self) -> contextlib.AbstractContextManager[None]:
        """See `Workers`."""
        return contextlib.nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """See `Workers`."""
        return list(values)

    def spread(self, module: Any) -> Any:
        """See `Workers`."""
        return module.to(self.device)

    def part(self, module: Any, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Workers`."""
        return contextlib.nullcontext()

    def whole(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """See `Workers`."""
        return contextlib.nullcontext()


class Copies:
    """A copy of the model in each process of the group (DDP).

    Args:
        device: Of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.rank, self.size = device, distributed.get_rank(), distributed.get_world_size()

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """See `Workers`. An error of the first worker lets the others in, who meet it too."""
        if self.rank:
            distributed.barrier()
        try:
            yield
        finally:
            if not self.rank:
                distributed.barrier()

    def sum(self, values: Sequence[float]) -> list[float]:
        """See `Workers`."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def spread(self, module: Any) -> Any:
        """See `Workers`."""
        # Some losses leave weights alone: an LLM behind an adapter that is trained by CTC.
        return DistributedDataParallel(module.to(self.device), find_unused_parameters=True)

    def part(self, module: Any, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Workers`."""
        unsent: contextlib.AbstractContextManager[None] = module.no_sync()
        return contextlib.nullcontext() if is_last else unsent

    def whole(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """See `Workers`."""
        return contextlib.nullcontext()


class Pieces(Copies):
    """A piece of each weight, its gradient and its moments in each process of the group (FSDP2).

    The blocks of a Hugging Face model are put together one after the other while it works, the rest at once.
    """

    def spread(self, module: Any) -> Any:
        """See `Workers`."""
        mesh = init_device_mesh(self.device.type, (self.size,))
        parts = list(module.modules())
        blocks = {name for part in parts for name in getattr(part, "_no_split_modules", None) or ()}
        for part in parts:
            if type(part).__name__ in blocks:
                fully_shard(part, mesh=mesh)
        return fully_shard(module, mesh=mesh)

    @contextlib.contextmanager
    def part(self, module: FSDPModule, *, is_last: bool) -> Iterator[None]:
        """See `Workers`."""
        module.set_requires_gradient_sync(is_last)
        yield

    @contextlib.contextmanager
    def whole(self, module: FSDPModule) -> Iterator[None]:
        """See `Workers`."""
        module.unshard()
        yield
        module.reshard()
