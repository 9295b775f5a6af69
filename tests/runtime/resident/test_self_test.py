"""Kernels answer nothing before they agreed with the scorer on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device
from stand_in_device.kernels import write_kernels
from xclip_deploy import Bundle
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.resident import self_test
from xclip_deploy.runtime.resident.self_test import open_tested_scan
from xclip_deploy.runtime.sessions.block_scorer import CpuBlockScorer
from xclip_deploy.runtime.sessions.machine_records import DIRECTORY

TEST = ["query_kernel", "frames_kernel", "video_kernel"]


@pytest.fixture
def own(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle in a folder that may be changed, and a short self-test."""
    monkeypatch.setattr(self_test, "_VIDEOS", 9)
    shutil.copytree(bundle_path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def memory(device: Device) -> DeviceMemory:
    return DeviceMemory(open_cuda())


def records(bundle: Bundle) -> list[Path]:
    return sorted((bundle.path / DIRECTORY).glob("scan-*.json"))


def test_the_first_scan_is_tested(own: Bundle, device: Device, memory: DeviceMemory) -> None:
    write_kernels(own)
    open_tested_scan(own, memory).close()
    assert device.kernel_launches == [*TEST, *["digit_kernel"] * 3, "collect_kernel", *TEST]
    (record,) = records(own)
    assert json.loads(record.read_text())["finding"] == {"passed": True, "detail": ""}
    device.kernel_launches.clear()
    open_tested_scan(own, memory).close()
    assert device.kernel_launches == [], "the verdict is known"
    # Other code was not tested.
    write_kernels(own, num_warps=8)
    open_tested_scan(own, memory).close()
    assert device.kernel_launches[:3] == TEST
    assert len(records(own)) == 2


def test_wrong_kernels_are_refused(own: Bundle, device: Device, memory: DeviceMemory) -> None:
    write_kernels(own, temperature=0.0101)
    expected = (
        r"^the scan kernels of .* failed their self-test on this GPU: the scan's \w+ is off by .*; "
        r"expected at most .*; run: xclip-deploy build-scan .* --force$"
    )
    with pytest.raises(SessionError, match=expected):
        open_tested_scan(own, memory)
    device.kernel_launches.clear()
    with pytest.raises(SessionError, match=expected):
        open_tested_scan(own, memory)
    assert device.kernel_launches == [], "the verdict is known"


def test_a_full_gpu_says_nothing_about_kernels(
    own: Bundle, device: Device, memory: DeviceMemory
) -> None:
    write_kernels(own)
    # The first allocations are those of the matrices and of the videos.
    device.fail("cudaMalloc", "cudaErrorMemoryAllocation", after=1)
    with pytest.raises(DeviceMemoryError):
        open_tested_scan(own, memory)
    assert records(own) == []
    open_tested_scan(own, memory).close()
    assert len(records(own)) == 1


def test_a_bundle_that_cannot_be_written_is_tested_each_time(
    own: Bundle, device: Device, memory: DeviceMemory
) -> None:
    write_kernels(own)
    (own.path / DIRECTORY).write_text("no folder")
    for _ in range(2):
        device.kernel_launches.clear()
        open_tested_scan(own, memory).close()
        assert device.kernel_launches[:3] == TEST


def test_videos_whose_scores_underflow_prove_nothing(
    own: Bundle, device: Device, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is compared. Where too few are left, the kernels are not taken."""
    write_kernels(own)
    score = CpuBlockScorer.score

    def spread(self: CpuBlockScorer, *features: Any) -> Any:
        found, is_exact = score(self, *features)
        is_exact[:lost] = False
        for array in found.values():
            array[:, :lost] = np.nan
        return found, is_exact

    monkeypatch.setattr(CpuBlockScorer, "score", spread)
    lost = 7
    with pytest.raises(SessionError, match="holds the scores of 2 of 9 random videos; run: "):
        open_tested_scan(own, memory)
    shutil.rmtree(own.path / DIRECTORY)
    lost = 6
    open_tested_scan(own, memory).close()
