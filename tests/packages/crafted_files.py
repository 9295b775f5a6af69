"""Files that no encoder writes: pictures of any PNG kind, and tracks with a display matrix."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from xclip_deploy.errors import CheckpointError, CheckpointReadError
from xclip_deploy.training.checkpoints import (
    load_checkpoint,
)

Linear = tuple[float, float, float, float]
"""Linear part of a display matrix: a, b, c, d."""


def png(
    bits: int,
    colour: int,
    rows: Iterable[bytes],
    width: int,
    height: int,
    transparent: bytes = b"",
) -> bytes:
    """Write a PNG. ``colour``: 0 is grey, 2 is RGB. ``transparent``: the colour that is.

    ``rows`` are packed one by one, so that a generator of many takes no memory.
    """

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(b"\0" + row) for row in rows) + packer.flush()
    return _png(bits, colour, data, width, height, transparent)


def _png(bits: int, colour: int, data: bytes, width: int, height: int, transparent: bytes) -> bytes:
    """Write a PNG of packed rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        size, check = len(data).to_bytes(4, "big"), zlib.crc32(kind + data).to_bytes(4, "big")
        return size + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + key
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def black_png(width: int, height: int) -> bytes:
    """Write a black picture of any size in a file of about a thousandth of its pixels.

    The same packed bytes stand for every 64 rows: packing gigabytes of zeros takes 10 s.
    """
    size = 1 + 3 * width
    blocks, rest = divmod(height, 64)
    packed = _packed_zeros(64 * size) * blocks + _packed_zeros(rest * size)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    checksum = (size * height % 65521 << 16 | 1).to_bytes(4, "big")  # Adler-32 of zeros
    return _png(8, 2, b"\x78\xda" + packed + end + checksum, width, height, b"")


def _packed_zeros(count: int) -> bytes:
    """Deflate zeros to bytes that may stand one after another."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(bytes(count)) + packer.flush(zlib.Z_FULL_FLUSH)


def with_matrix(path: Path, matrix: Linear) -> Path:
    """Write a display matrix into the track header of an MP4 file (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = (round(value * 65536) for value in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    assert content[start : start + 36] == plain
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def refusal(path: Path, kind: type[CheckpointError] = CheckpointReadError) -> str:
    with pytest.raises(kind) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith(str(path))
    return message


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()
