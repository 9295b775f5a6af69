"""What is folded or rewritten before the layers: patches of frames, and slices of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest

from xclip_deploy import Bundle
from xclip_deploy.export.fused_graphs.patches import find_patches
from xclip_deploy.export.fused_graphs.rewriting import expected_operators, fuse
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, VideoPart

Change = Callable[[onnx_ir.Model], None]


def load(bundle: Bundle, graph: AnyGraph, precision: Precision) -> onnx_ir.Model:
    return onnx_ir.load(bundle.graph_path(graph, precision))


def node(model: onnx_ir.Model, op_type: str) -> onnx_ir.Node:
    return next(each for each in model.graph if each.op_type == op_type)


def constant_of(node: onnx_ir.Node) -> tuple[onnx_ir.Value, Any]:
    """Return a node's only constant input, and its array."""
    (found,) = [
        (value, value.const_value.numpy())
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    return found


def constant(value: onnx_ir.Value | None, array: Any) -> None:
    assert value is not None
    value.const_value = onnx_ir.tensor(array, name=value.name)


def other_stride(model: onnx_ir.Model) -> None:
    conv = node(model, "Conv")
    side = int(conv.attributes["strides"].as_ints()[0]) // 2
    conv.attributes["strides"] = onnx_ir.AttrInt64s("strides", [side, side])


def other_range(model: onnx_ir.Model) -> None:
    constant(node(model, "Div").inputs[1], np.array(256, dtype=np.float32))


def other_channels(model: onnx_ir.Model) -> None:
    """Height and width change places."""
    node(model, "Transpose").attributes["perm"] = onnx_ir.AttrInt64s("perm", [0, 3, 2, 1])


def pixels_read_twice(model: onnx_ir.Model) -> None:
    pixels = node(model, "Sub").outputs[0]
    extra = onnx_ir.node("Identity", [pixels])
    model.graph.insert_after(node(model, "Sub"), [extra])
    extra.outputs[0].name = "pixels"
    model.graph.outputs.append(extra.outputs[0])


@pytest.mark.parametrize("change", [other_stride, other_range, other_channels, pixels_read_twice])
def test_what_is_not_exactly_a_patch_embedding_stays(bundle: Bundle, change: Change) -> None:
    model = load(bundle, VideoPart.FRAME_ENCODER, Precision.FP32)
    assert find_patches(node(model, "Conv")) is not None
    change(model)
    assert find_patches(node(model, "Conv")) is None


def test_slices_of_weights_are_folded(bundle: Bundle) -> None:
    """The exporter leaves the positions of a model as large as ViT-B/32 a slice of a weight."""
    model = load(bundle, Graph.TEXT_ENCODER, Precision.FP16)
    total = next(each for each in model.graph if each.op_type == "Add")
    positions, array = constant_of(total)
    stored = np.concatenate([array, array + 1])
    parts = {"stored": stored, "start": np.array([0]), "end": np.array([len(array)])}
    values = []
    for name, each in parts.items():
        tensor = onnx_ir.tensor(each, name=name)
        shape, kind = onnx_ir.Shape(each.shape), onnx_ir.TensorType(tensor.dtype)
        values.append(onnx_ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
        model.graph.register_initializer(values[-1])
    cut = onnx_ir.node("Slice", [*values, values[1]])
    cut.outputs[0].name, cut.outputs[0].type = "cut", positions.type
    cut.outputs[0].shape = positions.shape
    model.graph.insert_before(total, [cut])
    onnx_ir.convenience.replace_all_uses_with(positions, cut.outputs[0])
    assert fuse(model) == expected_operators(
        bundle.manifest.model, Graph.TEXT_ENCODER, Precision.FP16
    )
    assert not [each for each in model.graph if each.op_type == "Slice"]
    total = next(each for each in model.graph if each.op_type == "Add")
    _, folded = constant_of(total)
    np.testing.assert_array_equal(folded, array)
