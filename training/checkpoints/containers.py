"""Read each container of weights: zip and pickle of ``torch.save``, TorchScript, safetensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from xclip_deploy.errors import CheckpointReadError
from xclip_deploy.training.checkpoints.torchscript import read_torchscript

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02"
"""Pickle protocol 2, which ``torch.save`` wrote before PyTorch 1.6."""

# Weights barely compress, and PyTorch stores them uncompressed.
_MAX_UNCOMPRESSED_RATIO = 4
_SLACK_BYTES = 1 << 20
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_zip(path: Path) -> tuple[object, str]:
    """Read a zip of ``torch.save`` or ``torch.jit.save``.

    Returns what it holds and the container's name, ``torch-zip`` or ``torchscript``.
    Raises CheckpointReadError, or the parsers' own errors where the file is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise CheckpointReadError(
            f"{path}: truncated: it begins as a zip archive, which PyTorch's checkpoints are, "
            "and has no directory at its end; download or copy it again"
        ) from error
    with archive:
        size = path.stat().st_size
        expanded = sum(record.file_size for record in archive.infolist())
        if expanded > _MAX_UNCOMPRESSED_RATIO * size + _SLACK_BYTES:
            raise CheckpointReadError(
                f"{path}: unpacks to {expanded} bytes from {size}; refused as hostile, "
                "since weights do not compress like that"
            )
        names = archive.namelist()
        roots = [name[: -len("data.pkl")] for name in names if name.count("/") == 1]
        roots = [root for root in roots if f"{root}data.pkl" in names]
        if not roots:
            raise CheckpointReadError(
                f"{path}: a zip archive, but no PyTorch checkpoint: it has no data.pkl"
            )
        # The same test as torch.load's own.
        if f"{roots[0]}constants.pkl" in names:
            return read_torchscript(archive, roots[0], path), "torchscript"
    return _load(path, mmap=True), "torch-zip"


def read_legacy(path: Path) -> object:
    """Read a checkpoint from before PyTorch 1.6; raises as :func:`read_zip`."""
    return _load(path, mmap=False)


def looks_like_safetensors(head: bytes, file_size: int) -> bool:
    """Tell by the first bytes: a little-endian header length, then a JSON object."""
    return (
        len(head) > 8
        and head[8:9] == b"{"
        and int.from_bytes(head[:8], "little") <= max(file_size - 8, 0)
    )


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read the file as name to tensor, and each metadata entry as name to text.

    Raises ``safetensors.SafetensorError`` or others where the file is damaged.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        content: dict[str, Any] = dict(file.metadata() or {})
        content.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return content


def _load(path: Path, *, mmap: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused is None:
            # torch's own message advises weights_only=False: not passed on.
            raise CheckpointReadError(
                f"{path}: truncated or damaged: its pickle is not one of weights; "
                "download or copy it again"
            ) from error
        raise CheckpointReadError(
            f"{path}: unsafe to open: beside weights it holds {refused[1]}, and unpickling "
            "that could run any code; where you trust the file, save its weights alone: "
            "torch.save(model.state_dict(), path)"
        ) from error
