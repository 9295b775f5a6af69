"""Cores and memory that a process may use, and what it holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xclip_deploy.runtime import resources

MIB = 1 << 20


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The limits of a container on a machine of 16 cores, of which affinity allows 6."""
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", 6),
        ("200000 100000\n", 2),
        ("50000 100000\n", 1),
        ("10000 100000\n", 1),
        ("900000 100000\n", 6),
    ],
)
def test_the_smaller_of_affinity_and_quota(cgroup: Path, quota: str, cores: int) -> None:
    (cgroup / "cpu.max").write_text(quota)
    assert resources.usable_cores() == cores


def test_without_a_container(cgroup: Path) -> None:
    assert resources.usable_cores() == 6


def test_where_affinity_is_unknown(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert resources.usable_cores() == 16


def test_a_container_s_memory(cgroup: Path) -> None:
    whole = resources.usable_memory_bytes()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (cgroup / "memory.max").write_text(f"{64 * MIB}\n")
    assert resources.usable_memory_bytes() == 64 * MIB
    (cgroup / "memory.max").write_text("max\n")
    assert resources.usable_memory_bytes() == whole


def test_the_peak_begins_anew() -> None:
    before = resources.resident_bytes()
    block = bytearray(os.urandom(1) * (64 * MIB))
    assert resources.resident_bytes() > before + 60 * MIB
    del block
    peak = resources.peak_resident_bytes()
    assert peak is not None
    assert peak > before + 60 * MIB
    resources.forget_peak()
    found = resources.peak_resident_bytes()
    assert found is not None
    assert found < peak - 30 * MIB


def test_where_the_system_tells_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PROCESS", tmp_path / "missing")
    resources.forget_peak()
    assert resources.peak_resident_bytes() is None
