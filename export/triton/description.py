"""Describe a model repository and its origin in ``xclip-triton.json``, beside its models."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Literal

from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.manifest import FileRecord, Precision, Sha256
from xclip_deploy.runtime.model_config import FrozenModel
from xclip_deploy.runtime.sessions.registry import Device

FORMAT = "xclip-triton"
DESCRIPTION_NAME = "xclip-triton.json"
"""Name of the description. Triton reads folders alone and ignores a file beside them."""


class TritonBackend(str, Enum):
    """Triton backend that runs the three networks."""

    ONNXRUNTIME = "onnxruntime"
    """Triton's ONNX Runtime backend, on CPU or GPU."""
    TENSORRT = "tensorrt"
    """Triton's TensorRT backend, with engines of the ``tensorrt`` flavour."""
    PYTHON = "python"
    """ONNX Runtime in Triton's Python backend, on the CPU, for servers without ``onnxruntime``."""


class TritonRepository(FrozenModel):
    """Contents of ``xclip-triton.json``."""

    format: Literal["xclip-triton"] = "xclip-triton"
    schema_version: Literal[1] = 1
    backend: TritonBackend
    device: Device
    precision: Precision
    tensorrt_version: str | None
    """TensorRT version that the server must have; a later one where ``server_arguments`` allows it.
    None for other backends."""
    target: str | None
    """GPU that the engines were built for: ``sm80`` and the like."""
    server_arguments: tuple[str, ...]
    """Arguments that the server needs beside the repository's path."""
    fingerprint: Sha256
    """Fingerprint of the bundle's model."""
    model_version: int
    models: tuple[str, ...]
    files: dict[str, FileRecord]
    """Every file that the export wrote, apart from this one."""
    created_utc: str
    versions: dict[str, str]
    """Versions of the tools that wrote the repository."""


def foreign_files(folder: Path) -> list[str]:
    """List files of ``folder`` that an export must not replace, as paths within it.

    These are added files and configurations that were edited by hand. They are all files where
    ``xclip-triton.json`` is missing or cannot be read.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        content = json.loads((folder / DESCRIPTION_NAME).read_bytes())
        ours = TritonRepository.model_validate(content).files
    except (ValueError, OSError):
        return sorted(found)
    tuned = {
        name
        for name, record in ours.items()
        if name in found and name.endswith(".pbtxt") and sha256_of(folder / name) != record.sha256
    }
    return sorted((found - {DESCRIPTION_NAME, *ours}) | tuned)
