"""The choice of fused graphs, and whole models on ONNX Runtime's CUDA provider.

The stand-in device takes the place of the GPU. What needs a real one is marked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device, OnnxRuntimeModule
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, Tolerance, VideoPart
from xclip_deploy.runtime.sessions import (
    Placement,
    Session,
    SessionOptions,
    fused_choice,
)
from xclip_deploy.runtime.sessions.fused_choice import FusedGraphs, Verdict, compare_forms
from xclip_deploy.runtime.sessions.machine_records import DIRECTORY
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider
from xclip_deploy.runtime.sessions.onnx_session import (
    FP16,
    FP32,
    BoundSession,
    OnnxRuntimeSession,
)
from xclip_deploy.runtime.valid_frames import ValidFrameEncoder

FP32_CPU = Placement("onnxruntime", "cpu", FP32)
TOLERANCE = Tolerance(feature=1e-5, cosine=0.999999, score=1e-4)


def token_ids(count: int, seed: int = 0) -> AnyArray:
    rng = np.random.default_rng(seed)
    ids = np.zeros((count, 32), dtype=np.int32)
    ids[:, 0], ids[:, 5] = 49406, 49407
    ids[:, 1:5] = rng.integers(1, 49000, (count, 4))
    return ids


def frames(count: int, size: int, seed: int = 0) -> AnyArray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def same(found: dict[str, AnyArray], expected: dict[str, AnyArray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6)


# The choice of the fused form


def opener(bundle: Bundle, opened: list[tuple[AnyGraph, bool]]) -> Callable[..., Session]:
    def open_form(graph: AnyGraph, is_fused: bool) -> Session:
        opened.append((graph, is_fused))
        return OnnxRuntimeSession(bundle, graph, FP32_CPU, is_fused=is_fused)

    return open_form


def test_the_first_session_tests_the_fused_form(own: Bundle) -> None:
    opened: list[tuple[AnyGraph, bool]] = []
    fused = FusedGraphs(own, FP32_CPU, opener(own, opened), {})
    assert set(fused.graphs) == {Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER, *VideoPart}
    for graph in fused.graphs:
        assert fused.is_chosen(graph)
        assert fused.is_chosen(graph)
    assert opened == [(graph, form) for graph in fused.graphs for form in (False, True)]
    assert not fused.is_chosen(Graph.SCORER), "it has no fused form"
    assert fused.failures() == {}
    # The next process reads the verdict and opens nothing.
    opened.clear()
    again = FusedGraphs(own, FP32_CPU, opener(own, opened), {})
    assert all(again.is_chosen(graph) for graph in again.graphs)
    assert opened == []
    # Other options of the provider may compute otherwise: they are tested anew.
    other = FusedGraphs(own, FP32_CPU, opener(own, opened), {"do_copy_in_default_stream": "1"})
    assert other.is_chosen(Graph.TEXT_ENCODER)
    assert len(opened) == 2


class Wrong(OnnxRuntimeSession):
    """A fused form that this GPU computes wrongly."""

    def run(self, inputs: Any) -> dict[str, AnyArray]:
        return {name: -array for name, array in super().run(inputs).items()}


def test_a_fused_form_that_fails_is_passed_over(
    own: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def open_form(graph: AnyGraph, is_fused: bool) -> Session:
        return (Wrong if is_fused else OnnxRuntimeSession)(own, graph, FP32_CPU)

    fused = FusedGraphs(own, FP32_CPU, open_form, {})
    assert not fused.is_chosen(Graph.TEXT_ENCODER)
    assert "text_encoder runs in its plain form on cpu: the fused one failed" in caplog.text
    later = FusedGraphs(own, FP32_CPU, opener(own, []), {})
    assert "differs from the plain form" in later.failures()[Graph.TEXT_ENCODER]
    assert not later.is_chosen(Graph.TEXT_ENCODER)


def test_a_run_that_breaks_off_decides_for_this_process_alone(own: Bundle) -> None:
    def open_form(graph: AnyGraph, is_fused: bool) -> Session:
        if is_fused:
            raise SessionError("the device is lost")
        return OnnxRuntimeSession(own, graph, FP32_CPU)

    fused = FusedGraphs(own, FP32_CPU, open_form, {})
    assert not fused.is_chosen(Graph.TEXT_ENCODER)
    assert fused.failures() == {Graph.TEXT_ENCODER: "the device is lost"}
    assert FusedGraphs(own, FP32_CPU, opener(own, []), {}).is_chosen(Graph.TEXT_ENCODER)


# The plain form is loaded before the fused one, and runs without bindings.
@pytest.mark.parametrize(
    ("function", "after"), [("InferenceSession", 1), ("run_with_iobinding", 0)]
)
def test_a_full_gpu_is_no_verdict(
    own: Bundle, onnxruntime_module: OnnxRuntimeModule, device: Device, function: str, after: int
) -> None:
    """It says nothing about the fused form, neither as that is loaded nor as it runs."""
    with DeployedModel(own) as model:
        device.fail(function, "CUDA failure 2: out of memory", after)
        with pytest.raises(DeviceMemoryError, match="out of memory"):
            model.encode_texts(["a dog"])
        assert "plain form" not in model.placement.reason
        assert "without CUDA graphs" not in model.placement.reason
        model.encode_texts(["a dog"])
        assert any("text_encoder.fused" in name for name in model.artefacts())


def test_verdicts_are_void_once_damaged(own: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    opened: list[tuple[AnyGraph, bool]] = []
    FusedGraphs(own, FP32_CPU, opener(own, opened), {}).is_chosen(Graph.TEXT_ENCODER)
    (file,) = (own.path / DIRECTORY).iterdir()
    content = json.loads(file.read_text())
    content["key"]["gpu"] = "another"
    for damaged in ("{", json.dumps(content), json.dumps([])):
        file.write_text(damaged)
        caplog.clear()
        opened.clear()
        assert FusedGraphs(own, FP32_CPU, opener(own, opened), {}).is_chosen(Graph.TEXT_ENCODER)
        assert len(opened) == 2
        assert "is not used; remove it" in caplog.text


@pytest.mark.parametrize("change", [np.nan, np.inf, 3e-5])
def test_what_the_self_test_refuses(change: float) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 64))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    other = rows.copy()
    other[1, 2] += change
    assert compare_forms(Graph.TEXT_ENCODER, {"x": rows}, {"x": rows}, TOLERANCE).passed
    assert not compare_forms(Graph.TEXT_ENCODER, {"x": rows}, {"x": other}, TOLERANCE).passed


# The whole path, on the stand-in


def plain_and_fused(model: DeployedModel) -> tuple[set[str], set[str]]:
    names = {name for name in model.artefacts() if name.endswith(".onnx")}
    fused = {name for name in names if name.endswith(".fused.onnx")}
    return names - fused, fused


def test_a_model_on_a_gpu_without_engines(
    own: Bundle, onnxruntime_module: OnnxRuntimeModule
) -> None:
    size = own.manifest.model.vision.image_size
    videos = [frames(count, size, count) for count in (2, 1)]
    with DeployedModel(own) as model, DeployedModel(own, SessionOptions("cpu", "fp16")) as cpu:
        assert model.placement.reason.startswith("auto: a GPU is there, with fused graphs; ")
        plain, fused = plain_and_fused(model)
        assert plain == {"fp16/scorer.onnx"}
        assert fused == {
            f"fp16/{name}.fused.onnx" for name in ("text_encoder", "frame_encoder", "temporal_head")
        }
        for texts in (["a dog"], ["a cat on a mat", "a dog"]):
            found, expected = model.encode_texts(texts), cpu.encode_texts(texts)
            error = np.abs(found.word_features - expected.word_features).max()
            assert 0 < error < 5e-3, "FP16, and another form"
        clips, wanted = model.encode_videos(videos), cpu.encode_videos(videos)
        assert np.abs(clips.video_features - wanted.video_features).max() < 5e-3
        for _ in range(3):  # plain, captured, replayed
            again = model.encode_videos(videos)
            np.testing.assert_allclose(again.video_features, clips.video_features, atol=2e-3)
        parts = model._sessions.of(Graph.VIDEO_ENCODER)
        assert isinstance(parts, ValidFrameEncoder)
        for part, size in ((parts._frames, 3), (parts._head, 2)):
            assert isinstance(part, BoundSession)
            assert part._runs.captured_sizes == (size,)
    chosen = SessionOptions(fused_graphs=False, cuda_graphs=False)
    with DeployedModel(own, chosen) as model:
        assert plain_and_fused(model)[1] == set()
        assert model.placement.reason.startswith("auto: a GPU is there; ")


def test_a_failed_self_test_is_in_the_reason_and_the_artefacts(
    own: Bundle, onnxruntime_module: OnnxRuntimeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: AnyGraph, *_: Any) -> Verdict:
        return Verdict(graph is not Graph.TEXT_ENCODER, "it is off by 0.3")

    monkeypatch.setattr(fused_choice, "compare_forms", refuse)
    for reason in ("text_encoder runs in its plain form: it is", "text_encoder failed its self-"):
        with DeployedModel(own) as model:
            plain, fused = plain_and_fused(model)
            assert "fp16/text_encoder.onnx" in plain
            assert len(fused) == 2
            assert reason in model.placement.reason
            model.encode_texts(["a dog"])


def test_what_runs_less_well_than_it_could_is_in_the_reason(
    own: Bundle,
    onnxruntime_module: OnnxRuntimeModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No fused form, no CUDA graphs, no bindings: each is said, once in the log too."""
    fused = own.manifest.without_fused(Graph.TEXT_ENCODER, Precision.FP16)
    with DeployedModel(replace(own, manifest=fused)) as model:
        said = "a GPU is there, with fused graphs (text_encoder has none)"
        assert said in model.placement.reason
    onnxruntime_module.refuses_graphs = True
    with DeployedModel(own) as model:
        for _ in range(2):
            model.encode_texts(["a dog"])
        reason = "text_encoder: it runs without CUDA graphs: ONNX Runtime cannot load"
        assert model.placement.reason.count(reason) == 1
        assert caplog.text.count(reason) == 1
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with DeployedModel(own) as model, DeployedModel(own, SessionOptions("cpu", "fp16")) as cpu:
        found, expected = model.encode_texts(["a dog"]), cpu.encode_texts(["a dog"])
        assert np.abs(found.word_features - expected.word_features).max() < 5e-3
        assert "encoders run without CUDA graphs or pinned memory: " in model.placement.reason


