"""Standard output and standard error of the program, whose failures are defined.

Standard output that cannot be written is an OutputError. A reader that goes away, as ``head`` does,
is a ReaderGone. Messages on standard error are best effort: the work goes on without them.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from xclip_deploy.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

READER_GONE_STATUS = 141
"""Exit status of a program whose reader went away, as shells give it: 128 + SIGPIPE."""


class ReaderGone(Exception):  # noqa: N818 - nothing is wrong
    """The process that read standard output closed it."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that fail in the defined way.

    Both escape the characters that their encoding does not have.
    """
    _occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _wrapped(sys.stdout, _Output)
    sys.stderr = _wrapped(sys.stderr, _Messages)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _occupy_closed_descriptors() -> None:
    """Open /dev/null as descriptors 0 to 2 if closed, so that no data file gets their number."""
    for descriptor in range(3):
        if _is_closed(descriptor):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


class _Channel(io.BufferedIOBase):
    """Binary stream that passes bytes on to another. The other one stays open."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor. Raises UnsupportedOperation for a closed stream."""
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def write(self, data: ReadableBuffer) -> int:
        """Write all bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        if self._stream is None:
            self.fail(OSError(errno.EBADF, "it is closed"))
            return size
        try:
            while left:
                # With PYTHONUNBUFFERED the stream is raw, and may take less than all.
                taken: int | None = self._stream.write(left)
                if taken is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                left = left[taken:]
        except OSError as error:
            self._give_up(error)
        return size

    def flush(self) -> None:
        """Write what the stream has buffered."""
        if self._stream is None or self._stream.closed:
            return
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def fail(self, error: OSError) -> None:
        """Report that the stream cannot be written."""
        raise NotImplementedError

    def _give_up(self, error: OSError) -> None:
        # What is buffered must go somewhere, or the interpreter fails on it when it ends.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        self.fail(error)


class _Output(_Channel):
    """Channel for results, of which none may be lost in silence."""

    def fail(self, error: OSError) -> None:
        """Raise ReaderGone or OutputError."""
        if error.errno == errno.EPIPE:
            raise ReaderGone from error
        raise OutputError(
            f"standard output cannot be written: {error.strerror}; expected a file, pipe or "
            "terminal that takes it"
        ) from error


class _Messages(_Channel):
    """Channel for messages, without which the work goes on."""

    def fail(self, error: OSError) -> None:
        """Do nothing."""


def _wrapped(stream: TextIO | None, channel: type[_Channel]) -> TextIO:
    if stream is None:
        nothing = cast("BinaryIO", channel(None))
        return io.TextIOWrapper(nothing, encoding="utf-8", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, _Channel):
        return stream  # a caller's own stream, or a call within a call
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        cast("BinaryIO", channel(stream.buffer)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
    )
