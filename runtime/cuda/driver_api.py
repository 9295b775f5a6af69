"""Load and launch kernels by the CUDA driver, and check the status of every call.

The CUDA runtime of ``runtime_api`` makes the context. Its streams and addresses are the driver's.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xclip_deploy.errors import DriverError, MissingExtraError, SessionError
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.cuda.runtime_api import Stream

_MODULE = "cuda.bindings.driver"
_FREE_SHARED_BYTES = 48 << 10
"""Shared memory that every kernel may use. For more, its attribute must be set."""
_WARP = 32

FUNCTIONS = (
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuLaunchKernel",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
)
"""All functions of ``cuda.bindings.driver`` that this package calls."""

ArgumentType = Literal["*fp16", "*fp32", "*i32", "*i64", "i32", "fp32"]
"""Type of a kernel's argument, by its Triton name. A star stands for an address."""

_C_TYPES: dict[str, Any] = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}
_LOADING_FAILURES = {
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_INVALID_SOURCE",
    "CUDA_ERROR_JIT_COMPILATION_DISABLED",
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
}


class DriverCallError(SessionError):
    """Failure of a call of the CUDA driver."""

    def __init__(self, function: str, name: str, description: str) -> None:
        super().__init__(f"{function} failed with {name}: {description}")
        self.name = name
        """Name of the status, such as ``CUDA_ERROR_OUT_OF_MEMORY``."""


@dataclass(frozen=True)
class KernelFunction:
    """A loaded kernel."""

    handle: Any
    module: Any
    name: str
    types: tuple[ArgumentType, ...]
    """Types of its arguments, in order."""
    num_warps: int
    shared_bytes: int


class Driver:
    """The CUDA driver. A thread selects its device before it calls a method.

    Loading code allocates memory, and a driver may load a kernel as late as its first launch. So
    every method waits while ONNX Runtime captures a CUDA graph, see ``CAPTURES``. Every method
    raises DriverCallError with the names of the function and the status.
    """

    def __init__(self, api: Any) -> None:  # noqa: ANN401 - untyped bindings
        """Wrap ``cuda.bindings.driver``, or a stand-in for it."""
        self._api = api

    def load(
        self,
        image: bytes,
        name: str,
        types: Sequence[ArgumentType],
        num_warps: int,
        shared_bytes: int,
    ) -> KernelFunction:
        """Load a cubin or a PTX text, and find a kernel in it.

        Raises DriverError where the driver or the GPU cannot run such code.
        """
        with CAPTURES.shared():
            return self._load(image, name, tuple(types), num_warps, shared_bytes)

    def _load(
        self,
        image: bytes,
        name: str,
        types: tuple[ArgumentType, ...],
        num_warps: int,
        shared_bytes: int,
    ) -> KernelFunction:
        try:
            # PTX is a text that ends with a zero. A cubin tells its own length.
            module = self._call("cuModuleLoadData", image + b"\0")
        except DriverCallError as error:
            if error.name not in _LOADING_FAILURES:
                raise
            raise DriverError(
                f"this driver and GPU cannot run the kernel {name} ({error.name}); update the "
                "driver, or search on the CPU"
            ) from error
        try:
            handle = self._call("cuModuleGetFunction", module, name.encode())
            if shared_bytes > _FREE_SHARED_BYTES:
                attribute = (
                    self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                )
                self._call("cuFuncSetAttribute", handle, attribute, shared_bytes)
        except BaseException:
            self._call("cuModuleUnload", module)
            raise
        return KernelFunction(handle, module, name, types, num_warps, shared_bytes)

    def unload(self, function: KernelFunction) -> None:
        """Unload a kernel that no running work uses."""
        with CAPTURES.shared():
            self._call("cuModuleUnload", function.module)

    def launch(
        self,
        function: KernelFunction,
        grid: tuple[int, int],
        arguments: Sequence[int | float],
        stream: Stream,
    ) -> None:
        """Enqueue a kernel. ``grid``: programs along two axes. Arguments are in order."""
        if len(arguments) != len(function.types):
            raise SessionError(
                f"{function.name} takes {len(function.types)} arguments, got {len(arguments)}"
            )
        # Triton's kernels end with the addresses of two scratch areas, which ours do not use.
        types = (*(_C_TYPES.get(t, ctypes.c_void_p) for t in function.types), *_SCRATCH_TYPES)
        with CAPTURES.shared():
            self._call(
                "cuLaunchKernel",
                function.handle,
                *(*grid, 1),
                *(function.num_warps * _WARP, 1, 1),
                function.shared_bytes,
                self._api.CUstream(int(stream)),
                ((*arguments, 0, 0), types),
                0,
            )

    def _call(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        status, *values = getattr(self._api, function)(*arguments)
        if status.name != "CUDA_SUCCESS":
            description = self._api.cuGetErrorString(status)[1]
            text = description.decode(errors="replace") if description else "no description"
            raise DriverCallError(function, str(status.name), text)
        return values[0] if values else None


_SCRATCH_TYPES = (ctypes.c_void_p, ctypes.c_void_p)


def open_driver(extra: str = "resident") -> Driver:
    """Open the CUDA driver. Raises MissingExtraError without ``cuda-bindings``."""
    try:
        return Driver(importlib.import_module(_MODULE))
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", extra, "Searching on the GPU") from error
