"""Sessions of ONNX Runtime, and graphs that are not what a bundle says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import (
    BundleIntegrityError,
    SessionError,
)
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.manifest import MANIFEST_NAME, FileRecord, Graph
from xclip_deploy.runtime.sessions import (
    Arithmetic,
    Placement,
    SessionOptions,
)
from xclip_deploy.runtime.sessions.onnx_session import (
    FP32,
    OnnxRuntimeSession,
)

FP32_CPU = Placement("onnxruntime", "cpu", FP32)


@pytest.mark.parametrize(
    ("backend", "provider", "libraries"),
    [
        ("onnxruntime", "CUDAExecutionProvider", "CUDA and cuDNN"),
        ("tensorrt-provider", "TensorrtExecutionProvider", "TensorRT 10"),
    ],
)
def test_a_provider_that_does_not_load(
    bundle: Bundle, backend: Any, provider: str, libraries: str
) -> None:
    """ONNX Runtime falls back to the CPU by itself: that is an error here."""
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    if nvidia_driver.why_no_gpu() is None:
        pytest.skip("this machine has a GPU")
    placement = Placement(backend, "cuda", FP32)
    with pytest.raises(SessionError) as caught:
        OnnxRuntimeSession(bundle, Graph.SCORER, placement)
    message = str(caught.value)
    assert "\n" not in message
    assert provider in message
    assert f"its {libraries} libraries" in message or "cannot load" in message


# Running


def test_every_precision_of_the_bundle_runs(bundle: Bundle) -> None:
    for precision in bundle.precisions:
        placement = Placement("onnxruntime", "cpu", Arithmetic(precision.value, precision))
        session = OnnxRuntimeSession(bundle, Graph.SCORER, placement, threads=1)
        assert session.graph is Graph.SCORER


def test_threads_do_not_change_results(bundle: Bundle) -> None:
    ids = np.array([[49406, 320, 1929, 49407, *[0] * 28]])
    found = [
        OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU, threads).run({"token_ids": ids})
        for threads in (1, 2, None)
    ]
    for other in found[1:]:
        for name, array in found[0].items():
            np.testing.assert_allclose(other[name], array, rtol=0, atol=1e-6)


def test_inputs_are_cast_and_others_ignored(bundle: Bundle) -> None:
    session = OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    ids = np.array([[49406, 320, 49407, *[0] * 29]])
    expected = session.run({"token_ids": ids.astype(np.int32)})
    found = session.run({"token_ids": ids.astype(np.int64), "more": ids})
    assert list(found) == ["sentence_features", "word_features"]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_run_that_fails(bundle: Bundle) -> None:
    session = OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    with pytest.raises(SessionError, match=r"text_encoder failed on token_ids \[1, 5\]") as caught:
        session.run({"token_ids": np.zeros((1, 5))})
    assert "\n" not in str(caught.value)
    session.run({"token_ids": np.zeros((1, 32))})  # and can be used on


def test_a_closed_session(bundle: Bundle) -> None:
    session = OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)
    session.close()
    session.close()
    with pytest.raises(SessionError, match="session is closed"):
        session.run({"token_ids": np.zeros((1, 32))})


# Graphs that are not what they should be, in a bundle that says they are


def accepted(path: Path, name: str, content: bytes) -> Bundle:
    """Change a file of a bundle as if the export had written it so."""
    manifest = Bundle.open(path).manifest
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    manifest = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    (path / name).write_bytes(content)
    (path / MANIFEST_NAME).write_bytes(manifest.to_json())
    bundle = Bundle.open(path)
    bundle.verify()
    return bundle


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x08" * 1000, b"\0" * 1000])
def test_a_file_that_is_not_onnx(bundle_copy: Path, content: bytes) -> None:
    bundle = accepted(bundle_copy, "fp32/scorer.onnx", content)
    with pytest.raises(SessionError, match="ONNX Runtime cannot load") as caught:
        OnnxRuntimeSession(bundle, Graph.SCORER, FP32_CPU)
    assert "\n" not in str(caught.value)
    assert str(bundle_copy / "fp32" / "scorer.onnx") in str(caught.value)


def test_a_graph_cut_in_the_middle(bundle_copy: Path) -> None:
    name = "fp32/text_encoder.onnx"
    whole = (bundle_copy / name).read_bytes()
    bundle = accepted(bundle_copy, name, whole[: len(whole) // 2])
    with pytest.raises(SessionError, match="ONNX Runtime cannot load"):
        OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, FP32_CPU)


def test_another_graph_in_its_place(bundle_copy: Path) -> None:
    content = (bundle_copy / "fp32/video_encoder.onnx").read_bytes()
    bundle = accepted(bundle_copy, "fp32/text_encoder.onnx", content)
    with pytest.raises(BundleIntegrityError, match=r"a graph has tensors .*frames") as caught:
        DeployedModel(bundle, SessionOptions(device="cpu")).encode_texts(["a dog"])
    assert f"run: xclip-deploy export CHECKPOINT -o {bundle_copy}" in str(caught.value)


def test_an_altered_graph_is_not_loaded(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    file = bundle_copy / "fp32/scorer.onnx"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        OnnxRuntimeSession(bundle, Graph.SCORER, FP32_CPU)
