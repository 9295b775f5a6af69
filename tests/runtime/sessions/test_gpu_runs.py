"""Bound and captured runs, and the choice of fused graphs, on ONNX Runtime's CPU provider.

The same calls bind and run on a GPU. What needs one is marked.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, Tolerance, VideoPart
from xclip_deploy.runtime.sessions import (
    Placement,
    Session,
    SessionOptions,
    fused_choice,
    onnx_runtime,
    onnx_session,
)
from xclip_deploy.runtime.sessions import replaying as replaying_module
from xclip_deploy.runtime.sessions.bound_runs import BoundRuns, PageableStaging
from xclip_deploy.runtime.sessions.captured_runs import CapturedRuns
from xclip_deploy.runtime.sessions.fused_choice import FusedGraphs, Verdict, compare_forms
from xclip_deploy.runtime.sessions.machine_records import DIRECTORY
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider
from xclip_deploy.runtime.sessions.onnx_session import (
    FP16,
    FP32,
    BoundSession,
    OnnxRuntimeSession,
)
from xclip_deploy.runtime.sessions.replaying import ReplayingSession
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


@pytest.fixture
def plain(bundle: Bundle) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(bundle, VideoPart.FRAME_ENCODER, FP32_CPU)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_pieces_make_up_the_batch(bundle: Bundle, plain: OnnxRuntimeSession, count: int) -> None:
    """Whatever the length: no row is lost, run twice or in another place."""
    size = bundle.manifest.model.vision.image_size
    batch = frames(count, size)
    session = plain._session
    spec = bundle.manifest.spec(VideoPart.FRAME_ENCODER, Precision.FP32)
    runs = BoundRuns(session, spec, PageableStaging, piece_bytes=2 * size * size * 3)
    same(runs.run({"frames": batch}), plain.run({"frames": batch}))
    # Buffers grow and shrink in use: the rest of a larger batch must not be seen.
    same(runs.run({"frames": batch[:1]}), plain.run({"frames": batch[:1]}))
    runs.close()


def test_bound_runs_from_many_threads(bundle: Bundle, plain: OnnxRuntimeSession) -> None:
    """Two lanes and eight callers: each gets the results of its own frames."""
    size = bundle.manifest.model.vision.image_size
    with ThreadPoolExecutor(8) as pool:
        session = BoundSession(bundle, VideoPart.FRAME_ENCODER, FP32_CPU, threads=1)
        batches = [frames(1 + seed % 3, size, seed) for seed in range(16)]
        found = list(pool.map(lambda batch: session.run({"frames": batch}), batches))
    for result, batch in zip(found, batches, strict=True):
        same(result, plain.run({"frames": batch}))
    session.close()
    with pytest.raises(SessionError, match="the frame_encoder session is closed"):
        session.run({"frames": batches[0]})


def test_a_piece_that_fails_leaves_the_lanes_usable(
    bundle: Bundle, plain: OnnxRuntimeSession
) -> None:
    size = bundle.manifest.model.vision.image_size
    spec = bundle.manifest.spec(VideoPart.FRAME_ENCODER, Precision.FP32)
    runs = BoundRuns(plain._session, spec, PageableStaging, piece_bytes=1)
    wrong = np.zeros((4, size, size, 4), dtype=np.uint8)
    for _ in range(3):  # more failures than lanes
        with pytest.raises(Exception, match=r"nvalid dimensions"):
            runs.run({"frames": wrong})
    batch = frames(4, size)
    same(runs.run({"frames": batch}), plain.run({"frames": batch}))
    runs.close()


def test_replayed_sizes_and_their_buffers(bundle: Bundle) -> None:
    """The second run of a size fixes its buffers. Results must not share them."""
    session = BoundSession(bundle, Graph.TEXT_ENCODER, FP32_CPU, is_fused=True, replays=True)
    expected = OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    runs = session._runs
    assert isinstance(runs, CapturedRuns)
    results, inputs = [], []
    for seed, count in enumerate([1, 1, 3, 1, 3, 3, 40, 40]):
        inputs.append({"token_ids": token_ids(count, seed)})
        results.append(session.run(inputs[-1]))
    assert runs.captured_sizes == (1, 3), "40 are more than a graph is captured for"
    for given, result in zip(inputs, results, strict=True):
        same(result, expected.run(given))
    session.close()
    with pytest.raises(SessionError, match="is closed"):
        session.run(inputs[0])


def test_replays_from_many_threads(bundle: Bundle) -> None:
    """All go through one thread, as ONNX Runtime asks, and none gets another's result."""
    session = BoundSession(bundle, Graph.TEXT_ENCODER, FP32_CPU, replays=True)
    expected = OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    with ThreadPoolExecutor(8) as pool:
        inputs = [{"token_ids": token_ids(1, seed)} for seed in range(24)]
        found = list(pool.map(session.run, inputs))
    for given, result in zip(inputs, found, strict=True):
        same(result, expected.run(given))
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("xclip-cuda-graph") for name in names) == 1
    session.close()


