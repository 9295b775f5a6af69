"""A lock that many users of a GPU share, and that one who changes what they read takes alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """A lock for readers and writers. Waiting writers come before new readers.

    A thread that is inside enters once more beside itself without waiting: objects that hold GPU
    memory may be collected anywhere. Such a thread cannot take the lock alone.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._num_inside = 0
        self._num_waiting = 0
        self._is_taken = False
        self._thread = threading.local()

    @property
    def is_awaited(self) -> bool:
        """Whether a writer waits for the readers inside."""
        return self._num_waiting > 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Enter beside other readers."""
        if self._is_inside:
            yield
            return
        with self._condition:
            self._condition.wait_for(lambda: not self._is_taken and not self._num_waiting)
            self._num_inside += 1
        self._thread.is_inside = True
        try:
            yield
        finally:
            self._thread.is_inside = False
            with self._condition:
                self._num_inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside, and keep other threads out. Raises RuntimeError inside."""
        if self._is_inside:
            raise RuntimeError("a thread that is inside a gate would wait for itself")
        with self._condition:
            self._num_waiting += 1
            try:
                self._condition.wait_for(lambda: not self._is_taken and not self._num_inside)
            finally:
                self._num_waiting -= 1
                self._condition.notify_all()
            self._is_taken = True
        self._thread.is_inside = True
        try:
            yield
        finally:
            self._thread.is_inside = False
            with self._condition:
                self._is_taken = False
                self._condition.notify_all()

    @property
    def _is_inside(self) -> bool:
        """True where this thread is inside."""
        return bool(getattr(self._thread, "is_inside", False))


CAPTURES = Gate()
"""Entered while memory is allocated or freed, while streams are made, destroyed or waited for,
while kernels are loaded or launched, and while ONNX Runtime loads or runs on a GPU. Closed while it
captures a CUDA graph: it captures in CUDA's global mode, in which such calls of other threads fail,
and the capture with them."""
