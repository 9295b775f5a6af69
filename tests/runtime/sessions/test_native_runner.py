"""The native runner: the same tests on the stand-in device and on a real GPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device
from xclip_deploy.errors import ClosedError, SessionError
from xclip_deploy.runtime.cuda.memory import DeviceArray
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.manifest import DType, Graph

TEXTS = ["a dog on a leash", "a man is driving a car", "two cats", "a red ball rolls", "rain"]


def token_ids(model: DeployedModel, count: int) -> np.ndarray[Any, Any]:
    texts = [TEXTS[n % len(TEXTS)] for n in range(count)]
    return model.tokenizer.encode(texts, model.config.max_words)


# What is computed


@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_texts(machine: Any, reference: DeployedModel, count: int) -> None:
    ids = token_ids(reference, count)
    expected = reference.encode_token_ids(ids)
    with machine.model() as model:
        assert model.placement.backend == machine.flavour.value
        for _ in range(5):  # plain, warm-up, captured, launched twice
            found = model.encode_token_ids(ids)
            for name, array in vars(expected).items():
                machine.assert_same(getattr(found, name), array)


def test_videos_and_scores(machine: Any, reference: DeployedModel, golden: dict[str, Any]) -> None:
    frames, num_frames = golden["frames_uint8"], golden["num_frames"]
    texts = reference.encode_texts(TEXTS)
    expected = reference.encode_frames(frames, num_frames)
    with machine.model() as model:
        found = model.encode_frames(frames, num_frames)
        for name, array in vars(expected).items():
            machine.assert_same(getattr(found, name), array)
        scores = model.score(texts, expected)
        target = reference.score_by_graph(texts, expected)
        machine.assert_same(scores.logits, target.logits)
        assert list(scores.grains) == list(target.grains)
        for name, array in target.grains.items():
            machine.assert_same(scores.grains[name], array)


def test_nothing_at_all(machine: Any) -> None:
    with machine.model() as model:
        texts = model.encode_texts([])
        assert texts.word_features.shape == (0, model.config.max_words, model.config.embed_dim)
        videos = model.encode_videos([])
        assert model.score(texts, videos).logits.shape == (0, 0)
        assert model.score_gallery(texts, videos).logits.shape == (0, 0)


def test_many_threads(machine: Any, reference: DeployedModel) -> None:
    """More threads than streams, with batches that grow: each gets its own results."""
    counts = [1, 8, 2, 5, 3, 7, 1, 4] * 3
    expected = {n: reference.encode_token_ids(token_ids(reference, n)) for n in set(counts)}
    with machine.model(streams=3) as model, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(model.encode_token_ids, token_ids(reference, n)) for n in counts]
        for count, job in zip(counts, jobs, strict=True):
            found = job.result()
            machine.assert_same(found.word_features, expected[count].word_features)


def test_no_more_lanes_than_streams(stand_in: Any, reference: DeployedModel) -> None:
    with stand_in.model(streams=2) as model, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: model.encode_token_ids(token_ids(reference, 2)), range(24)))
        created = stand_in.device.calls.count("cudaStreamCreateWithFlags")
        assert 1 <= created <= 2


# Buffers


def test_buffers_are_used_again(stand_in: Any, reference: DeployedModel) -> None:
    with stand_in.model(cuda_graphs=False) as model:
        model.encode_token_ids(token_ids(reference, 8))
        used, calls = stand_in.device.used_bytes, stand_in.device.calls.count("cudaMalloc")
        for count in (1, 8, 3, 8):
            model.encode_token_ids(token_ids(reference, count))
        # A first run alone in another profile makes its context.
        assert stand_in.device.calls.count("cudaMalloc") == calls
        assert stand_in.device.used_bytes - used in (0, 1 << 16)


def test_buffers_grow(stand_in: Any, reference: DeployedModel) -> None:
    with stand_in.model() as model:
        for count in (2, 3, 8, 5, 8, 8, 8, 8):
            found = model.encode_token_ids(token_ids(reference, count))
            expected = reference.encode_token_ids(token_ids(reference, count))
            stand_in.assert_same(found.sentence_features, expected.sentence_features)


def test_a_bound_on_memory(stand_in: Any, reference: DeployedModel) -> None:
    """Two MiB are an engine and its buffers for one text; eight need more."""
    limit = (1 << 20) + (1 << 16) + 40_000
    with stand_in.model(device_memory_bytes=limit) as model:
        model.encode_token_ids(token_ids(reference, 1))
        with pytest.raises(SessionError, match=r"needs .* MiB of GPU memory; .* of the 1.1 MiB"):
            model.encode_token_ids(token_ids(reference, 8))
        assert stand_in.device.most_used_bytes <= limit
        model.encode_token_ids(token_ids(reference, 1))  # and can be used on


# Profiles


def test_the_first_profile_that_fits(stand_in: Any, reference: DeployedModel) -> None:
    with stand_in.runtime().open(Graph.TEXT_ENCODER) as session:
        ids = token_ids(reference, 8)
        assert session._fit({"token_ids": ids[:1]}) == (0, {"batch": 1})
        assert session._fit({"token_ids": ids[:2]}) == (1, {"batch": 2})
        assert session.chunk({"batch": 1}) == {"batch": 1}
        assert session.chunk({"batch": 100}) == {"batch": 8}


def test_chunks_of_the_fewest_runs(stand_in: Any) -> None:
    """Profiles: one text with 128 videos, 8 texts with 64 videos."""
    with stand_in.runtime().open(Graph.SCORER) as session:
        assert session.chunk({"texts": 1, "videos": 1000}) == {"texts": 1, "videos": 128}
        assert session.chunk({"texts": 8, "videos": 1000}) == {"texts": 8, "videos": 64}
        assert session.chunk({"texts": 3, "videos": 10}) == {"texts": 3, "videos": 10}


def test_beyond_the_profiles(stand_in: Any, reference: DeployedModel) -> None:
    with stand_in.runtime().open(Graph.TEXT_ENCODER) as session:
        with pytest.raises(
            SessionError, match=r"failed on batch 9: its engine was built for batch 1 to 1 or ba"
        ) as caught:
            session.run({"token_ids": token_ids(reference, 9)})
        assert "xclip-deploy build-trt" in str(caught.value)
        assert "\n" not in str(caught.value)
        session.run({"token_ids": token_ids(reference, 8)})


def test_inputs_that_do_not_fit(stand_in: Any) -> None:
    with stand_in.runtime().open(Graph.SCORER) as session:
        inputs = {
            name: np.zeros([2 if isinstance(s, str) else s for s in spec.shape])
            for name, spec in session.inputs.items()
        }
        session.run(inputs)
        with pytest.raises(SessionError, match=r"failed on word_features \[3, 32, 64\]: expected"):
            session.run(inputs | {"word_features": np.zeros((3, 32, 64))})
        with pytest.raises(SessionError, match=r"failed on word_features \[2, 64\]: expected"):
            session.run(inputs | {"word_features": np.zeros((2, 64))})
        del inputs["word_features"]
        with pytest.raises(SessionError, match="lacks the input word_features"):
            session.run(inputs)


# On the device


def test_inputs_on_the_device(machine: Any, reference: DeployedModel) -> None:
    """Also rows that begin at no aligned address: they are copied on the device."""
    ids = token_ids(reference, 8)
    expected = reference.encode_token_ids(ids[3:5]).word_features
    with (
        machine.runtime().open(Graph.TEXT_ENCODER) as session,
        session.to_device("token_ids", ids) as held,
    ):
        for _ in range(4):
            part = held.rows(3, 5)
            assert part.address % 256 != 0
            machine.assert_same(session.run({"token_ids": part})["word_features"], expected)
        whole = session.run({"token_ids": held})["word_features"]
        machine.assert_same(whole, reference.encode_token_ids(ids).word_features)
        wrong = DeviceArray(held.address, held.shape, DType.FLOAT32)
        with pytest.raises(SessionError, match="it is float32 on the device, expected int32"):
            session.run({"token_ids": wrong})


# Graphs


def test_repeated_shapes_become_graphs(device: Device, engine_bundle: Any) -> None:
    from xclip_deploy.runtime.engine_set import Flavour
    from xclip_deploy.runtime.sessions import SessionOptions

    model = DeployedModel(engine_bundle, SessionOptions(backend=Flavour.TENSORRT.value))
    with model:
        for _ in range(5):
            model.encode_texts(TEXTS[:2])
        # Plain, the warm-up of a context of its own, three launches.
        assert (device.executions, device.graph_launches) == (5, 3)
        model.encode_texts(TEXTS[:1])  # another profile
        model.encode_texts(TEXTS[:2])
        assert device.graph_launches == 4


def test_many_shapes_leave_no_graph_behind(device: Device, engine_bundle: Any) -> None:
    from xclip_deploy.runtime.sessions import SessionOptions

    options = SessionOptions(backend="tensorrt", streams=1)
    native = DeployedModel(engine_bundle, options)
    with native:
        texts = native.encode_texts(TEXTS[:4])
        videos = 40
        features = native.config.max_frames, native.config.embed_dim
        from xclip_deploy.runtime.features import VideoFeatures

        for count in [videos, *range(1, 30), *range(1, 30), *range(1, 30)]:
            native.score(
                texts,
                VideoFeatures(
                    np.ones((count, features[1]), np.float16),
                    np.ones((count, *features), np.float16),
                    np.ones(count, np.int32),
                ),
            )


def test_without_graphs(stand_in: Any) -> None:
    with stand_in.model(cuda_graphs=False) as model:
        for _ in range(5):
            model.encode_texts(TEXTS[:2])
    assert "cudaStreamBeginCapture" not in stand_in.device.calls


def test_what_cannot_be_captured_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, engine_bundle: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from stand_in_device import install
    from xclip_deploy.runtime.sessions import SessionOptions

    device = Device()
    enterprise, _ = install(monkeypatch, device)
    enterprise.refuses_graphs = True
    with DeployedModel(engine_bundle, SessionOptions(backend="tensorrt")) as model:
        for _ in range(5):
            model.encode_texts(TEXTS[:2])
    assert device.executions == 5
    assert [r.message for r in caplog.records if "runs without a CUDA graph" in r.message]
    device.check_nothing_left()


def test_one_strategy_of_rtx(stand_in: Any) -> None:
    """RTX captures by itself: nothing is captured here."""
    with stand_in.model() as model:
        for _ in range(4):
            model.encode_texts(TEXTS[:2])
    is_captured = "cudaStreamBeginCapture" in stand_in.device.calls
    assert is_captured == (stand_in.flavour.value == "tensorrt")


# Life


def test_closing(stand_in: Any, reference: DeployedModel) -> None:
    session = stand_in.runtime().open(Graph.TEXT_ENCODER)
    ids = token_ids(reference, 2)
    session.run({"token_ids": ids})
    session.close()
    session.close()
    stand_in.device.check_nothing_left()
    assert session.memory.held_bytes == 0
    with pytest.raises(SessionError, match="the text_encoder session is closed"):
        session.run({"token_ids": ids})


def test_a_closed_model_leaves_nothing(stand_in: Any) -> None:
    model = stand_in.model()
    first = model.encode_texts(TEXTS)
    model.close()
    stand_in.device.check_nothing_left()
    with pytest.raises(ClosedError, match=r"this model of .* is closed; open another"):
        model.encode_texts(TEXTS)
    stand_in.device.check_nothing_left()
    with stand_in.model() as another:
        again = another.encode_texts(TEXTS)
    np.testing.assert_array_equal(first.word_features, again.word_features)


def test_closing_waits_for_runs(stand_in: Any, reference: DeployedModel) -> None:
    session = stand_in.runtime(streams=4).open(Graph.TEXT_ENCODER)
    ids = token_ids(reference, 8)
    failures: list[Exception] = []
    started = threading.Barrier(5)

    def work() -> None:
        started.wait()
        try:
            while True:
                session.run({"token_ids": ids})
        except SessionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    session.run({"token_ids": ids})
    session.close()
    for thread in threads:
        thread.join()
    assert {str(error) for error in failures} == {"the text_encoder session is closed"}
    stand_in.device.check_nothing_left()
