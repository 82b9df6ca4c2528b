"""The state of a training run in one safetensors file: a kill leaves the old one or the new one, whole."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

FILE = "checkpoint.safetensors"


def save(
    path: Path, step: int, model: torch.nn.Module, optimiser: torch.optim.Optimizer, *, writes: bool = True
) -> None:
    """Writes weights, buffers and optimiser moments after `step` steps; atomic.

    Where weights lie in pieces, all workers call this at the same time.

    Args:
        path: Of the file.
        step: Steps done.
        model: Its weights may lie in pieces.
        optimiser: Of its weights.
        writes: False for all workers but the first, which only give their pieces.

    Raises:
        OSError: the disk is full or read-only; the checkpoint before stays intact.
    """
    tensors = {f"model/{name}": tensor for name, tensor in _parameters(model).items()}
    for index, moments in optimiser.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimiser/{index}/{name}"] = value
    contiguous = {}
    for name, tensor in tensors.items():
        together = whole(tensor.detach())
        if writes:
            contiguous[name] = together.cpu().contiguous()
    if not writes:
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(contiguous, temporary, metadata={"step": json.dumps(step)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Restores what `save` wrote and returns the number of steps done; 0 where there is no checkpoint.

    Raises:
        ValueError: the file belongs to another architecture, or is cut short.
    """
    if not path.exists():
        return 0
    try:
        step, weights, state = _read(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors: {error}. It is no whole checkpoint: copy it again, or remove it, "
            "and the training starts from its first step."
        ) from error
    own = _parameters(model)
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise ValueError(f"{path}: its weights are of another architecture; train in a new directory.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(_like(tensor, weights[name]))
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for index, moments in state.items():
        for name, value in moments.items():
            moments[name] = _like(trained[index], value)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def _read(path: Path) -> tuple[int, dict[str, Tensor], dict[int, dict[str, Any]]]:
    """Steps done, weights by name, and moments by number of the weight."""
    weights: dict[str, Tensor] = {}
    state: dict[int, dict[str, Any]] = {}
    with safe_open(path, framework="pt") as file:
        step = int(json.loads(file.metadata()["step"]))
        for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            kind, _, name = key.partition("/")
            if kind == "model":
                weights[name] = file.get_tensor(key)
            else:
                number, _, moment = name.partition("/")
                state.setdefault(int(number), {})[moment] = file.get_tensor(key)
    return step, weights, state


def whole(tensor: Tensor) -> Tensor:
    """A tensor whose pieces may lie with several workers, put together; all of them call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(own: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, cut as a weight of the same shape is."""
    if isinstance(own, DTensor) and own.shape == value.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value


def _parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied weights once."""
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor
    return result
