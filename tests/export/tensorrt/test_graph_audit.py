"""The audit of FP32 islands: sound graphs pass, and each way of breaking one is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from xclip_deploy import Bundle
from xclip_deploy.errors import EngineBuildError
from xclip_deploy.export.tensorrt.graph_audit import audit_graph
from xclip_deploy.runtime.manifest import Graph, Precision

Break = Callable[[onnx.GraphProto], None]


def node_of(graph: onnx.GraphProto, op_type: str, number: int = 0) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for node in graph.node if node.op_type == op_type]
    return nodes[number]


def insert(graph: onnx.GraphProto, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    index = list(graph.node).index(before)
    for offset, node in enumerate(nodes):
        graph.node.insert(index + offset, node)


def halve_through(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Compute one node in FP16: casts before and after it, weights included."""
    for index, name in enumerate(node.input):
        if name and not _is_integer(graph, name):
            cast = helper.make_node("Cast", [name], [f"{name}_h{index}"], to=TensorProto.FLOAT16)
            insert(graph, node, cast)
            node.input[index] = f"{name}_h{index}"
    output = node.output[0]
    node.output[0] = f"{output}_h"
    cast = helper.make_node("Cast", [f"{output}_h"], [output], to=TensorProto.FLOAT)
    graph.node.insert(list(graph.node).index(node) + 1, cast)


def _is_integer(graph: onnx.GraphProto, name: str) -> bool:
    whole = (TensorProto.INT64, TensorProto.INT32)
    return any(tensor.name == name and tensor.data_type in whole for tensor in graph.initializer)


def round_trip(graph: onnx.GraphProto, name: str) -> None:
    """Take a value through FP16, so that it is FP32 in name alone."""
    readers = [node for node in graph.node if name in node.input]
    down = helper.make_node("Cast", [name], [f"{name}_down"], to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", [f"{name}_down"], [f"{name}_up"], to=TensorProto.FLOAT)
    for node in readers:
        node.input[list(node.input).index(name)] = f"{name}_up"
    insert(graph, readers[0], down, up)


def output_through_half(graph: onnx.GraphProto) -> None:
    name = graph.output[0].name
    producer = next(node for node in graph.node if name in node.output)
    producer.output[list(producer.output).index(name)] = "wide"
    graph.node.append(helper.make_node("Cast", ["wide"], ["half"], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["half"], [name], to=TensorProto.FLOAT))


def one_layer_norm_less(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "LayerNormalization", 2)
    identity = helper.make_node("Identity", [node.input[0]], [node.output[0]])
    insert(graph, node, identity)
    graph.node.remove(node)


def half_statistics(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "LayerNormalization")
    for attribute in [entry for entry in node.attribute if entry.name == "stash_type"]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("stash_type", TensorProto.FLOAT16))


def norm_without_division(graph: onnx.GraphProto) -> None:
    for division in [node for node in graph.node if node.op_type == "Div"][-3:]:
        division.input[1] = division.input[0]


ENCODERS = (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER)
BROKEN: list[tuple[str, tuple[Graph, ...], Break, str]] = [
    (
        "layer norm in half",
        ENCODERS,
        lambda graph: halve_through(graph, node_of(graph, "LayerNormalization", 1)),
        r"LayerNormalization \S+ is not in FP32",
    ),
    ("layer norm missing", ENCODERS, one_layer_norm_less, r"\d+ layer norms where the model has"),
    ("statistics in half", ENCODERS, half_statistics, "keeps its statistics in another type"),
    (
        "L2 norm in half",
        ENCODERS,
        lambda graph: halve_through(graph, node_of(graph, "ReduceL2")),
        r"ReduceL2 \S+ is not in FP32",
    ),
    (
        "L2 norm of a half value",
        ENCODERS,
        lambda graph: round_trip(graph, node_of(graph, "ReduceL2", -1).input[0]),
        "is in half precision up to Cast",
    ),
    (
        "division in half",
        ENCODERS,
        lambda graph: halve_through(graph, node_of(graph, "Div", -1)),
        r"Div \S+ is not in FP32|is in half precision up to Cast",
    ),
    ("norm without a division", ENCODERS, norm_without_division, "nothing is divided by ReduceL2"),
    (
        "output through half",
        tuple(Graph),
        output_through_half,
        "is in half precision up to Cast",
    ),
    (
        "scorer softmax in half",
        (Graph.SCORER,),
        lambda graph: halve_through(graph, node_of(graph, "Softmax", 2)),
        r"Softmax \S+ is not in FP32",
    ),
    (
        "scorer exponential in half",
        (Graph.SCORER,),
        lambda graph: halve_through(graph, node_of(graph, "Exp")),
        r"Exp \S+ is not in FP32",
    ),
    (
        "scorer product in half",
        (Graph.SCORER,),
        lambda graph: halve_through(graph, node_of(graph, "MatMul", 1)),
        r"MatMul \S+ is not in FP32",
    ),
]


@pytest.mark.parametrize("graph", list(Graph))
def test_exported_graphs_pass(bundle: Bundle, graph: Graph) -> None:
    audit = audit_graph(bundle.graph_path(graph, Precision.FP16), graph, bundle.manifest.model)
    expected = {
        Graph.VIDEO_ENCODER: {"layer norm": 16, "L2 norm": 3, "output": 2},
        Graph.TEXT_ENCODER: {"layer norm": 9, "L2 norm": 1, "output": 2},
        Graph.SCORER: {"scorer operator": 43, "scorer softmax": 6, "output": 5},
    }
    assert audit.float32_islands == expected[graph]


def test_attention_blocks(bundle: Bundle) -> None:
    model = bundle.manifest.model
    video, text, scorer = (
        audit_graph(bundle.graph_path(graph, Precision.FP16), graph, model).attention
        for graph in Graph
    )
    assert [(block.heads, block.has_mask) for block in video] == [(2, False)] * 3 + [(1, True)] * 4
    assert [block.fuses for block in video] == [True] * 3 + [False] * 4
    assert [(block.heads, block.has_mask) for block in text] == [(1, True)] * 4
    # The scorer's softmaxes are in FP32, and between products too.
    assert scorer == ()


@pytest.mark.parametrize(
    ("graph", "damage", "message"),
    [
        pytest.param(graph, damage, message, id=f"{graph.value}: {name}")
        for name, graphs, damage, message in BROKEN
        for graph in graphs
    ],
)
def test_a_broken_island_is_seen(
    bundle: Bundle, tmp_path: Path, graph: Graph, damage: Break, message: str
) -> None:
    model = onnx.load(str(bundle.graph_path(graph, Precision.FP16)))
    damage(model.graph)
    path = tmp_path / "broken.onnx"
    onnx.save(model, str(path))
    with pytest.raises(EngineBuildError, match=message) as caught:
        audit_graph(path, graph, bundle.manifest.model)
    assert "export again" in str(caught.value)
