"""Loading a plan: what TensorRT says of it, and what it must have."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device, TensorRTModule, install, write_engines
from stand_in_device.plans import rewrite_plan
from stand_in_device.tensorrt_module import EngineInvalidityDiagnostics, EngineValidity
from xclip_deploy import Bundle
from xclip_deploy.errors import DeviceMemoryError, EngineError
from xclip_deploy.runtime.engine_set import BuildOptions, Flavour
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.native.backend import EngineLoader

RTX = Flavour.RTX


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, device: Device) -> TensorRTModule:
    return install(monkeypatch, device)[1]


@pytest.mark.parametrize("flavour", list(Flavour))
def test_no_plan_by_its_content(device: Device, fresh: Bundle, flavour: Flavour) -> None:
    """Whoever wrote the sidecar says that it is the one that was built."""
    folder = write_engines(fresh, flavour)
    rewrite_plan(folder, Graph.SCORER, b"no plan at all")
    runtime = EngineLoader(fresh, flavour)
    with pytest.raises(EngineError) as caught:
        runtime.open(Graph.SCORER)
    reason = (
        "tensorrt 10.16.1.11 cannot load scorer.engine: the plan is not of this version, or no plan"
        if flavour is Flavour.TENSORRT
        else "tensorrt_rtx 1.7.1.116 says that scorer.engine cannot run here: MALFORMED_ENGINE"
    )
    assert reason in str(caught.value)
    assert f"run: xclip-deploy build-trt {fresh.path}" in str(caught.value)
    assert runtime.memory.held_bytes == 0


def test_what_rtx_says_before_it_loads(rtx: TensorRTModule, fresh: Bundle) -> None:
    write_engines(fresh, RTX)
    runtime = EngineLoader(fresh, RTX)
    rtx.validity = EngineValidity.INVALID
    rtx.diagnostics = EngineInvalidityDiagnostics.UNSUPPORTED_CC | 4
    with pytest.raises(EngineError, match="cannot run here: UNSUPPORTED_CC, OLD_CUDA_DRIVER; run"):
        runtime.open(Graph.SCORER)
    rtx.diagnostics = EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY
    with pytest.raises(DeviceMemoryError, match=r"the engine of scorer needs 1.1 MiB"):
        runtime.open(Graph.SCORER)
    rtx.diagnostics = 0
    with pytest.raises(EngineError, match="cannot run here: it gave no reason"):
        runtime.open(Graph.SCORER)


def test_an_engine_that_runs_slower(
    rtx: TensorRTModule, fresh: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    write_engines(fresh, RTX)
    rtx.validity = EngineValidity.SUBOPTIMAL
    EngineLoader(fresh, RTX).open(Graph.SCORER).close()
    assert "scorer.engine will not run at full speed here" in caplog.text


def test_the_real_library_on_what_is_no_plan(
    monkeypatch: pytest.MonkeyPatch, device: Device, fresh: Bundle
) -> None:
    """TensorRT-RTX itself, which can look at a plan without a GPU, says what is wrong."""
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    real = pytest.importorskip("tensorrt_rtx")
    folder = write_engines(fresh, RTX, version=str(real.__version__))
    rewrite_plan(folder, Graph.SCORER, b"no plan at all" * 100)
    with pytest.raises(EngineError, match="cannot run here: MALFORMED_ENGINE; run: "):
        EngineLoader(fresh, RTX).open(Graph.SCORER)


def test_engines_that_hold_code(device: Device, fresh: Bundle) -> None:
    write_engines(fresh, Flavour.TENSORRT, options=BuildOptions(version_compatible=True))
    EngineLoader(fresh, Flavour.TENSORRT).open(Graph.SCORER).close()


@pytest.mark.parametrize("flavour", list(Flavour))
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b'"float16"', b'"float32"', "scorer.engine has tensors .*float32"),
        (b'"logits"', b'"loogit"', "scorer.engine has tensors .*loogit"),
        (b"[8, 64]", b"[9, 64]", "takes sentence_features in shapes .* in profile 1, expected"),
    ],
)
def test_another_engine_than_the_sidecar_says(
    device: Device, fresh: Bundle, flavour: Flavour, old: bytes, new: bytes, expected: str
) -> None:
    folder = write_engines(fresh, flavour)
    plan = (folder / "scorer.engine").read_bytes()
    assert old in plan
    rewrite_plan(folder, Graph.SCORER, plan.replace(old, new))
    with pytest.raises(EngineError, match=expected):
        EngineLoader(fresh, flavour).open(Graph.SCORER)


# The runtime cache of RTX


def test_the_runtime_cache_is_kept(device: Device, fresh: Bundle) -> None:
    folder = write_engines(fresh, RTX)
    file = folder / "text_encoder.sm89.runtime-cache"
    _use(fresh)
    content = file.read_bytes()
    assert b"text_encoder" in content
    before = file.stat()
    _use(fresh)
    assert file.stat().st_ino == before.st_ino  # nothing new, nothing written
    assert [path.name for path in folder.iterdir() if ".partial" in path.name] == []


@pytest.mark.parametrize("content", [b"", b"no cache", b'["another version", []]'])
def test_a_cache_that_does_not_fit_is_made_anew(
    device: Device, fresh: Bundle, content: bytes
) -> None:
    file = write_engines(fresh, RTX) / "text_encoder.sm89.runtime-cache"
    file.write_bytes(content)
    _use(fresh)
    assert b"text_encoder" in file.read_bytes()


def test_a_folder_that_cannot_be_written(
    device: Device, fresh: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = write_engines(fresh, RTX)
    original = os.open

    def refuse(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if Path(path).parent == folder:
            raise PermissionError(13, "Permission denied")
        return original(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", refuse)
    _use(fresh)
    assert "text_encoder.sm89.runtime-cache cannot be written (Permission denied)" in caplog.text
    assert not (folder / "text_encoder.sm89.runtime-cache").exists()


@pytest.mark.parametrize(("wanted", "name"), [(True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")])
def test_rtx_is_told_to_capture(device: Device, fresh: Bundle, wanted: bool, name: str) -> None:
    write_engines(fresh, RTX)
    options = SessionOptions(backend="rtx", cuda_graphs=wanted)
    with EngineLoader(fresh, RTX, options).open(Graph.SCORER) as session:
        assert session._engine._runtime_config.cuda_graph_strategy.name == name


def _use(bundle: Bundle) -> None:
    with EngineLoader(bundle, RTX).open(Graph.TEXT_ENCODER) as session:
        session.run({"token_ids": np.full((1, bundle.manifest.model.max_words), 49407)})
