"""Every session that exists here keeps the one protocol."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from stand_in_device import Device
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import InvalidArgumentError, SessionError
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.sessions import Session, SessionOptions
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16, why_no_openvino
from xclip_deploy.runtime.sessions.registry import load_backend, register, unregister

OPTIONS: dict[str, dict[str, str]] = {
    "ONNX Runtime, FP32": {"device": "cpu", "precision": "fp32"},
    "ONNX Runtime, FP16": {"device": "cpu", "precision": "fp16"},
    "TensorRT on the stand-in": {"device": "cuda", "backend": "tensorrt"},
    "TensorRT-RTX on the stand-in": {"device": "cuda", "backend": "rtx"},
    "OpenVINO": {"device": "cpu", "backend": "openvino"},
    "a backend from outside": {"device": "cpu", "backend": "toy"},
}
TARGETS = {"toy": "toy_backend:ToyBackend"}
"""Backend that is not the package's own -> its target."""


@pytest.fixture(params=list(OPTIONS))
def options(request: pytest.FixtureRequest) -> Iterator[SessionOptions]:
    chosen: dict[str, Any] = OPTIONS[request.param]
    missing = why_no_openvino() or why_no_bf16()
    if request.param == "OpenVINO" and missing is not None:
        pytest.skip(missing)
    name = chosen.get("backend", "onnxruntime")
    if name in TARGETS:
        register(name, TARGETS[name])
    yield SessionOptions(**chosen)
    unregister(name)


@pytest.fixture
def model(
    options: SessionOptions, device: Device, engine_bundle: Bundle
) -> Iterator[DeployedModel]:
    with DeployedModel(engine_bundle, options) as opened:
        yield opened


@pytest.fixture
def session(model: DeployedModel) -> Session:
    return model._sessions.of(Graph.TEXT_ENCODER)


def test_what_it_is(model: DeployedModel, session: Session, options: SessionOptions) -> None:
    assert session.graph is Graph.TEXT_ENCODER
    placement = model.placement
    assert isinstance(placement.precision, Precision)
    assert placement.backend == (options.backend if options.backend != "auto" else "onnxruntime")
    arithmetics = load_backend(placement.backend).arithmetics[placement.device]
    assert placement.arithmetic in arithmetics
    assert placement.device_name == ("cpu" if options.device == "cpu" else "cuda:0")


def test_running(session: Session) -> None:
    ids = np.zeros((3, 32), np.int64)
    ids[:, 5] = 49407
    outputs = session.run({"token_ids": ids, "more": ids})
    assert list(outputs) == ["sentence_features", "word_features"]
    assert [array.shape for array in outputs.values()] == [(3, 64), (3, 32, 64)]
    assert all(array.dtype == np.float32 for array in outputs.values())
    as_floats = session.run({"token_ids": ids.astype(np.float64)})
    strided = session.run({"token_ids": np.repeat(ids, 2, axis=1)[:, ::2]})
    for name, array in outputs.items():
        np.testing.assert_array_equal(as_floats[name], array)
        np.testing.assert_array_equal(strided[name], array)
        array[:] = 0  # it is the caller's: nothing of the session's is in it
    again = session.run({"token_ids": ids})
    np.testing.assert_array_equal(again["word_features"], strided["word_features"])


def test_shapes_that_do_not_fit(session: Session) -> None:
    with pytest.raises(SessionError, match=r"text_encoder failed on token_ids \[1, 5\]") as caught:
        session.run({"token_ids": np.zeros((1, 5))})
    assert "\n" not in str(caught.value)
    session.run({"token_ids": np.zeros((1, 32))})


def test_chunks(session: Session) -> None:
    assert session.chunk({"batch": 1}) == {"batch": 1}
    assert 1 <= session.chunk({"batch": 10_000})["batch"] <= 10_000


def test_threads(session: Session) -> None:
    ids = np.arange(8 * 32).reshape(8, 32)
    expected = session.run({"token_ids": ids})["word_features"]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(session.run, {"token_ids": ids}) for _ in range(12)]
        for job in jobs:
            np.testing.assert_allclose(job.result()["word_features"], expected, atol=1e-6)


def test_closed(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(SessionError, match="the text_encoder session is closed"):
        session.run({"token_ids": np.zeros((1, 32))})


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "onnx"},
        {"backend": "cuda"},
        {"backend": "rtx", "device": "cpu"},
        {"backend": "tensorrt-provider", "device": "cpu"},
        {"device_id": -1},
        {"device_memory_bytes": 0},
        {"streams": 0},
        {"threads": 4, "backend": "rtx"},
        {"device_id": 7, "device": "cpu"},
        {"provider_options": {"a": "b"}, "backend": "rtx"},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        SessionOptions(**wrong)
