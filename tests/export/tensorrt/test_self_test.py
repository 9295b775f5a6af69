"""When new engines are run, and with what. That they run needs a GPU: see test_on_gpu.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle
from xclip_deploy.export import verification
from xclip_deploy.export.tensorrt import (
    BuildResult,
    EngineShapes,
    build_engines,
    builder,
    verify_on_gpu,
)
from xclip_deploy.runtime.nvidia_driver import VisibleGpu


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the verification is asked for, in place of a GPU to do it on."""
    calls: list[tuple[Any, ...]] = []

    def verify(bundle: Bundle, folder: Path, *, max_batch: int) -> None:
        calls.append((bundle, folder, max_batch))

    monkeypatch.setattr(verification, "verify_engines", verify)
    return calls


def test_engines_are_run_on_a_gpu_that_they_are_for(
    built: BuildResult, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "first_gpu", lambda: VisibleGpu("a GPU", 8, 9))
    bundle = Bundle.open(built.path.parent.parent)
    assert verify_on_gpu(bundle, built.path, built.engine_set)
    # The engines were built for batches of at most 4.
    assert asked == [(bundle, built.path, 4)]


@pytest.mark.parametrize(
    "gpu", [None, VisibleGpu("an old GPU", 7, 5), VisibleGpu("NVIDIA H100", 9, 0)]
)
def test_elsewhere_they_are_not(
    built: BuildResult,
    asked: list[tuple[Any, ...]],
    gpu: VisibleGpu | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builder, "first_gpu", lambda: gpu)
    bundle = Bundle.open(built.path.parent.parent)
    assert not verify_on_gpu(bundle, built.path, built.engine_set)
    assert asked == []


@pytest.mark.parametrize(
    ("gpu", "warning"),
    [
        (None, None),
        (VisibleGpu("an RTX GPU", 8, 9), None),
        (
            VisibleGpu("NVIDIA H100", 9, 0),
            "TensorRT-RTX does not support compute capability 9.0 (it supports 7.5, 8.0, 8.6, 8.9, "
            "12.0 and 12.1): the engines run on other GPUs, not on this machine's NVIDIA H100, and "
            "are not tested here; for this GPU use --flavor tensorrt",
        ),
    ],
)
def test_rtx_beside_a_gpu_that_it_does_not_support(
    built: BuildResult,
    small_shapes: EngineShapes,
    gpu: VisibleGpu | None,
    warning: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Building for other GPUs is legitimate, and says that it is for them."""
    monkeypatch.setattr(builder, "first_gpu", lambda: gpu)
    bundle = built.path.parent.parent
    again = build_engines(bundle, flavour="rtx", shapes=small_shapes)
    assert not again.is_new
    assert [record.message for record in caplog.records] == ([] if warning is None else [warning])
