"""BF16 graphs: compared by rounding on a CPU, built by the real TensorRT-RTX."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from xclip_deploy import Bundle, build_engines
from xclip_deploy.errors import ExportError
from xclip_deploy.export.bfloat16 import round_to_bfloat16, run_rounded
from xclip_deploy.export.exporter import ExportResult
from xclip_deploy.export.graphs import BF16_OPSET, export_graph, graph_specs
from xclip_deploy.export.parity import run_bundle, run_pytorch
from xclip_deploy.export.reference_inputs import reference_inputs
from xclip_deploy.runtime.engine_set import engine_file
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.model_config import PatchEmbedding, TemporalHead
from xclip_deploy.training.checkpoints import load_checkpoint
from xclip_deploy.training.precision import narrow

MARKER = b"_gemm_mha_v2_0x"


def product_in_bfloat16(path: Path, weight: torch.Tensor) -> None:
    """``y = float(bfloat16(x) * weight)``, with ``weight`` in BF16."""
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["narrow", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("weight", TensorProto.BFLOAT16, [1], weight.float().numpy())],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n"])
            for name in ("narrow", "product")
        ],
    )
    save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> None:
    # The IR version that PyTorch writes: the newest is newer than ONNX Runtime.
    opsets = [helper.make_opsetid("", BF16_OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))


def run(path: Path, **inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_rounding_is_bf16_to_the_last_bit(tmp_path: Path) -> None:
    """Held against PyTorch's BF16, which multiplies in FP32 and rounds as well."""
    weight = torch.tensor([1.0 / 3.0]).bfloat16()
    product_in_bfloat16(tmp_path / "narrow.onnx", weight)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run(tmp_path / "narrow.onnx", x=np.ones(1, np.float32))  # why there is a rounded form
    round_to_bfloat16(Graph.TEXT_ENCODER, tmp_path / "narrow.onnx", tmp_path / "rounded.onnx")
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 100
    found = run(tmp_path / "rounded.onnx", x=x.numpy())
    np.testing.assert_array_equal(found, (x.bfloat16() * weight).float().numpy())
    assert np.abs(found - (x / 3).numpy()).max() > 0.1


def test_bf16_where_our_graphs_have_none(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    boundary = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n"])],
    )
    save(boundary, path)
    with pytest.raises(ExportError, match="x in BF16 at its boundary"):
        round_to_bfloat16(Graph.TEXT_ENCODER, path, tmp_path / "rounded.onnx")
    value = helper.make_tensor("v", TensorProto.BFLOAT16, [1], [1.0])
    constant = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=value),
            helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    save(constant, path)
    with pytest.raises(ExportError, match="BF16 constant in Constant"):
        round_to_bfloat16(Graph.TEXT_ENCODER, path, tmp_path / "rounded.onnx")


def test_halves_and_fused_graphs_are_left_out(bundle_copy: Path) -> None:
    """Only the three graphs are rounded. FP32 graphs stand for BF16 ones: rounding keeps them."""
    bundle = Bundle.open(bundle_copy)
    manifest = bundle.manifest
    assert manifest.video_parts
    assert manifest.fused_graphs
    graphs = {**manifest.graphs, Precision.BF16: manifest.graphs[Precision.FP32]}
    narrow_bundle = Bundle(bundle_copy, manifest.model_copy(update={"graphs": graphs}))
    inputs = reference_inputs(manifest.model, bundle.tokenizer())
    found = run_rounded(narrow_bundle, inputs)
    assert {graph for graph, _ in found} == set(Graph)
    expected = run_bundle(bundle.without_video_parts(), Precision.FP32, inputs)
    for key, array in found.items():
        np.testing.assert_allclose(array, expected[key], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_rounded_graphs_stray_as_far_as_pytorch_in_bf16(
    every_precision: ExportResult, checkpoint_path: Path
) -> None:
    """As far, and not to the same place: each rounds where its own operations end."""
    bundle = every_precision.bundle
    inputs = reference_inputs(bundle.manifest.model, bundle.tokenizer())
    model = load_checkpoint(checkpoint_path).build()
    whole = run_pytorch(model, inputs)
    narrow(model, torch.bfloat16)
    expected = run_pytorch(model, inputs)
    found = run_rounded(bundle, inputs)
    assert not list(bundle.path.glob(".rounded-*"))
    for key, reference in whole.items():
        by_pytorch = np.abs(expected[key] - reference).max()
        by_rounding = np.abs(found[key] - reference).max()
        assert by_pytorch / 3 < by_rounding < by_pytorch * 3, key


@pytest.mark.slow
def test_tensorrt_builds_the_bundles_bf16_graphs(
    every_precision: ExportResult, tmp_path: Path
) -> None:
    """With fused attention, as in FP16: three markers for each of the image tower's blocks."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this platform")
    shutil.copytree(every_precision.bundle.path, tmp_path / "bundle")
    built = build_engines(tmp_path / "bundle", precision=Precision.BF16, flavour="rtx")
    assert built.engine_set.precision is Precision.BF16
    content = (built.path / engine_file(Graph.VIDEO_ENCODER)).read_bytes()
    assert content.count(MARKER) == 9
    engine = built.engine_set.engines[Graph.SCORER]
    assert engine.graph_sha256 == every_precision.bundle.graph_sha256(Graph.SCORER, Precision.FP16)


@pytest.mark.slow
@pytest.mark.parametrize("patch", list(PatchEmbedding))
@pytest.mark.parametrize("head", list(TemporalHead))
def test_tensorrt_parses_and_builds_every_head_and_patch(
    make_model: Any, tmp_path: Path, head: TemporalHead, patch: PatchEmbedding
) -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed on this platform"
    )
    model = narrow(make_model(temporal_head=head, patch_embedding=patch), torch.bfloat16)
    spec = graph_specs(model.config, Precision.BF16)[Graph.VIDEO_ENCODER]
    export_graph(model, Graph.VIDEO_ENCODER, spec, tmp_path)
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(tmp_path / spec.file)), parser.get_error(0).desc()
    outputs = [network.get_output(number) for number in range(network.num_outputs)]
    assert [(output.name, output.dtype) for output in outputs] == [
        ("video_features", trt.float32),
        ("frame_features", trt.float32),
    ]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *rest), (2, *rest), (4, *rest))
    assert config.add_optimization_profile(profile) >= 0
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert bytes(plan).count(MARKER) >= 3
