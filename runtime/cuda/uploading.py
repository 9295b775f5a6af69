"""Copies of large arrays to the GPU, in pieces through pinned memory."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray, slices
from xclip_deploy.runtime.cuda.memory import PinnedBuffer
from xclip_deploy.runtime.cuda.runtime_api import Cuda, Stream
from xclip_deploy.runtime.manifest import DType

if TYPE_CHECKING:
    from typing_extensions import Self

STAGING_BYTES = 16 << 20
"""Size of a piece. Two of them are pinned: one is filled while the other is copied."""


class Uploader:
    """A stream and two pinned buffers, for one thread. Use it as a context manager.

    Methods raise SessionError.
    """

    def __init__(self, cuda: Cuda) -> None:
        """Create the stream."""
        self._cuda = cuda
        cuda.select()
        self._stream: Stream | None = cuda.create_stream()
        self._buffers = (PinnedBuffer(cuda), PinnedBuffer(cuda))
        self._turn = 0

    def put(self, address: int, array: AnyArray, dtype: DType) -> None:
        """Enqueue a copy of ``array`` to device memory, cast to ``dtype``.

        The array may change afterwards. The copy is complete after :meth:`finish`.
        """
        assert self._stream is not None
        if not array.size:
            return
        rows = array.reshape(len(array), -1)
        row_bytes = rows.shape[1] * np.dtype(dtype.value).itemsize
        for part in slices(len(rows), STAGING_BYTES // row_bytes):
            piece = rows[part]
            buffer = self._buffers[self._turn]
            buffer.hold(len(piece) * row_bytes)
            view = buffer.view(piece.shape, dtype.value)
            np.copyto(view, piece, casting="unsafe")
            # The other buffer's copy ran while this one was filled.
            self._cuda.synchronize(self._stream)
            target = address + part.start * row_bytes
            self._cuda.copy_to_device(target, buffer.address, view.nbytes, self._stream)
            self._turn = 1 - self._turn

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within device memory, after the copies before it."""
        assert self._stream is not None
        if nbytes:
            self._cuda.copy_on_device(target, source, nbytes, self._stream)

    def finish(self) -> None:
        """Wait for all copies."""
        assert self._stream is not None
        self._cuda.synchronize(self._stream)

    def close(self) -> None:
        """Wait for all copies, and free the buffers and the stream."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        with ExitStack() as stack:  # whatever fails, the rest is freed
            stack.callback(self._cuda.destroy_stream, stream)
            for buffer in self._buffers:
                stack.callback(buffer.close)
            self._cuda.synchronize(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(SessionError) if error is not None else nullcontext():
            self.close()
