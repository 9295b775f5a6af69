"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from io import RawIOBase
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content. Raises OSError where it cannot be read."""
    with path.open("rb", buffering=0) as file:
        return sha256_of_stream(file)


def sha256_of_stream(file: RawIOBase) -> str:
    """Hexadecimal SHA-256 of what an unbuffered file holds from here to its end."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    while count := file.readinto(view):
        digest.update(view[:count])
    return digest.hexdigest()
