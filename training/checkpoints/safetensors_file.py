"""Read a safetensors file, whose format holds nothing but tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open


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
