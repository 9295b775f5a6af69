"""Read each container of weights: zip and pickle of ``torch.save``, TorchScript, safetensors."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from xclip_deploy.errors import CheckpointReadError
from xclip_deploy.training.checkpoints.pickles import (
    MAX_PICKLE_BYTES,
    PickleMachine,
    StorageIdentity,
)
from xclip_deploy.training.checkpoints.refusals import shown_name
from xclip_deploy.training.checkpoints.torchscript import MAX_NAMES, flatten, unsafe_script

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02"
"""Pickle protocol 2, which ``torch.save`` wrote before PyTorch 1.6."""
MAX_RECORDS = 20_000
"""Most records of a zip archive. ViT-L/14 with its optimiser has some 1,500."""

_MAX_DIRECTORY_BYTES = 8 << 20
# Weights barely compress, and PyTorch stores them uncompressed.
_MAX_UNCOMPRESSED_RATIO = 4
_SLACK_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22x2H")
"""Header of a zip record: magic, then the lengths of its name and of its extra field."""
_LEGACY_NUMBERS = (0x1950A86A20F9469CFC6C, 1001)
"""The first two pickles of a file before PyTorch 1.6: magic number and version."""


def read_zip(path: Path) -> tuple[object, str]:
    """Read a zip of ``torch.save`` or ``torch.jit.save``.

    Returns what it holds and the container's name, ``torch-zip`` or ``torchscript``.
    Raises CheckpointReadError, or the parsers' own errors where the file is damaged.
    """
    with _BoundedFile(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise CheckpointReadError(
                f"{path}: truncated: it begins as a zip archive, which PyTorch's checkpoints are, "
                "and has no directory at its end; download or copy it again"
            ) from error
        file.is_bounded = False
        with archive:
            _refuse_bomb(archive, path)
            names = set(archive.namelist())
            roots = [
                name.removesuffix("data.pkl")
                for name in names
                if name.endswith("/data.pkl") and name.count("/") == 1
            ]
            if not roots:
                raise CheckpointReadError(
                    f"{path}: a zip archive, but no PyTorch checkpoint: it has no data.pkl"
                )
            root = min(roots)
            pickled = archive.getinfo(f"{root}data.pkl")
            if pickled.file_size > MAX_PICKLE_BYTES:
                raise CheckpointReadError(
                    f"{path}: data.pkl has {pickled.file_size} bytes, more than "
                    f"{MAX_PICKLE_BYTES}; refused as hostile"
                )
            # The same test as torch.load's own.
            is_script = f"{root}constants.pkl" in names
            machine = PickleMachine(
                path,
                _Records(archive, file, root, path).storage,
                unsafe_script if is_script else unsafe_pickle,
                has_scripts=is_script,
            )
            content = machine.run(io.BytesIO(archive.read(pickled)))
    if is_script:
        return flatten(content, path), "torchscript"
    return content, "torch-zip"


def unsafe_pickle(name: str) -> str:
    """Say that a pickle holds more than weights."""
    if name.startswith("torch.distributed."):
        return (
            f"one part of a checkpoint that FSDP or DTensor split ({name}); gather the whole "
            "where it was trained: get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True, cpu_offload=True)), and save that"
        )
    return (
        f"unsafe to open: beside weights it holds {name}, and unpickling that could run any "
        "code; where you trust the file, save its weights alone: "
        "torch.save(model.state_dict(), path)"
    )


class _BoundedFile(io.FileIO):
    """File that refuses to give a zip archive's directory where that is huge."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._path = path
        self.is_bounded = True

    def read(self, size: int | None = -1) -> bytes:
        if self.is_bounded and size is not None and size > _MAX_DIRECTORY_BYTES:
            raise CheckpointReadError(
                f"{self._path}: its directory has {size} bytes, more than "
                f"{_MAX_DIRECTORY_BYTES}; refused as hostile"
            )
        return super().read(-1 if size is None else size) or b""


def _refuse_bomb(archive: zipfile.ZipFile, path: Path) -> None:
    records = archive.infolist()
    if len(records) > MAX_RECORDS:
        raise CheckpointReadError(
            f"{path}: has {len(records)} records, more than {MAX_RECORDS}; refused as hostile"
        )
    size = path.stat().st_size
    expanded = sum(record.file_size for record in records)
    if expanded > _MAX_UNCOMPRESSED_RATIO * size + _SLACK_BYTES:
        raise CheckpointReadError(
            f"{path}: unpacks to {expanded} bytes from {size}; refused as hostile, "
            "since weights do not compress like that"
        )
    for record in records:
        if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointReadError(
                f"{path}: a record is compressed by method {record.compress_type}, which PyTorch "
                "does not write"
            )


