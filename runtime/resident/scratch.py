"""GPU and pinned memory of one pass of a scan: what the host sends, works with and fetches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError, SessionError
from xclip_deploy.runtime.arrays import AnyArray, BoolArray
from xclip_deploy.runtime.cuda.memory import (
    ALIGNMENT,
    DeviceArray,
    DeviceBuffer,
    DeviceMemory,
    PinnedBuffer,
)
from xclip_deploy.runtime.cuda.runtime_api import Stream
from xclip_deploy.runtime.manifest import DType

MAX_SLOTS = (1 << 31) - (1 << 14)
"""Most slots of a gallery. Their numbers, and those beyond the last in its block, are int32."""
_PIECE_BYTES = 16 << 20
"""Most pinned memory through which results are fetched."""


class Upload:
    """Arrays that travel to the GPU in one copy. For one thread at a time."""

    def __init__(self, memory: DeviceMemory, purpose: str) -> None:
        self._cuda = memory.cuda
        self._device = DeviceBuffer(memory, purpose)
        self._pinned = PinnedBuffer(memory.cuda)

    def send(self, arrays: Mapping[str, AnyArray], stream: Stream) -> dict[str, int]:
        """Enqueue the copy, and return the address of each array.

        The stream must have done earlier work with this object. Raises DeviceMemoryError and
        SessionError.
        """
        offsets: dict[str, int] = {}
        total = 0
        for name, array in arrays.items():
            offsets[name] = total
            total += -(-max(1, array.nbytes) // ALIGNMENT) * ALIGNMENT
        self._device.hold(total)
        self._pinned.hold(total)
        room = self._pinned.view((total,), "uint8")
        for name, array in arrays.items():
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            room[offsets[name] : offsets[name] + len(raw)] = raw
        self._cuda.copy_to_device(self._device.address, self._pinned.address, total, stream)
        return {name: self._device.address + offset for name, offset in offsets.items()}

    def close(self) -> None:
        """Free the memory. Raises SessionError."""
        _close_both(self._device, self._pinned)


class Results:
    """Arrays that kernels write on the GPU, and that the host may fetch. For one thread."""

    def __init__(self, memory: DeviceMemory, purpose: str) -> None:
        self._cuda = memory.cuda
        self._device = DeviceBuffer(memory, purpose)
        self._pinned = PinnedBuffer(memory.cuda)

    def hold(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Make room for arrays of so many bytes, and return the address of each.

        The content is lost. Raises DeviceMemoryError.
        """
        offsets: dict[str, int] = {}
        total = 0
        for name, nbytes in sizes.items():
            offsets[name] = total
            total += -(-max(1, nbytes) // ALIGNMENT) * ALIGNMENT
        self._device.hold(total)
        return {name: self._device.address + offset for name, offset in offsets.items()}

    def fetch(self, arrays: Sequence[tuple[int, AnyArray]], stream: Stream) -> None:
        """Fill arrays from GPU addresses, after the work of the stream. Raises SessionError."""
        waiting: list[tuple[npt.NDArray[np.uint8], int]] = []
        used = 0
        self._pinned.hold(min(_PIECE_BYTES, sum(array.nbytes for _, array in arrays)))
        for address, array in arrays:
            raw: npt.NDArray[np.uint8] = array.reshape(-1).view(np.uint8)
            start = 0
            while start < len(raw):
                if used == self._pinned.nbytes:
                    self._take(waiting, stream)
                    used = 0
                part = raw[start : start + self._pinned.nbytes - used]
                self._cuda.copy_to_host(
                    self._pinned.address + used, address + start, len(part), stream
                )
                waiting.append((part, used))
                start += len(part)
                used += len(part)
        self._take(waiting, stream)

    def _take(self, waiting: list[tuple[npt.NDArray[np.uint8], int]], stream: Stream) -> None:
        """Wait for the copies, and move them out of the pinned memory."""
        self._cuda.synchronize(stream)
        room = self._pinned.view((self._pinned.nbytes,), "uint8")
        for part, offset in waiting:
            part[:] = room[offset : offset + len(part)]
        waiting.clear()

    def close(self) -> None:
        """Free the memory. Raises SessionError."""
        _close_both(self._device, self._pinned)


def _close_both(device: DeviceBuffer, pinned: PinnedBuffer) -> None:
    try:
        device.close()
    finally:
        pinned.close()


def packed(allowed: BoolArray) -> npt.NDArray[np.uint8]:
    """Pack a mask to bits, in whole words of 32, the first slot lowest."""
    bits = np.packbits(allowed, bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4))


def check_slots(slots: int) -> None:
    """Refuse more slots than kernels count. Raises SessionError."""
    if slots > MAX_SLOTS:
        raise SessionError(
            f"the gallery has {slots:,} slots on the GPU, the scan counts {MAX_SLOTS:,}; "
            "search on the CPU"
        )


def check_array(name: str, array: DeviceArray | None, shape: tuple[int, ...], dtype: DType) -> None:
    """Refuse an array that kernels would misread. Raises InvalidArgumentError."""
    expected = f"{dtype.value} {list(shape)} on the GPU, aligned to {ALIGNMENT} bytes"
    if array is None:
        raise InvalidArgumentError(f"{name} is missing; this model's scan needs {expected}")
    if array.shape != shape or array.dtype is not dtype or array.address % ALIGNMENT:
        raise InvalidArgumentError(
            f"{name} is {array.dtype.value} {list(array.shape)} at {array.address:#x}; expected "
            f"{expected}"
        )
