"""Buffers of runs on a GPU: a lane for each run under way, and one set for each CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from xclip_deploy.runtime.arrays import AnyArray, Rows
from xclip_deploy.runtime.cuda.memory import DeviceBuffer, DeviceMemory, PinnedBuffer
from xclip_deploy.runtime.cuda.runtime_api import Cuda, Stream, open_cuda
from xclip_deploy.runtime.manifest import GraphSpec, TensorSpec

_SLICE_BYTES = 4 << 20
"""Part of an input that one thread copies into pinned memory, and that is uploaded at once."""


@dataclass(frozen=True)
class DeviceLink:
    """A GPU with the stream that a session of ONNX Runtime computes on."""

    cuda: Cuda
    memory: DeviceMemory
    stream: Stream

    @classmethod
    def open(cls, device_id: int) -> DeviceLink:
        """Create the stream. Raises MissingExtraError or SessionError."""
        cuda = open_cuda(device_id, "resident")
        return cls(cuda, DeviceMemory(cuda), cuda.create_stream())

    @property
    def provider_options(self) -> dict[str, str]:
        """Options of the CUDA provider that make it compute on the stream."""
        return {"user_compute_stream": str(int(self.stream))}

    def close(self) -> None:
        """Destroy the stream, once the session is gone."""
        self.cuda.select()
        self.cuda.destroy_stream(self.stream)


class Lane:
    """Buffers of one run: pinned and device memory for every tensor. For one caller at a time."""

    def __init__(self, link: DeviceLink, spec: GraphSpec, binding: Any) -> None:  # noqa: ANN401
        self._link, self._spec, self.binding = link, spec, binding
        self._stream = link.cuda.create_stream()
        self._pinned = {tensor.name: PinnedBuffer(link.cuda) for tensor in _tensors(spec)}
        self.inputs = _buffers(link.memory, spec.inputs)
        self.outputs = _buffers(link.memory, spec.outputs)
        self._sizes: dict[str, int] = {}
        """Bytes of every tensor in this run."""

    def make_room(
        self,
        feeds: Mapping[str, AnyArray | Rows],
        outputs: Mapping[str, AnyArray],
        *,
        needs_inputs: bool,
    ) -> None:
        """Allocate what a run needs. Raises DeviceMemoryError."""
        self._sizes = {name: feed.nbytes for name, feed in feeds.items()}
        self._sizes |= {name: output.nbytes for name, output in outputs.items()}
        for name, nbytes in self._sizes.items():
            self._pinned[name].hold(nbytes)
        if needs_inputs:
            self.make_room_for_inputs()

    def make_room_for_inputs(self) -> None:
        """Allocate device memory for a run without a graph, which has its own."""
        for name, buffer in (*self.inputs.items(), *self.outputs.items()):
            buffer.hold(self._sizes[name])

    def stage(
        self, feeds: Mapping[str, AnyArray | Rows], copying: ThreadPoolExecutor, *, uploads: bool
    ) -> None:
        """Copy inputs into pinned memory, and upload them part by part if asked to."""
        cuda = self._link.cuda
        waiting: list[tuple[Future[None], int, int, int]] = []
        """Copies under way, each with its target on the device, its source and its size."""
        try:
            for name, feed in feeds.items():
                pinned, address = self._pinned[name], self.inputs[name].address
                target = pinned.view((feed.nbytes,), "uint8")
                rows = feed if isinstance(feed, Rows) else Rows([feed], feed.dtype.name)
                for place, part in rows.parts(_SLICE_BYTES):
                    size = len(part)
                    copy: Future[None] = Future()
                    if feed.nbytes > _SLICE_BYTES:
                        copy = copying.submit(np.copyto, target[place : place + size], part)
                    else:
                        target[place : place + size] = part
                        copy.set_result(None)
                    waiting.append((copy, address + place, pinned.address + place, size))
            for copy, to, source, size in waiting:
                copy.result()
                if uploads:
                    cuda.copy_to_device(to, source, size, self._stream)
        finally:
            for copy, *_ in waiting:  # a thread may not write into a lane that others take
                copy.exception()
            if uploads:
                cuda.synchronize(self._stream)

    def upload(self, inputs: Mapping[str, DeviceBuffer], stream: Stream) -> None:
        """Enqueue copies of the staged inputs."""
        for name, buffer in inputs.items():
            nbytes, pinned = self._sizes[name], self._pinned[name]
            self._link.cuda.copy_to_device(buffer.address, pinned.address, nbytes, stream)

    def bind(self, size: int) -> None:
        """Bind the lane's own device memory."""
        _bind(self.binding, self._link, self._spec, size, self.inputs, self.outputs)

    def download(self, outputs: Mapping[str, DeviceBuffer], stream: Stream) -> None:
        """Enqueue copies of the outputs into pinned memory."""
        for name, buffer in outputs.items():
            nbytes, pinned = self._sizes[name], self._pinned[name]
            self._link.cuda.copy_to_host(pinned.address, buffer.address, nbytes, stream)

    def read(self, outputs: Mapping[str, AnyArray]) -> None:
        """Copy the downloaded outputs."""
        for name, output in outputs.items():
            np.copyto(output, self._pinned[name].view(output.shape, output.dtype.name))

    def close(self) -> None:
        """Free the buffers and the stream."""
        self.binding = None
        self._link.cuda.select()
        with ExitStack() as stack:
            stack.callback(self._link.cuda.destroy_stream, self._stream)
            for pinned in self._pinned.values():
                stack.callback(pinned.close)
            for buffer in (*self.inputs.values(), *self.outputs.values()):
                stack.callback(buffer.close)


