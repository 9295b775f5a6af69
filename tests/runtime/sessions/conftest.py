"""Machines: builds of ONNX Runtime, the stand-in device, and a real GPU where there is one."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stand_in_device import Device, OnnxRuntimeModule, write_engines
from xclip_deploy import Bundle, DeployedModel, build_engines
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.engine_set import Flavour
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.sessions import SessionOptions, onnx_runtime, onnx_session
from xclip_deploy.runtime.sessions.native.backend import EngineLoader

BOTH = (Flavour.TENSORRT, Flavour.RTX)
MAX_BATCH = 8
CPU_ONLY = ["CPUExecutionProvider"]
WITH_TENSORRT = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path) -> Bundle:
    """The bundle at a path of its own: its files are links."""
    path = tmp_path / "bundle"
    path.mkdir()
    for file in bundle.path.iterdir():
        (path / file.name).symlink_to(file)
    return replace(bundle, path=path)


@dataclass(frozen=True)
class Machine:
    """Somewhere to run the FP16 engines of one flavour."""

    bundle: Bundle
    flavour: Flavour
    device: Device | None
    """The stand-in; None for a real GPU."""

    def options(self, **changes: Any) -> SessionOptions:
        return SessionOptions(device="cuda", backend=self.flavour.value, **changes)

    def model(self, **changes: Any) -> DeployedModel:
        return DeployedModel(self.bundle, self.options(**changes), MAX_BATCH)

    def runtime(self, **changes: Any) -> EngineLoader:
        return EngineLoader(self.bundle, self.flavour, self.options(**changes))

    def assert_same(self, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        """Exactly what ONNX Runtime computes, on the stand-in; within FP16 on a GPU."""
        assert found.dtype == expected.dtype
        if self.device is not None:
            np.testing.assert_array_equal(found, expected)
        else:
            largest = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * largest)


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the CPU build of ONNX Runtime."""
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: CPU_ONLY)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with its GPU build and all of its libraries, whatever machine this is."""
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: WITH_TENSORRT)
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda _: None)


@pytest.fixture
def with_gpu(with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had a GPU: the choice is tested, not the running."""
    monkeypatch.setattr(nvidia_driver, "why_no_gpu", lambda: None)


@pytest.fixture
def onnxruntime_module(device: Device, monkeypatch: pytest.MonkeyPatch) -> OnnxRuntimeModule:
    """ONNX Runtime whose CUDA provider is the stand-in device."""
    module = OnnxRuntimeModule(device)
    for place in (onnx_session, onnx_runtime):
        monkeypatch.setattr(place, "import_onnxruntime", lambda: module)
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda _: None)
    return module


@pytest.fixture(scope="session")
def engine_bundle(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle with engine sets of both flavours for the stand-in. Not to be changed."""
    path = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(bundle_path, path)
    bundle = Bundle.open(path)
    for flavour in BOTH:
        write_engines(bundle, flavour)
    return bundle


@pytest.fixture
def fresh(bundle: Bundle, tmp_path: Path) -> Bundle:
    """The bundle at a path of its own, without engines: its files are links."""
    path = tmp_path / "bundle"
    path.mkdir()
    for file in bundle.path.iterdir():
        (path / file.name).symlink_to(file)
    return replace(bundle, path=path)


@pytest.fixture(params=[f.value for f in BOTH])
def stand_in(request: pytest.FixtureRequest, device: Device, engine_bundle: Bundle) -> Machine:
    """The stand-in with either flavour."""
    return Machine(engine_bundle, Flavour(request.param), device)


@pytest.fixture(
    params=[
        *(f"stand-in, {flavour.value}" for flavour in BOTH),
        *(pytest.param(f"gpu, {flavour.value}", marks=pytest.mark.gpu) for flavour in BOTH),
    ]
)
def machine(request: pytest.FixtureRequest) -> Machine:
    """The stand-in and, where there is one, a real GPU with engines built on it."""
    kind, _, name = request.param.partition(", ")
    flavour = Flavour(name)
    if kind == "stand-in":
        device: Device = request.getfixturevalue("device")
        return Machine(request.getfixturevalue("engine_bundle"), flavour, device)
    missing = why_no_gpu()
    if missing is not None:
        pytest.skip(f"needs an NVIDIA GPU: {missing}")
    for module in (flavour.module_name, "cuda"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    return Machine(request.getfixturevalue("built_on_gpu")(flavour), flavour, None)


@pytest.fixture(scope="session")
def built_on_gpu(
    bundle_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Flavour], Bundle]:
    """Bundle with real engines of a flavour, built once."""
    built: dict[Flavour, Bundle] = {}

    def build(flavour: Flavour) -> Bundle:
        if flavour not in built:
            path = tmp_path_factory.mktemp("gpu") / "bundle"
            shutil.copytree(bundle_path, path)
            build_engines(path, precision=Precision.FP16, flavour=flavour.value)
            built[flavour] = Bundle.open(path)
        return built[flavour]

    return build


@pytest.fixture(scope="session")
def reference(bundle: Bundle) -> Iterator[DeployedModel]:
    """ONNX Runtime on the graphs that engines have, with as many threads as the stand-in uses."""
    options = SessionOptions(device="cpu", precision="fp16", threads=1)
    with DeployedModel(bundle.without_video_parts(), options, MAX_BATCH) as model:
        yield model
