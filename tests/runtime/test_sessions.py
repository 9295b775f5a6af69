from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from stand_in_device import Device, install, install_lean_alone, write_engines
from xclip_deploy import Bundle, DeployedModel, Retriever
from xclip_deploy.errors import (
    BackendUnavailableError,
    BundleIntegrityError,
    DriverError,
    EngineError,
    InvalidArgumentError,
    MissingExtraError,
    SessionError,
)
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.engine_set import BuildOptions, Flavour
from xclip_deploy.runtime.manifest import MANIFEST_NAME, FileRecord, Graph, Precision
from xclip_deploy.runtime.nvidia_driver import VisibleGpu
from xclip_deploy.runtime.sessions import (
    Arithmetic,
    Placement,
    Refusal,
    SessionOptions,
    offers,
    onnx_runtime,
)
from xclip_deploy.runtime.sessions import place as open_loader
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider
from xclip_deploy.runtime.sessions.onnx_session import (
    FP32,
    TF32,
    OnnxRuntimeSession,
    providers_of,
)

CPU_ONLY = ["CPUExecutionProvider"]
WITH_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
WITH_TENSORRT = ["TensorrtExecutionProvider", *WITH_CUDA]
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


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the CPU build of ONNX Runtime."""
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: CPU_ONLY)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with its GPU build and all of its libraries, whatever machine this is."""
    monkeypatch.setattr(onnx_runtime, "available_providers", lambda: WITH_TENSORRT)
    monkeypatch.setattr(onnx_runtime, "missing_library", lambda _: None)


