"""Make INT8-weight graphs of the encoders for OpenVINO, by NNCF's weight compression.

Weights of matrix products become INT8, with one scale for each output channel. No calibration data
are needed. The graph has ONNX's own ``DequantizeLinear`` before each product, so that a bundle
holds ONNX alone. OpenVINO quantises the activations as it runs, with one scale for each row and
group of channels, and multiplies in INT8.

These weights stay in FP32:

- The projections into the embedding space, as in INT8 and FP16.
- The patch convolution. OpenVINO cannot load NNCF's form of its scales.
- The token embeddings, and the first sixth of the text encoder's products. What they add is the
  larger part of its error. On a random ViT-B/32 and 22 captions, the least cosine is 0.9992 with
  both in INT8, 0.9994 with the embeddings alone and 0.9996 with neither.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING

from xclip_deploy.errors import ExportError, InvalidArgumentError, MissingExtraError
from xclip_deploy.export.graphs import check_boundary, save_graph
from xclip_deploy.export.quantization import PROJECTIONS, weight_of
from xclip_deploy.export.weights_file import WeightsFile
from xclip_deploy.runtime.child_process import describe_end, find_python, start_child
from xclip_deploy.runtime.manifest import AnyGraph, Graph, GraphSpec
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16

if TYPE_CHECKING:
    import onnx_ir

_WIDE_SHARE: dict[AnyGraph, int] = {Graph.TEXT_ENCODER: 6}
"""Divisor of an encoder's products: the first of that many parts keeps its FP32 weights."""

# NNCF replaces logging's class of loggers, writes to stdout and changes PyTorch on import. It is
# therefore imported in a process of its own.
_PROGRAM = """
import os, sys
os.environ["NNCF_CI"] = "1"  # it sends no telemetry then
import nncf, onnx
source, target, *kept = sys.argv[1:]
compressed = nncf.compress_weights(
    onnx.load(source),
    mode=nncf.CompressWeightsMode.INT8_SYM,
    ignored_scope=nncf.IgnoredScope(names=kept),
)
onnx.save(compressed, target)
"""


def require_weight_compression() -> None:
    """Check that INT8 weights can be made and compared with PyTorch here.

    The comparison needs OpenVINO and a CPU with BF16, as the runtime does. Raises MissingExtraError
    where a library is not installed, and InvalidArgumentError for another CPU.
    """
    for package in ("nncf", "openvino"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "int8-weights", "Exporting INT8 weights")
    missing = why_no_bf16()
    if missing is not None:
        raise InvalidArgumentError(
            f"INT8 weights cannot be compared with PyTorch here: {missing}; run the export on a "
            "CPU with BF16, or leave out --int8-weights"
        )


def compress_graph(
    source: Path,
    graph: AnyGraph,
    spec: GraphSpec,
    directory: Path,
    weights: WeightsFile | None = None,
) -> None:
    """Write the INT8-weight graph of an encoder below ``directory``, made from its FP32 graph.

    ``weights``: file for the large weights, which several graphs share. Raises ExportError where
    NNCF fails, or compresses other weights than it should.
    """
    import onnx_ir

    wide = onnx_ir.load(source)
    kept, expected = _choose_weights(wide, graph)
    if not expected:  # the head of mean pooling has no weights
        save_graph(graph, wide, directory / spec.file, weights)
        check_boundary(directory / spec.file, graph, spec)
        return
    with TemporaryDirectory(prefix=".compressed-", dir=directory) as folder:
        target = Path(folder) / "graph.onnx"
        _run_nncf(graph, source, target, kept)
        model = onnx_ir.load(target)
        found = {
            name.removesuffix("_quantized")
            for name, value in model.graph.initializers.items()
            if value.dtype is onnx_ir.DataType.INT8
        }
        if found != expected:
            raise ExportError(
                f"NNCF compressed {len(found)} weights of {graph.value}, expected {len(expected)}; "
                "run: pip install --upgrade 'xclip-deploy[int8-weights]'"
            )
        save_graph(graph, model, directory / spec.file, weights)
    check_boundary(directory / spec.file, graph, spec)


def _choose_weights(model: onnx_ir.Model, graph: AnyGraph) -> tuple[list[str], set[str]]:
    """Return the names of the nodes whose weights stay, and of the weights to compress."""
    kept = [str(node.name) for node in model.graph if node.op_type == "Conv"]
    products = []
    for node in model.graph:
        weight = weight_of(node)
        if weight is None or weight.shape is None or len(weight.shape) != 2:
            continue
        is_projection = str(weight.name).rpartition(".")[2] in PROJECTIONS
        if is_projection or node.op_type != "MatMul":
            kept.append(str(node.name))
        else:
            products.append((str(node.name), str(weight.name)))
    num_wide = len(products) // _WIDE_SHARE[graph] if graph in _WIDE_SHARE else 0
    kept += [node for node, _ in products[:num_wide]]
    return kept, {name for _, name in products[num_wide:]}


def _run_nncf(graph: AnyGraph, source: Path, target: Path, kept: list[str]) -> None:
    paths = (str(source.absolute()), str(target.absolute()))
    with TemporaryFile() as log:
        child = start_child((find_python(), "-c", _PROGRAM, *paths, *kept), log)
        child.communicate()
        if child.returncode:
            how = describe_end(child.returncode, log)
            raise ExportError(f"NNCF cannot compress the weights of {graph.value}: {how}")
