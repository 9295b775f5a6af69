"""Which of several files with one content is decoded: one, and no other waits for it."""

from __future__ import annotations

import threading

from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.indexing.committing import Task
from xclip_deploy.runtime.indexing.known import ContentFilter
from xclip_deploy.runtime.indexing.processes import FileChangedError


class Claims:
    """Contents between being read and being committed. Asked by the decoders' threads."""

    def __init__(self, stored: ContentFilter) -> None:
        """``stored``: contents that the gallery may hold."""
        self._stored = stored
        self._open: dict[str, Task] = {}
        self._failures: dict[str, str] = {}
        self._lock = threading.Lock()

    def wants_frames(self, task: Task, fingerprint: str) -> bool:
        """Whether a file is to be decoded, now that its content is known."""
        with self._lock:
            task.fingerprint = fingerprint
            if task.replace:
                self._open.setdefault(fingerprint, task)
                return True
            if not task.is_retry and fingerprint in self._stored:
                return False
            return self._open.setdefault(fingerprint, task) is task

    def fail(self, task: Task, error: VideoError) -> None:
        """A file that was decoded could not be."""
        with self._lock:
            if task.fingerprint is None or self._open.get(task.fingerprint) is not task:
                return
            del self._open[task.fingerprint]
            # One that changed meanwhile says nothing of the content that it had.
            if not isinstance(error, FileChangedError):
                self._failures[task.fingerprint] = str(error)

    def store(self, task: Task) -> None:
        """The gallery holds the content of a file."""
        assert task.fingerprint is not None
        with self._lock:
            self._open.pop(task.fingerprint, None)
            self._stored.add(task.fingerprint)

    def is_open(self, fingerprint: str) -> bool:
        """Whether a content is on its way into the gallery."""
        with self._lock:
            return fingerprint in self._open

    def failure(self, fingerprint: str | None) -> str | None:
        """Why a content could not be decoded, if that was tried."""
        with self._lock:
            return None if fingerprint is None else self._failures.get(fingerprint)
