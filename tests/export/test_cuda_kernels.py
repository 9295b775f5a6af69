"""ONNX Runtime's CUDA provider has a kernel for every node of the fused graphs.

A node without one runs on the CPU in mid-graph: its inputs and outputs travel, and no CUDA graph
can hold the whole. ONNX Runtime only warns of that, on a GPU.
"""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto

from xclip_deploy import Bundle
from xclip_deploy.export.fused_graphs.exporting import FUSED_PRECISIONS
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, VideoPart

REAL = frozenset({"FLOAT", "FLOAT16"})
NUMBER = REAL | {"INT32", "INT64", "UINT8"}
ANY = NUMBER | {"BOOL"}
KERNELS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), NUMBER),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Gather", "GatherElements"), ANY),
    **dict.fromkeys(("Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose"), ANY),
    **dict.fromkeys(("Unsqueeze",), ANY),
    **dict.fromkeys(("Conv", "Gemm", "LayerNormalization", "MatMul", "Softmax", "Sigmoid"), REAL),
    "ArgMax": REAL,
    "Clip": REAL | {"INT64", "UINT8"},
    "Less": REAL | {"INT32", "INT64"},
    "ReduceL2": REAL | {"INT32"},
    "ReduceSum": REAL | {"INT32", "INT64"},
    "Where": frozenset({"BOOL"}),
    **dict.fromkeys(("MultiHeadAttention", "SkipLayerNormalization", "QuickGelu", "Gelu"), REAL),
}
"""From operator to the types of its first input that the CUDA provider has kernels for.

They are those of ONNX Runtime 1.31.1 at opset 18, as ``get_all_opkernel_def`` of its CUDA build
lists them, without types that no graph here has."""


def without_kernel(path: str) -> list[str]:
    """List the nodes of a graph that have no kernel, as operator and type."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = []
    for node in graph.node:
        name = TensorProto.DataType.Name(types[node.input[0]])
        if name not in KERNELS.get(node.op_type, ()):
            found.append(f"{node.op_type} {name}")
    return found


@pytest.mark.parametrize("precision", FUSED_PRECISIONS)
@pytest.mark.parametrize("graph", [Graph.TEXT_ENCODER, Graph.VIDEO_ENCODER, *VideoPart])
def test_every_node_of_a_fused_graph_has_a_cuda_kernel(
    bundle: Bundle, graph: AnyGraph, precision: Precision
) -> None:
    assert without_kernel(str(bundle.graph_path(graph, precision, is_fused=True))) == []


def test_the_plain_text_encoder_has_a_node_without_one(bundle: Bundle) -> None:
    """It searches integers for the end token. So it runs without CUDA graphs."""
    path = bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP16)
    assert without_kernel(str(path)) == ["ArgMax INT32"]
