"""A Hugging Face directory or hub id, checked and fingerprinted before any model is built from it.

Weights come from safetensors only and no code of a checkpoint is ever run. torch, transformers and
huggingface_hub load inside the functions, so a config's module may import this one on any laptop.
"""

import functools
import hashlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctxasr_ray.models import hub

WEIGHTS: Final = "model"
"""Stem of a model's weight files."""
ADAPTER: Final = "adapter_model"
"""Stem of the weight files of a PEFT adapter."""

CTC_HEAD: Final = "ctc_head.safetensors"
"""A CTC head over the encoder of an attention recogniser; it lies beside the model."""

_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
_PREPROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILE: Final = re.compile(
    r"tokenizer.*\.(json|model)|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\..*|spiece\.model|sentencepiece.*\.model|spm\.model|tekken\.json|normalizer\.json|.*\.tiktoken"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Files of one model on this machine, all present and none of them a pickle."""

    name: str
    """Directory or hub id as the user wrote it; stands in error messages."""
    directory: Path
    """Where the files lie; for a hub id the snapshot in the local cache."""
    commit: str | None
    """Hub commit (40 hex digits), None for a directory."""
    weight_files: tuple[Path, ...]
    """Safetensors files, in the order of their names."""
    tokenizer_files: tuple[Path, ...]
    """Files that the tokenizer is read from; empty where there is none (a PEFT adapter)."""


def resolve(model: str, revision: str | None = None, *, stem: str = WEIGHTS) -> Checkpoint:
    """Finds a model's files, downloading a hub id's safetensors once, and refuses what is unsafe or incomplete.

    Args:
        model: A directory, or a hub id such as "facebook/wav2vec2-base-960h".
        revision: Branch, tag or commit of a hub id; None is its main branch.
        stem: `WEIGHTS` for a model, `ADAPTER` for a PEFT adapter.

    Raises:
        ValueError: no such directory or hub id, no configuration, no weights, pickled weights, a weight file
            that is missing, cut short or a Git LFS pointer. The message names the file.
        OSError: the hub cannot be reached and its cache does not hold the model.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise ValueError(f"model '{model}' is a directory, which has no revision '{revision}'; leave it out.")
        directory, commit = Path(model), None
    else:
        commit, names = hub.listing(model, revision)
        _refuse_without_safetensors(model, names, stem)
        directory = hub.snapshot(model, commit)
    required = "adapter_config.json" if stem == ADAPTER else "config.json"
    if not (directory / required).is_file():
        raise ValueError(
            f"model '{model}': {directory / required} is missing; expected a Hugging Face model directory."
        )
    return Checkpoint(
        name=model,
        directory=directory,
        commit=commit,
        weight_files=_weight_files(model, directory, stem),
        tokenizer_files=tuple(sorted(p for p in directory.iterdir() if _TOKENIZER_FILE.fullmatch(p.name))),
    )


def fingerprint(model: str, revision: str | None = None, *, stem: str = WEIGHTS) -> dict[str, str]:
    """Digests of everything in a checkpoint that changes numbers; equal files in another place give equal digests.

    Args:
        model: A directory or a hub id, as for `resolve`.
        revision: Branch, tag or commit of a hub id.
        stem: `WEIGHTS` or `ADAPTER`.

    Returns:
        For a hub id {"model": "id@commit"}, without downloading the weights. For a directory sha256 under
        "model" (weights and configs), and, where there are such files, "tokenizer", "preprocessor", "generation"
        (generation config) and "ctc_head".

    Raises:
        ValueError: as `resolve`.
        OSError: the hub cannot be reached and its cache does not hold the model.
    """
    if not Path(model).is_dir():
        commit, names = hub.listing(model, revision)
        _refuse_without_safetensors(model, names, stem)
        return {"model": f"{model}@{commit}"}
    checkpoint = resolve(model, revision, stem=stem)
    configs = [p for n in ("config.json", "adapter_config.json") if (p := checkpoint.directory / n).is_file()]
    beside = {"preprocessor": _PREPROCESSOR_FILES, "generation": ("generation_config.json",), "ctc_head": (CTC_HEAD,)}
    parts = {
        "model": (*checkpoint.weight_files, *configs),
        "tokenizer": checkpoint.tokenizer_files,
        **{part: [p for n in names if (p := checkpoint.directory / n).is_file()] for part, names in beside.items()},
    }
    return {part: _digest(paths) for part, paths in parts.items() if paths}


def load_model(auto_class: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    """A model in evaluation mode whose every weight came from the checkpoint's safetensors.

    Args:
        auto_class: A transformers class with `from_pretrained`, for example `AutoModelForCTC`.
        checkpoint: What `resolve` returned.
        options: Passed on: dtype, attn_implementation, device_map.

    Raises:
        ValueError: the architecture needs code of the checkpoint, or weights are missing or of another shape
            (transformers would fill them with random numbers), for example an encoder without its CTC head.
    """
    from transformers.utils import logging

    from ctxasr_ray.models.cpu_linear import multiply_in_onednn

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the run has one bar of its own
    try:
        model, info = auto_class.from_pretrained(
            str(checkpoint.directory),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed below, with the names; transformers would only say how many
            **options,
        )
    except (ValueError, KeyError) as error:
        why = str(error)
        if "Unrecognized configuration class" in why:  # followed by all the classes that transformers has
            kind = json.loads((checkpoint.directory / "config.json").read_text("utf-8")).get("model_type")
            why = f"its config.json says '{kind}'; give a model of that kind, or take a recipe for this one."
        raise ValueError(f"model '{checkpoint.name}' cannot be loaded as {auto_class.__name__}: {why}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    files = ", ".join(p.name for p in checkpoint.weight_files)
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, got, expected = mismatched[0]
        raise ValueError(
            f"model '{checkpoint.name}': weight '{name}' in {files} has shape {tuple(got)}, config.json asks for "
            f"{tuple(expected)}; the two do not belong together."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"model '{checkpoint.name}': {files} lacks {len(missing)} weights that {type(model).__name__} needs, "
            f"first {missing[:3]}; give a checkpoint that was trained for this task."
        )
    return multiply_in_onednn(model.eval())


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer, without any code of the checkpoint.

    Raises:
        ValueError: the directory has no tokenizer files, or they cannot be read; names the directory or the files.
    """
    from transformers import AutoTokenizer

    if not checkpoint.tokenizer_files:
        raise ValueError(
            f"model '{checkpoint.name}': no tokenizer files in {checkpoint.directory}; expected tokenizer.json, "
            "vocab.json or tokenizer.model. Save the tokenizer beside the weights."
        )
    try:
        return AutoTokenizer.from_pretrained(str(checkpoint.directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for broken files
        names = ", ".join(str(p) for p in checkpoint.tokenizer_files)
        raise ValueError(f"model '{checkpoint.name}': no tokenizer can be read from {names}: {error}") from error


def check_vocabulary(
    checkpoint: Checkpoint, tokenizer: Any, num_outputs: int, *, special_may_exceed: bool = False
) -> None:
    """Refuses a tokenizer that cannot belong to a model with this many output rows.

    Args:
        checkpoint: Names the files in the message.
        tokenizer: As loaded by `load_tokenizer`.
        num_outputs: Rows of the LM head or CTC head.
        special_may_exceed: Allow special tokens beyond the head: CTC tokenizers often add <s> and </s>,
            which no output stands for and no text needs.

    Raises:
        ValueError: a token id beyond the head, or a head more than twice as large as the vocabulary
            (heads are padded, but by no published model that far; ours).
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens) if special_may_exceed else set()
    counted = {token: index for token, index in vocabulary.items() if token not in special}
    names = ", ".join(str(p) for p in checkpoint.tokenizer_files) or str(checkpoint.directory)
    if not counted:
        raise ValueError(f"model '{checkpoint.name}': the tokenizer of {names} has no tokens.")
    token, highest = max(counted.items(), key=lambda item: item[1])
    if highest >= num_outputs:
        raise ValueError(
            f"model '{checkpoint.name}': token {token!r} of {names} has id {highest}, but the model has {num_outputs} "
            "outputs; the tokenizer does not match the weights. Use the tokenizer that the model was trained with."
        )
    if 2 * len(vocabulary) < num_outputs:
        raise ValueError(
            f"model '{checkpoint.name}': {names} knows {len(vocabulary)} tokens, but the model has {num_outputs} "
            "outputs; the tokenizer does not match the weights. Use the tokenizer that the model was trained with."
        )


def _weight_files(model: str, directory: Path, stem: str) -> tuple[Path, ...]:
    index = directory / f"{stem}.safetensors.index.json"
    single = directory / f"{stem}.safetensors"
    if single.is_file():
        files = [single]
    elif index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"model '{model}': {index} is not an index of weight files: {error!r}") from error
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ValueError(f"model '{model}': {index} names '{outside[0]}', which lies outside the directory.")
        files = [directory / name for name in names]
    else:
        _refuse_without_safetensors(model, [p.name for p in directory.iterdir()], stem)
        raise AssertionError("a listing with safetensors has a single file or an index")
    for path in files:
        _check_safetensors(model, path)
    return tuple(files)


def _refuse_without_safetensors(model: str, names: Sequence[str], stem: str) -> None:
    if f"{stem}.safetensors" in names or f"{stem}.safetensors.index.json" in names:
        return
    pickles = sorted(n for n in names if n.endswith(_PICKLES))
    if pickles:
        raise ValueError(
            f"model '{model}': its weights are in {pickles[0]}, a format that can run code when it is read; expected "
            f"{stem}.safetensors. Convert it once where you trust it: model.save_pretrained(directory)."
        )
    raise ValueError(f"model '{model}': no weights; expected {stem}.safetensors, found {sorted(names)[:8]}.")


def _check_safetensors(model: str, path: Path) -> None:
    """Compares the header's extent with the file's size: a copy cut short is found before a worker dies of it."""
    if not path.is_file():
        raise ValueError(f"model '{model}': weight file {path} is missing; download or copy the model again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if head.startswith(b"version"):
            raise ValueError(f"model '{model}': {path} is a Git LFS pointer, not the weights; run `git lfs pull`.")
        header: Any = None
        if 8 + length <= size:
            try:
                header = json.loads(file.read(length))
            except ValueError:
                header = None
    if not isinstance(header, dict):
        raise ValueError(f"model '{model}': {path} ({size} bytes) is not a safetensors file, or is cut short.")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        expected = 8 + length + max(ends, default=0)
        raise ValueError(f"model '{model}': {path} has {size} bytes, expected {expected}; copy it again.")


def _digest(paths: Sequence[Path]) -> str:
    lines = []
    for path in sorted(paths):
        status = path.stat()
        lines.append(f"{path.name} {_file_digest(str(path.resolve()), status.st_size, status.st_mtime_ns)}")
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    """Sha256 of a file; size and time of change are in the key so that a rewritten file is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
