"""Parsing, and holding a network against the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from xclip_deploy import Bundle
from xclip_deploy.errors import EngineBuildError
from xclip_deploy.export.tensorrt import TensorRT
from xclip_deploy.export.tensorrt.network import ParsedNetwork, check_network, parse_graph
from xclip_deploy.runtime.manifest import Graph, Precision


def check(rtx: TensorRT, bundle: Bundle, graph: Graph, path: Path) -> None:
    parsed = parse_graph(rtx, graph, path)
    assert isinstance(parsed, ParsedNetwork)
    check_network(rtx, graph, parsed.network, bundle.manifest.graphs[Precision.FP16][graph])


@pytest.mark.parametrize("graph", list(Graph))
def test_exported_graphs(rtx: TensorRT, bundle: Bundle, graph: Graph) -> None:
    check(rtx, bundle, graph, bundle.graph_path(graph, Precision.FP16))


def half_output_declared_as_float(graph: Any) -> None:
    name = graph.output[0].name
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = "before_cast"
    graph.node.append(helper.make_node("Cast", ["before_cast"], [name], to=TensorProto.FLOAT16))


def half_output(graph: Any) -> None:
    half_output_declared_as_float(graph)
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def fixed_batch(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def other_axis_name(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "texts"


def outputs_swapped(graph: Any) -> None:
    first = graph.output.pop(0)
    graph.output.append(first)


def one_output_less(graph: Any) -> None:
    graph.output.pop(1)


@pytest.mark.parametrize(
    ("damage", "found", "expected"),
    [
        (half_output_declared_as_float, "sentence_features float16 [?, 64]", "float32 [?, 64]"),
        (half_output, "sentence_features float16 [?, 64]", "float32 [?, 64]"),
        (fixed_batch, "token_ids int32 [4, 32]", "token_ids int32 [batch, 32]"),
        (other_axis_name, "token_ids int32 [texts, 32]", "token_ids int32 [batch, 32]"),
        (outputs_swapped, "word_features float32", "sentence_features float32"),
        (one_output_less, "outputs sentence_features", "says word_features"),
    ],
)
def test_another_boundary_than_the_manifest_says(
    rtx: TensorRT, bundle: Bundle, tmp_path: Path, damage: Any, found: str, expected: str
) -> None:
    """Each of these parses, and most would build."""
    model = onnx.load(str(bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP16)))
    damage(model.graph)
    path = tmp_path / "text_encoder.onnx"
    onnx.save(model, str(path))
    with pytest.raises(EngineBuildError) as caught:
        check(rtx, bundle, Graph.TEXT_ENCODER, path)
    assert found in str(caught.value)
    assert expected in str(caught.value)


def test_the_trap_builds(rtx: TensorRT, bundle: Bundle, tmp_path: Path) -> None:
    """Why the boundary is checked: TensorRT takes a declared FP32 output for what it is."""
    model = onnx.load(str(bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP16)))
    half_output_declared_as_float(model.graph)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    path = tmp_path / "trap.onnx"
    onnx.save(model, str(path))
    parsed = parse_graph(rtx, Graph.TEXT_ENCODER, path)
    assert isinstance(parsed, ParsedNetwork)
    config = parsed.builder.create_builder_config()
    profile = parsed.builder.create_optimization_profile()
    profile.set_shape("token_ids", (1, 32), (1, 32), (1, 32))
    config.add_optimization_profile(profile)
    assert parsed.builder.build_serialized_network(parsed.network, config) is not None
    assert parsed.network.get_output(0).dtype.name == "HALF"


def test_all_unsupported_operators_are_told(rtx: TensorRT, bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(str(bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP16)))
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmaxes[0].op_type, softmaxes[2].op_type = "Multinomial", "NoSuchOperator"
    path = tmp_path / "text_encoder.onnx"
    onnx.save(model, str(path))
    refused = parse_graph(rtx, Graph.TEXT_ENCODER, path)
    assert isinstance(refused, list)
    assert [(one.node, one.operator) for one in refused] == [
        ("node_softmax", "Multinomial"),
        ("node_softmax_2", "NoSuchOperator"),
    ]


def test_a_file_that_is_no_graph(rtx: TensorRT, tmp_path: Path) -> None:
    path = tmp_path / "scorer.onnx"
    path.write_bytes(b"not a protobuf")
    try:
        refused = parse_graph(rtx, Graph.SCORER, path)
    except EngineBuildError as error:
        assert "could not parse" in str(error)  # noqa: PT017 - either way is right
    else:
        assert isinstance(refused, list)
        assert refused
