"""Runs on a stream of ours: pieces, replays, threads and failures, on the stand-in device.

The stand-in reads and writes memory when a stream is waited for. So a buffer that is filled again
too early shows as a wrong result. Whatever is not given back fails the test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device, OnnxRuntimeModule
from xclip_deploy import Bundle
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.manifest import AnyGraph, Graph, VideoPart
from xclip_deploy.runtime.sessions import Placement, device_lanes
from xclip_deploy.runtime.sessions.device_lanes import DeviceLink
from xclip_deploy.runtime.sessions.device_runs import DeviceRuns
from xclip_deploy.runtime.sessions.onnx_session import FP32, BoundSession, OnnxRuntimeSession

FP32_CPU, FP32_CUDA = (Placement("onnxruntime", device, FP32) for device in ("cpu", "cuda"))
Feeds = dict[str, AnyArray]


def token_ids(count: int, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    ids = np.zeros((count, 32), dtype=np.int32)
    ids[:, 0], ids[:, 5] = 49406, 49407
    ids[:, 1:5] = rng.integers(1, 49000, (count, 4))
    return {"token_ids": ids}


def frames(bundle: Bundle, count: int, seed: int = 0) -> Feeds:
    size = bundle.manifest.model.vision.image_size
    rng = np.random.default_rng(seed)
    return {"frames": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)}


def same(found: Feeds, expected: Feeds) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6)


class Opener:
    """Opens sessions on the stand-in, and the plain ones whose results are expected."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.reports: list[str] = []

    def __call__(self, graph: AnyGraph = Graph.TEXT_ENCODER, **options: Any) -> BoundSession:
        link = DeviceLink.open(0)
        given = (self.bundle, graph, FP32_CUDA, 1)
        return BoundSession(*given, link=link, report=self.reports.append, **options)

    def plain(self, graph: AnyGraph = Graph.TEXT_ENCODER) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self.bundle, graph, FP32_CPU, 1)


@pytest.fixture
def opened(bundle: Bundle, onnxruntime_module: OnnxRuntimeModule) -> Opener:
    return Opener(bundle)


