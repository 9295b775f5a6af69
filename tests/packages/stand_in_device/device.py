"""Memory and streams of the stand-in."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 256
_FIRST_ADDRESS = 0x7000_0000_0000
_POISON = 0xCB


class Violation(AssertionError):
    """Something that a real GPU would answer with garbage, a crash or silence."""


@dataclass
class Allocation:
    """A piece of device memory."""

    address: int
    data: npt.NDArray[np.uint8]
    is_written: npt.NDArray[np.bool_]
    """Of every byte."""


@dataclass
class Work:
    """Something enqueued on a stream."""

    run: Callable[[], None]
    touches: tuple[int, ...]
    """Addresses of the allocations, device or pinned, that it reads or writes."""
    exclusive: tuple[int, ...] = ()
    """Addresses that no work on another stream may touch meanwhile: scratch memory."""
    check: Callable[[], None] | None = None
    """Before a graph that holds this is launched: whether its context is as it was."""


@dataclass(eq=False)
class Stream:
    """A stream; ``int(stream)`` is its handle."""

    handle: int
    pending: list[Work] = field(default_factory=list)
    capture: list[Work] | None = None
    capturing_thread: int | None = None
    is_capture_valid: bool = True

    def __int__(self) -> int:
        return self.handle


class Device:
    """One GPU."""

    def __init__(
        self,
        total_bytes: int = 1 << 30,
        compute_capability: tuple[int, int] = (8, 9),
        count: int = 1,
        driver_version: int = 13000,
        runtime_version: int = 13050,
    ) -> None:
        self.name = "stand-in device (no GPU)"
        self.total_bytes = total_bytes
        self.compute_capability = compute_capability
        self.count = count
        self.driver_version = driver_version
        self.runtime_version = runtime_version
        self.lock = threading.RLock()
        self.violations: list[str] = []
        self.calls: list[str] = []
        """Names of the functions of the CUDA runtime that were called."""
        self.most_used_bytes = 0
        self.executions = 0
        self.graph_launches = 0
        self.kernel_launches: list[str] = []
        """Names of the kernels that were launched."""
        self.bytes_to_device = 0
        self.objects = 0
        """Engines, contexts and modules that live."""
        self._thread = threading.local()
        self._next_address = _FIRST_ADDRESS
        self._allocations: dict[int, Allocation] = {}
        self._pinned: dict[int, Any] = {}
        self._freed_pinned: list[Any] = []  # kept, so that late writes hit nobody else
        self._streams: dict[int, Stream] = {}
        self._graphs: set[int] = set()
        self._faults: dict[str, list[tuple[int, str]]] = {}

    # -- faults ----------------------------------------------------------------------------

    def fail(self, function: str, status: str, after: int = 0) -> None:
        """Let one call of a function fail, after so many that succeed."""
        self._faults.setdefault(function, []).append((after, status))

    def fault(self, function: str) -> str | None:
        """The status that a call of a function shall fail with, if any."""
        self.calls.append(function)
        waiting = self._faults.get(function, [])
        if not waiting:
            return None
        after, status = waiting[0]
        if after == 0:
            waiting.pop(0)
            return status
        waiting[0] = (after - 1, status)
        return None

    def violation(self, what: str) -> Violation:
        self.violations.append(what)
        return Violation(what)

    # -- the thread's device ---------------------------------------------------------------

    def select(self, number: int) -> None:
        self._thread.selected = number

    def check_selected(self, what: str) -> None:
        if getattr(self._thread, "selected", None) is None:
            raise self.violation(f"{what} in a thread that has selected no device")

    # -- device memory ---------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        return sum(len(allocation.data) for allocation in self._allocations.values())

    def allocate(self, nbytes: int) -> int | None:
        """Address of new memory, None where there is no room."""
        with self.lock:
            if self.used_bytes + nbytes > self.total_bytes:
                return None
            address = self._next_address
            # A gap, so that what runs over the end of one does not hit the next.
            self._next_address += -(-nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT
            data = np.full(nbytes, _POISON, np.uint8)
            self._allocations[address] = Allocation(address, data, np.zeros(nbytes, bool))
            self.most_used_bytes = max(self.most_used_bytes, self.used_bytes)
            return address

    def free(self, address: int) -> None:
        with self.lock:
            if address not in self._allocations:
                raise self.violation(f"device memory {address:#x} freed twice, or never allocated")
            self._check_idle(address)
            del self._allocations[address]

    def find(self, address: int, nbytes: int, what: str) -> Allocation:
        """The allocation that holds a range."""
        with self.lock:
            for start, allocation in self._allocations.items():
                if start <= address < start + max(1, len(allocation.data)):
                    if address + nbytes > start + len(allocation.data):
                        room = start + len(allocation.data) - address
                        raise self.violation(f"{what}: {nbytes} bytes where there are {room}")
                    return allocation
        raise self.violation(f"{what}: {address:#x} is no device memory, or no more")

    def read(self, address: int, nbytes: int, what: str) -> npt.NDArray[np.uint8]:
        allocation = self.find(address, nbytes, what)
        start = address - allocation.address
        if not allocation.is_written[start : start + nbytes].all():
            raise self.violation(f"{what}: memory is read that nothing has written")
        content: npt.NDArray[np.uint8] = allocation.data[start : start + nbytes].copy()
        return content

    def write(self, address: int, content: npt.NDArray[np.uint8], what: str) -> None:
        allocation = self.find(address, len(content), what)
        start = address - allocation.address
        allocation.data[start : start + len(content)] = content
        allocation.is_written[start : start + len(content)] = True

    # -- pinned host memory ----------------------------------------------------------------

    def allocate_pinned(self, nbytes: int) -> int:
        with self.lock:
            buffer = (ctypes.c_uint8 * max(1, nbytes))()
            ctypes.memset(buffer, _POISON, nbytes)
            address = ctypes.addressof(buffer)
            self._pinned[address] = buffer
            return address

    def free_pinned(self, address: int) -> None:
        with self.lock:
            if address not in self._pinned:
                raise self.violation("pinned memory freed twice, or never allocated")
            self._check_idle(address)
            buffer = self._pinned.pop(address)
            ctypes.memset(buffer, _POISON, len(buffer))
            self._freed_pinned.append(buffer)

    def pinned(self, address: int, nbytes: int, what: str) -> tuple[int, npt.NDArray[np.uint8]]:
        """The pinned allocation that holds a range, and the range."""
        with self.lock:
            for start, buffer in self._pinned.items():
                if start <= address and address + nbytes <= start + len(buffer):
                    whole = np.ctypeslib.as_array(buffer)
                    return start, whole[address - start : address - start + nbytes]
        raise self.violation(f"{what}: the host memory is not pinned, too small, or freed")

    # -- streams ---------------------------------------------------------------------------

    def create_stream(self) -> Stream:
        with self.lock:
            self._next_address += ALIGNMENT
            stream = Stream(self._next_address)
            self._streams[stream.handle] = stream
            return stream

    def stream(self, handle: object, what: str) -> Stream:
        number = int(handle)  # type: ignore[call-overload]
        if number not in self._streams:
            raise self.violation(f"{what}: no such stream, or no more")
        return self._streams[number]

    def enqueue(self, stream: Stream, work: Work) -> None:
        with self.lock:
            for address in work.exclusive:
                for other in self._streams.values():
                    if other is not stream and any(address in w.touches for w in other.pending):
                        raise self.violation("scratch memory used on two streams at once")
            (stream.pending if stream.capture is None else stream.capture).append(work)

    def synchronize(self, stream: Stream) -> None:
        with self.lock:
            pending, stream.pending = stream.pending, []
            for work in pending:
                work.run()

    def destroy_stream(self, stream: Stream) -> None:
        with self.lock:
            if stream.pending:
                raise self.violation("a stream was destroyed before it was waited for")
            del self._streams[stream.handle]

    def is_capturing(self) -> bool:
        """Whether this thread is capturing on any stream."""
        thread = threading.get_ident()
        return any(stream.capturing_thread == thread for stream in self._streams.values())

    def add_graph(self) -> int:
        with self.lock:
            self._next_address += ALIGNMENT
            self._graphs.add(self._next_address)
            return self._next_address

    def remove_graph(self, number: int) -> None:
        with self.lock:
            if number not in self._graphs:
                raise self.violation("a graph was destroyed twice")
            self._graphs.remove(number)

    # -- the end ---------------------------------------------------------------------------

    def check_nothing_left(self) -> None:
        """Raise Violation for earlier ones, and for what was not given back."""
        if self.objects:
            gc.collect()  # what hangs in cycles was given back
        left = {
            "pieces of device memory": len(self._allocations),
            "pieces of pinned memory": len(self._pinned),
            "streams": len(self._streams),
            "graphs": len(self._graphs),
            "engines, contexts and modules": self.objects,
        }
        found = [f"{count} {what} not given back" for what, count in left.items() if count]
        if self.violations or found:
            raise Violation("; ".join([*self.violations, *found]))

    def _check_idle(self, address: int) -> None:
        for stream in self._streams.values():
            if any(address in work.touches for work in stream.pending):
                raise self.violation("memory freed while enqueued work uses it")
