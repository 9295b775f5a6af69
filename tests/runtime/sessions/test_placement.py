"""Choice of backend, device and arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xclip_deploy import Bundle, DeployedModel, Retriever
from xclip_deploy.errors import (
    BackendUnavailableError,
    InvalidArgumentError,
    SessionError,
)
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.sessions import (
    Placement,
    SessionOptions,
    onnx_runtime,
)
from xclip_deploy.runtime.sessions import place as open_loader
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider
from xclip_deploy.runtime.sessions.onnx_session import (
    FP32,
    TF32,
    providers_of,
)

WITH_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
FP32_CPU = Placement("onnxruntime", "cpu", FP32)


def options(**chosen: Any) -> SessionOptions:
    return SessionOptions(**chosen)


def place(chosen: SessionOptions, bundle: Bundle) -> Placement:
    return open_loader(chosen, bundle).placement


def with_precisions(bundle: Bundle, *precisions: Precision) -> Bundle:
    """The bundle as if it had graphs of these precisions."""
    some = next(iter(bundle.manifest.graphs.values()))
    graphs = {precision: bundle.manifest.graphs.get(precision, some) for precision in precisions}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))


def test_auto_without_a_gpu(bundle: Bundle, cpu_only: None) -> None:
    chosen = place(options(), bundle)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP32)
    assert (chosen.backend, chosen.device_name) == ("onnxruntime", "cpu")
    assert chosen.reason.startswith("auto: ")
    assert "no CUDA provider" in chosen.reason


def test_auto_with_a_gpu(bundle: Bundle, with_gpu: None) -> None:
    chosen = place(options(device_id=1), bundle)
    assert (chosen.device, chosen.precision) == ("cuda", Precision.FP16)
    assert (chosen.backend, chosen.device_name) == ("onnxruntime", "cuda:1")
    assert chosen.reason == "auto: a GPU is there, with fused graphs; the bundle has no engines"


def test_what_was_asked_for_wins(bundle: Bundle, with_gpu: None) -> None:
    chosen = place(options(device="cpu"), bundle)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP32)
    assert chosen.reason == "cpu was asked for"
    chosen = place(options(device="cuda", precision="fp32"), bundle)
    assert (chosen.device, chosen.precision) == ("cuda", Precision.FP32)
    chosen = place(options(device="cpu", precision="fp16"), bundle)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP16)
    chosen = place(options(backend="tensorrt-provider"), bundle)
    assert (chosen.backend, chosen.precision) == ("tensorrt-provider", Precision.FP16)
    assert chosen.reason == "tensorrt-provider was asked for: a GPU is there"


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_auto_takes_the_precision_that_is_there(bundle: Bundle, precision: Precision) -> None:
    one = with_precisions(bundle, precision, Precision.INT8, Precision.BF16)
    assert place(options(device="cpu"), one).precision is precision


def test_auto_never_takes_int8(bundle: Bundle) -> None:
    one = with_precisions(bundle, Precision.INT8)
    with pytest.raises(SessionError, match="pass precision='int8'"):
        place(options(device="cpu"), one)


def test_auto_says_which_graphs_are_missing(bundle: Bundle) -> None:
    one = with_precisions(bundle, Precision.BF16)
    with pytest.raises(SessionError, match="bf16 graphs alone; onnxruntime on cpu runs fp32, fp16"):
        place(options(device="cpu"), one)


def test_int8_is_for_the_cpu(bundle: Bundle, with_gpu: None) -> None:
    some = with_precisions(bundle, Precision.FP32, Precision.INT8)
    for name in ("auto", "cpu"):
        chosen = place(options(device=name, precision="int8"), some)
        assert (chosen.device, chosen.precision) == ("cpu", Precision.INT8)
    with pytest.raises(
        SessionError,
        match=r"int8 was asked for, which no backend runs on cuda; use .* on device 'cpu'",
    ):
        place(options(device="cuda", precision="int8"), some)


def test_bf16_is_for_engines(bundle: Bundle, with_gpu: None) -> None:
    some = with_precisions(bundle, Precision.FP32, Precision.BF16)
    for name in ("auto", "cpu", "cuda"):
        with pytest.raises(SessionError, match="precision bf16 was asked for, "):
            place(options(device=name, precision="bf16"), some)


def test_a_precision_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(SessionError, match="precision fp16 was asked for; the bundle has fp32"):
        place(options(device="cpu", precision="fp16"), with_precisions(bundle, Precision.FP32))


def test_cuda_without_its_provider(bundle: Bundle, cpu_only: None) -> None:
    with pytest.raises(SessionError, match="device cuda was asked for, but this onnxruntime") as c:
        place(options(device="cuda"), bundle)
    assert "pip install 'xclip-deploy[gpu]'" in str(c.value)
    with pytest.raises(SessionError, match="tensorrt-provider was asked for, but this onnxrunti"):
        place(options(backend="tensorrt-provider"), bundle)


def test_cuda_without_a_gpu(bundle: Bundle, with_cuda: None) -> None:
    missing = why_no_provider("CUDAExecutionProvider", WITH_CUDA)
    if missing is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SessionError, match="device cuda was asked for, but ") as caught:
        place(options(device="cuda"), bundle)
    assert missing in str(caught.value)
    assert any(word in missing for word in ("no NVIDIA driver", "CUDA error", "sees no GPU"))
    assert place(options(), bundle).reason == f"auto: {missing}"
    with pytest.raises(SessionError, match="tensorrt-provider was asked for, but") as caught:
        place(options(backend="tensorrt-provider"), bundle)
    assert missing in str(caught.value)


def test_cuda_without_its_libraries(
    bundle: Bundle,
    with_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The CUDA provider is there, a GPU too, but not cuDNN: ``auto`` takes the CPU, aloud."""
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda _: "cuDNN is missing")
    chosen = place(options(), bundle)
    assert (chosen.device, chosen.precision) == ("cpu", Precision.FP32)
    assert chosen.reason == "auto: cuDNN is missing; the bundle has no engines"
    assert "the CPU runs the model although a GPU is there: cuDNN is missing" in caplog.text
    caplog.clear()
    assert place(options(device="cpu"), bundle).device == "cpu"
    assert caplog.text == ""
    with pytest.raises(BackendUnavailableError, match="backend tensorrt-provider was asked for, b"):
        place(options(backend="tensorrt-provider"), bundle)
    with pytest.raises(SessionError, match=r"device cuda was asked for, but .*cuDNN is missing"):
        place(options(device="cuda"), bundle)


