"""Memory that stays with the process, by the C library's own account of it.

Neither seconds nor page faults would do: on a busy machine other programs move the first, and
where small blocks happen to lie in the heap moves the second by a thousandfold.
"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from xclip_deploy.training.step import keep_freed_memory

SCRIPT = """
import ctypes, os, sys
import torch
from xclip_deploy.training.step import keep_freed_memory

BYTES = 31 << 20  # The largest blocks that every version of glibc can keep: below 32 MiB.
libc = ctypes.CDLL(None)
is_recent = hasattr(libc, "mallinfo2")
number = ctypes.c_size_t if is_recent else ctypes.c_int

class Account(ctypes.Structure):
    _fields_ = [(name, number) for name in (
        "heap", "ordblks", "smblks", "mapped_blocks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]

account = libc.mallinfo2 if is_recent else libc.mallinfo
account.restype = Account
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]

# Two processes, each with a heap of its own, that import PyTorch once.
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
mode = "keep" if child else "leave"
if mode == "keep":
    assert keep_freed_memory()
before = account()
blocks = [torch.empty(BYTES, dtype=torch.uint8) for _ in range(3)]
print(mode, "mapped", account().mapped_blocks - before.mapped_blocks)
before = account()
# Without a Python object between the two, the freed block ends the heap.
libc.free(libc.malloc(BYTES))
print(mode, "kept", (account().heap - before.heap) >> 20)
"""


def accounts() -> dict[str, dict[str, int]]:
    """Return what a process keeps that asks for it, and what one that does not."""
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, int]] = {"keep": {}, "leave": {}}
    for mode, name, number in map(str.split, output.splitlines()):
        found[mode][name] = int(number)
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_a_step_gets_the_memory_that_the_last_one_freed() -> None:
    """PyTorch's blocks lie in the heap, and the heap keeps what is freed (MiB)."""
    found = accounts()
    kept = found["keep"]
    assert kept["mapped"] == 0
    # The end of the heap may have been free before: the heap then grows by less than a block.
    assert 24 <= kept["kept"] <= 31
    # Untold, each block comes from the system and goes back to it.
    assert found["leave"] == {"mapped": 3, "kept": 0}


def test_elsewhere_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
