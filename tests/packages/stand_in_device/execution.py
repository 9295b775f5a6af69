"""An execution context of the stand-in: shapes, addresses, and a run of the ONNX graph."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stand_in_device.device import ALIGNMENT, Device, Work

if TYPE_CHECKING:
    from stand_in_device.tensorrt_module import Engine


class ExecutionContext:
    """Of one engine. Whatever is set on it changes ``_version``, which a graph holds it to."""

    def __init__(self, engine: Engine, own_scratch: int | None) -> None:
        self._engine = engine
        self._device: Device = engine.device
        self._own_scratch = own_scratch
        self._scratch: tuple[int, int] | None = None
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._version = 0
        self._settled_version: int | None = None
        self._device.objects += 1

    def __del__(self) -> None:
        self._device.objects -= 1
        if self._own_scratch is not None:
            self._device.free(self._own_scratch)

    def set_device_memory(self, memory: int, size: int) -> None:
        if self._own_scratch is not None:
            raise self._device.violation("scratch memory for a context that has its own")
        if size < self._engine.device_memory_size_v2:
            raise self._device.violation("too little scratch memory")
        self._device.find(memory, size, "scratch memory")
        self._check_aligned(memory, "scratch memory")
        self._scratch = (memory, size)
        self._version += 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._device.stream(stream_handle, "set_optimization_profile_async")
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"profile {profile_index} is not in the engine")
        self._profile = profile_index
        self._shapes.clear()
        self._version += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self._engine.input_names:
            return self._refuse(f"{name} is no input")
        if self._profile is None:
            return self._refuse("no profile was chosen")
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(least) or not all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        ):
            return self._refuse(f"{name} {shape} is outside of profile {self._profile}")
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name] = tuple(shape)
            self._version += 1
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine.input_names if name not in self._shapes]
        if not missing:
            self._sizes()
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = self._sizes()
        shape = self._engine.tensors[name]["shape"]
        return tuple(sizes[size] if isinstance(size, str) else size for size in shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.tensors:
            return self._refuse(f"{name} is no tensor")
        self._check_aligned(memory, name)
        if self._addresses.get(name) != memory:
            self._addresses[name] = memory
            self._version += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self._device
        device.check_selected("execute_async_v3")
        stream = device.stream(stream_handle, "execute_async_v3")
        if (reason := device.fault("execute_async_v3")) is not None:
            return self._refuse(reason)
        if self.infer_shapes():
            return self._refuse("not all shapes are set")
        if missing := [name for name in self._engine.tensors if name not in self._addresses]:
            return self._refuse(f"no address was set for {', '.join(missing)}")
        scratch: tuple[int, ...] = ()
        if self._own_scratch is None:
            if self._scratch is None:
                raise device.violation("a run without scratch memory")
            device.find(*self._scratch, "scratch memory")
            scratch = (self._scratch[0],)
        if stream.capture is not None:
            if self._engine.module.refuses_graphs or self._settled_version != self._version:
                stream.is_capture_valid = False
                return self._refuse("cannot be captured")
        else:
            self._settled_version = self._version
        device.enqueue(stream, self._work(scratch))
        return True

    def _work(self, scratch: tuple[int, ...]) -> Work:
        shapes = {name: self.get_tensor_shape(name) for name in self._engine.tensors}
        addresses = dict(self._addresses)
        version, engine, device = self._version, self._engine, self._device
        context = weakref.ref(self)
        touches = [
            device.find(address, self._nbytes(name, shapes[name]), name).address
            for name, address in addresses.items()
        ]

        def check() -> None:
            found = context()
            if found is None or found._version != version:
                raise device.violation("a graph was launched whose context has changed")
            for name, address in addresses.items():
                device.find(address, found._nbytes(name, shapes[name]), f"{name} of a graph")

        def run() -> None:
            feeds = {}
            for name in engine.input_names:
                dtype = engine.tensors[name]["dtype"]
                nbytes = int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
                raw = device.read(addresses[name], nbytes, name)
                feeds[name] = raw.view(dtype).reshape(shapes[name])
            outputs = engine.session.run(engine.output_names, feeds)
            device.executions += 1
            for name, array in zip(engine.output_names, outputs, strict=True):
                if array.shape != shapes[name]:
                    raise device.violation(f"{name} came as {array.shape}, not {shapes[name]}")
                device.write(addresses[name], _raw(array), name)

        return Work(run, (*touches, *scratch), scratch, check)

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name in self._engine.input_names:
            for size, axis in zip(
                self._shapes[name], self._engine.tensors[name]["shape"], strict=True
            ):
                if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                    raise RuntimeError(f"{axis} is {size} in {name}, {sizes[axis]} elsewhere")
        return sizes

    def _nbytes(self, name: str, shape: tuple[int, ...]) -> int:
        itemsize: int = np.dtype(self._engine.tensors[name]["dtype"]).itemsize
        return int(np.prod(shape)) * itemsize

    def _check_aligned(self, address: int, what: str) -> None:
        if address % ALIGNMENT:
            raise self._device.violation(f"{what} is at {address:#x}, not a multiple of 256")

    def _refuse(self, reason: str) -> bool:
        from stand_in_device.tensorrt_module import Severity

        self._engine.logger.log(Severity.ERROR, reason)
        return False


def _raw(array: Any) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
