"""Allocate, count, bound and free GPU memory and pinned host memory."""

from __future__ import annotations

import ctypes
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DeviceMemoryError
from xclip_deploy.runtime.cuda.runtime_api import Cuda, CudaCallError
from xclip_deploy.runtime.manifest import DType

logger = logging.getLogger(__name__)

ALIGNMENT = 256
"""Alignment of a tensor's address that TensorRT requires, bytes."""

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


class DeviceMemory:
    """Memory that one model holds on one GPU. Safe to use from several threads.

    :meth:`reserve` counts what TensorRT allocates by itself: weights, and with RTX the scratch
    memory.
    """

    def __init__(self, cuda: Cuda, limit_bytes: int | None = None) -> None:
        """Begin to count. ``limit_bytes``: most bytes to hold; None: all that the GPU has."""
        self.cuda = cuda
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._addresses: dict[int, int] = {}  # from address to size

    @property
    def held_bytes(self) -> int:
        """Bytes that are allocated or reserved now."""
        return self._held_bytes

    def allocate(self, nbytes: int, purpose: str) -> int:
        """Allocate device memory and return its address.

        ``purpose``: purpose for the message, such as ``the gallery``. Raises DeviceMemoryError with
        the numbers where it does not fit.
        """
        self.reserve(nbytes, purpose)
        try:
            self.cuda.select()  # a thread that never selected a GPU would allocate on GPU 0
            address = self.cuda.allocate(nbytes)
        except CudaCallError as error:
            refusal = self.no_room(nbytes, purpose) if error.name == _OUT_OF_MEMORY else None
            self.release(nbytes)
            if refusal is None:
                raise
            raise refusal from error
        except BaseException:
            self.release(nbytes)
            raise
        with self._lock:
            self._addresses[address] = nbytes
        return address

    def free(self, address: int) -> None:
        """Free memory of :meth:`allocate`."""
        with self._lock:
            nbytes = self._addresses.pop(address)
            self._held_bytes -= nbytes
        with suppress(CudaCallError):
            self.cuda.select()
        self.cuda.free(address)

    def reserve(self, nbytes: int, purpose: str) -> None:
        """Count memory that TensorRT allocates. Raises DeviceMemoryError above the bound."""
        with self._lock:
            if self._limit is not None and self._held_bytes + nbytes > self._limit:
                raise DeviceMemoryError(
                    f"{purpose} needs {_mib(nbytes)} of GPU memory; {_mib(self._held_bytes)} of "
                    f"the {_mib(self._limit)} that are allowed are in use; raise "
                    "device_memory_bytes, or use smaller batches, fewer streams or "
                    "resident_gallery=False"
                )
            self._held_bytes += nbytes

    def release(self, nbytes: int) -> None:
        """Count reserved memory as free again."""
        with self._lock:
            self._held_bytes -= nbytes

    def no_room(self, nbytes: int, purpose: str) -> DeviceMemoryError:
        """Return the error for memory that was reserved but that the GPU does not have."""
        try:
            free, total = self.cuda.memory()
            found = f"{_mib(free)} of {_mib(total)} are free"
        except CudaCallError:
            found = "how much is free cannot be asked"
        return DeviceMemoryError(
            f"GPU {self.cuda.device_id} is out of memory: {purpose} needs {_mib(nbytes)}, {found}, "
            f"{_mib(max(0, self._held_bytes - nbytes))} are held by this model; end other "
            "programs on it, or use smaller batches, fewer streams or resident_gallery=False"
        )


class DeviceBuffer:
    """Device memory that grows with its content. For one thread at a time."""

    def __init__(self, memory: DeviceMemory, purpose: str) -> None:
        self._memory = memory
        self._purpose = purpose
        self.address = 0
        self.nbytes = 0

    def hold(self, nbytes: int) -> bool:
        """Make room for ``nbytes`` and return whether the buffer grew. Growing loses its content.

        No running work may use the buffer. Raises DeviceMemoryError; the buffer is then empty.
        """
        if nbytes <= self.nbytes:
            return False
        grown = max(nbytes, self.nbytes + self.nbytes // 2)
        self.close()
        try:
            self.address = self._memory.allocate(grown, self._purpose)
        except DeviceMemoryError:
            if grown == nbytes:
                raise
            grown = nbytes
            self.address = self._memory.allocate(grown, self._purpose)
        self.nbytes = grown
        return True

    def close(self) -> None:
        """Free the memory."""
        if self.nbytes:
            address, self.address, self.nbytes = self.address, 0, 0
            self._memory.free(address)


class PinnedBuffer:
    """Pinned host memory that grows with its content. For one thread at a time."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.nbytes = 0

    def hold(self, nbytes: int) -> None:
        """Make room for ``nbytes``. Growing loses the content. Raises SessionError."""
        if nbytes <= self.nbytes:
            return
        grown = max(nbytes, self.nbytes + self.nbytes // 2)
        self.close()
        self._cuda.select()
        for size in dict.fromkeys((grown, nbytes)):
            try:
                self.address = self._cuda.allocate_pinned(size)
            except CudaCallError as error:
                if error.name != _OUT_OF_MEMORY:
                    raise
                if size > nbytes:
                    continue
                raise DeviceMemoryError(
                    f"the host has no {_mib(nbytes)} of memory to pin for copies to the GPU; "
                    "end other programs, or use smaller batches"
                ) from error
            self.nbytes = size
            break

    def view(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return the beginning of the memory as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert size <= self.nbytes
        raw = (ctypes.c_uint8 * size).from_address(self.address)
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the memory."""
        if self.nbytes:
            address, self.address, self.nbytes = self.address, 0, 0
            self._cuda.free_pinned(address)


@dataclass(frozen=True)
class DeviceArray:
    """An array in device memory, which it owns where ``owner`` is set."""

    address: int
    shape: tuple[int, ...]
    dtype: DType
    owner: DeviceBuffer | None = None
    """Buffer that :meth:`close` frees; None where the memory belongs to others."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype.value).itemsize

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Return rows of the first axis, in the same memory."""
        row_bytes = self.nbytes // max(1, self.shape[0])
        shape = (stop - start, *self.shape[1:])
        return DeviceArray(self.address + start * row_bytes, shape, self.dtype)

    def close(self) -> None:
        """Free the memory where the array owns it."""
        if self.owner is not None:
            self.owner.close()

    def __enter__(self) -> DeviceArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.1f} MiB"