class CapturedGraph:
    """A CUDA graph of one batch size, with the device memory that it reads and writes."""

    def __init__(self, link: DeviceLink, spec: GraphSpec, size: int, options: Any) -> None:  # noqa: ANN401
        self._link, self._spec, self._size, self.options = link, spec, size, options
        self.binding: Any = None
        self.inputs = _buffers(link.memory, spec.inputs)
        self.outputs = _buffers(link.memory, spec.outputs)

    def allocate(self, binding: Any) -> None:  # noqa: ANN401
        """Allocate the memory, cleared, and bind it. Raises SessionError."""
        cuda, stream = self._link.cuda, self._link.stream
        for tensor in self._spec.inputs:
            buffer = self.inputs[tensor.name]
            buffer.hold(_nbytes(tensor, self._size))
            cuda.clear(buffer.address, buffer.nbytes, stream)
        for tensor in self._spec.outputs:
            self.outputs[tensor.name].hold(_nbytes(tensor, self._size))
        self.binding = binding
        _bind(binding, self._link, self._spec, self._size, self.inputs, self.outputs)
        cuda.synchronize(stream)

    def close(self) -> None:
        """Free the memory."""
        self.binding = None
        with ExitStack() as stack:
            for buffer in (*self.inputs.values(), *self.outputs.values()):
                stack.callback(buffer.close)


def _bind(
    binding: Any,  # noqa: ANN401
    link: DeviceLink,
    spec: GraphSpec,
    size: int,
    inputs: Mapping[str, DeviceBuffer],
    outputs: Mapping[str, DeviceBuffer],
) -> None:
    device_id = link.cuda.device_id
    for tensor in spec.inputs:
        dtype, address = np.dtype(tensor.dtype.value).type, inputs[tensor.name].address
        binding.bind_input(tensor.name, "cuda", device_id, dtype, shape_of(tensor, size), address)
    for tensor in spec.outputs:
        dtype, address = np.dtype(tensor.dtype.value).type, outputs[tensor.name].address
        binding.bind_output(tensor.name, "cuda", device_id, dtype, shape_of(tensor, size), address)


def _buffers(memory: DeviceMemory, specs: tuple[TensorSpec, ...]) -> dict[str, DeviceBuffer]:
    return {spec.name: DeviceBuffer(memory, f"the encoder's {spec.name}") for spec in specs}


def _tensors(spec: GraphSpec) -> tuple[TensorSpec, ...]:
    return (*spec.inputs, *spec.outputs)


def shape_of(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """Return the shape of a tensor for a batch of ``size``."""
    return (size, *map(int, spec.shape[1:]))


def _nbytes(spec: TensorSpec, size: int) -> int:
    return int(np.prod(shape_of(spec, size))) * np.dtype(spec.dtype.value).itemsize
