"""Run the scan kernels by Triton's interpreter, in a process of its own.

The interpreter must be chosen before Triton is imported, and compiling in the same process would
then fail. One process serves a whole run of tests.
"""

from __future__ import annotations

import atexit
import os
import pickle
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stand_in_device.device import Device

_CHILD = Path(__file__).with_name("interpreted.py")


@dataclass(frozen=True)
class KernelCall:
    """One launch."""

    kernel: str
    constants: dict[str, Any]
    grid: tuple[int, int, int]
    arguments: list[tuple[str, str, int | float]]
    """Name, type and value of each argument; addresses are those of the stand-in."""


class Interpreter:
    """The process. Threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        )
        atexit.register(self.close)

    def run(self, device: Device, call: KernelCall) -> None:
        """Run a kernel on the stand-in's memory. Raises Violation for an access out of place."""
        pieces: dict[int, tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]] = {}
        for name, kind, value in call.arguments:
            if kind.startswith("*"):
                piece = device.find(int(value), 1, f"{name} of {call.kernel}")
                pieces[piece.address] = (piece.data, piece.is_written)
        with self._lock:
            self._send((call.kernel, call.constants, call.grid, call.arguments, pieces))
            failure, changed = self._receive()
        if failure is not None:
            raise device.violation(f"{call.kernel}: {failure}")
        for address, (data, is_written) in changed.items():
            pieces[address][0][:] = data
            pieces[address][1][:] = is_written

    def close(self) -> None:
        """End the process."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        self._child.wait()

    def _send(self, message: object) -> None:
        assert self._child.stdin is not None
        content = pickle.dumps(message, protocol=5)
        self._child.stdin.write(struct.pack("<Q", len(content)) + content)
        self._child.stdin.flush()

    def _receive(self) -> Any:
        assert self._child.stdout is not None
        head = self._child.stdout.read(8)
        if len(head) < 8:
            raise RuntimeError("the process of Triton's interpreter has ended")
        return pickle.loads(self._child.stdout.read(struct.unpack("<Q", head)[0]))


@cache
def interpreter() -> Interpreter:
    """The process of this run of tests, which the first caller starts."""
    return Interpreter()
