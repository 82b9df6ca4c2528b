"""A model of the Hugging Face hub: its commit, its file names, its files in the local cache."""

import re
from pathlib import Path
from typing import Final

DOWNLOADED: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
"""Weights, configs and tokenizers; neither pickles nor code."""
_TRAINED: Final = re.compile(r"(?:^|/)runs/train/(\w+)/model(?:/|$)")
"""Where `ctxasr train NAME` puts its model."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def made_by(path: str) -> str:
    """Says which training writes a path that is missing; nothing where it is no recipe's own place."""
    found = _TRAINED.search(path)
    return "" if found is None else f" Run `ctxasr train {found[1]}` first: it writes it."


def snapshot(model: str, commit: str) -> Path:
    """Gives the local directory of a commit; downloads those of the `DOWNLOADED` files that it lacks."""
    from huggingface_hub import snapshot_download

    directory = Path(snapshot_download(model, revision=commit, allow_patterns=list(DOWNLOADED)))
    assert directory.name == commit, f"{directory} is not the snapshot of {commit}"
    return directory


def listing(model: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a hub id and its file names; from the local cache where the hub cannot be reached.

    Raises:
        ValueError: no such model or revision.
        OSError: the hub cannot be reached and its cache does not hold the model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    nothing = f"model '{model}' is neither a directory on this machine nor a hub id"
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ValueError(f"{nothing}; no such directory: {Path(model).absolute()}.{made_by(model)}")
    try:
        info = HfApi().model_info(model, revision=revision)
        return str(info.sha), [file.rfilename for file in info.siblings or []]
    except HFValidationError as error:
        raise ValueError(f"{nothing}: {error}") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"model '{model}' has no revision '{revision}' on the hub.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{nothing} that you may read; check the spelling, or run `hf auth login`.") from error
    except Exception as unreachable:  # the hub's transport errors (httpx) share no base class but this
        try:
            cached = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            raise OSError(
                f"model '{model}' is no directory on this machine, its files are not in the local cache of the hub, "
                f"and the hub cannot be reached: {unreachable}"
            ) from unreachable
    assert _COMMIT.fullmatch(cached.name), f"{cached} is not a snapshot of the hub's cache"
    return cached.name, [p.name for p in cached.iterdir()]
