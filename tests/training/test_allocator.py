"""Memory that stays with the process, counted in the pages that the system had to clear."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from xclip_deploy.training.allocator import keep_freed_memory

SCRIPT = """
import resource, sys
import torch
from xclip_deploy.training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [torch.ones(5 << 20) for _ in range(8)]  # 20 MiB each
    return sum(float(block[0]) for block in blocks)

step()
step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_a_step_gets_the_memory_that_the_last_one_freed() -> None:
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", SCRIPT, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # All 160 MiB of each step; and where they are kept, next to nothing.
    assert faults("keep") * 10 < faults("leave")


def test_elsewhere_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
