"""Video graphs on ONNX Runtime's CUDA provider, with CUDA graphs for batches of repeated sizes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.manifest import AnyGraph
from xclip_deploy.runtime.sessions.bound_runs import PIECE_BYTES
from xclip_deploy.runtime.sessions.onnx_session import BoundSession

logger = logging.getLogger(__name__)

MOST_BYTES = 2 * PIECE_BYTES
"""Size of the inputs from which a batch goes in pieces that overlap. No graph could: ONNX Runtime
replays one run at a time. 18 videos of 12 frames of 224 pixels are smaller."""
_MOST_SIZES = 32


class ReplayingSession:
    """Session of one video graph: small batches of a repeated size are replayed as CUDA graphs.

    A session of ONNX Runtime that captures graphs runs nothing at the same time. So it is another
    session than that of all other batches, and opened when the first size comes again. It holds
    the weights once more.
    """

    def __init__(self, plain: BoundSession, open_replays: Callable[[], BoundSession]) -> None:
        """Keep the session without graphs, and the function that opens the one with graphs."""
        self._plain, self._open_replays = plain, open_replays
        self.graph: AnyGraph = plain.graph
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._seen: set[int] = set()
        """Batch sizes that came once."""
        self._replays: BoundSession | None = None
        self._may_open = True

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See :meth:`Session.run`."""
        size = len(next(iter(inputs.values())))
        if sum(array.nbytes for array in inputs.values()) < MOST_BYTES:
            replays = self._replays_of(size)
            # Who would have to wait for a replay runs beside it instead.
            if replays is not None and self._turn.acquire(blocking=False):
                try:
                    return replays.run(inputs)
                finally:
                    self._turn.release()
        return self._plain.run(inputs)

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """See :meth:`Session.chunk`. Graphs take any size."""
        return self._plain.chunk(wanted)

    def close(self) -> None:
        """See :meth:`Session.close`. Waits for runs that are under way."""
        with self._lock:
            self._may_open = False
            replays, self._replays = self._replays, None
        if replays is not None:
            replays.close()
        self._plain.close()

    def _replays_of(self, size: int) -> BoundSession | None:
        """Return the session that replays batches of ``size``; None where there is none."""
        with self._lock:
            if size not in self._seen:
                if len(self._seen) < _MOST_SIZES:
                    self._seen.add(size)
                return None
            if self._replays is None and self._may_open:
                self._may_open = False
                try:
                    self._replays = self._open_replays()
                except SessionError as error:
                    logger.warning("%s runs without CUDA graphs: %s", self.graph.value, error)
            replays = self._replays
        return replays if replays is not None and replays.replays(size) else None
