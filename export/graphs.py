"""Export PyTorch modules as ONNX graphs, in the precision of their weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xclip_deploy.errors import ExportError
from xclip_deploy.export.video_parts import part_module
from xclip_deploy.export.weights_file import WeightsFile, forget_weights_file
from xclip_deploy.runtime.grains import GRAINS, LENGTHS
from xclip_deploy.runtime.manifest import (
    AnyGraph,
    DType,
    Graph,
    GraphSpec,
    PartSpec,
    Precision,
    TensorSpec,
    VideoPart,
)
from xclip_deploy.runtime.model_config import ModelConfig, PatchEmbedding
from xclip_deploy.training.model import XClip

if TYPE_CHECKING:
    import onnx_ir

OPSET = 18
"""ONNX opset of all graphs but BF16. TensorRT fuses attention in the primitive operators of opsets
18 to 20. The ``Attention`` operator of opset 23 fails in several forms."""

BF16_OPSET = 22
"""First opset whose convolution and LSTM take BF16. Its attention fuses as well."""

_EXTERNAL_DATA_BYTES = 1_900_000_000
"""Largest size of weights within a graph's file. Protobuf ends at 2 GiB; larger weights go into a
file beside it."""

_TORCH_DTYPES = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.INT32: torch.int32,
    DType.UINT8: torch.uint8,
}


# The scorer computes in FP32 in every precision, so these precisions share that of another.
_SCORER_OF = {
    Precision.BF16: Precision.FP16,
    Precision.INT8: Precision.FP32,
    Precision.INT8_WEIGHTS: Precision.FP32,
}


def graph_specs(config: ModelConfig, precision: Precision) -> dict[Graph, GraphSpec]:
    """Return the file, inputs and outputs of each of the three graphs.

    Embeddings and scores leave every graph as FP32. The scorer of FP16 and BF16 reads a gallery's
    features as FP16, as the gallery stores them, and computes in FP32. No graph has BF16 inputs or
    outputs, since NumPy has no BF16. BF16 shares the scorer of FP16; INT8
    and INT8 weights share that of FP32.
    """
    size, words, frames = config.vision.image_size, config.max_words, config.max_frames
    dim = config.embed_dim
    is_half = precision in (Precision.FP16, Precision.BF16)
    gallery = DType.FLOAT16 if is_half else DType.FLOAT32
    real, integer = DType.FLOAT32, DType.INT32

    tensor = _tensor
    scorer_names = _scorer_input_names(config)
    scorer_inputs = (
        tensor("sentence_features", real, "texts", dim),
        tensor("word_features", real, "texts", words, dim),
        tensor("video_features", gallery, "videos", dim),
        tensor("frame_features", gallery, "videos", frames, dim),
        tensor("num_words", integer, "texts"),
        tensor("num_frames", integer, "videos"),
    )
    inputs = {
        Graph.VIDEO_ENCODER: (
            tensor("frames", DType.UINT8, "batch", frames, size, size, 3),
            tensor("num_frames", integer, "batch"),
        ),
        Graph.TEXT_ENCODER: (tensor("token_ids", integer, "batch", words),),
        Graph.SCORER: tuple(spec for spec in scorer_inputs if spec.name in scorer_names),
    }
    outputs = {
        Graph.VIDEO_ENCODER: (
            tensor("video_features", real, "batch", dim),
            tensor("frame_features", real, "batch", frames, dim),
        ),
        Graph.TEXT_ENCODER: (
            tensor("sentence_features", real, "batch", dim),
            tensor("word_features", real, "batch", words, dim),
        ),
        Graph.SCORER: tuple(
            tensor(name, real, "texts", "videos")
            for name in ("logits", *(grain.value for grain in config.grains))
        ),
    }
    return {
        graph: GraphSpec(
            file=f"{_folder(graph, precision)}/{graph.value}.onnx",
            inputs=inputs[graph],
            outputs=outputs[graph],
        )
        for graph in Graph
    }


def part_specs(config: ModelConfig, precision: Precision) -> dict[VideoPart, PartSpec]:
    """Return the file, inputs and outputs of each half of ``video_encoder``.

    Returns none for 3d patches, which mix frames before the temporal head, and for BF16, whose
    graphs are for engines alone.
    """
    if config.patch_embedding is not PatchEmbedding.CONV_2D or precision is Precision.BF16:
        return {}
    size, frames, dim = config.vision.image_size, config.max_frames, config.embed_dim
    real, integer = DType.FLOAT32, DType.INT32
    inputs = {
        VideoPart.FRAME_ENCODER: (_tensor("frames", DType.UINT8, "frames", size, size, 3),),
        VideoPart.TEMPORAL_HEAD: (
            _tensor("frame_raw", real, "batch", frames, dim),
            _tensor("num_frames", integer, "batch"),
        ),
    }
    outputs = {
        VideoPart.FRAME_ENCODER: (_tensor("frame_raw", real, "frames", dim),),
        VideoPart.TEMPORAL_HEAD: graph_specs(config, precision)[Graph.VIDEO_ENCODER].outputs,
    }
    return {
        part: PartSpec(
            file=f"{precision.value}/{part.value}.onnx",
            inputs=inputs[part],
            outputs=outputs[part],
            weights=(shared_weights(precision),),
        )
        for part in VideoPart
    }


def shared_weights(precision: Precision) -> str:
    """Return the path of the weights that ``video_encoder`` shares with its halves."""
    return weights_beside(f"{precision.value}/{Graph.VIDEO_ENCODER.value}.onnx")


def weights_beside(file: str) -> str:
    """Return the path of the weights that the graph in a file shares with its fused form."""
    return f"{file}.data"


def _tensor(name: str, dtype: DType, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _folder(graph: Graph, precision: Precision) -> str:
    """Return the graph's folder in the bundle, named after the precision it was written for."""
    written = _SCORER_OF.get(precision, precision) if graph is Graph.SCORER else precision
    return written.value


