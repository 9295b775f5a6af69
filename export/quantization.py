"""Make INT8 graphs of the encoders for the CPU, by dynamic quantisation of the FP32 graphs.

Weights of matrix products become INT8, with one scale for each output channel. The scales are
chosen so that no CPU's arithmetic saturates. Activations become UINT8 at run time, with one scale
for the whole tensor. Token embeddings, two fifths of CLIP's text encoder, become INT8 with one
scale for each token.

Everything else stays in FP32: the projections into the embedding space, layer norms, softmaxes, the
products within attention (both factors are activations), the patch convolution and an LSTM.

One activation scale serves a whole batch. An embedding therefore depends a little on its batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ExportError
from xclip_deploy.export.graphs import check_boundary, save_graph
from xclip_deploy.export.weights_file import WeightsFile
from xclip_deploy.runtime.manifest import AnyGraph, GraphSpec, VideoPart
from xclip_deploy.training.text_encoder import TextEncoder
from xclip_deploy.training.video_encoder import VisionTransformer

if TYPE_CHECKING:
    import onnx_ir

PROJECTIONS = VisionTransformer.float32_parameters | TextEncoder.float32_parameters
"""Last parts of the names of the projections, one in each encoder. FP16 leaves them in FP32 too."""
_TOKEN_EMBEDDING = "token_embedding.weight"  # noqa: S105 - the name of a parameter


def quantize_graph(
    source: Path,
    graph: AnyGraph,
    spec: GraphSpec,
    directory: Path,
    weights: WeightsFile | None = None,
) -> None:
    """Write the INT8 graph of an encoder below ``directory``, made from its FP32 graph.

    It uses ONNX's own operators ``DynamicQuantizeLinear`` and ``MatMulInteger``. ``weights``: file
    for the large weights, which several graphs share. Raises ExportError where the graph is not as
    expected.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = onnx_ir.load(source)
    projections = 0
    for node in list(model.graph):
        weight = weight_of(node)
        if weight is None:
            continue
        name = str(weight.name)
        if name.rpartition(".")[2] in PROJECTIONS:
            projections += 1
        elif node.op_type == "MatMul":
            _replace(model.graph, node, _quantized_product(model.graph, node, weight))
        elif node.op_type == "Gather" and name.endswith(_TOKEN_EMBEDDING):
            _replace(model.graph, node, _quantized_lookup(model.graph, node, weight))
    expected = 0 if graph is VideoPart.TEMPORAL_HEAD else 1
    if projections != expected:
        raise ExportError(
            f"{graph.value} has {projections} projections into the embedding space, which INT8 "
            f"must leave in FP32; expected {expected}"
        )
    save_graph(graph, RemoveUnusedNodesPass()(model).model, directory / spec.file, weights)
    check_boundary(directory / spec.file, graph, spec)


