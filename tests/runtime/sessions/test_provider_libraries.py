"""Whether a provider's libraries load is found out without loading the provider."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import sys
from pathlib import Path

import pytest

from xclip_deploy import Bundle
from xclip_deploy.export.verification.runs import find_sessions
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.benchmark import BenchmarkPlan, benchmark_sessions
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import (
    SessionOptions,
    onnx_runtime,
    onnx_session,
    place,
    provider_libraries,
)
from xclip_deploy.runtime.sessions.provider_libraries import missing_library, needed_libraries

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")


@pytest.fixture
def extension() -> Path:
    """A shared library that Python itself brings: its extension module for ctypes."""
    return Path(str(importlib.import_module("_ctypes").__file__))


@on_linux
def test_the_libraries_of_a_shared_library(extension: Path) -> None:
    names, _ = needed_libraries(extension)
    assert any(name.startswith("libffi") for name in names)
    for name in names:
        ctypes.CDLL(name)


@on_linux
def test_a_library_that_is_not_there(
    extension: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = extension.read_bytes()
    assert content.count(b"\0libffi.so.") == 1
    for folder, name in (("first", b"\0libxyz.so."), ("second", b"\0libffi.so.")):
        capi = tmp_path / folder / "capi"
        capi.mkdir(parents=True)
        file = capi / "libonnxruntime_providers_cuda.so"
        file.write_bytes(content.replace(b"\0libffi.so.", name))
    onnxruntime = onnx_session.import_onnxruntime()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "first" / "__init__.py"))
    monkeypatch.setattr(nvidia_driver, "driver_cuda_version", lambda: None)
    fault = missing_library(CUDA)
    assert fault is not None
    assert fault.startswith(f"ONNX Runtime's {CUDA} cannot be loaded (libxyz.so.")
    assert fault.endswith("; install CUDA and cuDNN")
    assert missing_library(TENSORRT) is None, "no file: opening a session tells"
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "second" / "__init__.py"))
    assert "libxyz" not in str(missing_library(CUDA)), "what a caller loads meanwhile is found"


@on_linux
def test_libraries_of_nvidias_wheels(
    extension: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linker does not search where they lie. What is loaded from there serves the provider."""
    (name,) = (each for each in needed_libraries(extension)[0] if each.startswith("libffi"))
    ours = name.replace("libffi", "libqrs")
    provider = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    provider.parent.mkdir()
    provider.write_bytes(extension.read_bytes().replace(name.encode(), ours.encode()))
    monkeypatch.setattr(
        onnx_session.import_onnxruntime(), "__file__", str(tmp_path / "__init__.py")
    )
    monkeypatch.setattr(nvidia_driver, "driver_cuda_version", lambda: None)
    wheels = tmp_path / "wheels"
    (wheels / "nvidia").mkdir(parents=True)
    monkeypatch.syspath_prepend(wheels)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    # The provider is not linked to cuDNN, and no encoder runs without it.
    for folder, file in (("cu13", ours), ("cudnn", "libcudnn.so.9")):
        assert f"({file}: cannot open" in str(missing_library(CUDA))
        library = wheels / "nvidia" / folder / "lib" / file
        library.parent.mkdir(parents=True)
        shutil.copy(extension, library)
    assert missing_library(CUDA) is None
    loaded = Path("/proc/self/maps").read_text()
    assert f"nvidia/cu13/lib/{ours}" in loaded
    assert "nvidia/cudnn/lib/libcudnn.so.9" in loaded


@pytest.mark.parametrize("length", [0, 10, 64, 500, 3000])
def test_what_is_no_whole_library(extension: Path, tmp_path: Path, length: int) -> None:
    file = tmp_path / "cut.so"
    file.write_bytes(extension.read_bytes()[:length])
    assert needed_libraries(file) == ([], [])
    assert needed_libraries(tmp_path / "missing.so") == ([], [])


def test_a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = onnx_session.import_onnxruntime()
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(nvidia_driver, "driver_cuda_version", lambda: "12.9")
    assert missing_library(CUDA) == (
        "this onnxruntime needs CUDA 13.0, the NVIDIA driver runs 12.9; update the driver"
    )


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_the_installed_providers(provider: str) -> None:
    """Where ONNX Runtime cannot load a provider, the check has said so before."""
    onnxruntime = onnx_session.import_onnxruntime()
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    if nvidia_driver.why_no_gpu() is None:
        pytest.skip("this machine has a GPU, and may have the libraries")
    fault = missing_library(provider)
    assert fault is not None, "no CUDA libraries are installed without a GPU"
    assert "cannot open shared object file" in fault


def test_verify_bench_and_placement_agree(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without TensorRT's libraries: that session is not run, and nothing has failed."""
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: [TENSORRT, CUDA])
    monkeypatch.setattr(nvidia_driver, "why_no_gpu", lambda: None)
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda name: f"{name}: not loadable")
    _, skipped = find_sessions(bundle, is_fp32_the_reference=True, threads=None)
    found = {skip.what: skip.reason for skip in skipped}
    assert found["fp16 tensorrt-provider cuda"] == f"{TENSORRT}: not loadable"
    assert found["fp16 onnxruntime cuda"] == f"{CUDA}: not loadable"
    result = benchmark_sessions(
        bundle, plan=BenchmarkPlan({Graph.TEXT_ENCODER: (1,)}, seconds=0.01, rounds=1, warmup=0)
    )
    assert {session.device for session in result.sessions} == {"cpu"}
    assert sorted(skip.reason for skip in result.skipped) == sorted(found.values())
    reason = place(SessionOptions(), bundle).placement.reason
    assert reason.startswith(f"auto: {CUDA}: not loadable")


@on_linux
def test_libraries_are_loaded_once(extension: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(provider_libraries, "_loaded", set())
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    for _ in range(2):
        assert provider_libraries._fault(extension) is None
    assert loaded == needed_libraries(extension)[0]