class _Records:
    """Values in a zip archive, mapped into memory where they are not compressed."""

    def __init__(self, archive: zipfile.ZipFile, file: io.FileIO, root: str, path: Path) -> None:
        self._archive = archive
        self._root = root
        self._path = path
        self._storages: dict[str, Tensor] = {}
        # Copy on write: torch takes no read-only memory without a warning.
        self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        byteorder = f"{root}byteorder"
        self._is_big_endian = (
            byteorder in archive.NameToInfo
            and archive.getinfo(byteorder).file_size <= len(b"little")
            and archive.read(byteorder) == b"big"
        )

    def storage(self, identity: StorageIdentity) -> Tensor:
        """Return the values of a record, one axis."""
        key, dtype, count = identity.key, identity.dtype, identity.count
        if key not in self._storages:
            record = self._archive.getinfo(f"{self._root}data/{key}")
            if count * dtype.itemsize != record.file_size:
                raise CheckpointReadError(
                    f"{self._path}: record data/{shown_name(key)} has {record.file_size} bytes, "
                    f"its storage of {count} elements takes {count * dtype.itemsize}"
                )
            self._storages[key] = self._values(record, dtype, count)
        storage = self._storages[key]
        if storage.dtype != dtype or storage.numel() != count:
            raise CheckpointReadError(
                f"{self._path}: record data/{shown_name(key)} is declared in two ways"
            )
        return storage

    def _values(self, record: zipfile.ZipInfo, dtype: torch.dtype, count: int) -> Tensor:
        if not count:  # frombuffer takes no empty buffer
            return torch.empty(0, dtype=dtype)
        if self._is_big_endian or record.compress_type != zipfile.ZIP_STORED:
            content = self._archive.read(record)
            if self._is_big_endian:
                width = 8 if dtype.is_complex and dtype.itemsize == 16 else dtype.itemsize
                width = 4 if dtype == torch.complex64 else width
                content = np.frombuffer(content, f">u{width}").astype(f"<u{width}").tobytes()
            return torch.frombuffer(bytearray(content), dtype=dtype)
        header = self._bytes[record.header_offset : record.header_offset + _LOCAL_HEADER.size]
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic != ZIP_MAGIC or record.compress_size != record.file_size:
            raise EOFError("a record is not where the directory says")
        if start % dtype.itemsize:  # PyTorch aligns its records to 64 bytes
            return torch.frombuffer(bytearray(self._archive.read(record)), dtype=dtype)
        return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=start)


def read_legacy(path: Path) -> object:
    """Read a checkpoint from before PyTorch 1.6; raises as :func:`read_zip`.

    The file is five pickles (magic number, version, system, content, keys of the storages) and
    then, by key, the number of elements in 8 bytes and the elements.
    """
    size = path.stat().st_size
    declared = 0
    storages: dict[str, Tensor] = {}

    def storage(identity: StorageIdentity) -> Tensor:
        nonlocal declared
        found = storages.get(identity.key)
        if found is None:
            declared += identity.count * identity.dtype.itemsize
            if declared > size:
                raise CheckpointReadError(
                    f"{path}: declares {declared} bytes of tensors in a file of {size} bytes; "
                    "refused as damaged or hostile"
                )
            # The values come at the end of the file, and fill this memory then.
            found = storages[identity.key] = torch.empty(identity.count, dtype=identity.dtype)
        if found.dtype != identity.dtype or found.numel() != identity.count:
            raise CheckpointReadError(
                f"{path}: storage {shown_name(identity.key)} is declared in two ways"
            )
        if identity.view is None:
            return found
        view: Any = identity.view  # unpacking fails where the file is damaged
        _, offset, count = view
        if not 0 <= offset <= offset + count <= len(found):
            raise EOFError("a view lies outside its storage")
        return found[offset : offset + count]

    with path.open("rb") as file:
        pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        machine = PickleMachine(path, storage, unsafe_pickle)
        if tuple(machine.run(pickles) for _ in _LEGACY_NUMBERS) != _LEGACY_NUMBERS:
            raise CheckpointReadError(
                f"{path}: truncated or damaged: its pickle is not one of weights; "
                "download or copy it again"
            )
        system, content, keys = (machine.run(pickles) for _ in range(3))
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointReadError(
                f"{path}: written on a big-endian machine; save it on another"
            )
        file.seek(pickles.tell())
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise EOFError("the list of tensors is missing")
        if set(keys) != storages.keys():
            raise EOFError("the values of a tensor are missing")
        for key in keys:
            _fill(storages[key], file)
    return content


def _fill(values: Tensor, file: io.BufferedReader) -> None:
    count = int.from_bytes(file.read(8), "little")
    buffer = values.view(torch.uint8).numpy().data if len(values) else memoryview(b"")
    if count != len(values) or (len(values) and file.readinto(buffer) != len(buffer)):
        raise EOFError("the values of a tensor are cut off")


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
        names = list(file.keys())
        if len(names) > MAX_NAMES:
            raise CheckpointReadError(
                f"{path}: has {len(names)} tensors, more than {MAX_NAMES}; refused as hostile"
            )
        content: dict[str, Any] = dict(file.metadata() or {})
        content.update({name: file.get_tensor(name) for name in names})
    return content
