"""The process that runs kernels by Triton's interpreter. It checks every access to memory."""

from __future__ import annotations

import pickle
import struct
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from triton.runtime import interpreter as triton_interpreter

from xclip_deploy.export.scan_kernels.compiling import triton_function
from xclip_deploy.runtime.resident.kernel_set import Kernel

_NAMES = {"*fp16": "float16", "*fp32": "float32", "*i32": "int32", "*i64": "int64"}


class OutOfPlace(Exception):
    """An access to memory that the kernel may not touch, or that nothing wrote."""


class Pointer:
    """An argument that the interpreter takes for a tensor."""

    def __init__(self, address: int, kind: str) -> None:
        self._address = address
        self.dtype = _NAMES[kind]

    def data_ptr(self) -> int:
        return self._address


class Memory:
    """The pieces of memory of one launch, at their addresses in this process."""

    def __init__(self, pieces: dict[int, tuple[Any, Any]]) -> None:
        self.pieces = {a: (np.array(data), np.array(w)) for a, (data, w) in pieces.items()}

    def address(self, device_address: int) -> int:
        """Translate an address of the stand-in."""
        for start, (data, _) in self.pieces.items():
            if start <= device_address < start + max(1, len(data)):
                return int(data.ctypes.data) + device_address - start
        raise OutOfPlace(f"{device_address:#x} is no device memory")

    def check(self, addresses: npt.NDArray[Any], mask: Any, nbytes: int, *, reads: bool) -> None:
        """Refuse an access out of place, and mark what is written."""
        touched = np.asarray(addresses)[np.broadcast_to(np.asarray(mask, bool), addresses.shape)]
        touched = touched.astype(np.uint64).ravel()
        if (touched % np.uint64(nbytes)).any():
            raise OutOfPlace(f"an access to {nbytes} bytes that is not aligned")
        is_known = np.zeros(len(touched), bool)
        for data, is_written in self.pieces.values():
            start = np.uint64(data.ctypes.data)
            inside = (touched >= start) & (
                touched + np.uint64(nbytes) <= start + np.uint64(len(data))
            )
            is_known |= inside
            offsets = (touched[inside] - start).astype(np.int64)
            spread = (offsets[:, None] + np.arange(nbytes)).ravel()
            if reads and not is_written[spread].all():
                raise OutOfPlace("memory is read that nothing has written")
            if not reads:
                is_written[spread] = True
        if not is_known.all():
            raise OutOfPlace("an access beyond the arrays")


class _Builder:
    """Checks around the interpreter's own accesses."""

    memory: Memory

    def __init__(self) -> None:
        inner = triton_interpreter.interpreter_builder
        load, store, atomic = (
            inner.create_masked_load,
            inner.create_masked_store,
            inner.create_atomic_rmw,
        )

        def size(pointers: Any) -> int:
            bits: int = pointers.get_element_ty().primitive_bitwidth
            return max(1, bits // 8)

        def checked_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
            self.memory.check(ptrs.data, mask.data, size(ptrs), reads=True)
            return load(ptrs, mask, *rest)

        def checked_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.memory.check(ptrs.data, mask.data, size(ptrs), reads=False)
            return store(ptrs, value, mask, *rest)

        def checked_atomic(op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
            self.memory.check(ptr.data, mask.data, size(ptr), reads=True)
            return atomic(op, ptr, val, mask, *rest)

        inner.create_masked_load = checked_load
        inner.create_masked_store = checked_store
        inner.create_atomic_rmw = checked_atomic


class _Executor(triton_interpreter.GridExecutor):  # type: ignore[misc]  # Triton is untyped
    """Runs on the memory as it is, without a copy by PyTorch."""

    def _init_args_hst(self, args_dev: Any, kwargs: Any) -> tuple[Any, Any]:
        return args_dev, kwargs

    def _restore_args_dev(self, *arguments: Any) -> None:
        return None


def main() -> None:
    """Serve launches from standard input until it ends."""
    builder = _Builder()
    into, out = sys.stdin.buffer, sys.stdout.buffer
    while head := into.read(8):
        message = pickle.loads(into.read(struct.unpack("<Q", head)[0]))
        content = pickle.dumps(_serve(builder, *message), protocol=5)
        out.write(struct.pack("<Q", len(content)) + content)
        out.flush()


def _serve(
    builder: _Builder,
    kernel: str,
    constants: dict[str, Any],
    grid: tuple[int, int, int],
    arguments: list[tuple[str, str, Any]],
    pieces: dict[int, tuple[Any, Any]],
) -> tuple[str | None, dict[int, tuple[Any, Any]]]:
    builder.memory = memory = Memory(pieces)
    function = triton_function(Kernel(kernel))
    values: dict[str, Any] = {}
    for name, kind, value in arguments:
        if kind.startswith("*"):
            values[name] = Pointer(memory.address(value), kind)
        else:
            values[name] = float(np.float32(value)) if kind == "fp32" else int(value)
    try:
        executor = _Executor(function.rewrite(), function.arg_names, grid)
        executor(**values, **constants)
    except Exception as error:  # noqa: BLE001 - the test's process raises it
        return str(error), {}
    return None, memory.pieces


if __name__ == "__main__":
    main()