def _scorer_input_names(config: ModelConfig) -> set[str]:
    """Name the features that the model's grains compare; a graph has no input that it ignores."""
    entries = [GRAINS[grain] for grain in config.grains]
    names = {name for entry in entries for name in (entry.text, entry.video)}
    lengths = {LENGTHS[name] for name in names if name in LENGTHS}
    return {*names, *lengths} if config.mask_padding else {*names}


# Sizes are at least two: the tracer takes an axis of size one for a constant.
_TRACED_SIZES = {"batch": 2, "frames": 2, "texts": 2, "videos": 3}


def _example(spec: TensorSpec) -> Tensor:
    """Return an input to trace with. Its values do not matter."""
    shape = [_TRACED_SIZES[size] if isinstance(size, str) else size for size in spec.shape]
    return torch.ones(shape, dtype=_TORCH_DTYPES[spec.dtype])


class _GraphModule(nn.Module):
    """Module with the flat, positional inputs and outputs of its graph."""

    def __init__(self, module: nn.Module, spec: GraphSpec) -> None:
        super().__init__()
        self.module = module
        self.names = [tensor.name for tensor in spec.inputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.module(**dict(zip(self.names, inputs, strict=True)))
        return tuple(_flatten(outputs))


def _flatten(outputs: Any) -> Iterator[Tensor]:  # noqa: ANN401 - nested named tuples
    for output in outputs:
        if isinstance(output, Tensor):
            yield output
        else:
            yield from output.values()


def export_graph(
    model: XClip,
    graph: AnyGraph,
    spec: GraphSpec,
    directory: Path,
    weights: WeightsFile | None = None,
) -> None:
    """Write one ONNX graph below ``directory`` and check it.

    The dtype of the model's weights decides the graph's precision. ``weights``: file for the large
    weights, which several graphs share. Raises ExportError where PyTorch or the ONNX checker
    refuses.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    if isinstance(graph, VideoPart):
        part = part_module(graph, model.video_encoder, model.config.vision.image_size)
        module = _GraphModule(part, spec).eval()
    else:
        module = _GraphModule(getattr(model, graph.value), spec).eval()
    is_bfloat16 = any(weight.dtype is torch.bfloat16 for weight in module.parameters())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(_example(tensor) for tensor in spec.inputs),
                dynamo=True,
                # torch.export takes *inputs for one argument, so its shapes form one tuple.
                dynamic_shapes=(tuple(_dynamic_axes(tensor) for tensor in spec.inputs),),
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                opset_version=BF16_OPSET if is_bfloat16 else OPSET,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export {graph.value}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        ) from error
    assert program is not None
    # The exporter writes source paths of this machine into every node; remove them.
    intermediate = ClearMetadataAndDocStringPass()(program.model).model
    intermediate.producer_version = torch.__version__
    save_graph(graph, intermediate, directory / spec.file, weights)
    check_boundary(directory / spec.file, graph, spec)


def save_graph(
    graph: AnyGraph, model: onnx_ir.Model, path: Path, weights: WeightsFile | None = None
) -> None:
    """Write ``model`` and have ONNX check it.

    ``weights``: file for the large weights, in the folder of ``path``. Without it, weights that are
    too large for one file go into a second file beside it. Raises ExportError where the checker
    refuses the graph.
    """
    import onnx
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    size_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if weights is not None:
        weights.take(model)
    elif size_bytes > _EXTERNAL_DATA_BYTES:
        with WeightsFile(path.with_name(f"{path.name}.data")) as own:
            own.take(model)
    else:
        # A graph made from another one still names that one's file of weights.
        onnx_ir.external_data.load_to_model(model)
        forget_weights_file(model)
    # Without a name of a file, the graph keeps what is in it, and external weights where they are.
    onnx_ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:600]
        raise ExportError(f"the ONNX checker refuses {graph.value}: {reason}") from error


def _dynamic_axes(tensor: TensorSpec) -> dict[int, Any]:
    dim: Any = torch.export.Dim
    return {axis: dim(size) for axis, size in enumerate(tensor.shape) if isinstance(size, str)}


def check_boundary(path: Path, graph: AnyGraph, spec: GraphSpec) -> None:
    """Compare the written graph's inputs and outputs with ``spec``. Raises ExportError."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    found = [_read_spec(value) for value in (*model.graph.input, *model.graph.output)]
    expected = [*spec.inputs, *spec.outputs]
    if found != expected:
        raise ExportError(
            f"{graph.value} came out with tensors {[str(tensor) for tensor in found]}, "
            f"expected {[str(tensor) for tensor in expected]}"
        )


def _read_spec(value: Any) -> TensorSpec:  # noqa: ANN401 - onnx ships without full type hints
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=DType(dtype), shape=shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notices (missing torchvision, deprecations)."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