def test_cuda_by_the_public_classes(bundle: Bundle) -> None:
    if why_no_provider("CUDAExecutionProvider") is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SessionError, match="device cuda was asked for, but "):
        DeployedModel(bundle, options(device="cuda"))
    with pytest.raises(SessionError, match="device cuda was asked for, but "):
        Retriever(bundle, device="cuda")
    placement = DeployedModel(bundle).placement
    assert (placement.device, placement.precision) == ("cpu", Precision.FP32)


def test_a_retriever_takes_all_options(bundle: Bundle) -> None:
    chosen = options(device="cpu", precision="fp16")
    assert Retriever(bundle, session=chosen).model.placement.precision is Precision.FP16
    with pytest.raises(InvalidArgumentError, match="given beside session"):
        Retriever(bundle, device="cpu", session=chosen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "gpu"},
        {"device": "cuda:0"},
        {"device": None},
        {"precision": "int4"},
        {"precision": "FP16"},
        {"threads": 0},
        {"threads": -1},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(wrong))} .*[:;] expected"):
        options(**wrong)


def test_options_of_the_providers() -> None:
    """By the names of ONNX Runtime; the GPU is one of them, and TF32 is off unless asked for."""
    chosen = {"do_copy_in_default_stream": "1"}
    on_cuda = Placement("onnxruntime", "cuda", FP32, device_id=2)
    with_tensorrt = replace(on_cuda, backend="tensorrt-provider")
    assert providers_of(FP32_CPU, {}) == [("CPUExecutionProvider", {})]
    assert providers_of(on_cuda, chosen) == [
        ("CUDAExecutionProvider", {"device_id": "2", "use_tf32": "0", **chosen})
    ]
    assert providers_of(with_tensorrt, chosen) == [
        ("TensorrtExecutionProvider", {"device_id": "2", **chosen}),
        ("CUDAExecutionProvider", {"device_id": "2", "use_tf32": "0"}),
    ]
    in_tf32 = replace(on_cuda, arithmetic=TF32)
    assert providers_of(in_tf32, {})[0][1]["use_tf32"] == "1"


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("device_id", "device_id"),
        ("use_tf32", "precision"),
        ("trt_fp16_enable", "precision"),
        ("user_compute_stream", "streams"),
    ],
)
def test_provider_options_that_would_make_the_placement_false(
    option: str, field: str, bundle: Bundle
) -> None:
    """A GPU in TF32 would be reported as another GPU in FP32."""
    given = options(device="cpu", provider_options={option: "1"})
    with pytest.raises(SessionError, match=f"has '{option}'; expected {field} of SessionOptions"):
        place(given, bundle)


def test_tf32_runs_fp32_graphs(bundle: Bundle, with_gpu: None) -> None:
    chosen = place(options(precision="tf32"), bundle)
    assert (chosen.device, chosen.precision) == ("cuda", Precision.FP32)
    assert chosen.arithmetic.name == "tf32"
    assert place(options(precision="fp32"), bundle).arithmetic.name == "fp32"
    with pytest.raises(SessionError, match="tf32 was asked for, which no backend runs on cpu"):
        place(options(device="cpu", precision="tf32"), bundle)
