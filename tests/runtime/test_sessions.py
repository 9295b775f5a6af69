from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from xclip_deploy import Bundle, DeployedModel, Retriever
from xclip_deploy.errors import BundleIntegrityError, InvalidArgumentError, SessionError
from xclip_deploy.runtime.manifest import FILE_NAME, FileRecord, Graph, Precision
from xclip_deploy.runtime.sessions import (
    OnnxRuntimeSession,
    Placement,
    SessionOptions,
    device,
    place,
)

BOTH = (Precision.FP32, Precision.FP16)
CPU_ONLY = ["CPUExecutionProvider"]
WITH_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
FP32_CPU = Placement("cpu", Precision.FP32, "for a test")


def options(**chosen: Any) -> SessionOptions:
    return SessionOptions(**chosen)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had a GPU: the choice is tested, not the running."""
    monkeypatch.setattr(device, "why_no_cuda", lambda _: None)


# Choosing


def test_auto_without_a_gpu() -> None:
    chosen = place(options(), BOTH, CPU_ONLY)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP32)
    assert chosen.reason.startswith("auto: ")
    assert "no CUDA provider" in chosen.reason


def test_auto_with_a_gpu(with_gpu: None) -> None:
    chosen = place(options(), BOTH, WITH_CUDA)
    assert (chosen.device, chosen.precision) == ("cuda", Precision.FP16)
    assert "a GPU is there" in chosen.reason


def test_what_was_asked_for_wins(with_gpu: None) -> None:
    chosen = place(options(device="cpu"), BOTH, WITH_CUDA)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP32)
    assert chosen.reason == "cpu was asked for"
    chosen = place(options(device="cuda", precision="fp32"), BOTH, WITH_CUDA)
    assert (chosen.device, chosen.precision) == ("cuda", Precision.FP32)
    chosen = place(options(device="cpu", precision="fp16"), BOTH, WITH_CUDA)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP16)


def test_auto_takes_the_precision_that_is_there() -> None:
    for precision in Precision:
        assert place(options(device="cpu"), (precision,), CPU_ONLY).precision is precision


def test_a_precision_that_is_not_there() -> None:
    with pytest.raises(SessionError, match="precision fp16 was asked for; the bundle has fp32"):
        place(options(device="cpu", precision="fp16"), (Precision.FP32,), CPU_ONLY)


def test_cuda_without_its_provider() -> None:
    with pytest.raises(SessionError, match="device cuda was asked for, but this onnxruntime") as c:
        place(options(device="cuda"), BOTH, CPU_ONLY)
    assert "pip install 'xclip-deploy[gpu]'" in str(c.value)


def test_cuda_without_a_gpu() -> None:
    missing = device.why_no_cuda(WITH_CUDA)
    if missing is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SessionError, match="device cuda was asked for, but ") as caught:
        place(options(device="cuda"), BOTH, WITH_CUDA)
    assert missing in str(caught.value)
    assert any(word in missing for word in ("no NVIDIA driver", "CUDA error", "sees no GPU"))
    assert place(options(), BOTH, WITH_CUDA).reason == f"auto: {missing}"


def test_cuda_by_the_public_classes(bundle: Bundle) -> None:
    if device.why_no_cuda(onnxruntime.get_available_providers()) is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SessionError, match="device cuda was asked for, but "):
        DeployedModel(bundle, options(device="cuda"))
    with pytest.raises(SessionError, match="device cuda was asked for, but "):
        Retriever(bundle, device="cuda")
    placement = DeployedModel(bundle).placement
    assert (placement.device, placement.precision) == ("cpu", Precision.FP32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "gpu"},
        {"device": "cuda:0"},
        {"device": None},
        {"precision": "int8"},
        {"precision": "FP16"},
        {"threads": 0},
        {"threads": -1},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(wrong))} .*: expected"):
        options(**wrong)


# Running


def test_a_session_says_what_it_is(bundle: Bundle) -> None:
    for precision in Precision:
        placement = Placement("cpu", precision, "for a test")
        session = OnnxRuntimeSession(bundle, Graph.SCORER, placement, threads=1)
        assert (session.graph, session.precision, session.device) == (
            Graph.SCORER,
            precision,
            "cpu",
        )


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
    (path / FILE_NAME).write_bytes(manifest.to_json())
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
        DeployedModel(bundle, options(device="cpu")).encode_texts(["a dog"])
    assert f"run: xclip-deploy export CHECKPOINT -o {bundle_copy}" in str(caught.value)


def test_an_altered_graph_is_not_loaded(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    file = bundle_copy / "fp32/scorer.onnx"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        OnnxRuntimeSession(bundle, Graph.SCORER, FP32_CPU)