def test_nothing_else_runs_while_a_graph_is_captured(bundle: Bundle) -> None:
    """ONNX Runtime captures in CUDA's global mode: other threads' calls would end it."""
    capturing = BoundSession(bundle, Graph.TEXT_ENCODER, FP32_CPU, replays=True)
    other = BoundSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    given = {"token_ids": token_ids(2)}
    expected = capturing.run(given)
    runs = capturing._runs
    assert isinstance(runs, CapturedRuns)
    with ThreadPoolExecutor(2) as pool:
        with CAPTURES.shared():
            capture = pool.submit(capturing.run, given)
            while not CAPTURES.is_awaited:
                time.sleep(0.001)
            assert runs.captured_sizes == ()
            beside = pool.submit(other.run, given)
        same(capture.result(30), expected)
        same(beside.result(30), expected)
    assert runs.captured_sizes == (2,)
    capturing.close()
    other.close()


def test_a_size_that_cannot_be_captured_still_runs(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    plain = OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    spec = bundle.manifest.spec(Graph.TEXT_ENCODER, Precision.FP32)
    # A device that this machine lacks refuses the buffers, as a full one does.
    runs = CapturedRuns(plain._session, spec, onnxruntime, "dml", 0)
    for seed in range(4):
        given = {"token_ids": token_ids(1, seed)}
        same(runs.run(given), plain.run(given))
    assert runs.captured_sizes == ()
    assert caplog.text.count("run without a CUDA graph") == 1, "said once"
    runs.close()


@pytest.fixture
def replaying(bundle: Bundle) -> Iterator[ReplayingSession]:
    """A session of the video encoder that replays, and counts how often it opens the second one."""

    def open_replays() -> BoundSession:
        return BoundSession(bundle, Graph.VIDEO_ENCODER, FP32_CPU, is_fused=True, replays=True)

    plain = BoundSession(bundle, Graph.VIDEO_ENCODER, FP32_CPU, is_fused=True)
    session = ReplayingSession(plain, open_replays)
    yield session
    session.close()


def videos(bundle: Bundle, count: int, seed: int = 0) -> dict[str, AnyArray]:
    model = bundle.manifest.model
    clips = frames(count * model.max_frames, model.vision.image_size, seed)
    counts = np.random.default_rng(seed).integers(1, model.max_frames + 1, count, dtype=np.int32)
    return {
        "frames": clips.reshape(count, model.max_frames, *clips.shape[1:]),
        "num_frames": counts,
    }


def test_video_batches_of_a_repeated_size_are_replayed(
    bundle: Bundle, replaying: ReplayingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sizes and large batches run beside it; each result is that of its own inputs."""
    expected = OnnxRuntimeSession(bundle, Graph.VIDEO_ENCODER, FP32_CPU)
    limit = sum(array.nbytes for array in videos(bundle, 3).values())
    monkeypatch.setattr(replaying_module, "MOST_BYTES", limit)
    inputs, results = [], []
    for seed, count in enumerate([2, 1, 2, 2, 1, 2, 3, 3, 3, 1, 2]):
        inputs.append(videos(bundle, count, seed))
        results.append(replaying.run(inputs[-1]))
    for given, result in zip(inputs, results, strict=True):
        same(result, expected.run(given))
    assert replaying._replays is not None
    assert isinstance(runs := replaying._replays._runs, CapturedRuns)
    assert set(runs.captured_sizes) == {1, 2}, "3 are too large for a graph"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(replaying.run, inputs))
    for result, before in zip(found, results, strict=True):
        same(result, before)
    replaying.close()
    with pytest.raises(SessionError, match="is closed"):
        replaying.run(inputs[0])


def test_video_batches_run_without_graphs_where_these_cannot_be_had(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    opened = []

    def refuse() -> BoundSession:
        opened.append(1)
        raise SessionError("a node is on the CPU")

    plain = BoundSession(bundle, Graph.VIDEO_ENCODER, FP32_CPU, is_fused=True)
    session = ReplayingSession(plain, refuse)
    given = videos(bundle, 2)
    first = session.run(given)
    for _ in range(3):
        same(session.run(given), first)
    assert len(opened) == 1
    assert "video_encoder runs without CUDA graphs: a node is on the CPU" in caplog.text
    session.close()


def test_a_full_gpu_is_an_error_of_its_own(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = BoundSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)

    def full(*_: Any) -> None:
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for 8388608")

    monkeypatch.setattr(session._runs, "run", full)
    with pytest.raises(
        DeviceMemoryError, match=r"text_encoder failed on token_ids .*smaller batch"
    ):
        session.run({"token_ids": token_ids(2)})


# The choice of the fused form


def opener(bundle: Bundle, opened: list[tuple[AnyGraph, bool]]) -> Callable[..., Session]:
    def open_form(graph: AnyGraph, is_fused: bool) -> Session:
        opened.append((graph, is_fused))
        return BoundSession(bundle, graph, FP32_CPU, is_fused=is_fused)

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


# The whole path, with ONNX Runtime's CPU provider in the place of CUDA's


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU: the sessions are those of a GPU, and compute on the CPU."""
    monkeypatch.setattr(nvidia_driver, "why_no_gpu", lambda: None)
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda _: None)
    monkeypatch.setattr(onnx_session, "providers_of", lambda *_: [("CPUExecutionProvider", {})])


def plain_and_fused(model: DeployedModel) -> tuple[set[str], set[str]]:
    names = {name for name in model.artefacts() if name.endswith(".onnx")}
    fused = {name for name in names if name.endswith(".fused.onnx")}
    return names - fused, fused


def test_a_model_on_a_gpu_without_engines(own: Bundle, as_cuda: None) -> None:
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
        assert isinstance(model._sessions.of(Graph.TEXT_ENCODER), BoundSession)
        for _ in range(3):  # another session, refused capture, without graphs
            again = model.encode_videos(videos)
            np.testing.assert_allclose(again.video_features, clips.video_features, atol=2e-3)
        parts = model._sessions.of(Graph.VIDEO_ENCODER)
        assert isinstance(parts, ValidFrameEncoder)
        for part in (parts._frames, parts._head):
            assert isinstance(part, ReplayingSession)
            assert part._replays is not None  # a GPU alone has the buffers to capture with
    chosen = SessionOptions(fused_graphs=False, cuda_graphs=False)
    with DeployedModel(own, chosen) as model:
        assert plain_and_fused(model)[1] == set()
        assert model.placement.reason.startswith("auto: a GPU is there; ")


def test_a_failed_self_test_is_in_the_reason_and_the_artefacts(
    own: Bundle, as_cuda: None, monkeypatch: pytest.MonkeyPatch
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


def test_a_bundle_without_fused_graphs_says_so(own: Bundle, as_cuda: None) -> None:
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
        for _ in range(4):  # plain, in the other session, captured, replayed
            clips = gpu.encode_videos(videos)
            for name in ("video_features", "frame_features"):
                assert np.abs(getattr(clips, name) - getattr(wanted, name)).max() < 5e-3
        parts = gpu._sessions.of(Graph.VIDEO_ENCODER)
        assert isinstance(parts, ValidFrameEncoder)
        assert isinstance(parts._frames, ReplayingSession)
        assert parts._frames._replays is not None
        assert parts._frames._replays.replays(sum(map(len, videos)))
        names = gpu.artefacts()
        assert sum(name.endswith(".fused.onnx") for name in names) == 3
        assert "with fused graphs" in gpu.placement.reason
        assert "plain form" not in gpu.placement.reason
        session = gpu._sessions.of(Graph.TEXT_ENCODER)
        assert isinstance(session, BoundSession)
        assert isinstance(session._runs, CapturedRuns)
        assert session._runs.captured_sizes == (3,)
    assert FP16.graphs is Precision.FP16
