"""Cache of decoded frames on disk, so that only the first epoch decodes.

The cache has one file per video and way of reading it. A file carries its key and a checksum. One
that is truncated, damaged or of another version counts as missing, so that no frame is wrong.
Several processes use one directory without locks: files take their place in a rename, so that a
race costs at most a second decoding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.video import VideoReading

logger = logging.getLogger(__name__)

_MAGIC = b"XCLIPFRM"
_VERSION = 3
"""Version of the files; it rises when a reading gives other frames, or the layout changes."""
_HEADER = struct.Struct("<8sI32sII")
"""Magic, version, key, number of frames n, side S. The checksum and the frames follow."""
_CHECKSUM = struct.Struct("<I")
"""CRC-32 of the header and the frames."""
_START = _HEADER.size + _CHECKSUM.size
# Each first two digits have a folder. A writer looks through its target's folder for files of
# killed writers, which must stay fast.
_FOLDER_NAME = re.compile(r"[0-9a-f]{2}")
_FILE_NAME = re.compile(r"\.?[0-9a-f]{62}\.frames(\.partial-[0-9a-f]{16})?")
_SHARE_UNSEEN = 16
"""Divisor of the free space: a writer looks at the directory again when it has filled that part."""
_ABANDONED_AFTER_S = 3600.0
"""Age at which a partial file is removed: its writer is dead."""


@dataclass(frozen=True)
class _Entry:
    path: Path
    num_bytes: int
    used_s: float
    """Time of the last use, seconds since the epoch."""


def frame_key(path: Path, reading: VideoReading) -> bytes:
    """Return the key, 32 bytes, of the frames of a video file as it is now.

    The key is the SHA-256 of the absolute path, size and modification time of the file, the
    sampling, the side of the frames, the reader and
    whether pixels are made square. Raises OSError where there is no file.
    """
    status = path.stat()
    identity = [
        # Bytes are written in hexadecimal: a file name need not be text.
        os.fsencode(path.absolute()).hex(),
        status.st_size,
        status.st_mtime_ns,
        reading.sampling.model_dump(mode="json"),
        reading.image_size,
        reading.reader,
        reading.square_pixels,
    ]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()


class FrameCache:
    """Frames of many videos, uncompressed, in a directory of bounded size.

    A video of 12 frames of 224x224 takes 1.8 MB. Files used longest ago are removed where not
    all fit. Up to 16 processes that write at once exceed the bound by at most one file each. A
    pickled copy in another process works on the same directory.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int) -> None:
        """Open or make the cache.

        Args:
            directory: Folder of the cache, made if it is missing. Other files in it are
                neither counted nor touched.
            max_bytes: Largest sum of the sizes of its files, bytes.

        Raises:
            InvalidArgumentError: ``max_bytes`` is less than 1, or the directory cannot be made.
        """
        if max_bytes < 1:
            raise InvalidArgumentError(f"max_bytes is {max_bytes}; expected at least 1")
        self.directory = Path(directory).absolute()
        self.max_bytes = max_bytes
        self._is_writing = True
        self._has_evicted = False
        self._unseen_bytes = 0
        """Bytes that this process wrote since it last looked at the directory."""
        self._allowance_bytes = 0
        """Bytes that it may write until it looks again."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidArgumentError(
                f"{self.directory}: the frame cache cannot be made here: {error.strerror}"
            ) from error

    def holds(self, key: bytes) -> bool:
        """Tell whether there is a complete file for the key; its frames are not checked."""
        try:
            with self._path(key).open("rb", buffering=0) as file:
                return _read_header(file, key) is not None
        except OSError:
            return False

    def read(self, key: bytes) -> npt.NDArray[np.uint8] | None:
        """Return frames uint8 [n, S, S, 3] as they were written; None where they are missing."""
        path = self._path(key)
        try:
            # A mapped file that someone truncates would kill the process, and the checksum
            # reads every byte anyway.
            with path.open("rb", buffering=0) as file:
                header = _read_header(file, key)
                if header is None:
                    return None
                shape, checksum, expected = header
                frames = np.empty(shape, dtype=np.uint8)
                if file.readinto(frames.data.cast("B")) != frames.nbytes:
                    return None
                if zlib.crc32(frames.data.cast("B"), checksum) != expected:
                    return None
        except OSError:
            return None
        # The time of modification serves as that of the last use: many file systems keep no
        # times of access. A read-only cache is read all the same.
        with suppress(OSError):
            os.utime(path)
        return frames

    def write(self, key: bytes, frames: npt.NDArray[np.uint8]) -> None:
        """Write frames uint8 [n, S, S, 3], after making room for them.

        It does not fail. Where the disk is full or cannot be written, it logs a warning, and
        this process writes no more.
        """
        num_bytes = _START + frames.nbytes
        if not self._is_writing or num_bytes > self.max_bytes:
            return
        header = _HEADER.pack(_MAGIC, _VERSION, key, frames.shape[0], frames.shape[1])
        payload = np.ascontiguousarray(frames).data.cast("B")
        checksum = zlib.crc32(payload, zlib.crc32(header))
        path = self._path(key)
        try:
            self._make_room(num_bytes)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(path) as partial, partial.open("wb") as file:
                file.write(header + _CHECKSUM.pack(checksum))
                file.write(payload)
        except OSError as error:
            self._is_writing = False
            logger.warning(
                "%s: no more frames are cached, training goes on without: %s",
                self.directory,
                error.strerror or error,
            )

    def _path(self, key: bytes) -> Path:
        digits = key.hex()
        return self.directory / digits[:2] / f"{digits[2:]}.frames"

    def _make_room(self, num_bytes: int) -> None:
        """Remove the files used longest ago, if ``num_bytes`` more would not fit.

        A look at a directory of 10,000 files takes as long as decoding a short video. So this
        process looks only after it has written a sixteenth of what it last found free. Hence
        16 processes that do not know of each other cannot exceed the bound.
        """
        self._unseen_bytes += num_bytes
        if self._unseen_bytes <= self._allowance_bytes:
            return
        entries = list(self._entries())
        total = sum(entry.num_bytes for entry in entries) + num_bytes
        if total > self.max_bytes:
            if not self._has_evicted:
                self._has_evicted = True
                logger.warning(
                    "%s: the frame cache is full (%s bytes); frames used longest ago are "
                    "removed and will be decoded again",
                    self.directory,
                    f"{self.max_bytes:,}",
                )
            # Make some room more, or every later file would need a look.
            goal = self.max_bytes - self.max_bytes // _SHARE_UNSEEN
            for entry in _evictable(entries):
                if total <= goal:
                    break
                entry.path.unlink(missing_ok=True)
                total -= entry.num_bytes
        self._unseen_bytes = 0
        self._allowance_bytes = max(0, self.max_bytes - total) // _SHARE_UNSEEN

    def _entries(self) -> Iterator[_Entry]:
        with os.scandir(self.directory) as folders:
            for folder in folders:
                if _FOLDER_NAME.fullmatch(folder.name) and folder.is_dir():
                    with os.scandir(folder) as files:
                        for file in files:
                            if _FILE_NAME.fullmatch(file.name):
                                # Another process may remove it meanwhile.
                                with suppress(FileNotFoundError):
                                    status = file.stat()
                                    yield _Entry(Path(file), status.st_size, status.st_mtime)


def _evictable(entries: list[_Entry]) -> list[_Entry]:
    """Sort files by last use, oldest first, without those that are being written."""
    abandoned_s = time.time() - _ABANDONED_AFTER_S
    return sorted(
        (e for e in entries if not e.path.name.startswith(".") or e.used_s < abandoned_s),
        key=lambda entry: entry.used_s,
    )


def _read_header(file: BinaryIO, key: bytes) -> tuple[tuple[int, int, int, int], int, int] | None:
    """Return the shape of the frames, the header's checksum, and the expected one of the whole.

    Returns None where the file has another key or version, or is incomplete.
    """
    packed = file.read(_START)
    if len(packed) != _START:
        return None
    header = packed[: _HEADER.size]
    magic, version, found_key, count, side = _HEADER.unpack(header)
    if (magic, version, found_key) != (_MAGIC, _VERSION, key):
        return None
    # Check before anything is allocated: a damaged header can claim any size.
    if os.fstat(file.fileno()).st_size != _START + count * side * side * 3:
        return None
    (expected,) = _CHECKSUM.unpack(packed[_HEADER.size :])
    return (count, side, side, 3), zlib.crc32(header), expected
