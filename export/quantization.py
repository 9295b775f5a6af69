"""INT8 graphs of the encoders, for the CPU: dynamic quantisation of the FP32 ones.

The weights of matrix products become INT8, with a scale for each output channel that no CPU's
arithmetic saturates with; what they multiply becomes UINT8 at run time, with one scale for the
whole tensor. Token embeddings, two fifths of CLIP's text encoder, are kept as INT8 with a scale
for each token. All else stays in FP32: the projections into the embedding space, layer norms,
softmaxes, the products within attention (both of whose sides are activations), the patch
convolution and an LSTM.

As one scale serves a whole batch, an embedding depends a little on what it is encoded with.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ExportError
from xclip_deploy.export.graphs import check_boundary, save_graph
from xclip_deploy.runtime.manifest import Graph, GraphSpec
from xclip_deploy.training.text_encoder import TextEncoder
from xclip_deploy.training.video_encoder import VisionTransformer

if TYPE_CHECKING:
    import onnx_ir

# The same parameters that FP16 leaves alone; one in each encoder.
_PROJECTIONS = VisionTransformer.float32_parameters | TextEncoder.float32_parameters
_TOKEN_EMBEDDING = "token_embedding.weight"  # noqa: S105 - the name of a parameter


def quantize_graph(source: Path, graph: Graph, spec: GraphSpec, directory: Path) -> None:
    """Write the INT8 graph of an encoder below ``directory``, made from its FP32 graph.

    The operators are ONNX's own: ``DynamicQuantizeLinear`` and ``MatMulInteger``. Raises
    ExportError where the graph is not as expected.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = onnx_ir.load(source)
    projections = 0
    for node in list(model.graph):
        weight = _weight(node)
        if weight is None:
            continue
        name = str(weight.name)
        if name.rpartition(".")[2] in _PROJECTIONS:
            projections += 1
        elif node.op_type == "MatMul":
            _replace(model.graph, node, _quantized_product(model.graph, node, weight))
        elif node.op_type == "Gather" and name.endswith(_TOKEN_EMBEDDING):
            _replace(model.graph, node, _quantized_lookup(model.graph, node, weight))
    if projections != 1:
        raise ExportError(
            f"{graph.value} has {projections} projections into the embedding space, which INT8 "
            "must leave in FP32; expected one"
        )
    save_graph(graph, RemoveUnusedNodesPass()(model).model, directory / spec.file)
    check_boundary(directory / spec.file, graph, spec)


def _weight(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The weight that a matrix product or a lookup is made with; None for other nodes."""
    index = {"MatMul": 1, "Gather": 0}.get(node.op_type)
    value = None if index is None else node.inputs[index]
    return value if value is not None and value.is_initializer() else None


def quantize_symmetrically(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """``weight`` as INT8 and its scales, which reach over ``axis``; their product is near it.

    The scales keep ``axis`` with size one. 0 is exact; the error of an element is at most half
    a scale.
    """
    return _quantize(weight, np.abs(weight).max(axis=axis, keepdims=True))


def quantize_for_products(
    weight: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """``weight`` [K, N] as INT8 that ``UINT8 @ INT8`` is exact with on every CPU; scales [1, N].

    Without VNNI, x86 multiplies two neighbours along K at once (VPMADDUBSW) and holds their sum
    in 16 bits: at 255 * 127 + 255 * 127 it saturates, silently. VNNI, AMX and Arm do not. A
    bundle is quantised on one machine and run on another, so the weights must suit them all:
    where the halves of a pair have one sign, they add up to 128 at most, and 255 * 128 fits.

    The other remedies cost more. Weights of 7 bits (``reduce_range``) halve the resolution of every
    channel, whose largest pair is rarely twice its largest weight: on the same inputs they made the
    features' error 24 to 40 % larger than 8 bits do, this 10 to 13 %. UINT8 weights lose nothing,
    but most CPUs with VNNI or AMX have no such kernel for them in ONNX Runtime, and where there is
    no VNNI either, their product takes a third longer. The session option that turns INT8 weights
    into UINT8 where VNNI lacks (our runtime sets it) does not travel with a graph.
    """
    # What K lacks to be even is zero, as ONNX Runtime pads it.
    pairs = np.pad(weight, ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    sums = [np.maximum(part, 0).sum(axis=1).max(axis=0) for part in (pairs, -pairs)]
    # 127 and not 128: rounding both may add one.
    return _quantize(weight, np.maximum(*sums)[np.newaxis])


def _quantize(
    weight: npt.NDArray[np.float32], largest: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """``weight`` as INT8 with the scales that make ``largest`` 127, and these scales."""
    # What is zero throughout has no scale; any will do.
    scales = (np.maximum(largest, np.float32(1e-30)) / 127).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def _quantized_product(
    graph: onnx_ir.Graph, node: onnx_ir.Node, weight: onnx_ir.Value
) -> list[onnx_ir.Node]:
    """``x @ weight`` with both in 8 bits: the form that ONNX Runtime fuses to one kernel."""
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
    """Rows of ``table`` [V, N] by their ids, kept in INT8."""
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
    """A weight of the graph; the one that is there already where two nodes share it."""
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
    """Put ``nodes`` in the place of one; the last's only output stands for its only output."""
    import onnx_ir

    onnx_ir.convenience.replace_nodes_and_values(
        graph, node, [node], nodes, node.outputs, nodes[-1].outputs
    )
