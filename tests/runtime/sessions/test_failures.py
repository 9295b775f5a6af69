"""Whatever fails, it is said by name, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device, install
from stand_in_device.execution import ExecutionContext
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.engine_set import Flavour
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.native.backend import EngineLoader
from xclip_deploy.runtime.sessions.native.gallery import ResidentGallery

STATUS = "cudaErrorLaunchFailure"
OPTIONAL = {
    "cudaGraphDestroy",
    "cudaGraphInstantiate",
    "cudaMemGetInfo",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
}
"""What a run can do without."""
LATER_OPTIONAL = {"cudaSetDevice", "execute_async_v3"}
"""The same of later calls: before memory is freed, and while a graph is captured."""


@dataclass(frozen=True)
class Features:
    texts: TextFeatures
    videos: VideoFeatures


@pytest.fixture(scope="module")
def features(bundle: Bundle) -> Features:
    """Of two texts and 80 videos, more than one run takes with two texts."""
    config = bundle.manifest.model
    words, frames = config.max_words, config.max_frames
    rows = np.random.default_rng(0).standard_normal((2, config.embed_dim))
    texts = TextFeatures(rows, np.repeat(rows[:, None], words, 1), np.full(2, words, np.int32))
    many = np.tile(rows, (40, 1)).astype(np.float16)
    counts = np.full(80, frames, np.int32)
    return Features(texts, VideoFeatures(many, np.repeat(many[:, None], frames, 1), counts))


def use(runtime: EngineLoader, features: Features) -> Any:
    """All that is done with a scorer: plain runs, graphs, a gallery in several chunks."""
    with runtime.open(Graph.SCORER) as session:
        gallery = ResidentGallery(session)
        try:
            for _ in range(4):
                session.run({**vars(features.texts), **vars(features.videos[:8])})
            return gallery.score(features.texts, features.videos)["logits"]
        finally:
            gallery.close()


def clean_run(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, flavour: Flavour, features: Features
) -> tuple[list[str], Any]:
    device = Device()
    install(monkeypatch, device)
    logits = use(EngineLoader(bundle, flavour), features)
    device.check_nothing_left()
    return device.calls, logits


@pytest.mark.parametrize("numbers", [(0,), pytest.param(range(1, 40), marks=pytest.mark.slow)])
@pytest.mark.parametrize("flavour", list(Flavour))
def test_every_call_may_fail(
    monkeypatch: pytest.MonkeyPatch,
    engine_bundle: Bundle,
    flavour: Flavour,
    numbers: Sequence[int],
    features: Features,
) -> None:
    """One after another, each call of the CUDA runtime and of TensorRT fails."""
    calls, expected = clean_run(monkeypatch, engine_bundle, flavour, features)
    assert len(calls) > 80
    failed = set()
    for function in sorted(set(calls)):
        for number in (n for n in numbers if n < calls.count(function)):
            device = Device()
            install(monkeypatch, device)
            device.fail(function, STATUS, after=number)
            message = None
            try:
                found = use(EngineLoader(engine_bundle, flavour), features)
            except SessionError as error:
                message = str(error)
            if message is None:
                # There is no graph, then; or it was numbers that only a message would name.
                assert function in OPTIONAL | (LATER_OPTIONAL if number else set())
                np.testing.assert_array_equal(found, expected)
            else:
                failed.add(function)
                assert STATUS in message
                assert function in message or function == "execute_async_v3"
                assert "\n" not in message
            device.check_nothing_left()
    if 0 in numbers:
        assert failed >= set(calls) - OPTIONAL


@pytest.mark.parametrize("flavour", list(Flavour))
@pytest.mark.parametrize("numbers", [(0, 3, 7), pytest.param(range(40), marks=pytest.mark.slow)])
def test_every_allocation_may_fail(
    monkeypatch: pytest.MonkeyPatch,
    engine_bundle: Bundle,
    flavour: Flavour,
    numbers: Sequence[int],
    features: Features,
) -> None:
    calls, expected = clean_run(monkeypatch, engine_bundle, flavour, features)
    for function in ("cudaMalloc", "cudaHostAlloc"):
        for number in (n for n in numbers if n < calls.count(function)):
            device = Device()
            install(monkeypatch, device)
            device.fail(function, "cudaErrorMemoryAllocation", after=number)
            runtime = EngineLoader(engine_bundle, flavour)
            # A growing buffer may find that it can do with less.
            with suppress(DeviceMemoryError):
                use(runtime, features)
            assert runtime.memory.held_bytes == 0
            np.testing.assert_array_equal(use(runtime, features), expected)
            device.check_nothing_left()


def test_no_room_for_the_engine(stand_in: Any, features: Features) -> None:
    stand_in.device.total_bytes = 1000
    with pytest.raises(
        DeviceMemoryError,
        match=r"GPU 0 is out of memory: the engine of scorer needs 1.0 MiB, 0.0 M",
    ):
        use(stand_in.runtime(), features)


def test_no_room_for_a_context(stand_in: Any, features: Features) -> None:
    runtime = stand_in.runtime()
    stand_in.device.total_bytes = (1 << 20) + 65_000
    with pytest.raises(DeviceMemoryError, match="GPU 0 is out of memory: ") as caught:
        use(runtime, features)
    assert "MiB are free" in str(caught.value)
    assert runtime.memory.held_bytes == 0


def test_after_a_failure_the_session_works_on(stand_in: Any, features: Features) -> None:
    inputs = {**vars(features.texts), **vars(features.videos[:8])}
    with stand_in.runtime().open(Graph.SCORER) as session:
        expected = session.run(inputs)["logits"]
        stand_in.device.fail("execute_async_v3", "an internal error")
        with pytest.raises(SessionError, match=r"did not run \(scorer\): an internal error"):
            session.run(inputs)
        np.testing.assert_array_equal(session.run(inputs)["logits"], expected)


def test_an_interrupt(stand_in: Any, monkeypatch: pytest.MonkeyPatch, features: Features) -> None:
    """Ctrl-C in the middle of a run, when copies are on their way."""
    original = ExecutionContext.execute_async_v3

    def interrupted(self: Any, stream: int) -> bool:
        original(self, stream)
        raise KeyboardInterrupt

    inputs = {**vars(features.texts), **vars(features.videos[:8])}
    with stand_in.runtime().open(Graph.SCORER) as session:
        expected = session.run(inputs)["logits"]
        with monkeypatch.context() as patch:
            patch.setattr(ExecutionContext, "execute_async_v3", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.run(inputs)
        np.testing.assert_array_equal(session.run(inputs)["logits"], expected)


# NaN


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "rtx"])
def test_features_that_are_not_finite(
    device: Device, engine_bundle: Bundle, features: Features, backend: Any
) -> None:
    options = SessionOptions(device="cpu" if backend == "onnxruntime" else "cuda", backend=backend)
    broken = features.videos.frame_features.copy()
    broken[5, 1, 2] = np.nan
    videos = replace(features.videos, frame_features=broken)
    with DeployedModel(engine_bundle, options) as model:
        for score in (model.score, model.score_gallery):
            with pytest.raises(SessionError, match="hold NaN or infinity in frame_features"):
                score(features.texts, videos)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "rtx"])
def test_an_encoder_that_overflows(
    device: Device, engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    options = SessionOptions(
        device="cpu" if backend == "onnxruntime" else "cuda", backend=backend, precision="fp16"
    )
    with DeployedModel(engine_bundle, options) as model:
        session = model._sessions.of(Graph.TEXT_ENCODER)
        run = session.run

        def overflowing(inputs: Any) -> Any:
            outputs = run(inputs)
            outputs["word_features"][1, 0, 0] = np.inf
            return outputs

        monkeypatch.setattr(session, "run", overflowing)
        with pytest.raises(SessionError) as caught:
            model.encode_texts(["a dog", "a cat", "a cow"])
        assert str(caught.value) == (
            f"text_encoder gave NaN or infinity in word_features, in 1 of 3 rows, in fp16 on "
            f"{model.placement.device_name}; use precision='fp32', and run: "
            f"xclip-deploy verify {engine_bundle.path}"
        )
