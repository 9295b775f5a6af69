"""Run an engine on one stream, with buffers and execution contexts of its own."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.memory import (
    ALIGNMENT,
    DeviceArray,
    DeviceBuffer,
    DeviceMemory,
    PinnedBuffer,
)
from xclip_deploy.runtime.cuda.runtime_api import Cuda, CudaCallError, Stream
from xclip_deploy.runtime.manifest import TensorSpec
from xclip_deploy.runtime.sessions.backend import Closable, close_all
from xclip_deploy.runtime.sessions.native.engine import Engine

logger = logging.getLogger(__name__)

_REMEMBERED_RUNS = 16
"""Number of recent kinds of run that are remembered. The least recently seen is forgotten."""

RunKey = tuple[Any, ...]


@dataclass
class _Repeated:
    """A run of one shape at one set of addresses, with the context and graph that repeat it fast.

    A graph keeps the settings that its context had at capture. The context must therefore never
    change, and belongs to this run alone.
    """

    context: Any = None
    graph: Any = None
    is_capturable: bool = True


class Lane:
    """Runner of an engine, for one run at a time.

    Device and pinned buffers are kept and grow. After a failure the lane must be closed: enqueued
    work may still be running, and :meth:`close` waits for it.
    """

    def __init__(self, engine: Engine) -> None:
        """Open a stream. Raises SessionError."""
        self._engine = engine
        self._memory: DeviceMemory = engine.memory
        self._cuda: Cuda = engine.cuda
        specs = (*engine.record.inputs, *engine.record.outputs)
        purpose = f"a buffer of {engine.graph.value}"
        # An input and an output may share a name, so each side has buffers of its own.
        self._inputs = {s.name: DeviceBuffer(self._memory, purpose) for s in engine.record.inputs}
        self._outputs = {s.name: DeviceBuffer(self._memory, purpose) for s in engine.record.outputs}
        self._pinned = {spec.name: PinnedBuffer(self._cuda) for spec in specs}
        self._scratch = DeviceBuffer(self._memory, f"running {engine.graph.value}")
        self._contexts: dict[int, Any] = {}
        self._repeated: OrderedDict[RunKey, _Repeated] = OrderedDict()
        self._reserved_bytes = 0
        self._cuda.select()
        self._stream: Stream | None = self._cuda.create_stream()

    def run(
        self,
        profile: int,
        inputs: Mapping[str, AnyArray | DeviceArray],
        sizes: Mapping[str, int],
    ) -> dict[str, AnyArray]:
        """Run once, wait for the end and return the outputs by name.

        ``inputs``: arrays by name, in the engine's shapes. Arrays on the host are cast; those on
        the device have the engine's dtype. ``sizes``: sizes of the dynamic axes. Raises
        SessionError; the lane must then be closed.
        """
        stream = self._stream
        assert stream is not None
        self._cuda.select()
        record = self._engine.record
        shapes = {spec.name: tuple(inputs[spec.name].shape) for spec in record.inputs}
        results = {spec.name: _shape(spec, sizes) for spec in record.outputs}
        addresses = self._make_room(inputs, results)
        for spec in record.inputs:
            self._upload(spec, inputs[spec.name], addresses[spec.name], stream)
        self._execute(profile, shapes, results, addresses, stream)
        for spec in record.outputs:
            nbytes = _nbytes(spec, results[spec.name])
            pinned = self._pinned[spec.name]
            self._cuda.copy_to_host(pinned.address, addresses[spec.name], nbytes, stream)
        self._cuda.synchronize(stream)
        found: dict[str, AnyArray] = {}
        for spec in record.outputs:
            view = self._pinned[spec.name].view(results[spec.name], spec.dtype.value)
            found[spec.name] = view.copy()
        return found

    def close(self) -> None:
        """Wait for running work, and free everything. Raises SessionError."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        failures: list[SessionError | None] = []
        try:
            self._cuda.select()
            self._cuda.synchronize(stream)
        except SessionError as error:  # free everything all the same
            failures.append(error)
        failures.append(self._forget_repeated())
        self._contexts.clear()
        self._memory.release(self._reserved_bytes)
        self._reserved_bytes = 0
        buffers: tuple[Closable, ...] = (
            *self._inputs.values(),
            *self._outputs.values(),
            *self._pinned.values(),
        )
        failures.append(close_all((*buffers, self._scratch)))
        try:
            self._cuda.destroy_stream(stream)
        except SessionError as error:
            failures.append(error)
        for failure in failures:
            if failure is not None:
                raise failure

    # -- buffers ---------------------------------------------------------------------------

    def _make_room(
        self,
        inputs: Mapping[str, AnyArray | DeviceArray],
        results: Mapping[str, tuple[int, ...]],
    ) -> dict[str, int]:
        """Grow the buffers where necessary, and return the address of every tensor."""
        addresses = {}
        has_grown = False
        for spec in self._engine.record.inputs:
            array = inputs[spec.name]
            nbytes = _nbytes(spec, tuple(array.shape))
            if isinstance(array, DeviceArray):
                if array.address % ALIGNMENT == 0:
                    addresses[spec.name] = array.address
                    continue
            else:
                self._pinned[spec.name].hold(nbytes)
            has_grown |= self._inputs[spec.name].hold(nbytes)
            addresses[spec.name] = self._inputs[spec.name].address
        for spec in self._engine.record.outputs:
            nbytes = _nbytes(spec, results[spec.name])
            self._pinned[spec.name].hold(nbytes)
            has_grown |= self._outputs[spec.name].hold(nbytes)
            addresses[spec.name] = self._outputs[spec.name].address
        if has_grown:
            # Captured graphs would write to memory that was freed.
            failure = self._forget_repeated()
            if failure is not None:
                raise failure
        return addresses

    def _upload(
        self, spec: TensorSpec, array: AnyArray | DeviceArray, address: int, stream: Stream
    ) -> None:
        nbytes = _nbytes(spec, tuple(array.shape))
        if isinstance(array, DeviceArray):
            if array.address != address:
                self._cuda.copy_on_device(address, array.address, nbytes, stream)
            return
        pinned = self._pinned[spec.name]
        np.copyto(pinned.view(array.shape, spec.dtype.value), array, casting="unsafe")
        self._cuda.copy_to_device(address, pinned.address, nbytes, stream)

    # -- running ---------------------------------------------------------------------------

    def _execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        results: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        stream: Stream,
    ) -> None:
        """Enqueue one run, as a graph where it was captured before."""
        repeated = None
        if self._engine.captures_graphs:
            repeated = self._seen((profile, *shapes.items(), *addresses.items()))
        if repeated is None:
            if profile not in self._contexts:
                self._contexts[profile] = self._make_context(profile, stream)
            context = self._contexts[profile]
            self._prepare(context, shapes, results, addresses)
            self._enqueue(context, stream)
        elif repeated.context is None:
            # Run once before the capture: a context's first run completes its setup.
            repeated.context = self._make_context(profile, stream)
            self._prepare(repeated.context, shapes, results, addresses)
            self._enqueue(repeated.context, stream)
        else:
            if repeated.graph is None and repeated.is_capturable:
                self._capture(repeated, stream)
            if repeated.graph is not None:
                self._cuda.launch(repeated.graph, stream)
            else:
                self._check_inputs(repeated.context)
                self._enqueue(repeated.context, stream)

    def _seen(self, key: RunKey) -> _Repeated | None:
        """Return the record of an earlier run of this kind; None for the first one."""
        if key in self._repeated:
            self._repeated.move_to_end(key)
            return self._repeated[key]
        self._repeated[key] = _Repeated()
        if len(self._repeated) > _REMEMBERED_RUNS:
            _, oldest = self._repeated.popitem(last=False)
            if oldest.graph is not None:
                self._cuda.destroy_graph(oldest.graph)
        return None

    def _make_context(self, profile: int, stream: Stream) -> Any:  # noqa: ANN401 - TensorRT's
        needed = self._engine.scratch_bytes
        if self._engine.owns_scratch:
            self._memory.reserve(needed, f"running {self._engine.graph.value}")
            self._reserved_bytes += needed
        elif needed:
            self._scratch.hold(needed)
        return self._engine.create_context(profile, self._scratch.address, stream)

    def _prepare(
        self,
        context: Any,  # noqa: ANN401 - TensorRT's
        shapes: Mapping[str, tuple[int, ...]],
        results: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> None:
        """Set a context's shapes and addresses. TensorRT returns False where it refuses."""
        self._engine.library.forget_reasons()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._engine.failure(f"refused {name} {list(shape)}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._engine.failure(f"refused the address of {name}")
        self._check_inputs(context)
        for name, shape in results.items():
            found = tuple(context.get_tensor_shape(name))
            if found != shape:
                raise self._engine.failure(
                    f"would give {name} as {list(found)}, expected {list(shape)}"
                )

    def _check_inputs(self, context: Any) -> None:  # noqa: ANN401 - TensorRT's
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise self._engine.failure(f"cannot infer shapes: {reason}") from error
        if missing:
            raise self._engine.failure(f"lacks the shape or value of {', '.join(missing)}")

    def _enqueue(self, context: Any, stream: Stream) -> None:  # noqa: ANN401 - TensorRT's
        if not context.execute_async_v3(int(stream)):
            raise self._engine.failure("did not run")

    def _capture(self, repeated: _Repeated, stream: Stream) -> None:
        """Capture a run as a graph. A run that cannot be captured is enqueued from then on."""
        self._check_inputs(repeated.context)
        try:
            self._cuda.begin_capture(stream)
        except CudaCallError as error:
            self._give_up_capture(repeated, error)
            return
        try:
            self._enqueue(repeated.context, stream)
        except BaseException as error:
            # End the capture, or nothing would ever run on the stream again.
            with suppress(CudaCallError):
                self._cuda.destroy_graph(self._cuda.end_capture(stream))
            if not isinstance(error, SessionError):
                raise
            self._give_up_capture(repeated, error)
            return
        try:
            repeated.graph = self._cuda.end_capture(stream)
        except CudaCallError as error:
            self._give_up_capture(repeated, error)

    def _give_up_capture(self, repeated: _Repeated, error: SessionError) -> None:
        repeated.is_capturable = False
        # Log the error as text: its traceback in a kept log record would keep the engine alive.
        logger.warning("%s runs without a CUDA graph: %s", self._engine.graph.value, str(error))

    def _forget_repeated(self) -> SessionError | None:
        first: SessionError | None = None
        for repeated in self._repeated.values():
            if repeated.graph is not None:
                try:
                    self._cuda.destroy_graph(repeated.graph)
                except SessionError as error:
                    first = first or error
        self._repeated.clear()
        return first


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)


def _nbytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(spec.dtype.value).itemsize
