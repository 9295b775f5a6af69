"""Find what an ONNX graph in half precision computes in FP32.

Strongly typed TensorRT networks compute in the types of the graph. The graph alone therefore
proves, without a GPU, what is computed in FP32. Layer norms, L2 norms, the scorer and all outputs
must be. ONNX's own shape inference gives the types.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.errors import EngineBuildError, MissingExtraError
from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.runtime.engine_set import Flavour, FusedAttention
from xclip_deploy.runtime.grains import GRAINS
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead
from xclip_deploy.runtime.presentation import cut, listed

if TYPE_CHECKING:
    import onnx

_BIG_TENSOR_BYTES = 4096
FUSED_KERNEL = b"_gemm_mha_v2_0x"
"""Part of the name of TensorRT-RTX's fused multi-head attention kernel. A plan in half precision
holds it three times for every fused block and profile. A plan in FP32 never holds it."""
_KERNELS_A_BLOCK = 3

# These operators move elements and compute nothing.
_MOVEMENT = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True)
class AttentionBlock:
    """Attention in half precision: a softmax between two matrix products."""

    node: str
    """Name of the softmax."""
    heads: int | None
    """Number of heads; None where the graph does not tell."""
    has_mask: bool
    """True if the block adds a mask to its scores."""

    @property
    def fuses(self) -> bool:
        """Return whether TensorRT-RTX is known to fuse this block; see ``FusedAttention``."""
        return self.heads != 1 or not self.has_mask


@dataclass(frozen=True)
class GraphAudit:
    """Findings in a graph of half precision."""

    float32_islands: dict[str, int]
    """Number of sites that compute in FP32, by kind."""
    attention: tuple[AttentionBlock, ...]


def audit_graph(path: Path, graph: Graph, config: ModelConfig) -> GraphAudit:
    """Prove that a graph in FP16 or BF16 has its FP32 islands.

    These compute in FP32: every layer norm, as many as the model has; every L2 norm and its input;
    every output; every operator of the scorer. Raises EngineBuildError, which names the nodes that
    do not.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "export", "Checking the graphs of engines") from error

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        # Types and shapes suffice. The content of weights may be gigabytes.
        if len(tensor.raw_data) > _BIG_TENSOR_BYTES:
            tensor.ClearField("raw_data")
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise EngineBuildError(
            f"{path}: ONNX finds no types in it: {cut(str(error), 600)}"
        ) from error
    walk = _Walk(model.graph)
    faults: list[str] = []
    if graph is Graph.SCORER:
        islands = {"scorer operator": walk.scorer_operators(faults)}
        islands["scorer softmax"] = walk.operators(("Softmax", "Exp"), faults)
        expected = {"scorer softmax": sum(GRAINS[grain].softmaxes for grain in config.grains)}
    else:
        islands = {
            "layer norm": walk.operators(("LayerNormalization",), faults),
            "L2 norm": walk.l2_norms(faults),
        }
        expected = {"layer norm": _layer_norms(graph, config)}
        if islands["L2 norm"] == 0:
            faults.append("it holds no L2 norm")
    islands["output"] = walk.outputs(faults)
    faults += [
        f"{islands[kind]} {kind}s where the model has {number}"
        for kind, number in expected.items()
        if islands[kind] != number
    ]
    if faults:
        raise EngineBuildError(
            f"{path} does not compute in FP32 what it must: {listed(faults)}; export again: "
            "xclip-deploy export CHECKPOINT"
        )
    # The scorer's softmaxes are FP32, so that they do not count as attention to fuse.
    return GraphAudit(islands, tuple(walk.attention_blocks()))


def _layer_norms(graph: Graph, config: ModelConfig) -> int:
    """Count the layer norms: two a block, one after the text tower, two around the image tower."""
    if graph is Graph.TEXT_ENCODER:
        return 2 * config.text.layers + 1
    layers = config.vision.layers
    if config.temporal_head is TemporalHead.TRANSFORMER:
        layers += config.temporal_layers
    return 2 * layers + 2


