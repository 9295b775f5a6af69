"""Choice of the one file to decode among several with the same content."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.decoding import FileChangedError
from xclip_deploy.runtime.indexing.records import ReadyFile, Task

_PART = 65_536


class ContentFilter:
    """A set of the contents that a gallery may hold.

    It keeps eight bytes a video, with about one false positive in 10^13 queries.
    """

    def __init__(self) -> None:
        self._sorted: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def add(self, content_sha256: str) -> None:
        """Note a content by its hash, hexadecimal."""
        self._new.add(prefix_of(content_sha256))
        if len(self._new) >= _PART:
            self.update(np.empty(0, np.uint64))

    def update(self, prefixes: npt.NDArray[np.uint64]) -> None:
        """Note many contents, each by its :func:`prefix_of`."""
        if len(self._new) + len(prefixes) < _PART:
            self._new.update(prefixes.tolist())
            return
        new = np.fromiter(self._new, np.uint64)
        self._sorted = np.unique(np.concatenate([self._sorted, new, prefixes]))
        self._new.clear()

    def __contains__(self, content_sha256: str) -> bool:
        prefix = prefix_of(content_sha256)
        if prefix in self._new:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(prefix)))
        return place < len(self._sorted) and int(self._sorted[place]) == prefix


@dataclass
class Elsewhere:
    """The contents that other galleries hold, whose files a run hashes and does not decode."""

    contents: ContentFilter
    files: list[ReadyFile] = field(default_factory=list)
    """The files of the run that have one of ``contents``. The gallery gets none of them."""


class Claims:
    """The contents that were read and not yet committed. The decoders' threads query it."""

    def __init__(self, stored: ContentFilter, elsewhere: Elsewhere | None = None) -> None:
        """Begin with no claims; ``stored`` names the contents that the gallery may hold."""
        self._stored = stored
        self._elsewhere = ContentFilter() if elsewhere is None else elsewhere.contents
        self._open: dict[str, Task] = {}
        self._failures: dict[str, str] = {}
        self._lock = threading.Lock()

    def wants_frames(self, task: Task, content_sha256: str) -> bool:
        """Decide whether to decode a file, now that its content is known."""
        with self._lock:
            task.content_sha256 = content_sha256
            if task.replace:
                self._open.setdefault(content_sha256, task)
                return True
            if content_sha256 in self._elsewhere:
                return False
            if not task.is_retry and content_sha256 in self._stored:
                return False
            return self._open.setdefault(content_sha256, task) is task

    def fail(self, task: Task, error: VideoError) -> None:
        """Note that a file could not be decoded or encoded."""
        with self._lock:
            if task.content_sha256 is None or self._open.get(task.content_sha256) is not task:
                return
            del self._open[task.content_sha256]
            # A file that changed meanwhile tells nothing about its former content.
            if not isinstance(error, FileChangedError):
                self._failures[task.content_sha256] = str(error)

    def store(self, task: Task) -> None:
        """Note that the gallery holds the content of a file."""
        assert task.content_sha256 is not None
        with self._lock:
            self._open.pop(task.content_sha256, None)
            self._stored.add(task.content_sha256)

    def is_open(self, content_sha256: str) -> bool:
        """Tell whether a content was read and is not yet committed."""
        with self._lock:
            return content_sha256 in self._open

    def is_elsewhere(self, content_sha256: str | None) -> bool:
        """Tell whether another gallery holds a content."""
        return content_sha256 is not None and content_sha256 in self._elsewhere

    def failure(self, content_sha256: str | None) -> str | None:
        """Return the reason why decoding a content failed, if it was tried."""
        with self._lock:
            return None if content_sha256 is None else self._failures.get(content_sha256)


def prefix_of(content_sha256: str) -> int:
    """Return the first eight bytes of a hash in hexadecimal."""
    return int(content_sha256[:16], 16)
