"""Choice of engines and of the library that runs them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from stand_in_device import Device, install, install_lean_alone, write_engines
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import (
    DriverError,
    EngineError,
    InvalidArgumentError,
    MissingExtraError,
)
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.engine_set import BuildOptions, Flavour
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.nvidia_driver import VisibleGpu
from xclip_deploy.runtime.sessions import (
    Placement,
    Refusal,
    SessionOptions,
    offers,
    onnx_runtime,
)
from xclip_deploy.runtime.sessions import place as open_loader


def options(**chosen: Any) -> SessionOptions:
    return SessionOptions(**chosen)


def place(chosen: SessionOptions, bundle: Bundle) -> Placement:
    return open_loader(chosen, bundle).placement


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, with_cuda: None) -> Device:
    stand_in = Device()
    install(monkeypatch, stand_in)
    return stand_in


def test_auto_takes_engines_that_fit(stand_in: Device, own: Bundle) -> None:
    assert place(options(), own).backend == "onnxruntime"
    write_engines(own, Flavour.RTX)
    chosen = place(options(), own)
    assert (chosen.backend, chosen.precision) == ("rtx", Precision.FP16)
    assert chosen.reason == (
        "auto: engines rtx-1.7.1.116-fp16-portable fit tensorrt_rtx 1.7.1.116 and "
        "stand-in device (no GPU) (sm89), first by rank: xclip-deploy bench measures which is "
        "faster; the bundle has no tensorrt engines"
    )
    write_engines(own, Flavour.TENSORRT)
    assert place(options(), own).backend == "tensorrt"
    assert place(options(backend="rtx"), own).backend == "rtx"
    assert place(options(backend="onnxruntime"), own).reason == (
        "onnxruntime was asked for: a GPU is there, with fused graphs"
    )
    assert place(options(device="cpu"), own).backend == "onnxruntime"
    # No engines of that precision: the graphs have it.
    assert place(options(precision="fp32"), own).backend == "onnxruntime"


def test_rtx_engines_on_an_h100(
    monkeypatch: pytest.MonkeyPatch, with_cuda: None, own: Bundle
) -> None:
    """TensorRT-RTX supports no compute capability 9.0, and says ``EngineValidity.INVALID``."""
    h100 = VisibleGpu("NVIDIA H100", 9, 0)
    install(monkeypatch, Device(compute_capability=(9, 0)))
    monkeypatch.setattr(nvidia_driver, "visible_gpus", lambda: (h100,))
    reason = (
        "TensorRT-RTX does not support compute capability 9.0 (it supports 7.5, 8.0, 8.6, 8.9, "
        "12.0 and 12.1)"
    )
    folder = write_engines(own, Flavour.RTX)
    chosen = place(options(), own)
    assert (chosen.backend, chosen.device) == ("onnxruntime", "cuda")
    assert reason in chosen.reason
    with pytest.raises(EngineError) as caught:
        place(options(backend="rtx"), own)
    assert str(caught.value).startswith(f"{reason}, and GPU 0 is ")
    assert str(caught.value).endswith(f"build-trt {own.path} --flavor tensorrt")
    refusals = [offer for offer in offers(own) if isinstance(offer, Refusal)]
    assert [(refusal.options.engines, refusal.reason) for refusal in refusals] == [(folder, reason)]
    # Beside a GPU that can run them, the one that a session uses decides.
    monkeypatch.setattr(nvidia_driver, "visible_gpus", lambda: (h100, VisibleGpu("RTX", 8, 9)))
    assert not any(isinstance(offer, Refusal) for offer in offers(own))


def test_engines_in_a_folder_of_ones_own(stand_in: Device, own: Bundle, tmp_path: Path) -> None:
    """As new ones are that have not taken their place yet."""
    folder = write_engines(own, Flavour.RTX).rename(tmp_path / ".partial")
    with pytest.raises(EngineError, match="has no fp16 or fp32 engines"):
        place(options(backend="rtx"), own)
    with DeployedModel(own, options(backend="rtx", engines=folder)) as model:
        assert model.encode_texts(["a dog"]).sentence_features.shape == (1, 64)
    stand_in.check_nothing_left()
    with pytest.raises(EngineError, match="not a description of engines"):
        place(options(backend="rtx", engines=tmp_path), own)
    with pytest.raises(InvalidArgumentError, match="expected backend tensorrt or rtx"):
        options(engines=folder)


def test_auto_says_why_it_took_no_engines(stand_in: Device, own: Bundle) -> None:
    folder = write_engines(own, Flavour.RTX, version="1.6.0.1")
    chosen = place(options(), own)
    assert chosen.backend == "onnxruntime"
    assert chosen.reason.startswith("auto: a GPU is there, with fused graphs; engines ")
    assert "was built with tensorrt_rtx 1.6.0.1, this machine has" in chosen.reason
    (folder / "engines.json").write_text("{}")
    assert "not a description of engines" in place(options(), own).reason


def test_engines_that_were_asked_for_are_not_replaced(stand_in: Device, own: Bundle) -> None:
    with pytest.raises(EngineError, match=r"has no fp16 or fp32 engines of flavour rtx"):
        place(options(backend="rtx"), own)
    write_engines(own, Flavour.RTX, version="1.6.0.1")
    with pytest.raises(EngineError, match=r"was built with tensorrt_rtx 1.6.0.1"):
        DeployedModel(own, options(backend="rtx"))
    stand_in.driver_version = 12000
    with pytest.raises(DriverError, match="backend rtx: the NVIDIA driver is too old: it runs"):
        DeployedModel(own, options(backend="rtx"))
    stand_in.driver_version = 0
    with pytest.raises(DriverError, match="backend rtx: no NVIDIA driver is installed"):
        DeployedModel(own, options(backend="rtx"))


def test_a_library_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, stand_in: Device, own: Bundle
) -> None:
    write_engines(own, Flavour.TENSORRT)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"run: pip install 'xclip-deploy\[tensorrt\]'"):
        place(options(backend="tensorrt"), own)
    assert "needs tensorrt, which is not installed" in place(options(), own).reason


def test_the_lean_runtime_runs_engines(
    monkeypatch: pytest.MonkeyPatch, with_cuda: None, own: Bundle
) -> None:
    device = Device()
    enterprise, _ = install(monkeypatch, device)
    install_lean_alone(monkeypatch, enterprise)
    folder = write_engines(own, Flavour.TENSORRT)
    with pytest.raises(EngineError, match="TensorRT's lean runtime alone; install the extra"):
        place(options(backend="tensorrt"), own)
    assert place(options(), own).backend == "onnxruntime"
    shutil.rmtree(folder)
    write_engines(own, Flavour.TENSORRT, options=BuildOptions(version_compatible=True))
    with DeployedModel(own, options()) as model:
        assert model.placement.backend == "tensorrt"
        assert "fit tensorrt_lean 10." in model.placement.reason
        assert model.encode_texts(["a dog"]).sentence_features.shape == (1, 64)
    device.check_nothing_left()
    monkeypatch.setitem(sys.modules, "tensorrt", enterprise)
    assert "fit tensorrt 10." in place(options(), own).reason, "the whole library comes first"


def test_engines_without_onnxruntime(
    monkeypatch: pytest.MonkeyPatch, stand_in: Device, own: Bundle
) -> None:
    """Where engines run, no other library is needed."""
    write_engines(own, Flavour.RTX)

    def missing() -> list[str]:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle")

    monkeypatch.setattr(onnx_runtime, "available_providers", missing)
    assert place(options(), own).backend == "rtx"
