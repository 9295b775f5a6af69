"""Replace the normalisation of frames and the convolution of their patches by one product.

Both are linear in the pixels, and patches do not overlap. So the product reads the bytes of the
frames, in patches, and its weights hold the normalisation. Pixels less 128 are exact in FP16. A GPU
is spared six passes over the frames in FP32, and a convolution of large strides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.export.fused_graphs.patterns import (
    array_of,
    ints_of,
    only_producer,
    reader_of,
    scalar_of,
)

if TYPE_CHECKING:
    import onnx_ir

_CENTRE = 128
"""Pixel value that becomes zero. It lies near the mean, so that the bias stays small."""
_UNIT = 64.0
"""Factor that keeps weights out of FP16's subnormal numbers. The product divides by it."""
_MOST_STEPS = 3


@dataclass(frozen=True)
class PatchPattern:
    """Patch embedding from bytes to [N, patches, width]."""

    frames: onnx_ir.Value
    """Frames, uint8 [N, S, S, 3]."""
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    kernel: npt.NDArray[np.float64]
    """Weights of the convolution, [width, 3, patch, patch]."""
    last: onnx_ir.Node
    """Node whose output is the result."""


def find_patches(conv: onnx_ir.Node) -> PatchPattern | None:
    """Match a patch embedding around its convolution, from the frames on."""
    kernel = array_of(conv.inputs[1]) if conv.op_type == "Conv" and len(conv.inputs) == 2 else None
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 3:
        return None
    patch = kernel.shape[2]
    attributes = conv.attributes
    is_whole = (
        kernel.shape[3] == patch
        and ints_of(conv, "strides") == (patch, patch)
        and ints_of(conv, "pads") in (None, (0, 0, 0, 0))
        and ints_of(conv, "dilations") in (None, (1, 1))
        and ("group" not in attributes or attributes["group"].as_int() == 1)
    )
    turned = _above(conv.inputs[0], "Transpose") if is_whole else None
    if turned is None or ints_of(turned, "perm") != (0, 3, 1, 2):
        return None
    divided = only_producer(turned.inputs[0], "Div")
    centred = None if divided is None else only_producer(divided.inputs[0], "Sub")
    scaled = None if centred is None else only_producer(centred.inputs[0], "Div")
    widened = None if scaled is None else only_producer(scaled.inputs[0], "Cast")
    if divided is None or centred is None or scaled is None or widened is None:
        return None
    frames = widened.inputs[0]
    mean, deviation = array_of(centred.inputs[1]), array_of(divided.inputs[1])
    flat = reader_of(conv, "Reshape", 0)
    last = None if flat is None else reader_of(flat, "Transpose", 0)
    if frames is None or mean is None or deviation is None or flat is None or last is None:
        return None
    shape, end = frames.shape, array_of(flat.inputs[1])
    is_read = (
        frames.dtype is not None
        and frames.dtype.name == "UINT8"
        and shape is not None
        and len(shape) == 4
        and shape[1] == shape[2]
        and shape[3] == 3
        and isinstance(shape[1], int)
        and shape[1] % patch == 0
        and scalar_of(scaled.inputs[1]) == 255
        and mean.shape == deviation.shape == (3,)
        and ints_of(last, "perm") == (0, 2, 1)
        and end is not None
        and tuple(map(int, end[1:])) == (kernel.shape[0], (shape[1] // patch) ** 2)
    )
    if not is_read:
        return None
    wide = [array.astype(np.float64) for array in (mean, deviation, kernel)]
    return PatchPattern(frames, wide[0], wide[1], wide[2], last)


def patch_product(found: PatchPattern, dtype: onnx_ir.DataType) -> tuple[list[Any], onnx_ir.Value]:
    """Return the nodes that compute a patch embedding, and their result.

    ``dtype``: dtype of the result. Weights and bias are inputs whose arrays the nodes' graph has to
    register.
    """
    import onnx_ir

    width, _, patch, _ = found.kernel.shape
    assert found.frames.shape is not None
    side = found.frames.shape[1]
    assert isinstance(side, int)
    grid = side // patch
    scaled = found.kernel / found.deviation[None, :, None, None]
    weights = (scaled * (_UNIT / 255)).transpose(2, 3, 1, 0).reshape(-1, width)
    offset = (_CENTRE / 255 - found.mean)[None, :, None, None]
    bias = (scaled * offset).sum(axis=(1, 2, 3))

    def constant(name: str, array: npt.NDArray[Any]) -> onnx_ir.Value:
        tensor = onnx_ir.tensor(array, name=name)
        return onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(array.shape),
            const_value=tensor,
        )

    def shaped(name: str, *sizes: int) -> onnx_ir.Value:
        return constant(name, np.array(sizes, dtype=np.int64))

    nodes: list[Any] = []

    def add(op_type: str, inputs: list[onnx_ir.Value], **attributes: Any) -> onnx_ir.Value:  # noqa: ANN401
        nodes.append(onnx_ir.node(op_type, inputs, attributes))
        value: onnx_ir.Value = nodes[-1].outputs[0]
        return value

    floating = dtype.numpy()
    row = patch * 3
    # Rows of a patch lie apart by a row of the frame: one swap of two axes brings them together.
    rows = add("Reshape", [found.frames, shaped("patch_rows", -1, patch, grid, row)])
    swapped = add("Transpose", [rows], perm=(0, 2, 1, 3))
    flat = add("Reshape", [swapped, shaped("patch_pixels", -1, patch * row)])
    pixels = add("Cast", [flat], to=dtype.value)
    centred = add("Sub", [pixels, constant("patch_centre", np.array(_CENTRE, dtype=floating))])
    parameters = [
        constant("patch_weights", weights.astype(floating)),
        constant("patch_bias", bias.astype(floating)),
    ]
    product = add("Gemm", [centred, *parameters], alpha=1 / _UNIT)
    return nodes, add("Reshape", [product, shaped("patch_grid", -1, grid * grid, width)])


def _above(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    """Return the producer of a type, above nodes that change dtype or shape alone."""
    for _ in range(_MOST_STEPS + 1):
        found = only_producer(value, op_type)
        if found is not None:
            return found
        passed = [only_producer(value, name) for name in ("Cast", "Reshape", "Unsqueeze")]
        node = next((each for each in passed if each is not None), None)
        if node is None:
            return None
        value = node.inputs[0]
    return None