@pytest.fixture
def with_gpu(with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had a GPU: the choice is tested, not the running."""
    monkeypatch.setattr(nvidia_driver, "why_no_gpu", lambda: None)


# Choosing


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


# Choosing engines


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, with_cuda: None) -> Device:
    stand_in = Device()
    install(monkeypatch, stand_in)
    return stand_in


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path) -> Bundle:
    """The bundle at a path of its own: its files are links."""
    path = tmp_path / "bundle"
    path.mkdir()
    for file in bundle.path.iterdir():
        (path / file.name).symlink_to(file)
    return replace(bundle, path=path)


def test_auto_takes_engines_that_fit(stand_in: Device, own: Bundle) -> None:
    assert place(options(), own).backend == "onnxruntime"
    write_engines(own, Flavour.RTX)
    chosen = place(options(), own)
    assert (chosen.backend, chosen.precision) == ("rtx", Precision.FP16)
    assert chosen.reason == (
        "auto: engines rtx-1.7.1.116-fp16-portable fit tensorrt_rtx 1.7.1.116 and "
        "stand-in device (no GPU) (sm89), first by rank: xclip-deploy bench measures which is "
        "faster; the bundle has no tensorrt engines"
    )
    write_engines(own, Flavour.TENSORRT)
    assert place(options(), own).backend == "tensorrt"
    assert place(options(backend="rtx"), own).backend == "rtx"
    assert place(options(backend="onnxruntime"), own).reason == (
        "onnxruntime was asked for: a GPU is there, with fused graphs"
    )
    assert place(options(device="cpu"), own).backend == "onnxruntime"
    # No engines of that precision: the graphs have it.
    assert place(options(precision="fp32"), own).backend == "onnxruntime"


def test_rtx_engines_on_an_h100(
    monkeypatch: pytest.MonkeyPatch, with_cuda: None, own: Bundle
) -> None:
    """TensorRT-RTX supports no compute capability 9.0, and says ``EngineValidity.INVALID``."""
    h100 = VisibleGpu("NVIDIA H100", 9, 0)
    install(monkeypatch, Device(compute_capability=(9, 0)))
    monkeypatch.setattr(nvidia_driver, "visible_gpus", lambda: (h100,))
    reason = (
        "TensorRT-RTX does not support compute capability 9.0 (it supports 7.5, 8.0, 8.6, 8.9, "
        "12.0 and 12.1)"
    )
    folder = write_engines(own, Flavour.RTX)
    chosen = place(options(), own)
    assert (chosen.backend, chosen.device) == ("onnxruntime", "cuda")
    assert reason in chosen.reason
    with pytest.raises(EngineError) as caught:
        place(options(backend="rtx"), own)
    assert str(caught.value).startswith(f"{reason}, and GPU 0 is ")
    assert str(caught.value).endswith(f"build-trt {own.path} --flavor tensorrt")
    refusals = [offer for offer in offers(own) if isinstance(offer, Refusal)]
    assert [(refusal.options.engines, refusal.reason) for refusal in refusals] == [(folder, reason)]
    # Beside a GPU that can run them, the one that a session uses decides.
    monkeypatch.setattr(nvidia_driver, "visible_gpus", lambda: (h100, VisibleGpu("RTX", 8, 9)))
    assert not any(isinstance(offer, Refusal) for offer in offers(own))


def test_engines_in_a_folder_of_ones_own(stand_in: Device, own: Bundle, tmp_path: Path) -> None:
    """As new ones are that have not taken their place yet."""
    folder = write_engines(own, Flavour.RTX).rename(tmp_path / ".partial")
    with pytest.raises(EngineError, match="has no fp16 or fp32 engines"):
        place(options(backend="rtx"), own)
    with DeployedModel(own, options(backend="rtx", engines=folder)) as model:
        assert model.encode_texts(["a dog"]).sentence_features.shape == (1, 64)
    stand_in.check_nothing_left()
    with pytest.raises(EngineError, match="not a description of engines"):
        place(options(backend="rtx", engines=tmp_path), own)
    with pytest.raises(InvalidArgumentError, match="expected backend tensorrt or rtx"):
        options(engines=folder)


def test_auto_says_why_it_took_no_engines(stand_in: Device, own: Bundle) -> None:
    folder = write_engines(own, Flavour.RTX, version="1.6.0.1")
    chosen = place(options(), own)
    assert chosen.backend == "onnxruntime"
    assert chosen.reason.startswith("auto: a GPU is there, with fused graphs; engines ")
    assert "was built with tensorrt_rtx 1.6.0.1, this machine has" in chosen.reason
    (folder / "engines.json").write_text("{}")
    assert "not a description of engines" in place(options(), own).reason


def test_engines_that_were_asked_for_are_not_replaced(stand_in: Device, own: Bundle) -> None:
    with pytest.raises(EngineError, match=r"has no fp16 or fp32 engines of flavour rtx"):
        place(options(backend="rtx"), own)
    write_engines(own, Flavour.RTX, version="1.6.0.1")
    with pytest.raises(EngineError, match=r"was built with tensorrt_rtx 1.6.0.1"):
        DeployedModel(own, options(backend="rtx"))
    stand_in.driver_version = 12000
    with pytest.raises(DriverError, match="backend rtx: the NVIDIA driver is too old: it runs"):
        DeployedModel(own, options(backend="rtx"))
    stand_in.driver_version = 0
    with pytest.raises(DriverError, match="backend rtx: no NVIDIA driver is installed"):
        DeployedModel(own, options(backend="rtx"))


def test_a_library_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, stand_in: Device, own: Bundle
) -> None:
    write_engines(own, Flavour.TENSORRT)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"run: pip install 'xclip-deploy\[tensorrt\]'"):
        place(options(backend="tensorrt"), own)
    assert "needs tensorrt, which is not installed" in place(options(), own).reason


def test_the_lean_runtime_runs_engines(
    monkeypatch: pytest.MonkeyPatch, with_cuda: None, own: Bundle
) -> None:
    device = Device()
    enterprise, _ = install(monkeypatch, device)
    install_lean_alone(monkeypatch, enterprise)
    folder = write_engines(own, Flavour.TENSORRT)
    with pytest.raises(EngineError, match="TensorRT's lean runtime alone; install the extra"):
        place(options(backend="tensorrt"), own)
    assert place(options(), own).backend == "onnxruntime"
    shutil.rmtree(folder)
    write_engines(own, Flavour.TENSORRT, options=BuildOptions(version_compatible=True))
    with DeployedModel(own, options()) as model:
        assert model.placement.backend == "tensorrt"
        assert "fit tensorrt_lean 10." in model.placement.reason
        assert model.encode_texts(["a dog"]).sentence_features.shape == (1, 64)
    device.check_nothing_left()
    monkeypatch.setitem(sys.modules, "tensorrt", enterprise)
    assert "fit tensorrt 10." in place(options(), own).reason, "the whole library comes first"


def test_engines_without_onnxruntime(
    monkeypatch: pytest.MonkeyPatch, stand_in: Device, own: Bundle
) -> None:
    """Where engines run, no other library is needed."""
    write_engines(own, Flavour.RTX)

    def missing() -> list[str]:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle")

    monkeypatch.setattr(onnx_runtime, "available_providers", missing)
    assert place(options(), own).backend == "rtx"


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


# The providers of ONNX Runtime


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
    [("device_id", "device_id"), ("use_tf32", "precision"), ("trt_fp16_enable", "precision")],
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
