"""Read weights from any container; unpickle nothing but weights.

``layouts`` decides by the names of the tensors which model they make.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xclip_deploy.errors import (
    CheckpointError,
    CheckpointReadError,
    InvalidArgumentError,
    UnknownLayoutError,
)
from xclip_deploy.training.checkpoints.choosing import Choice, choose_by_prefix, open_wrappers
from xclip_deploy.training.checkpoints.containers import (
    LEGACY_MAGIC,
    ZIP_MAGIC,
    looks_like_safetensors,
    read_legacy,
    read_safetensors,
    read_zip,
)
from xclip_deploy.training.checkpoints.folders import FolderContents, find_weights, sibling_config
from xclip_deploy.training.checkpoints.pickles import NotDense
from xclip_deploy.training.checkpoints.refusals import first_line, listing, shown_name

# Declared bytes per byte of the file. Weights barely compress, and tied weights at most
# double. A file that declares more was made to exhaust memory.
_MAX_EXPANSION = 4
_SLACK_BYTES = 1 << 20

# Users often pass or download these files in place of a checkpoint.
_KNOWN_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"<!doctype html", "a web page; the download was answered by a page, not by the file"),
    (b"<html", "a web page; the download was answered by a page, not by the file"),
    (b"\x89hdf", "an HDF5 file"),
    *(
        (
            magic,
            "a plain pickle, which could run any code when it is opened; save the weights "
            "alone with: torch.save(model.state_dict(), path)",
        )
        for magic in (b"\x80\x03", b"\x80\x04", b"\x80\x05")
    ),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
)
_EXPECTED = (
    "expected a PyTorch checkpoint, a TorchScript archive, a .safetensors file or a "
    "Hugging Face folder"
)


@dataclass(frozen=True, eq=False)
class RawWeights:
    """Tensors of a checkpoint under their names in the file."""

    tensors: dict[str, Tensor]
    """On the CPU, in the file's own dtypes; they may be views of the mapped file."""
    container: str
    """``torch-zip``, ``torch-legacy``, ``torchscript`` or ``safetensors``."""
    sha256: str
    """SHA-256 of the file; of sharded weights, that of ``sha256sum``'s lines, shards sorted."""
    hf_config: dict[str, Any] | None = None
    """Content of Hugging Face's ``config.json``; None where none lies beside the weights."""
    open_clip_config: dict[str, Any] | None = None
    """Content of ``open_clip_config.json``; None where none lies beside the weights."""
    square_pixels: bool = False
    """Whether the file says that training showed anamorphic video in its true proportions."""
    saved_config: str | None = None
    """``ModelConfig`` that xclip-deploy saved with the weights, as JSON."""
    notes: tuple[str, ...] = ()
    """Choices among several state dicts, a sentence each."""


def read_weights(path: str | Path, weights: str | None = None) -> RawWeights:
    """Read every tensor of a checkpoint file or folder; execute nothing that it holds.

    It opens the wrappers of training scripts (``state_dict``, ``model``, ``net`` and others), and
    strips the prefixes of distributed, compiled or wrapped models (``module.``, ``_orig_mod.``).

    ``weights`` chooses where a file holds several state dicts: ``raw``, ``ema`` (their moving
    average), or the key or prefix of one, such as ``teacher``.

    Raises:
        CheckpointReadError: the file is missing, empty, truncated or no checkpoint, or it
            holds objects other than weights; a folder holds no weights, or several; the user
            must choose.
        UnknownLayoutError: the same for names with several prefixes.
        InvalidArgumentError: ``weights`` names some that are not there.
    """
    path = Path(path)
    choice = Choice(weights)
    try:
        if path.is_dir():
            raw = _read_folder(find_weights(path), choice)
        elif path.exists():
            raw = replace(_read_file(path, choice), **sibling_config(path))
        else:
            raise CheckpointReadError(f"{path}: no such file or folder")
        try:
            tensors = choose_by_prefix(raw.tensors, choice)
            choice.check()
        except (CheckpointReadError, UnknownLayoutError, InvalidArgumentError) as error:
            raise type(error)(f"{path}: {error}") from error
        return replace(raw, tensors=tensors, notes=tuple(choice.notes))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointReadError(f"{path}: cannot be read: {first_line(error)}") from error


def _read_folder(folder: FolderContents, choice: Choice) -> RawWeights:
    parts = {file.name: _read_file(file, choice) for file in folder.files}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        twice = sorted(tensors.keys() & part.tensors.keys())
        if twice:
            raise CheckpointReadError(f"{folder.path}: {name} repeats tensors: {listing(twice)}")
        tensors.update(part.tensors)
    lost = sorted(folder.promised - tensors.keys())
    if lost:
        raise CheckpointReadError(
            f"{folder.path}: the index promises tensors that no shard has: {listing(lost)}"
        )
    first = next(iter(parts.values()))
    sha256 = first.sha256
    if len(parts) > 1:
        lines = "".join(f"{parts[name].sha256}  {name}\n" for name in sorted(parts))
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return replace(
        first,
        tensors=tensors,
        sha256=sha256,
        hf_config=folder.hf_config,
        open_clip_config=folder.open_clip_config,
    )


def _read_file(path: Path, choice: Choice) -> RawWeights:
    status = path.stat()
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointReadError(f"{path}: no regular file; {_EXPECTED}")
    if size == 0:
        raise CheckpointReadError(f"{path}: the file is empty; download or copy it again")
    with path.open("rb") as file:
        head = file.read(64)
    try:
        if head.startswith(ZIP_MAGIC):
            content, container = read_zip(path)
        elif path.suffix == ".safetensors" or looks_like_safetensors(head, size):
            content, container = read_safetensors(path), "safetensors"
        elif head.startswith(LEGACY_MAGIC):
            content, container = read_legacy(path), "torch-legacy"
        else:
            raise CheckpointReadError(f"{path}: {_describe(head)}; {_EXPECTED}")
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        # The parsers of zip, pickle and safetensors raise almost anything for damaged bytes.
        # All of it means the same to the user.
        raise CheckpointReadError(
            f"{path}: truncated or damaged ({first_line(error)}); {_EXPECTED}; "
            "download or copy it again"
        ) from error
    try:
        named = open_wrappers(content, choice)
    except (CheckpointReadError, InvalidArgumentError) as error:
        raise type(error)(f"{path}: {error}") from error
    tensors = _check_tensors(named, size, path)
    return RawWeights(
        tensors,
        container,
        _sha256(path),
        saved_config=choice.saved_config,
        square_pixels=choice.square_pixels,
    )


def _describe(head: bytes) -> str:
    for magic, description in _KNOWN_OTHERS:
        if head[: len(magic)].lower() == magic.lower():
            return description
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"a text file that begins {head[:24].decode('ascii')!r}"
    return f"not a checkpoint: it begins with the bytes {head[:8].hex(' ')}"


def _check_tensors(
    named: Mapping[str, Tensor | NotDense], file_size: int, path: Path
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if isinstance(tensor, NotDense):
            raise CheckpointReadError(
                f"{path}: {shown_name(name)} is sparse, quantised or without values; expected "
                "dense weights"
            )
        tensors[name] = tensor
    # A pickle can declare a tensor of any shape over a few bytes, by strides of zero.
    declared = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if declared > _MAX_EXPANSION * file_size + _SLACK_BYTES:
        raise CheckpointReadError(
            f"{path}: declares {declared} bytes of tensors in a file of {file_size} bytes; "
            "refused as damaged or hostile"
        )
    return tensors


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
