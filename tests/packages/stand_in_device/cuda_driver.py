"""The functions of ``cuda.bindings.driver`` that the scan calls, on the stand-in.

A launch computes: Triton's interpreter runs the kernel on the stand-in's memory. Wrong counts and
types of arguments, unknown kernels, foreign addresses, too little shared memory and reads of
memory that nothing wrote are violations.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

from cuda.bindings import driver as real

from stand_in_device.device import Device, Work
from stand_in_device.interpreter import KernelCall, interpreter
from stand_in_device.kernels import read_image

_STATUS = real.CUresult
_TYPES = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}
_FREE_SHARED_BYTES = 48 << 10


@dataclass(eq=False)
class Module:
    """A loaded image."""

    header: dict[str, Any]
    functions: list[Function] = field(default_factory=list)


@dataclass(eq=False)
class Function:
    """A kernel of a module."""

    module: Module
    shared_limit: int = _FREE_SHARED_BYTES


class CudaDriver:
    """Stands in for the module."""

    CUstream = real.CUstream
    CUfunction_attribute = real.CUfunction_attribute

    def __init__(self, device: Device) -> None:
        self._device = device
        self._modules: set[Module] = set()

    def cuModuleLoadData(self, image: Any) -> tuple[Any, ...]:
        if (status := self._fault("cuModuleLoadData")) is not None:
            return status, None
        self._device.check_selected("cuModuleLoadData")
        if not isinstance(image, bytes) or not image.endswith(b"\0"):
            raise self._device.violation("an image that is no bytes, or does not end with a zero")
        header = read_image(image)
        if header is None:
            return _STATUS.CUDA_ERROR_INVALID_IMAGE, None
        major, minor = header["compute_capability"]
        found = self._device.compute_capability
        runs = found >= (major, minor) if header["kind"] == "ptx" else found[0] == major
        if not runs or found < (major, minor) or (header["is_exact"] and found != (major, minor)):
            return _STATUS.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        module = Module(header)
        self._modules.add(module)
        self._device.objects += 1
        return _STATUS.CUDA_SUCCESS, module

    def cuModuleUnload(self, module: Any) -> tuple[Any, ...]:
        if module not in self._modules:
            raise self._device.violation("a module was unloaded twice, or never loaded")
        self._modules.remove(module)
        self._device.objects -= 1
        return (self._fault("cuModuleUnload") or _STATUS.CUDA_SUCCESS,)

    def cuModuleGetFunction(self, module: Module, name: bytes) -> tuple[Any, ...]:
        if (status := self._fault("cuModuleGetFunction")) is not None:
            return status, None
        if not isinstance(name, bytes):
            raise self._device.violation("a kernel's name that is no bytes")
        if module.header["kernel"] != name.decode():
            return _STATUS.CUDA_ERROR_NOT_FOUND, None
        return _STATUS.CUDA_SUCCESS, Function(module)

    def cuFuncSetAttribute(self, function: Function, attribute: Any, value: int) -> tuple[Any, ...]:
        wanted = real.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if attribute != wanted:
            raise self._device.violation(f"an attribute {attribute!r} of a kernel")
        if (status := self._fault("cuFuncSetAttribute")) is not None:
            return (status,)
        function.shared_limit = value
        return (_STATUS.CUDA_SUCCESS,)

    def cuLaunchKernel(
        self,
        function: Function,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared: int,
        stream: Any,
        parameters: Any,
        extra: int,
    ) -> tuple[Any, ...]:
        if (status := self._fault("cuLaunchKernel")) is not None:
            return (status,)
        device = self._device
        device.check_selected("cuLaunchKernel")
        if function.module not in self._modules:
            raise device.violation("a kernel of a module that is not loaded")
        header = function.module.header
        if (block_x, block_y, block_z) != (32 * header["num_warps"], 1, 1):
            raise device.violation(f"{header['kernel']} with {block_x} threads a program")
        if shared < header["shared_bytes"] or shared > function.shared_limit:
            raise device.violation(f"{header['kernel']} with {shared} bytes of shared memory")
        if min(grid_x, grid_y, grid_z) < 1 or grid_y > 65535 or extra != 0:
            return (_STATUS.CUDA_ERROR_INVALID_VALUE,)
        arguments, touched = self._arguments(header, parameters)
        call = KernelCall(
            header["kernel"],
            header["constants"],
            (grid_x, grid_y, grid_z),
            arguments,
        )

        def run() -> None:
            interpreter().run(device, call)

        device.enqueue(device.stream(stream, "cuLaunchKernel"), Work(run, touched))
        device.kernel_launches.append(header["kernel"])
        return (_STATUS.CUDA_SUCCESS,)

    def cuGetErrorString(self, status: Any) -> tuple[Any, ...]:
        # The real one asks the driver, which is not here.
        return _STATUS.CUDA_SUCCESS, b"a failure of the stand-in"

    def _arguments(
        self, header: dict[str, Any], parameters: Any
    ) -> tuple[list[tuple[str, str, int | float]], tuple[int, ...]]:
        """Check the arguments, and return them with the allocations that they point into."""
        device, expected = self._device, list(header["arguments"].items())
        values, types = parameters
        if len(values) != len(types) or len(values) != len(expected) + 2:
            raise device.violation(
                f"{header['kernel']} with {len(values)} arguments, not {len(expected) + 2}"
            )
        if values[-2:] != (0, 0) or types[-2:] != (ctypes.c_void_p, ctypes.c_void_p):
            raise device.violation("scratch areas that the kernel has not")
        found: list[tuple[str, str, int | float]] = []
        touched: set[int] = set()
        for (name, kind), value, c_type in zip(expected, values, types, strict=False):
            if c_type is not _TYPES.get(kind, ctypes.c_void_p):
                raise device.violation(f"{name} of {header['kernel']} as {c_type.__name__}")
            if kind.startswith("*"):
                if not isinstance(value, int) or value % 16:
                    raise device.violation(f"{name} at an address that is not aligned to 16 bytes")
                touched.add(device.find(value, 1, f"{name} of {header['kernel']}").address)
            elif kind == "i32" and not (isinstance(value, int) and -(2**31) <= value < 2**31):
                raise device.violation(f"{name} of {header['kernel']} is {value!r}")
            found.append((name, kind, value))
        return found, tuple(touched)

    def _fault(self, function: str) -> Any:
        name = self._device.fault(function)
        return None if name is None else getattr(_STATUS, name)
