"""Real engines, built by TensorRT-RTX on whatever machine this is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from xclip_deploy import Bundle, build_engines
from xclip_deploy.errors import BundleIntegrityError, EngineBuildError, EngineError
from xclip_deploy.export.tensorrt.builder import BuildResult
from xclip_deploy.runtime.engine_set import FILE_NAME, EngineSet, Flavour, engine_file, engine_sets
from xclip_deploy.runtime.hashing import sha256_of
from xclip_deploy.runtime.manifest import FileRecord, Graph, Manifest, Precision

trt: Any = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed on this platform"
)
MARKER = b"_gemm_mha_v2_0x"


@pytest.fixture
def built(bundle_copy: Path) -> BuildResult:
    return build_engines(bundle_copy, flavour="rtx")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put_graph(bundle: Path, model: onnx.ModelProto) -> None:
    """Put another FP16 text encoder into a bundle, with the manifest to go with it."""
    file = bundle / "fp16" / "text_encoder.onnx"
    onnx.save(model, str(file))
    content = json.loads((bundle / "manifest.json").read_text())
    del content["checksum"]
    original = Manifest.model_validate(content)
    record = FileRecord(sha256=sha256_of(file), size_bytes=file.stat().st_size)
    files = {**original.files, "fp16/text_encoder.onnx": record}
    (bundle / "manifest.json").write_bytes(original.model_copy(update={"files": files}).to_json())


def test_three_engines_and_a_sidecar(built: BuildResult, bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    assert built.path.parent == bundle_copy / "engines"
    assert built.path.name == f"rtx-{trt.__version__}-fp16-portable"
    assert set(contents(built.path)) == {FILE_NAME, *(engine_file(graph) for graph in Graph)}
    sidecar = EngineSet.model_validate_json((built.path / FILE_NAME).read_bytes())
    assert sidecar == built.engine_set
    assert sidecar.flavour is Flavour.RTX
    assert sidecar.directory_name == built.path.name
    for graph, engine in sidecar.engines.items():
        content = (built.path / engine_file(graph)).read_bytes()
        assert engine.file.size_bytes == len(content) > 10_000
        assert engine.file.sha256 == hashlib.sha256(content).hexdigest()
        assert engine.graph_sha256 == bundle.graph_sha256(graph, Precision.FP16)
    frames = sidecar.engines[Graph.VIDEO_ENCODER].profiles[0]["frames"]
    assert (frames.min, frames.max) == ((1, 12, 64, 64, 3), (32, 12, 64, 64, 3))
    assert engine_sets(bundle) == {built.path: sidecar}


def test_attention_is_fused_in_fp16_and_not_in_fp32(built: BuildResult, bundle_copy: Path) -> None:
    """Three markers for each of the image tower's three blocks; two heads each."""
    video = (built.path / engine_file(Graph.VIDEO_ENCODER)).read_bytes()
    assert video.count(MARKER) == 9
    whole = build_engines(bundle_copy, precision=Precision.FP32, flavour="rtx")
    assert (whole.path / engine_file(Graph.VIDEO_ENCODER)).read_bytes().count(MARKER) == 0
    assert len(engine_sets(Bundle.open(bundle_copy))) == 2


def test_the_library_can_read_its_engines_header(built: BuildResult) -> None:
    """Running needs a GPU; the engine's own header can be read without."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    content = (built.path / engine_file(Graph.SCORER)).read_bytes()
    _, diagnostics = runtime.get_engine_validity(content)
    # Whatever this machine lacks, the file is an engine of this version ...
    assert not diagnostics & (
        int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        | int(trt.EngineInvalidityDiagnostics.VERSION_MISMATCH)
    )
    # ... which half a file is not.
    _, diagnostics = runtime.get_engine_validity(b"\0" * 1000)
    assert diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def test_an_unsupported_operator_is_named_and_the_old_engines_stand(
    built: BuildResult, bundle_copy: Path
) -> None:
    before = contents(built.path)
    node = helper.make_node("StringNormalizer", ["token_ids"], ["out"], name="odd")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("token_ids", TensorProto.STRING, ["batch"])],
        [helper.make_tensor_value_info("out", TensorProto.STRING, ["n"])],
    )
    put_graph(bundle_copy, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    with pytest.raises(EngineBuildError, match="could not parse") as caught:
        build_engines(bundle_copy, flavour="rtx")
    assert "text_encoder" in str(caught.value)
    assert "it gave no reason" not in str(caught.value)
    assert contents(built.path) == before
    assert not list(built.path.parent.glob(".*"))


def test_a_graph_of_another_dtype_than_the_manifest_says(bundle_copy: Path) -> None:
    """Such an engine would build, and its buffers be read as what they are not."""
    model = onnx.load(str(bundle_copy / "fp16" / "text_encoder.onnx"))
    name = model.graph.output[0].name
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = "before_cast"
    model.graph.node.append(
        helper.make_node("Cast", ["before_cast"], [name], to=TensorProto.FLOAT16)
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    put_graph(bundle_copy, model)
    with pytest.raises(EngineBuildError, match=r"sentence_features', 'float16'"):
        build_engines(bundle_copy, flavour="rtx")


def test_an_altered_graph_is_not_built(bundle_copy: Path) -> None:
    file = bundle_copy / "fp16" / "scorer.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        build_engines(bundle_copy, flavour="rtx")
    assert not list((bundle_copy / "engines").glob("*"))


def test_a_damaged_sidecar_is_refused(built: BuildResult, bundle_copy: Path) -> None:
    (built.path / FILE_NAME).write_text('{"format": "xclip-engines"')
    with pytest.raises(EngineError, match="not a description of engines"):
        engine_sets(Bundle.open(bundle_copy))


def test_progress(bundle_copy: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    build_engines(bundle_copy, flavour="rtx", progress=lambda *step: steps.append(step))
    assert [step[0] for step in steps] == [0, 1, 2, 3]
    assert steps[0][2] == "building fp16/video_encoder"
