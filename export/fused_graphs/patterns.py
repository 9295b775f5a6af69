"""Find the primitive operators that make up attention, an activation or a layer norm.

Every function looks at one node, and returns None unless each operator, axis and constant around it
is exactly as the exporter writes it. A value that another node reads is never part of a pattern.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.training.precision import MASKED

if TYPE_CHECKING:
    import onnx_ir

_QUICK_GELU_FACTOR = 1.702
_TOLERANCE = 1e-3
"""Relative difference of a constant that FP16 explains."""


@dataclass(frozen=True)
class AttentionPattern:
    """Attention from the product of queries, keys and values to the mixed values."""

    qkv: onnx_ir.Value
    """Queries, keys and values side by side, [B, L, 3 width]."""
    heads: int
    scale: float
    is_causal: bool
    last: onnx_ir.Node
    """Node whose output is the result, [B, L, width]."""


@dataclass(frozen=True)
class ActivationPattern:
    """Activation of an MLP."""

    x: onnx_ir.Value
    is_quick: bool
    """Whether it is QuickGELU; else the exact GELU."""
    last: onnx_ir.Node


@dataclass(frozen=True)
class LayerNormPattern:
    """Layer norm, with the sum before it where the fused operator can compute that."""

    x: onnx_ir.Value
    """Input in the dtype of the graph, which is not cast yet."""
    scale: onnx_ir.Value
    shift: onnx_ir.Value
    epsilon: float
    total: onnx_ir.Node | None
    """Sum of two activations that is the input; None where it is another value."""
    bias: onnx_ir.Value | None
    """Bias [width] that one addend of ``total`` adds to a matrix product, if it does."""
    addends: tuple[onnx_ir.Value, onnx_ir.Value] | None
    """Addends of ``total``, without ``bias``."""
    last: onnx_ir.Node
    """Node whose output is the result in the dtype of the graph."""
    wide: tuple[onnx_ir.Value, onnx_ir.Node] | None
    """Result in FP32, and the cast that widens ``last`` again; None where nothing widens it."""


def find_attention(softmax: onnx_ir.Node) -> AttentionPattern | None:
    """Match attention around its softmax, without a mask or with the causal one."""
    if softmax.op_type != "Softmax" or _int(softmax, "axis") != -1:
        return None
    scores = only_producer(softmax.inputs[0], "MatMul")
    mask = None
    if scores is None:
        masked = only_producer(softmax.inputs[0], "Add")
        if masked is None:
            return None
        scores, mask = only_producer(masked.inputs[0], "MatMul"), masked.inputs[1]
    if scores is None:
        return None
    scaled, flipped = (
        only_producer(scores.inputs[0], "Mul"),
        only_producer(scores.inputs[1], "Transpose"),
    )
    mixed = reader_of(softmax, "MatMul", 0)
    if scaled is None or flipped is None or mixed is None:
        return None
    scale = scalar_of(scaled.inputs[1])
    parts = (scaled.inputs[0], flipped.inputs[0], mixed.inputs[1])
    sources = {_part(value, number) for number, value in enumerate(parts)}
    ordered = sources.pop() if len(sources) == 1 else None
    if scale is None or ordered is None or ints_of(flipped, "perm") != (0, 1, 3, 2):
        return None
    split = _producer(ordered.inputs[0], "Reshape")
    joined = reader_of(mixed, "Transpose", 0)
    last = None if joined is None else reader_of(joined, "Reshape", 0)
    if split is None or joined is None or last is None:
        return None
    shape, end = array_of(split.inputs[1]), array_of(last.inputs[1])
    is_shaped = (
        ints_of(ordered, "perm") == (2, 0, 3, 1, 4)
        and ints_of(joined, "perm") == (0, 2, 1, 3)
        and len(_uses(ordered)) == len(parts)
        and len(_uses(split)) == 1
        and shape is not None
        and end is not None
        and shape.shape == (5,)
        and end.shape == (3,)
    )
    if not is_shaped or shape is None or end is None:
        return None
    batch, length, three, heads, width = (int(size) for size in shape)
    if three != 3 or tuple(map(int, end)) != (batch, length, heads * width) or batch not in (-1, 0):
        return None
    if not math.isclose(scale, width**-0.5, rel_tol=_TOLERANCE):
        return None
    if mask is not None and not _is_causal(mask, length):
        return None
    qkv = split.inputs[0]
    assert qkv is not None
    return AttentionPattern(qkv, heads, width**-0.5, mask is not None, last)


def find_activation(node: onnx_ir.Node) -> ActivationPattern | None:
    """Match QuickGELU or GELU by its last product."""
    if node.op_type != "Mul":
        return None
    x = node.inputs[0]
    if x is None:
        return None
    sigmoid = only_producer(node.inputs[1], "Sigmoid")
    if sigmoid is not None:
        scaled = only_producer(sigmoid.inputs[0], "Mul")
        is_whole = (
            scaled is not None
            and scaled.inputs[0] is x
            and _is_near(scaled.inputs[1], _QUICK_GELU_FACTOR)
        )
        return ActivationPattern(x, True, node) if is_whole else None
    halved = only_producer(node.inputs[1], "Mul")
    above = None if halved is None else only_producer(halved.inputs[1], "Add")
    erf = None if above is None else only_producer(above.inputs[0], "Erf")
    divided = None if erf is None else only_producer(erf.inputs[0], "Div")
    if halved is None or above is None or divided is None:
        return None
    is_whole = (
        _is_near(halved.inputs[0], 0.5)
        and _is_near(above.inputs[1], 1.0)
        and divided.inputs[0] is x
        and _is_near(divided.inputs[1], math.sqrt(2))
    )
    return ActivationPattern(x, False, node) if is_whole else None


def find_layer_norm(node: onnx_ir.Node) -> LayerNormPattern | None:
    """Match a layer norm over the last axis, with the casts around it and the sum before it."""
    if node.op_type != "LayerNormalization" or _int(node, "axis") != -1 or len(node.inputs) != 3:
        return None
    x, scale, shift = node.inputs
    if x is None or scale is None or shift is None:
        return None
    if array_of(scale) is None or array_of(shift) is None:
        return None
    last = node
    widened = _producer(x, "Cast")
    if widened is not None:
        narrowed = reader_of(node, "Cast", 0)
        inner = widened.inputs[0]
        # Several norms may read one cast of a residual; the cast goes with the last of them.
        if narrowed is None or inner is None or narrowed.outputs[0].dtype is not inner.dtype:
            return None
        x, last = inner, narrowed
    widening = None if last is node else reader_of(last, "Cast", 0)
    is_wide = widening is not None and widening.outputs[0].dtype is node.outputs[0].dtype
    wide = (node.outputs[0], widening) if widening is not None and is_wide else None
    epsilon = node.attributes["epsilon"].as_float()
    total = _producer(x, "Add")
    if total is None or any(_is_weight(value) for value in total.inputs):
        return LayerNormPattern(x, scale, shift, epsilon, None, None, None, last, wide)
    first, second = total.inputs
    assert first is not None
    assert second is not None
    # The residual comes first, and the product with its bias second.
    biased = only_producer(second, "Add")
    bias = None if biased is None else biased.inputs[1]
    if biased is not None and _is_weight(bias) and _width(bias) == _width(scale):
        second = biased.inputs[0]
        assert second is not None
    else:
        bias = None
    return LayerNormPattern(x, scale, shift, epsilon, total, bias, (first, second), last, wide)


def array_of(value: onnx_ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the array of a weight or constant; None for a value that depends on inputs."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def scalar_of(value: onnx_ir.Value | None) -> float | None:
    """Return a constant of one element; None for other values."""
    array = array_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _part(value: onnx_ir.Value | None, number: int) -> onnx_ir.Node | None:
    """Return the transposed product of which ``value`` is the part of a number; else None."""
    squeezed = only_producer(value, "Squeeze")
    sliced = None if squeezed is None else only_producer(squeezed.inputs[0], "Slice")
    if squeezed is None or sliced is None or len(sliced.inputs) not in (4, 5):
        return None
    start, stop, axis = (scalar_of(each) for each in sliced.inputs[1:4])
    step = scalar_of(sliced.inputs[4]) if len(sliced.inputs) == 5 else 1.0
    if (start, stop, axis, step, scalar_of(squeezed.inputs[1])) != (number, number + 1, 0, 1, 0):
        return None
    return _producer(sliced.inputs[0], "Transpose")


def _is_causal(mask: onnx_ir.Value | None, length: int) -> bool:
    """Return whether a mask is constant, and hides from each position those after it alone."""
    array = array_of(mask)
    if array is None or array.shape != (length, length):
        return False
    is_future = np.triu(np.ones((length, length), dtype=bool), 1)
    hidden = array[is_future].astype(np.float32)
    return bool((array[~is_future] == 0).all() and (hidden <= MASKED * (1 - _TOLERANCE)).all())


def _is_near(value: onnx_ir.Value | None, expected: float) -> bool:
    found = scalar_of(value)
    return found is not None and math.isclose(found, expected, rel_tol=_TOLERANCE)


def _is_weight(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _width(value: onnx_ir.Value | None) -> tuple[int, ...]:
    array = array_of(value)
    return () if array is None else array.shape


def _producer(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    """Return the node of a type that computes a value; None where there is no such node."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def only_producer(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    """Return the node of a type that computes a value which one node alone reads."""
    node = _producer(value, op_type)
    return node if node is not None and len(_uses(node)) == 1 else None


def reader_of(node: onnx_ir.Node, op_type: str, index: int) -> onnx_ir.Node | None:
    """Return the only reader of a node's output, where it has a type and reads it at an index."""
    uses = _uses(node)
    if len(uses) != 1:
        return None
    reader, found = uses[0]
    return reader if reader is not None and reader.op_type == op_type and found == index else None


def _uses(node: onnx_ir.Node) -> list[tuple[onnx_ir.Node | None, int]]:
    """List the readers of a node's only output; a graph's output counts as read by None."""
    (output,) = node.outputs
    uses: list[tuple[onnx_ir.Node | None, int]] = [(use.node, use.idx) for use in output.uses()]
    return [*uses, (None, 0)] if output.is_graph_output() else uses


def _int(node: onnx_ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()


def ints_of(node: onnx_ir.Node, name: str) -> tuple[int, ...] | None:
    """Return an attribute that lists integers; None where the node has none of that name."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())