def test_a_bundle_without_fused_graphs_says_so(
    own: Bundle, onnxruntime_module: OnnxRuntimeModule
) -> None:
    old = replace(own, manifest=own.manifest.model_copy(update={"fused_graphs": {}}))
    with DeployedModel(old) as model:
        assert "a GPU is there, the bundle has no fused graphs for it" in model.placement.reason
        assert plain_and_fused(model)[1] == set()
        assert model.encode_texts(["a dog"]).sentence_features.shape == (1, 64)


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(
    why_no_provider("CUDAExecutionProvider") is not None, reason="needs ONNX Runtime on a GPU"
)
def test_fused_fp16_on_cuda_agrees_with_plain_fp32_on_the_cpu(own: Bundle) -> None:
    rng = np.random.default_rng(0)
    model = own.manifest.model
    size = model.vision.image_size
    videos = [frames(count, size, count) for count in rng.integers(1, model.max_frames, 9)]
    texts = ["a dog", "a cat on a mat", "two people dance in the rain"]
    with (
        DeployedModel(own, SessionOptions("cuda", "fp16", backend="onnxruntime")) as gpu,
        DeployedModel(own, SessionOptions("cpu", "fp32", backend="onnxruntime")) as cpu,
    ):
        for _ in range(3):  # plain, captured, replayed
            found, expected = gpu.encode_texts(texts), cpu.encode_texts(texts)
            for name in ("sentence_features", "word_features"):
                error = np.abs(getattr(found, name) - getattr(expected, name)).max()
                assert error < 5e-3
        wanted = cpu.encode_videos(videos)
        for _ in range(3):
            clips = gpu.encode_videos(videos)
            for name in ("video_features", "frame_features"):
                assert np.abs(getattr(clips, name) - getattr(wanted, name)).max() < 5e-3
        parts = gpu._sessions.of(Graph.VIDEO_ENCODER)
        assert isinstance(parts, ValidFrameEncoder)
        assert isinstance(parts._frames, BoundSession)
        assert parts._frames._runs.captured_sizes == (sum(map(len, videos)),)
        names = gpu.artefacts()
        assert sum(name.endswith(".fused.onnx") for name in names) == 3
        assert "with fused graphs" in gpu.placement.reason
        assert "plain form" not in gpu.placement.reason
        session = gpu._sessions.of(Graph.TEXT_ENCODER)
        assert isinstance(session, BoundSession)
        assert session._runs.captured_sizes == (3,)
    assert FP16.graphs is Precision.FP16