def test_pieces_make_up_the_batch(
    opened: Opener, onnxruntime_module: OnnxRuntimeModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the length: no row is lost, run twice or in another place."""
    plain, session = opened.plain(VideoPart.FRAME_ENCODER), opened(VideoPart.FRAME_ENCODER)
    one = frames(opened.bundle, 1)["frames"].nbytes
    session._runs._piece_bytes = 2 * one
    monkeypatch.setattr(device_lanes, "_SLICE_BYTES", one // 3)
    for count, pieces in ((1, 1), (2, 1), (7, 4), (8, 4), (1, 1)):
        before = onnxruntime_module.device.executions
        given = frames(opened.bundle, count, count)
        # Buffers grow and shrink in use: the rest of a larger batch must not be seen.
        same(session.run(given), plain.run(given))
        assert onnxruntime_module.device.executions == before + pieces
    session.close()


@pytest.mark.parametrize("replays", [False, True])
def test_frames_of_several_videos_are_joined_on_their_way(
    opened: Opener, replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of all frames is made; parts and pieces may end within a video."""
    graph = VideoPart.FRAME_ENCODER
    plain, session = opened.plain(graph), opened(graph, replays=replays)
    one = frames(opened.bundle, 1)["frames"].nbytes
    session._runs._piece_bytes = 2 * one
    monkeypatch.setattr(device_lanes, "_SLICE_BYTES", one // 3 + 5)
    videos = [frames(opened.bundle, count, count)["frames"] for count in (3, 1, 2, 1)]
    videos[0] = videos[0][::-1]  # rows that lie apart in memory
    for given in (videos, videos[1:2], videos[1:2], videos[1:2], videos):
        expected = plain.run({"frames": np.concatenate(given)})
        same(session.run_rows({"frames": given}), expected)
    session.close()
    with pytest.raises(SessionError, match="the frame_encoder session is closed"):
        session.run_rows({"frames": videos})


@pytest.mark.parametrize("replays", [False, True])
def test_many_threads(opened: Opener, replays: bool) -> None:
    """Two lanes and eight callers: each gets the results of its own frames."""
    graph = VideoPart.FRAME_ENCODER
    plain, session = opened.plain(graph), opened(graph, replays=replays)
    session._runs._piece_bytes = 2 * frames(opened.bundle, 1)["frames"].nbytes
    batches = [frames(opened.bundle, 1 + seed % 3, seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(session.run, batches))
    for result, batch in zip(found, batches, strict=True):
        same(result, plain.run(batch))
    session.close()
    session.close()
    with pytest.raises(SessionError, match="the frame_encoder session is closed"):
        session.run(batches[0])


def test_replayed_sizes(opened: Opener, onnxruntime_module: OnnxRuntimeModule) -> None:
    """The second run of a size captures it. Results must not share its memory."""
    plain, session = opened.plain(), opened(is_fused=True, replays=True)
    results, inputs = [], []
    for seed, count in enumerate([1, 1, 3, 1, 3, 3, 40, 40, 1]):
        inputs.append(token_ids(count, seed))
        results.append(session.run(inputs[-1]))
    assert session._runs.captured_sizes == (1, 3), "40 are more than a graph is captured for"
    assert onnxruntime_module.captures == [1, 2]
    assert onnxruntime_module.replays == 5, "also the runs that come right after a capture"
    for given, result in zip(inputs, results, strict=True):
        same(result, plain.run(given))
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(session.run, inputs))
    for result, before in zip(again, results, strict=True):
        same(result, before)
    assert onnxruntime_module.captures == [1, 2], "one thread computes for all"
    session.close()


def test_large_batches_of_frames_are_not_captured(opened: Opener) -> None:
    session = opened(VideoPart.FRAME_ENCODER, replays=True)
    rule = session._runs._replays
    assert rule is not None
    assert rule(1, 32 << 20)
    assert not rule(1, (32 << 20) + 1)
    session.close()


def test_one_wait_for_the_gpu_in_a_replay(opened: Opener, device: Device) -> None:
    """One copy up, one for each output down, and one wait: all else costs a small batch dearly."""
    session = opened(is_fused=True, replays=True)
    for seed in range(3):
        session.run(token_ids(1, seed))
    device.calls.clear()
    session.run(token_ids(1, 3))
    copies = ["cudaMemcpyAsync"] * (1 + len(session._spec.outputs))
    calls = [each for each in device.calls if each not in ("cudaSetDevice", "run_with_iobinding")]
    assert calls == [*copies, "cudaStreamSynchronize"]
    session.close()


def test_nothing_else_runs_while_a_graph_is_captured(opened: Opener) -> None:
    """ONNX Runtime captures in CUDA's global mode: other threads' calls would end it."""
    capturing, other = opened(is_fused=True, replays=True), opened()
    given = token_ids(2)
    expected = capturing.run(given)
    runs = capturing._runs
    with ThreadPoolExecutor(2) as pool:
        with CAPTURES.shared():
            capture = pool.submit(capturing.run, given)
            while not CAPTURES.is_awaited:
                time.sleep(0.001)
            assert list(runs.captured_sizes) == []
            beside = pool.submit(other.run, given)
        same(capture.result(30), expected)
        same(beside.result(30), expected)
    assert runs.captured_sizes == (2,)
    capturing.close()
    other.close()


def test_a_size_that_cannot_be_captured_still_runs(opened: Opener, device: Device) -> None:
    plain, session = opened.plain(), opened(is_fused=True, replays=True)
    device.fail("capture", "operation not permitted when stream is capturing")
    for seed in range(4):
        same(session.run(token_ids(1, seed)), plain.run(token_ids(1, seed)))
    assert session._runs.captured_sizes == ()
    (report,) = opened.reports
    assert report.startswith("batches of 1 run without a CUDA graph: operation not permitted")
    session.close()


@pytest.mark.parametrize("replays", [False, True])
@pytest.mark.parametrize(
    "function", ["cudaMemcpyAsync", "run_with_iobinding", "cudaHostAlloc", "cudaMalloc"]
)
def test_a_failure_leaves_the_lanes_usable(
    opened: Opener, device: Device, function: str, replays: bool
) -> None:
    """More failures than lanes, in single runs and in pieces; then everything works."""
    graph = VideoPart.FRAME_ENCODER
    plain, session = opened.plain(graph), opened(graph, replays=replays)
    one = frames(opened.bundle, 1)["frames"].nbytes
    session._runs._piece_bytes = 5 * one
    # A size that comes again is captured, and a failure of that is no failure of the run.
    for count in (1, 2, 3, 5 if replays else 9):
        status = "cudaErrorMemoryAllocation" if "lloc" in function else "cudaErrorUnknown"
        device.fail(function, status)
        with pytest.raises(SessionError):
            session.run(frames(opened.bundle, count, 9))
    given = frames(opened.bundle, 7, 3)
    for _ in range(2):
        same(session.run(given), plain.run(given))
    session.close()


def test_a_full_gpu_is_an_error_of_its_own(opened: Opener, device: Device) -> None:
    session = opened()
    device.total_bytes = 1000
    with pytest.raises(DeviceMemoryError, match=r"out of memory: the encoder's token_ids needs"):
        session.run(token_ids(64))
    device.total_bytes = 1 << 30
    session.run(token_ids(64))

    def full(*_: Any) -> None:
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for 8388608")

    session._runs.run = full  # type: ignore[method-assign, assignment]
    with pytest.raises(
        DeviceMemoryError, match=r"text_encoder failed on token_ids .*smaller batch"
    ):
        session.run(token_ids(2))
    session.close()


def test_close_waits_for_runs(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened()
    entered, leave = threading.Event(), threading.Event()
    enqueue: Callable[..., None] = DeviceRuns._enqueue_and_wait

    def slow(*args: Any, **options: Any) -> None:
        entered.set()
        assert leave.wait(30)
        enqueue(*args, **options)

    monkeypatch.setattr(DeviceRuns, "_enqueue_and_wait", slow)
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(session.run, token_ids(2))
        assert entered.wait(30)
        closing = pool.submit(session.close)
        time.sleep(0.05)
        assert not closing.done()
        leave.set()
        closing.result(30)
        assert run.result(30)["sentence_features"].shape[0] == 2


def test_a_session_that_does_not_load_gives_back_its_stream(
    opened: Opener, onnxruntime_module: OnnxRuntimeModule
) -> None:
    onnxruntime_module.refuses_graphs = True
    with pytest.raises(SessionError, match="cannot use the graph capture feature"):
        opened(replays=True)


def test_nothing_to_run(opened: Opener) -> None:
    session = opened()
    found = session.run(token_ids(0))
    assert found["sentence_features"].shape == (0, opened.bundle.manifest.model.embed_dim)
    session.close()