def weight_of(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """Return the weight of a matrix product or a lookup; None for other nodes."""
    index = {"MatMul": 1, "Gather": 0}.get(node.op_type)
    value = None if index is None else node.inputs[index]
    return value if value is not None and value.is_initializer() else None


def quantize_symmetrically(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise ``weight`` to INT8 and return it with its scales: weight ≈ INT8 · scale.

    One scale covers a whole row along ``axis``; the scales keep that axis with size one. Zero is
    exact. The error of an element is at most half a scale.
    """
    return _quantize(weight, np.abs(weight).max(axis=axis, keepdims=True))


def quantize_for_products(
    weight: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise ``weight`` [K, N] to INT8 [K, N] with scales [1, N], exact on every CPU.

    The product ``UINT8 @ INT8`` of these weights never saturates. Without VNNI, x86 multiplies two
    neighbours along K at once (VPMADDUBSW) and keeps their sum in 16 bits. At
    255 * 127 + 255 * 127 the sum saturates silently. VNNI, AMX and Arm do not saturate. A bundle is
    quantised on one machine and runs on others, so the weights must suit all of them. Here two
    neighbours of one sign add up to 128 at most, and 255 * 128 fits.

    Other remedies cost more. Weights of 7 bits (``reduce_range``) halve the resolution of every
    channel, whose largest pair is rarely twice its largest weight. On the same inputs, 7 bits raise
    the features' error by 24 to 40 % over 8 bits; these scales raise it by 10 to 13 %. UINT8
    weights lose nothing, but ONNX Runtime has no such kernel for most CPUs with VNNI or AMX.
    Without VNNI, their product takes a third longer. A session option turns INT8 weights into
    UINT8 where VNNI is missing. Our runtime sets it, but it does not travel with a graph.
    """
    # An odd K is padded with a row of zeros, as ONNX Runtime does.
    pairs = np.pad(weight, ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    sums = [np.maximum(part, 0).sum(axis=1).max(axis=0) for part in (pairs, -pairs)]
    # The limit is 127 rather than 128: rounding both neighbours may add one.
    return _quantize(weight, np.maximum(*sums)[np.newaxis])


def _quantize(
    weight: npt.NDArray[np.float32], largest: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise ``weight`` to INT8 with scales that map ``largest`` to 127; return both."""
    # Any scale fits a channel of zeros.
    scales = (np.maximum(largest, np.float32(1e-30)) / 127).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def _quantized_product(
    graph: onnx_ir.Graph, node: onnx_ir.Node, weight: onnx_ir.Value
) -> list[onnx_ir.Node]:
    """Make the nodes of ``x @ weight`` in 8 bits, in the form that ONNX Runtime fuses."""
    import onnx_ir

    values, scales = quantize_for_products(_array(weight))  # [K, N], [1, N]
    zeros = np.zeros(values.shape[1], np.int8)
    x = node.inputs[0]
    quantize = onnx_ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    x_int8, x_scale, x_zero = quantize.outputs
    product = onnx_ir.node(
        "MatMulInteger",
        [
            x_int8,
            _initializer(graph, f"{weight.name}_int8", values),
            x_zero,
            _initializer(graph, f"{weight.name}_zero", zeros),
        ],
    )
    cast = onnx_ir.node("Cast", product.outputs, {"to": onnx_ir.DataType.FLOAT})
    scale = onnx_ir.node(
        "Mul", [x_scale, _initializer(graph, f"{weight.name}_scale", scales.reshape(-1))]
    )
    scaled = onnx_ir.node("Mul", [cast.outputs[0], scale.outputs[0]])
    return [quantize, product, cast, scale, scaled]


def _quantized_lookup(
    graph: onnx_ir.Graph, node: onnx_ir.Node, table: onnx_ir.Value
) -> list[onnx_ir.Node]:
    """Make the nodes that look up rows of ``table`` [V, N], stored in INT8, by their ids."""
    import onnx_ir

    values, scales = quantize_symmetrically(_array(table), axis=1)  # [V, N], [V, 1]
    ids = node.inputs[1]
    rows = onnx_ir.node("Gather", [_initializer(graph, f"{table.name}_int8", values), ids])
    scale = onnx_ir.node("Gather", [_initializer(graph, f"{table.name}_scale", scales), ids])
    cast = onnx_ir.node("Cast", rows.outputs, {"to": onnx_ir.DataType.FLOAT})
    scaled = onnx_ir.node("Mul", [cast.outputs[0], scale.outputs[0]])
    return [rows, scale, cast, scaled]


def _array(value: onnx_ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _initializer(graph: onnx_ir.Graph, name: str, array: npt.NDArray[Any]) -> onnx_ir.Value:
    """Add a weight to the graph and return it. Nodes that share a name share the weight."""
    import onnx_ir

    if name not in graph.initializers:
        tensor = onnx_ir.tensor(array, name=name)
        value = onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(array.shape),
            const_value=tensor,
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node, nodes: list[onnx_ir.Node]) -> None:
    """Replace ``node`` by ``nodes``. The output of the last one takes the place of its output."""
    import onnx_ir

    onnx_ir.convenience.replace_nodes_and_values(
        graph, node, [node], nodes, node.outputs, nodes[-1].outputs
    )
