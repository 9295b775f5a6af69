"""A file that grows while a client sends it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from xclip_deploy.service.errors import Refusal

_BUFFER_BYTES = 1 << 20


class PartialFile:
    """A file in the folder of unfinished ones.

    :meth:`add` is called on the event loop; it keeps a buffer. The other methods block. Whatever
    thread writes, :meth:`discard` waits for it.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        max_bytes: int,
        take_room: Callable[[int], None],
        give_back_room: Callable[[int], None],
    ) -> None:
        """Prepare a file; the first flush makes it.

        Args:
            path: Where it grows.
            name: Name that it will have.
            max_bytes: Largest size.
            take_room: Called with the bytes that are about to be written; raises for no room.
            give_back_room: Called with the bytes that no longer count as incoming.
        """
        self.name = name
        self.size_bytes = 0
        """Bytes that were added."""
        self.content_sha256 = ""
        """SHA-256, hexadecimal, once the file is finished."""
        self._path = path
        self._max_bytes = max_bytes
        self._take_room = take_room
        self._give_back_room = give_back_room
        self._taken = 0
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._descriptor: int | None = None
        self._is_gone = False
        self._lock = threading.Lock()

    def add(self, content: bytes) -> bool:
        """Take bytes in; return whether :meth:`flush` is due. Raises Refusal (413)."""
        self.size_bytes += len(content)
        if self.size_bytes > self._max_bytes:
            raise Refusal(
                413,
                "TooLarge",
                f"{self.name}: is larger than {self._max_bytes} bytes; expected a smaller file",
            )
        self._buffer += content
        return len(self._buffer) >= _BUFFER_BYTES

    def flush(self) -> None:
        """Write what was added. Raises Refusal (507), OSError."""
        with self._lock:
            self._flush()

    def finish(self) -> None:
        """Write everything through to the disk. Raises as :meth:`flush` does."""
        with self._lock:
            self._flush()
            assert self._descriptor is not None
            os.fsync(self._descriptor)
            self._close()
            self.content_sha256 = self._digest.hexdigest()

    def move_to(self, path: Path) -> None:
        """Give the finished file its place. Raises OSError."""
        with self._lock:
            self._path.replace(path)
            self._end()

    def discard(self) -> None:
        """Remove the file, unless it was moved."""
        with self._lock:
            self._close()
            if not self._is_gone:
                self._path.unlink(missing_ok=True)
            self._end()

    def _flush(self) -> None:
        if self._is_gone:
            return  # the client went away while this call waited for its thread
        content, self._buffer = self._buffer, bytearray()
        self._take_room(len(content))
        self._taken += len(content)
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        self._digest.update(content)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _end(self) -> None:
        self._is_gone = True
        self._give_back_room(self._taken)
        self._taken = 0
