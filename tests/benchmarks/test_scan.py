"""The benchmark of the scan runs on the stand-in, and says what it cannot measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scan_tunings
from benchmarks.scan import (
    PUBLISHED,
    cache_bytes,
    measure,
    peak_table,
    random_weights,
    table,
    text_flop,
)
from benchmarks.scan_tunings import needs
from stand_in_device import Device, install
from stand_in_device.kernels import kernel_image, tiling
from xclip_deploy.export.scan_kernels.compiling import Tuning
from xclip_deploy.runtime.cuda.driver_api import open_driver
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.grains import CLIP_GRAINS
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_loading import ScanKernel
from xclip_deploy.runtime.resident.kernel_set import ARGUMENTS, kernels_of
from xclip_deploy.runtime.resident.shape import ScanShape

ROOT = Path(__file__).parents[2]


def test_searches_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    install(monkeypatch, device)
    shape = ScanShape(
        embed_dim=64, max_frames=2, max_words=3, grains=CLIP_GRAINS, mask_padding=False
    )
    memory, driver = DeviceMemory(open_cuda()), open_driver()
    functions = {
        kernel: ScanKernel(
            driver.load(
                kernel_image(kernel, shape, (8, 9)),
                kernel.value,
                tuple(ARGUMENTS[kernel].values()),
                4,
                64 << 10,
            ),
            tiling(kernel, shape).span,
        )
        for kernel in kernels_of(shape)
    }
    weights = random_weights(shape, np.random.default_rng(0))
    with GpuScan(shape, weights, memory, driver, functions) as scan:
        entries = measure(scan, memory, 12, [1, 2], rounds=1, block=5)
    device.check_nothing_left()
    assert [(entry["videos"], entry["texts"]) for entry in entries] == [(12, 1), (12, 2)]
    assert all(len(entry["samples_ms"]) == 1 and entry["median_ms"] > 0 for entry in entries)
    assert "| 12 | 2 | " in table(entries, "a GPU")


def test_the_page_shows_the_table_by_arithmetic() -> None:
    """13,312 bytes a video; an H100 reads 3.35 TB/s and multiplies 989 TFLOP/s."""
    assert "| H100 SXM | 3,350 | 4.0 | 989 | 55 | 5.9 million |" in peak_table()
    page = (ROOT / "docs" / "resident.md").read_text(encoding="utf-8")
    assert peak_table() in page
    # 17 rows of 512 numbers by 80 columns, and attention in three products of FP16 parts.
    attention = 32**2 + 2 * 16 * 32**2 + 16**2 * (32 + 16) + 16**2 * 16
    assert text_flop(PUBLISHED) == 2 * 17 * 512 * 80 + 3 * 2 * attention
    for parts, sentence in ((2, "and {:.0f} ms at 60 % of it"), (1, "a third: {:.0f} ms at 60 %")):
        total_ms = text_flop(PUBLISHED, parts) * 32e6 / (0.6 * 989.4e12) * 1e3
        assert sentence.format(total_ms) in page
    # A program of 8 or 128 videos reads 80 KiB of factors, and its videos.
    assert cache_bytes(PUBLISHED) == 81920 / 8 + 81920 / 128 + 13312
    read = cache_bytes(PUBLISHED) * 1e6
    assert f"a text and a million videos read {read / 1e9:.0f} GB from it" in page
    assert f"that is {read / 6.5e-3 / 1e12:.1f} TB/s" in page
    assert f"it is {32 * read / 60e-3 / 1e12:.0f} TB/s" in page


def test_tunings_are_compiled_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed (extra: scan)")
    if why_no_gpu() is None:
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "benchmarks.scan_tunings", "--toy", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "| 128 | 128 | 2 | 8 | 128 | 106 | – | – |" in done.stdout
    (entry,) = json.loads((tmp_path / "scan-tunings.json").read_text())["entries"]
    assert entry["shared_bytes"] <= 113 << 10, "two programs share a processor"
    too_much = needs((8, 9), Tuning(256, 128, 4, num_warps=16))
    assert "needs" in too_much["error"]
    assert "needs" in scan_tunings.table([too_much], [1])


@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    if why_no_gpu() is None:
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "benchmarks.scan", "--toy", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Nothing was measured: " in done.stdout
    content = json.loads((tmp_path / "scan.json").read_text())
    assert content["entries"] == []
    assert content["no_gpu"]
