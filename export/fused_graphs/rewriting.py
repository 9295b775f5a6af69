"""Replace the patterns of a graph by fused operators, and count them against the configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xclip_deploy.export.fused_graphs.patches import PatchPattern, find_patches, patch_product
from xclip_deploy.export.fused_graphs.patterns import (
    ActivationPattern,
    AttentionPattern,
    LayerNormPattern,
    array_of,
    find_activation,
    find_attention,
    find_layer_norm,
)
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, VideoPart
from xclip_deploy.runtime.model_config import Activation, ModelConfig, PatchEmbedding

if TYPE_CHECKING:
    import onnx_ir

DOMAIN = "com.microsoft"
"""Domain of ONNX Runtime's own operators, which its CPU and CUDA providers have."""
ATTENTION, SKIP_NORM = "MultiHeadAttention", "SkipLayerNormalization"
QUICK_GELU, GELU = "QuickGelu", "Gelu"
PATCHES = "Gemm"
"""Operator that embeds patches, one in a graph. It is ONNX's own; plain graphs have none."""
_QUICK_GELU_FACTOR = 1.702


def expected_operators(
    config: ModelConfig, graph: AnyGraph, precision: Precision
) -> dict[str, int]:
    """Return the number of fused operators that a graph of a model has, by operator.

    The temporal head's attention has a mask that depends on the input. It is not fused.
    """
    vision, text = config.vision.layers, config.text.layers
    quick, norms, attention, exact = 0, 0, 0, 0
    towers = {
        Graph.TEXT_ENCODER: text,
        Graph.VIDEO_ENCODER: vision,
        VideoPart.FRAME_ENCODER: vision,
    }
    if graph in towers:
        layers = towers[graph]
        attention = layers
        if config.activation is Activation.QUICK_GELU:
            quick += layers
        else:
            exact += layers
        # Each block has two norms. The first norm of a tower follows no sum of activations.
        # The last sum of the text tower goes to its last norm; images take one row of it first.
        # In half precision, that norm stays as it is, in FP32.
        is_last_fused = graph is Graph.TEXT_ENCODER and precision is Precision.FP32
        norms += 2 * layers - (0 if is_last_fused else 1)
    if graph in (Graph.VIDEO_ENCODER, VideoPart.TEMPORAL_HEAD) and config.temporal_layers:
        quick += config.temporal_layers
        norms += 2 * config.temporal_layers - 1
    # The whole encoder sets padded frames to zero once they are normalised: that is no product.
    is_flat = config.patch_embedding is PatchEmbedding.CONV_2D
    patches = int(graph is VideoPart.FRAME_ENCODER and is_flat)
    counts = {ATTENTION: attention, SKIP_NORM: norms, QUICK_GELU: quick, GELU: exact}
    counts[PATCHES] = patches
    return {name: count for name, count in counts.items() if count}


ALL = (ATTENTION, SKIP_NORM, QUICK_GELU, GELU, PATCHES)


