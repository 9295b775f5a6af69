"""Runs of ONNX Runtime that are replayed as CUDA graphs.

A CUDA graph reads and writes fixed addresses. So every batch size has its own device buffers, which
stay. ONNX Runtime captures and replays in the thread that calls, and allows one caller at a time:
all runs of such a session go through one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.manifest import GraphSpec
from xclip_deploy.runtime.sessions.bound_runs import BoundRuns, PageableStaging

logger = logging.getLogger(__name__)

GRAPH_OPTION = "gpu_graph_id"
"""Run option with the number of a graph, from 1 on."""
NO_GRAPH = "-1"
"""Value of the option for a run without a graph."""
LARGEST_BATCH = 32
"""Largest batch of texts that is captured."""
_MOST_GRAPHS = 8


class CapturedRuns:
    """Runs of one graph with one dynamic axis, which is the first of every tensor."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - the library ships without type hints
        spec: GraphSpec,
        library: Any,  # noqa: ANN401
        device: str,
        device_id: int,
        largest_batch: int | None = LARGEST_BATCH,
    ) -> None:
        """Prepare the runs of a session that was opened with ``enable_cuda_graph``.

        ``library``: the module ``onnxruntime``. ``device``: ``cuda``; ``cpu`` runs all the same,
        without graphs. ``largest_batch``: largest size that is captured; None for any.
        """
        self._largest_batch = largest_batch
        self._session, self._spec, self._library = session, spec, library
        self._device, self._device_id = device, device_id
        plain = self._options(NO_GRAPH)
        self._plain = BoundRuns(session, spec, PageableStaging, lanes=1, run_options=plain)
        self._captured: dict[int, _Captured | None] = {}
        """From batch size to graph; None where the size was seen once, or cannot be captured."""
        self._refused: set[int] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="xclip-cuda-graph")

    def takes(self, size: int) -> bool:
        """Tell whether a batch size is replayed, or may be captured when it comes again."""
        if self._captured.get(size) is not None:
            return True
        is_small = self._largest_batch is None or size <= self._largest_batch
        return is_small and size not in self._refused and len(self.captured_sizes) < _MOST_GRAPHS

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are replayed."""
        return tuple(size for size, graph in list(self._captured.items()) if graph is not None)

    def run(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Run a batch and return the outputs by name; see :meth:`BoundRuns.run`.

        A size up to ``largest_batch`` is captured when it comes a second time.
        """
        try:
            return self._thread.submit(self._run, feeds).result()
        except RuntimeError as error:
            if "after shutdown" in str(error):
                raise SessionError("the session is closed") from error
            raise

    def close(self) -> None:
        """Free the graphs and buffers, after runs that are under way."""
        self._thread.shutdown()
        self._captured.clear()
        self._plain.close()

    def _run(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        size = len(next(iter(feeds.values())))
        graph = self._captured.get(size)
        if graph is None and self._may_capture(size):
            graph = self._capture(size, feeds)
        if graph is None:
            return self._plain.run(feeds)
        with CAPTURES.shared():
            return graph.run(feeds)

    def _may_capture(self, size: int) -> bool:
        """Return whether to capture a size now. The first run of a size only notes it."""
        if not self.takes(size):
            return False
        if size not in self._captured:
            if len(self._captured) < 4 * _MOST_GRAPHS:
                self._captured[size] = None
            return False
        return True

    def _capture(self, size: int, feeds: Mapping[str, AnyArray]) -> _Captured | None:
        number = len(self.captured_sizes) + 1
        try:
            with CAPTURES.alone():
                graph = _Captured(self, size, self._options(str(number)))
                graph.run(feeds)
        except Exception as error:  # noqa: BLE001 - the library raises classes of its own
            self._refused.add(size)
            line = " ".join(str(error).split())[:300]
            logger.warning("batches of %d run without a CUDA graph: %s", size, line)
            return None
        self._captured[size] = graph
        return graph

    def _options(self, number: str) -> Any:  # noqa: ANN401
        options = self._library.RunOptions()
        options.add_run_config_entry(GRAPH_OPTION, number)
        return options


class _Captured:
    """Fixed buffers of one batch size, and the binding that a graph was captured with."""

    def __init__(self, runs: CapturedRuns, size: int, options: Any) -> None:  # noqa: ANN401
        self._session, self._options = runs._session, options
        self._binding = self._session.io_binding()
        make = runs._library.OrtValue.ortvalue_from_shape_and_type
        place = (runs._device, runs._device_id)

        def buffers(specs: tuple[Any, ...]) -> dict[str, Any]:
            return {
                spec.name: make(
                    (size, *map(int, spec.shape[1:])), np.dtype(spec.dtype.value).type, *place
                )
                for spec in specs
            }

        self._inputs, self._outputs = buffers(runs._spec.inputs), buffers(runs._spec.outputs)
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        for name, value in self._inputs.items():
            value.update_inplace(feeds[name])
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        # On a CPU, numpy() would show the buffer itself, which the next run overwrites.
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
