"""Choosing the TensorRT library, and what it builds for."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from xclip_deploy.errors import EngineBuildError, InvalidArgumentError, MissingExtraError
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.runtime.engine_set import BuildOptions, Flavour, HardwareCompatibility
from xclip_deploy.runtime.nvidia_driver import VisibleGpu, first_gpu

HAS_GPU = first_gpu() is not None
HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None


def block(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make modules look as if they were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed on this platform")
def test_auto_takes_rtx_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xclip_deploy.export.tensorrt.flavours.first_gpu", lambda: None)
    library = load_tensorrt()
    assert library.flavour is Flavour.RTX
    assert library.gpu is None
    assert library.name == f"tensorrt_rtx {library.version}"


@pytest.mark.parametrize("flavour", ["auto", "rtx"])
def test_nothing_installed(monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    block(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(MissingExtraError) as caught:
        load_tensorrt(flavour)
    assert "pip install 'xclip-deploy[rtx]'" in str(caught.value)


def test_tensorrt_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    block(monkeypatch, "tensorrt")
    with pytest.raises(MissingExtraError) as caught:
        load_tensorrt("tensorrt")
    assert "pip install 'xclip-deploy[tensorrt]'" in str(caught.value)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU, on which tensorrt can build")
def test_tensorrt_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty module stands for the bindings: without a GPU none of it is reached."""
    monkeypatch.setitem(sys.modules, "tensorrt", sys)
    with pytest.raises(EngineBuildError, match="none is here"):
        load_tensorrt("tensorrt")


def test_unknown_flavour() -> None:
    with pytest.raises(InvalidArgumentError, match="expected auto, tensorrt or rtx"):
        load_tensorrt("vanilla")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
def test_the_first_gpu() -> None:
    gpu = first_gpu()
    assert gpu is not None
    assert gpu.name
    assert (gpu.major, gpu.minor) >= (5, 0)


@pytest.mark.parametrize(
    ("gpu", "options", "target"),
    [
        (None, BuildOptions(), "portable"),
        (None, BuildOptions(compute_capabilities=("sm86", "sm120")), "sm86-sm120"),
        (VisibleGpu("a GPU", 9, 0), BuildOptions(), "sm90"),
        (
            VisibleGpu("a GPU", 8, 0),
            BuildOptions(hardware_compatibility=HardwareCompatibility.AMPERE_PLUS),
            "sm80-ampere-plus",
        ),
    ],
)
def test_targets(gpu: VisibleGpu | None, options: BuildOptions, target: str) -> None:
    flavour = Flavour.RTX if gpu is None else Flavour.TENSORRT
    assert TensorRT(flavour, None, "1.2.3", gpu).target(options) == target