def fuse(model: onnx_ir.Model, only: Collection[str] = ALL) -> dict[str, int]:
    """Rewrite a graph in place, and return the number of fused operators, by operator.

    ``only``: operators to make; measurements leave some out.

    Norms in half precision that follow no sum lose their casts too: the operator computes in FP32.
    The last norm of a tower keeps weights and result in FP32: rounded, they would be an error of
    the features themselves.
    The search for a text's end token moves to FP32, where it is exact.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

    _fold_slices(model.graph)
    nodes = list(model.graph)
    counts = dict.fromkeys(ALL, 0)
    for node in nodes:
        attention = find_attention(node)
        if attention is not None and ATTENTION in only:
            _fuse_attention(model.graph, attention)
            counts[ATTENTION] += 1
    for node in nodes:
        activation = find_activation(node)
        if activation is not None and not {QUICK_GELU, GELU}.isdisjoint(only):
            counts[_fuse_activation(model.graph, activation)] += 1
    for node in nodes:
        norm = find_layer_norm(node) if SKIP_NORM in only else None
        if norm is not None and norm.wide is not None:
            result, widening = norm.wide
            onnx_ir.convenience.replace_all_uses_with(widening.outputs[0], result)
        elif norm is not None and norm.addends is not None:
            _fuse_sum_and_norm(model.graph, norm, norm.addends)
            counts[SKIP_NORM] += 1
        elif norm is not None:
            _narrow_norm(model.graph, norm)
        elif PATCHES in only and (patches := find_patches(node)) is not None:
            _fuse_patches(model.graph, patches)
            counts[PATCHES] += 1
        elif node.op_type == "ArgMax":
            _widen_search(model.graph, node)
    model.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    return {name: count for name, count in counts.items() if count}


def _fold_slices(graph: onnx_ir.Graph) -> None:
    """Replace slices of weights by weights.

    The exporter folds small ones alone. The positions of ViT-B/32's texts stay a slice, which would
    run every time. Their sum with the tokens would look like one of two activations.
    """
    import onnx_ir

    for node in list(graph):
        if node.op_type != "Slice" or node.domain:
            continue
        arrays = [array_of(value) for value in node.inputs]
        if any(array is None for array in arrays):
            continue
        data, starts, ends, *rest = (array for array in arrays if array is not None)
        axes = rest[0] if rest else range(len(starts))
        steps = rest[1] if len(rest) > 1 else [1] * len(starts)
        index = [slice(None)] * data.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            index[int(axis)] = slice(int(start), int(end), int(step))
        old = node.outputs[0]
        tensor = onnx_ir.tensor(np.ascontiguousarray(data[tuple(index)]), name=f"{old.name}_folded")
        _take_place(_initializer(graph, tensor), old)


def _fuse_attention(graph: onnx_ir.Graph, found: AttentionPattern) -> None:
    import onnx_ir

    split = onnx_ir.node(
        "Split", [found.qkv], {"axis": -1, "num_outputs": 3}, num_outputs=3, name=None
    )
    attributes: dict[str, int | float] = {"num_heads": found.heads, "scale": found.scale}
    if found.is_causal:
        attributes["unidirectional"] = 1
    fused = onnx_ir.node(ATTENTION, split.outputs, attributes, domain=DOMAIN)
    whole = found.qkv.shape
    for part in split.outputs:
        part.type = found.qkv.type
        if whole is not None and isinstance(whole[-1], int):
            part.shape = onnx_ir.Shape([*whole[:-1], whole[-1] // 3])
    _replace(graph, found.last, [split, fused], fused.outputs[0])


def _fuse_activation(graph: onnx_ir.Graph, found: ActivationPattern) -> str:
    import onnx_ir

    name = QUICK_GELU if found.is_quick else GELU
    attributes = {"alpha": _QUICK_GELU_FACTOR} if found.is_quick else {}
    fused = onnx_ir.node(name, [found.x], attributes, domain=DOMAIN)
    _replace(graph, found.last, [fused], fused.outputs[0])
    return name


def _fuse_patches(graph: onnx_ir.Graph, found: PatchPattern) -> None:
    dtype = found.last.outputs[0].dtype
    assert dtype is not None
    nodes, result = patch_product(found, dtype)
    for node in nodes:
        for value in node.inputs:
            if value.const_value is not None and value.name not in graph.initializers:
                graph.register_initializer(value)
    _replace(graph, found.last, nodes, result)


def _fuse_sum_and_norm(
    graph: onnx_ir.Graph,
    found: LayerNormPattern,
    addends: tuple[onnx_ir.Value, onnx_ir.Value],
) -> None:
    import onnx_ir

    assert found.total is not None
    dtype = found.x.dtype
    inputs = [*addends, _weight(graph, found.scale, dtype), _weight(graph, found.shift, dtype)]
    if found.bias is not None:
        inputs.append(_weight(graph, found.bias, dtype))
    # The second and third output, mean and deviation, are for training. The fourth is the sum.
    fused = onnx_ir.node(
        SKIP_NORM, inputs, {"epsilon": found.epsilon}, domain=DOMAIN, num_outputs=4
    )
    for unused in fused.outputs[1:3]:
        unused.name = ""
    _replace(graph, found.last, [fused], fused.outputs[0])
    _take_place(fused.outputs[3], found.total.outputs[0])


def _narrow_norm(graph: onnx_ir.Graph, found: LayerNormPattern) -> None:
    """Give a norm half inputs and weights instead of casts. FP32 graphs have none."""
    import onnx_ir

    if found.last.op_type != "Cast":
        return
    inputs = [
        found.x,
        *(_weight(graph, each, found.x.dtype) for each in (found.scale, found.shift)),
    ]
    attributes = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
    fused = onnx_ir.node("LayerNormalization", inputs, attributes)
    _replace(graph, found.last, [fused], fused.outputs[0])


def _widen_search(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Search token ids for their largest in FP32, which holds them exactly.

    The CUDA provider has no ``ArgMax`` of integers. It would compute on the CPU in mid-graph, which
    also rules out CUDA graphs.
    """
    import onnx_ir

    ids = node.inputs[0]
    if ids is None or ids.dtype is not onnx_ir.DataType.INT32:
        return
    cast = onnx_ir.node("Cast", [ids], {"to": onnx_ir.DataType.FLOAT})
    cast.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    cast.outputs[0].shape = ids.shape
    graph.insert_before(node, [cast])
    node.replace_input_with(0, cast.outputs[0])


def _weight(
    graph: onnx_ir.Graph, value: onnx_ir.Value, dtype: onnx_ir.DataType | None
) -> onnx_ir.Value:
    """Return a weight in a dtype, as an initializer of the graph that others may share."""
    import onnx_ir

    if dtype is None or value.dtype is dtype:
        return value
    array = array_of(value)
    assert array is not None
    name = f"{value.name}_{dtype.name.lower()}"
    if name not in graph.initializers:
        _initializer(graph, onnx_ir.tensor(array.astype(dtype.numpy()), name=name))
    return graph.initializers[name]


def _initializer(graph: onnx_ir.Graph, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
    """Register a tensor as an initializer of the graph, under its own name."""
    import onnx_ir

    value = onnx_ir.Value(
        name=tensor.name,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=onnx_ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _replace(
    graph: onnx_ir.Graph, last: onnx_ir.Node, nodes: Sequence[onnx_ir.Node], result: onnx_ir.Value
) -> None:
    """Insert nodes before ``last``, whose output ``result`` replaces. Its inputs may be unused."""
    graph.insert_before(last, nodes)
    _take_place(result, last.outputs[0])


def _take_place(new: onnx_ir.Value, old: onnx_ir.Value) -> None:
    """Let all readers of ``old`` read ``new``, which gets its dtype and shape."""
    import onnx_ir

    new.type, new.shape = old.type, old.shape
    onnx_ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
