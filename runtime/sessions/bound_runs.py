"""Runs of ONNX Runtime bound to buffers: pinned uploads, and pieces that overlap.

A large batch goes to the GPU in pieces. While one piece computes, another is copied into pinned
memory and uploaded: ONNX Runtime gives every concurrent run a stream of its own. Outputs are
written where the caller reads them.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DriverError, MissingExtraError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.cuda.memory import PinnedBuffer
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.manifest import GraphSpec

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
"""Least upload of a piece, bytes. Smaller pieces would leave the GPU too little to do at once."""
_MOST_PIECES = 4


class Staging(Protocol):
    """Host memory that uploads start from. For one thread at a time."""

    def hold(self, nbytes: int) -> object:
        """Make room for ``nbytes``. Growing loses the content. Raises SessionError."""

    def view(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return the beginning of the memory as an array."""

    def close(self) -> None:
        """Free the memory."""


class PageableStaging:
    """Ordinary host memory, for a CPU and for a GPU without CUDA's Python bindings."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, dtype=np.uint8)

    def hold(self, nbytes: int) -> None:
        """See :meth:`Staging.hold`."""
        if nbytes > len(self._buffer):
            self._buffer = np.empty(nbytes, dtype=np.uint8)

    def view(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """See :meth:`Staging.view`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._buffer[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """See :meth:`Staging.close`."""
        self._buffer = np.empty(0, dtype=np.uint8)


def staging_for(device: str, device_id: int) -> Callable[[], Staging]:
    """Return the maker of staging memory for a device: pinned for a GPU, where that is possible."""
    if device == "cpu":
        return PageableStaging
    try:
        cuda = open_cuda(device_id, "resident")
    except (MissingExtraError, DriverError) as error:
        logger.info("uploads start from pageable memory: %s", error)
        return PageableStaging
    return lambda: PinnedBuffer(cuda)


class BoundRuns:
    """Bound runs of one graph with one dynamic axis, which is the first of every tensor.

    ``run`` may be called from several threads.
    """

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - the library ships without type hints
        spec: GraphSpec,
        staging: Callable[[], Staging],
        *,
        lanes: int = 2,
        piece_bytes: int = PIECE_BYTES,
        run_options: Any = None,  # noqa: ANN401
    ) -> None:
        """Prepare the lanes of an opened session.

        ``lanes``: most runs at the same time. ``run_options``: ONNX Runtime's options of each run.
        """
        self._spec = spec
        self._piece_bytes = piece_bytes
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        self._all = [_Lane(session, spec, staging, run_options) for _ in range(lanes)]
        for lane in self._all:
            self._lanes.put(lane)
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="xclip-lane")

    def run(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Run a batch and return the outputs by name.

        ``feeds``: contiguous arrays of the graph's dtypes, all of one length. Raises what ONNX
        Runtime raises, once no piece runs any more.
        """
        count = len(next(iter(feeds.values())))
        outputs: dict[str, AnyArray] = {
            spec.name: np.empty((count, *map(int, spec.shape[1:])), dtype=spec.dtype.value)
            for spec in self._spec.outputs
        }
        pieces = self._pieces(count, sum(feed.nbytes for feed in feeds.values()))
        if len(pieces) == 1:
            self._run(feeds, outputs)
            return outputs
        futures = [
            self._pool.submit(
                self._run,
                {name: feed[rows] for name, feed in feeds.items()},
                {name: output[rows] for name, output in outputs.items()},
            )
            for rows in pieces
        ]
        failures = [error for error in (future.exception() for future in futures) if error]
        if failures:
            raise failures[0]
        return outputs

    def close(self) -> None:
        """Free the buffers, after runs that are under way."""
        self._pool.shutdown()
        for lane in self._all:
            lane.close()

    def _pieces(self, count: int, nbytes: int) -> list[slice]:
        number = max(1, min(_MOST_PIECES, count, nbytes // self._piece_bytes))
        bounds = [count * piece // number for piece in range(number + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def _run(self, feeds: Mapping[str, AnyArray], outputs: Mapping[str, AnyArray]) -> None:
        lane = self._lanes.get()
        try:
            lane.run(feeds, outputs)
        finally:
            self._lanes.put(lane)


class _Lane:
    """One binding with its staging memory. For one thread at a time."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401
        spec: GraphSpec,
        staging: Callable[[], Staging],
        run_options: Any,  # noqa: ANN401
    ) -> None:
        self._session, self._run_options = session, run_options
        self._binding = session.io_binding()
        self._staging = {tensor.name: staging() for tensor in spec.inputs}
        self._is_open = True

    def run(self, feeds: Mapping[str, AnyArray], outputs: Mapping[str, AnyArray]) -> None:
        """Run once, and write into ``outputs``, contiguous arrays."""
        if not self._is_open:
            raise SessionError("the session is closed")
        binding = self._binding
        for name, feed in feeds.items():
            staging = self._staging[name]
            staging.hold(feed.nbytes)
            staged = staging.view(feed.shape, feed.dtype.name)
            np.copyto(staged, feed)
            binding.bind_cpu_input(name, staged)
        for name, output in outputs.items():
            binding.bind_output(name, "cpu", 0, output.dtype.type, output.shape, output.ctypes.data)
        with CAPTURES.shared():
            self._session.run_with_iobinding(binding, self._run_options)
            binding.synchronize_outputs()

    def close(self) -> None:
        self._is_open = False
        self._binding = None
        for staging in self._staging.values():
            staging.close()