class _Walk:
    """A graph with the type, the producer and the readers of each value."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import TensorProto

        self._float32 = TensorProto.FLOAT
        self._halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        self._floating = (*self._halves, TensorProto.FLOAT, TensorProto.DOUBLE)
        self._nodes: Sequence[onnx.NodeProto] = graph.node
        self._outputs = [value.name for value in graph.output]
        self._producer = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._shapes: dict[str, list[int]] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            self._types[value.name] = value.type.tensor_type.elem_type
            # A dynamic size counts as 0.
            sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
            self._shapes[value.name] = sizes

    def operators(self, op_types: Collection[str], faults: list[str]) -> int:
        """Count the operators of these types in FP32. Add a fault for each that is not."""
        return sum(self._is_wide(node, faults) for node in self._nodes if node.op_type in op_types)

    def scorer_operators(self, faults: list[str]) -> int:
        """Count the scorer's operators in FP32, without those that only move or cast."""
        return sum(
            self._is_wide(node, faults)
            for node in self._nodes
            if node.op_type != "Cast"
            and node.op_type not in _MOVEMENT
            and any(self._types.get(name) in self._floating for name in node.output)
        )

    def l2_norms(self, faults: list[str]) -> int:
        """Count the L2 norms whose input, norm and division are computed in FP32."""
        count = 0
        for node in self._nodes:
            if node.op_type != "ReduceL2":
                continue
            is_sound = self._is_wide(node, faults) and self._is_made_wide(node.input[0], faults)
            divisions = [reader for reader in self._forward(node) if reader.op_type == "Div"]
            if not divisions:
                faults.append(f"nothing is divided by {_name(node)}")
            count += is_sound and all(self._is_wide(division, faults) for division in divisions)
        return count

    def outputs(self, faults: list[str]) -> int:
        """Count the outputs that are FP32 and computed in FP32."""
        return sum(self._is_made_wide(name, faults) for name in self._outputs)

    def attention_blocks(self) -> Iterator[AttentionBlock]:
        """Find the softmaxes between matrix products in half precision."""
        for node in self._nodes:
            if node.op_type != "Softmax" or self._types.get(node.input[0]) not in self._halves:
                continue
            scores = self._producer.get(node.input[0])
            has_mask = scores is not None and scores.op_type == "Add"
            if has_mask and scores is not None:
                producers = [self._producer.get(name) for name in scores.input]
                is_product = any(made and made.op_type == "MatMul" for made in producers)
            else:
                is_product = scores is not None and scores.op_type == "MatMul"
            readers = self._readers.get(node.output[0], [])
            if is_product and any(reader.op_type == "MatMul" for reader in readers):
                shape = self._shapes.get(node.input[0], [])
                heads = shape[1] if len(shape) == 4 and shape[1] > 0 else None
                yield AttentionBlock(_name(node), heads, has_mask)

    def _is_wide(self, node: onnx.NodeProto, faults: list[str]) -> bool:
        """Return whether a node's floating-point values are all FP32. Add a fault if not."""
        types = [self._types.get(name) for name in (*node.input, *node.output) if name]
        if None in types or 0 in types:
            faults.append(f"{_name(node)} has a type that ONNX cannot infer")
            return False
        floating = [kind for kind in types if kind in self._floating]
        if any(kind != self._float32 for kind in floating) or not floating:
            faults.append(f"{_name(node)} is not in FP32")
            return False
        if node.op_type == "LayerNormalization" and _attribute(node, "stash_type", 1) != 1:
            faults.append(f"{_name(node)} keeps its statistics in another type than FP32")
            return False
        return True

    def _is_made_wide(self, name: str, faults: list[str]) -> bool:
        """Return whether a value is computed in FP32 rather than cast from half precision."""
        if self._types.get(name) != self._float32:
            faults.append(f"{name} is not in FP32")
            return False
        producer = self._producer.get(name)
        if producer is None:
            return True  # an input or a weight of type FP32
        if producer.op_type == "Cast":
            if self._types.get(producer.input[0]) in self._halves:
                faults.append(f"{name} is in half precision up to {_name(producer)}")
                return False
            return True
        if producer.op_type in _MOVEMENT:
            # The other inputs are shapes and indices.
            moved = [one for one in producer.input if self._types.get(one) == self._float32]
            return all(self._is_made_wide(one, faults) for one in moved)
        return self._is_wide(producer, faults)

    def _forward(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Find the arithmetic that reads a node's result, through moves, casts and bounds."""
        for reader in self._readers.get(node.output[0], []):
            if reader.op_type in _MOVEMENT or reader.op_type in ("Clip", "Max", "Cast"):
                yield from self._forward(reader)
            else:
                yield reader


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def _attribute(node: onnx.NodeProto, name: str, default: int) -> Any:  # noqa: ANN401 - an int
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def count_fused_attention(
    library: TensorRT, plan: bytes, profiles: int, audit: GraphAudit
) -> FusedAttention:
    """Count the fused attention blocks of an engine with ``profiles`` profiles."""
    fused = None
    if library.flavour is Flavour.RTX:
        fused = plan.count(FUSED_KERNEL) // (_KERNELS_A_BLOCK * profiles)
    return FusedAttention(
        blocks=len(audit.attention),
        expected=sum(block.fuses for block in audit.attention),
        fused=fused,
    )
