"""Runs of ONNX Runtime on a CUDA stream of ours, from pinned memory, one at a time.

ONNX Runtime enqueues a graph on the stream that it was opened with. Copies to and from the device
are enqueued there too, so that a run waits for the GPU once. Repeated small batches are replayed as
CUDA graphs. Large batches are cut into pieces, and one piece uploads while another computes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray, Rows
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.cuda.runtime_api import CudaCallError
from xclip_deploy.runtime.manifest import GraphSpec
from xclip_deploy.runtime.sessions.device_lanes import CapturedGraph, DeviceLink, Lane, shape_of

logger = logging.getLogger(__name__)

GRAPH_OPTION = "gpu_graph_id"
"""Run option with the number of a CUDA graph, from 1 on."""
NO_GRAPH = "-1"
"""Value of the option for a run without a graph."""
_NO_WAIT = "disable_synchronize_execution_providers"
"""Run option: ONNX Runtime returns once the work is enqueued."""
PIECE_BYTES = 64 << 20
"""Most input of a piece. 32 videos of 12 frames of 224 pixels have 58 MB: smaller pieces compute
fewer videos a second on an H100."""
_COPIERS = 4
_MOST_GRAPHS, _MOST_SIZES = 8, 32


class DeviceRuns:
    """Runs of one graph with one dynamic axis, which is the first of every tensor.

    ``run`` may be called from several threads. ONNX Runtime keeps CUDA graphs by thread, so one
    thread computes. Callers fill their buffers meanwhile.
    """

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - the library ships without type hints
        spec: GraphSpec,
        link: DeviceLink,
        make_options: Callable[[], Any],
        report: Callable[[str], None] = logger.warning,
        *,
        lanes: int = 2,
        piece_bytes: int = PIECE_BYTES,
        replays: Callable[[int, int], bool] | None = None,
    ) -> None:
        """Prepare the runs of a session that computes on the stream of ``link``.

        ``make_options``: makes run options of ONNX Runtime. ``report``: takes the reason why a size
        is not captured. ``lanes``: sets of buffers; with two,
        one uploads while the other computes. ``replays``: tells whether a batch of a size with so
        many bytes is worth a CUDA graph; None: the session captures none.
        """
        self._session, self._spec, self._link = session, spec, link
        self._make_options, self._report, self._replays = make_options, report, replays
        self._piece_bytes = piece_bytes
        self._plain = self._options(NO_GRAPH if replays is not None else None)
        self._graphs: dict[int, CapturedGraph | None] = {}
        """Graph of each batch size; None where the size came once, or cannot be captured."""
        self._refused: set[int] = set()
        self._num_captures = 0
        self._lanes: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        self._num_lanes = lanes
        self._closing, self._is_open = threading.Lock(), True
        with ExitStack() as stack:  # a lane that cannot be made leaves no other behind
            for _ in range(lanes):
                lane = Lane(link, spec, session.io_binding())
                stack.callback(lane.close)
                self._lanes.put(lane)
            stack.pop_all()
        select = link.cuda.select
        self._computing = ThreadPoolExecutor(1, "xclip-cuda", initializer=select)
        self._copying = ThreadPoolExecutor(_COPIERS, "xclip-copy")
        self._pieces = ThreadPoolExecutor(lanes, "xclip-lane")

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are replayed."""
        return tuple(size for size, graph in list(self._graphs.items()) if graph is not None)

    def run(self, feeds: Mapping[str, AnyArray | Rows]) -> dict[str, AnyArray]:
        """Run a batch and return the outputs by name.

        ``feeds``: contiguous arrays of the graph's dtypes, all of one length. A small size is
        captured when it comes a second time. Raises SessionError, or what ONNX Runtime raises, once
        no piece runs any more.
        """
        count = len(next(iter(feeds.values())))
        outputs: dict[str, AnyArray] = {
            spec.name: np.empty(shape_of(spec, count), dtype=spec.dtype.value)
            for spec in self._spec.outputs
        }
        if not count:
            return outputs
        nbytes = sum(feed.nbytes for feed in feeds.values())
        number = min(count, -(-nbytes // self._piece_bytes))
        bounds = [count * piece // number for piece in range(number + 1)]
        if number == 1:
            self._run(feeds, outputs)
            return outputs
        try:
            futures = [
                self._pieces.submit(
                    self._run,
                    {name: feed[start:stop] for name, feed in feeds.items()},
                    {name: output[start:stop] for name, output in outputs.items()},
                )
                for start, stop in pairwise(bounds)
            ]
        except RuntimeError as error:
            raise self._closed() from error
        failures = [error for error in (future.exception() for future in futures) if error]
        if failures:
            raise failures[0]
        return outputs

    def close(self) -> None:
        """Free graphs and buffers, after runs that are under way."""
        with self._closing:  # a second caller waits for the first
            if self._is_open:
                self._is_open = False
                self._close()

    def _close(self) -> None:
        self._pieces.shutdown()
        lanes = [lane for _ in range(self._num_lanes) if (lane := self._lanes.get()) is not None]
        self._lanes.put(None)  # wakes who waits for a lane
        self._computing.shutdown()
        self._copying.shutdown()
        with ExitStack() as stack:  # whatever fails, the rest is freed
            for lane in lanes:
                stack.callback(lane.close)
            for graph in filter(None, self._graphs.values()):
                stack.callback(graph.close)
        self._graphs.clear()
        self._session = None

    @staticmethod
    def _closed() -> SessionError:
        return SessionError("the session is closed")

    def _run(self, feeds: Mapping[str, AnyArray | Rows], outputs: Mapping[str, AnyArray]) -> None:
        """Run one piece, and write into ``outputs``."""
        lane = self._lanes.get()
        if lane is None:
            self._lanes.put(None)
            raise self._closed()
        job: Future[None] | None = None
        try:
            self._link.cuda.select()
            size = len(next(iter(feeds.values())))
            nbytes = sum(feed.nbytes for feed in feeds.values())
            is_small = self._replays is not None and self._replays(size, nbytes)
            lane.make_room(feeds, outputs, needs_inputs=not is_small)
            with CAPTURES.shared():
                lane.stage(feeds, self._copying, uploads=not is_small)
            job = self._computing.submit(self._compute, lane, size, is_small=is_small)
            job.result()
            lane.read(outputs)
        finally:
            if job is None:
                self._lanes.put(lane)
            else:
                # An interrupt (Ctrl-C) leaves the job behind, which uses the lane until its end.
                job.add_done_callback(lambda _: self._lanes.put(lane))

    # -- in the computing thread --------------------------------------------------------------

    def _compute(self, lane: Lane, size: int, *, is_small: bool) -> None:
        graph = self._graph_of(size) if is_small else None
        if is_small and graph is None:
            lane.make_room_for_inputs()
        with CAPTURES.shared():
            self._enqueue_and_wait(lane, size, graph, uploads=is_small)

    def _enqueue_and_wait(
        self, lane: Lane, size: int, graph: CapturedGraph | None, *, uploads: bool
    ) -> None:
        cuda, stream = self._link.cuda, self._link.stream
        try:
            if graph is not None:
                lane.upload(graph.inputs, stream)
                self._enqueue(graph.binding, graph.options)
                lane.download(graph.outputs, stream)
            else:
                if uploads:
                    lane.upload(lane.inputs, stream)
                lane.bind(size)
                self._enqueue(lane.binding, self._plain)
                lane.download(lane.outputs, stream)
        except BaseException:
            with suppress(CudaCallError):  # raise the first failure, once nothing runs any more
                cuda.synchronize(stream)
            raise
        cuda.synchronize(stream)

    def _enqueue(self, binding: Any, options: Any) -> None:  # noqa: ANN401
        """Let ONNX Runtime enqueue the graph. Raises RuntimeError with its reason."""
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # noqa: BLE001 - the library raises classes of its own
            reason = str(error)
        else:
            return
        # The library's error and the binding hold the session, which must not outlive its stream.
        del binding
        raise RuntimeError(reason)

    def _graph_of(self, size: int) -> CapturedGraph | None:
        """Return the graph of a size, captured now if the size comes a second time."""
        found = self._graphs.get(size)
        if found is not None or size in self._refused:
            return found
        if size not in self._graphs:
            if len(self._graphs) < _MOST_SIZES:
                self._graphs[size] = None
            return None
        if len(self.captured_sizes) >= _MOST_GRAPHS:
            return None
        # ONNX Runtime keeps what it knows of a number, also of one whose capture failed: it would
        # replay that graph, or capture at once, while it still has to allocate.
        self._num_captures += 1
        options = self._options(str(self._num_captures))
        graph = CapturedGraph(self._link, self._spec, size, options)
        try:
            graph.allocate(self._session.io_binding())
            # Nobody may allocate or launch meanwhile: ONNX Runtime captures in CUDA's global mode.
            with CAPTURES.alone():
                self._enqueue(graph.binding, graph.options)
                self._link.cuda.synchronize(self._link.stream)
        except Exception as error:  # noqa: BLE001 - the library raises classes of its own
            self._link.cuda.abandon_capture(self._link.stream)
            graph.close()
            self._refused.add(size)
            line = " ".join(str(error).split())[:300]
            self._report(f"batches of {size} run without a CUDA graph: {line}")
            return None
        self._graphs[size] = graph
        return graph

    def _options(self, graph: str | None) -> Any:  # noqa: ANN401
        options = self._make_options()
        options.add_run_config_entry(_NO_WAIT, "1")
        if graph is not None:
            options.add_run_config_entry(GRAPH_OPTION, graph)
        return options
