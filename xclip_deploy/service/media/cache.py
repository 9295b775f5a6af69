"""Files that were made from videos, kept by what they were made of, within a bound of bytes.

An entry is a file named by its key, and what is told of it in a JSON file beside it. Which was
used last stands in the times of the files, so a restart forgets nothing. The folder of unfinished
files belongs to one service, which holds a lock on it: what a killed service left is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xclip_deploy.service.media.files import OpenFile

_NAME = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = "unfinished-"


def cache_key(*parts: object) -> str:
    """Return the key of something made of ``parts``: 64 hexadecimal digits."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class CachedFile:
    """A file of the cache, open: it can be read to its end although it is evicted."""

    content: OpenFile
    facts: dict[str, Any]
    """What is told of the file."""


class MediaCache:
    """Folder of files with the least recently used first to go. Safe from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open a folder, which is made, and drop what does not fit.

        Raises OSError where it cannot be made.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Bytes by key, the one used last at the end."""
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self._unfinished = folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
        self._unfinished.mkdir()
        self._held = os.open(self._unfinished, os.O_RDONLY)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        for _, key, size in sorted(self._found()):
            self._sizes[key] = size
        self._evict()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(self._sizes.values())

    def keys(self) -> list[str]:
        """Return the keys, the one used last at the end."""
        with self._lock:
            return list(self._sizes)

    def open(self, key: str) -> CachedFile | None:
        """Open the file of a key; None if there is none that is whole."""
        path = self._path(key)
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            content = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except (OSError, ValueError):
            self._forget(key)
            return None
        size = content.status.st_size
        if not isinstance(facts, dict) or facts.pop("size_bytes", None) != size:
            self._remove(key)  # a crash of the machine cut it short
            return None
        with self._lock:
            self._sizes[key] = size
            self._sizes.move_to_end(key)
        with suppress(OSError):
            os.utime(
                path.with_suffix(".json")
            )  # the file itself must look unchanged to its readers
        return CachedFile(content, facts)

    @contextmanager
    def unfinished(self, name: str) -> Iterator[Path]:
        """Yield a path to write to in a folder of its own, which is removed at the end.

        Raises OSError where the folder cannot be made.
        """
        folder = self._unfinished / secrets.token_hex(8)
        folder.mkdir(parents=True)
        try:
            yield folder / name
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, key: str | None, path: Path, facts: dict[str, Any]) -> CachedFile:
        """Move a complete file into the cache, open it, and evict others to make room.

        A file without a key, or larger than the whole cache, is opened and not kept. Raises
        OSError.
        """
        content = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        size = content.status.st_size
        if key is None or size > self._max_bytes:
            return CachedFile(content, facts)
        target = self._path(key)
        target.parent.mkdir(exist_ok=True)
        noted = path.with_suffix(".json")
        noted.write_text(json.dumps({**facts, "size_bytes": size}), encoding="utf-8")
        noted.replace(target.with_suffix(".json"))
        path.replace(target)
        with self._lock:
            self._sizes[key] = size
            self._sizes.move_to_end(key)
        self._evict()
        return CachedFile(content, facts)

    def close(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self._unfinished, ignore_errors=True)
        os.close(self._held)

    def _path(self, key: str) -> Path:
        assert _NAME.fullmatch(key)
        return self._folder / key[:2] / f"{key}.bin"

    def _evict(self) -> None:
        with self._lock:
            total = sum(self._sizes.values())
            gone = []
            while total > self._max_bytes:
                key, size = self._sizes.popitem(last=False)
                total -= size
                gone.append(key)
        for key in gone:
            self._remove(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._sizes.pop(key, None)

    def _remove(self, key: str) -> None:
        self._forget(key)
        path = self._path(key)
        for each in (path, path.with_suffix(".json")):
            with suppress(OSError):
                each.unlink()

    def _found(self) -> Iterator[tuple[int, str, int]]:
        """List time, key and bytes of the files in the folder."""
        for path in self._folder.glob("??/*.bin"):
            with suppress(OSError):
                used_ns = path.with_suffix(".json").stat().st_mtime_ns
                if _NAME.fullmatch(path.stem):
                    yield used_ns, path.stem, path.stat().st_size

    def _remove_abandoned(self) -> None:
        """Remove unfinished files whose service is gone: nobody holds the lock on them."""
        for folder in self._folder.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # A folder this young may be one that its service has not locked yet.
                    if time.time() - folder.stat().st_mtime > 1:
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)
