"""``bench`` leaves the order of the GPU's sessions beside the bundle, and ``auto`` follows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stand_in_device import Device, install, write_engines
from xclip_deploy import Bundle
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.benchmark.choosing import store_choice
from xclip_deploy.runtime.benchmark.results import BenchmarkedSession, Measurement
from xclip_deploy.runtime.engine_set import Flavour
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import SessionOptions, onnx_runtime, place
from xclip_deploy.runtime.sessions.machine_records import DIRECTORY

Times = dict[Graph, float]
ORT = "onnxruntime cuda:0 fp16"
RTX = "rtx cuda:0 fp16"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A stand-in GPU, and ONNX Runtime as with its GPU build: the choice is tested."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: providers)
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda _: None)
    device = Device()
    install(monkeypatch, device)
    return device


def measured(
    bundle: Bundle, times: dict[str, Times], engines: Path | None, **changes: str
) -> str | None:
    """Store the choice of a benchmark with these medians, in milliseconds."""
    sessions, measurements = [], []
    for name, found in times.items():
        backend, device, precision = name.split()
        options = {"engines": str(engines)} if backend in ("rtx", "tensorrt") else {}
        fields = {"backend": backend, "device": device, "precision": precision} | changes
        sessions.append(BenchmarkedSession(name=name, options=options, **fields))
        measurements += [
            Measurement(
                session=name,
                graph=graph,
                size=8,
                latencies_s=(ms / 1e3,) * 3,
                peak_memory_bytes=None,
                device_memory_bytes=None,
            )
            for graph, ms in found.items()
        ]
    return store_choice(bundle, sessions, measurements)


def both(ort_ms: float, rtx_ms: float) -> dict[str, Times]:
    encoders = (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER)
    return {
        ORT: dict.fromkeys(encoders, ort_ms),
        RTX: dict.fromkeys(encoders, rtx_ms),
    }


def test_the_faster_one_is_chosen_and_the_reason_says_so(stand_in: Device, own: Bundle) -> None:
    folder = write_engines(own, Flavour.RTX)
    assert place(SessionOptions(), own).placement.backend == "rtx", "by rank"
    line = measured(own, both(2.0, 3.0), folder)
    assert line is not None
    assert line.startswith("fastest on this GPU: onnxruntime; bench found it 1.50 times as fast as")
    assert line.endswith("stored beside the bundle, and auto follows it")
    chosen = place(SessionOptions(), own).placement
    assert chosen.backend == "onnxruntime"
    assert f"bench found it 1.50 times as fast as {folder.name} here (" in chosen.reason
    measured(own, both(3.0, 2.0), folder)
    chosen = place(SessionOptions(), own).placement
    assert chosen.backend == "rtx"
    assert "bench found it 1.50 times as fast as onnxruntime here (" in chosen.reason
    # What is asked for wins, whatever was measured.
    assert place(SessionOptions(backend="onnxruntime"), own).placement.backend == "onnxruntime"
    assert place(SessionOptions(device="cpu"), own).placement.device == "cpu"


def test_options_stay_with_the_measured_engines(stand_in: Device, own: Bundle) -> None:
    folder = write_engines(own, Flavour.RTX)
    measured(own, both(3.0, 2.0), folder)
    loader = place(SessionOptions(threads=2, streams=3), own)
    assert loader.placement.backend == "rtx"
    assert "threads not read by rtx" in loader.placement.reason


def test_both_encoders_count(stand_in: Device, own: Bundle) -> None:
    """The geometric mean: twice as fast in one does not outweigh three times as slow elsewhere."""
    folder = write_engines(own, Flavour.RTX)
    times = {
        ORT: {Graph.VIDEO_ENCODER: 2.0, Graph.TEXT_ENCODER: 3.0, Graph.SCORER: 1.0},
        RTX: {Graph.VIDEO_ENCODER: 4.0, Graph.TEXT_ENCODER: 1.0, Graph.SCORER: 99.0},
    }
    line = measured(own, times, folder)
    assert line is not None
    assert line.startswith(f"fastest on this GPU: {folder.name}; bench found it 1.22 times")


@pytest.mark.parametrize(
    "times",
    [
        {ORT: {Graph.VIDEO_ENCODER: 1.0}},
        {ORT: {Graph.VIDEO_ENCODER: 1.0}, RTX: {Graph.TEXT_ENCODER: 1.0}},
        {ORT: {Graph.SCORER: 1.0}, RTX: {Graph.SCORER: 1.0}},
        {ORT: {Graph.VIDEO_ENCODER: 1.0}, "onnxruntime cuda:0 tf32": {Graph.VIDEO_ENCODER: 1.0}},
        {
            ORT: {Graph.VIDEO_ENCODER: 1.0},
            "tensorrt-provider cuda:0 fp16": {Graph.VIDEO_ENCODER: 1},
        },
        {ORT: {Graph.VIDEO_ENCODER: 1.0}, "rtx cuda:1 fp16": {Graph.VIDEO_ENCODER: 1.0}},
        {"onnxruntime cpu fp32": {Graph.VIDEO_ENCODER: 1.0}, ORT: {Graph.VIDEO_ENCODER: 1.0}},
    ],
)
def test_nothing_to_choose_between(own: Bundle, times: dict[str, Times]) -> None:
    assert measured(own, times, Path("x")) is None
    assert not (own.path / DIRECTORY).exists()


def test_another_gpu_or_other_engines_void_the_choice(
    stand_in: Device, own: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_engines(own, Flavour.RTX)
    measured(own, both(2.0, 3.0), folder)
    assert place(SessionOptions(), own).placement.backend == "onnxruntime"
    write_engines(own, Flavour.TENSORRT)
    assert place(SessionOptions(), own).placement.backend == "tensorrt", "by rank again"
    measured(own, both(2.0, 3.0), folder)
    assert place(SessionOptions(), own).placement.backend == "onnxruntime"
    monkeypatch.setattr(nvidia_driver, "driver_cuda_version", lambda: "14.1")
    assert place(SessionOptions(), own).placement.backend == "tensorrt"


def test_engines_that_no_longer_load_leave_the_next_in_order(stand_in: Device, own: Bundle) -> None:
    folder = write_engines(own, Flavour.RTX)
    measured(own, both(3.0, 2.0), folder)
    (folder / "engines.json").write_text("{}")
    assert place(SessionOptions(), own).placement.backend == "onnxruntime"


def test_a_damaged_record_is_not_used(
    stand_in: Device, own: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_engines(own, Flavour.RTX)
    measured(own, both(2.0, 3.0), folder)
    (file,) = (own.path / DIRECTORY).iterdir()
    content = json.loads(file.read_text())
    for finding in ({}, {**content["finding"], "slowness": ["x"]}, {"sessions": 3}):
        file.write_text(json.dumps({**content, "finding": finding}))
        assert place(SessionOptions(), own).placement.backend == "rtx"
    file.write_text("{")
    assert place(SessionOptions(), own).placement.backend == "rtx"
    assert "is not used; remove it" in caplog.text


def test_a_bundle_that_cannot_be_written(stand_in: Device, own: Bundle) -> None:
    folder = write_engines(own, Flavour.RTX)
    (own.path / DIRECTORY).write_text("a file where the folder would be")
    line = measured(own, both(2.0, 3.0), folder)
    assert line is not None
    assert "not stored: " in line
