"""Parse a bundle's graphs into TensorRT networks, and check them against the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xclip_deploy.errors import EngineBuildError, InvalidArgumentError
from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.export.tensorrt.log import failure, log_of
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, GraphSpec, Precision, TensorSpec
from xclip_deploy.runtime.presentation import listed
from xclip_deploy.runtime.sessions.native.library import TENSOR_DTYPES


def graph_sources(bundle: Bundle, precision: Precision) -> dict[Graph, tuple[Path, GraphSpec]]:
    """Return the path of each graph, its content checked, and its specification.

    Raises InvalidArgumentError for a precision that TensorRT does not build from or the bundle
    lacks, and BundleIntegrityError for an altered file.
    """
    if precision in (Precision.INT8, Precision.INT8_WEIGHTS):
        raise InvalidArgumentError(
            f"{precision.value} graphs are for the CPU: TensorRT refuses their quantised "
            f"operators; run: xclip-deploy build-trt {bundle.path} --fp16"
        )
    if precision not in bundle.manifest.graphs:
        flag = " --bf16" if precision is Precision.BF16 else ""
        raise InvalidArgumentError(
            f"{bundle.path} has no {precision.value} graphs, only "
            f"{', '.join(present.value for present in bundle.precisions)}; "
            f"run: xclip-deploy export CHECKPOINT -o {bundle.path}{flag}"
        )
    specs = bundle.manifest.graphs[precision]
    return {graph: (bundle.graph_path(graph, precision), specs[graph]) for graph in Graph}


@dataclass(frozen=True)
class UnsupportedOperator:
    """A node that TensorRT's parser refuses."""

    node: str
    """Name of the node in the graph; empty where the parser names none."""
    operator: str
    """ONNX operator type."""
    reason: str
    """Reason in the parser's words, with its error code."""

    def __str__(self) -> str:
        return f"{self.operator or 'the graph'} ({self.node or 'no name'}): {self.reason}"


@dataclass(frozen=True)
class ParsedNetwork:
    """A network, with the builder and the parser that must live as long as it does."""

    builder: Any
    network: Any
    parser: Any


def parse_graph(
    library: TensorRT, graph: Graph, path: Path
) -> ParsedNetwork | list[UnsupportedOperator]:
    """Parse the ONNX file at ``path``. Return the network, or the operators that were refused.

    Raises EngineBuildError where TensorRT fails in another way.
    """
    trt = library.module
    log = log_of(library)
    log.clear()
    builder = trt.Builder(log)
    # Networks are always strongly typed in TensorRT 11 and RTX. Version 10 needs the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if network is None:
        raise failure(library, f"made no network for {graph.value}", log)
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(path)):
        return ParsedNetwork(builder, network, parser)
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    if not errors:
        raise failure(library, f"could not parse {path}", log)
    return [
        UnsupportedOperator(
            error.node_name(), error.node_operator(), f"{error.code().name}, {error.desc()}"
        )
        for error in errors
    ]


def check_network(library: TensorRT, graph: Graph, network: Any, spec: GraphSpec) -> None:  # noqa: ANN401
    """Compare a network's inputs and outputs with the manifest. Raises EngineBuildError.

    A strongly typed build can yield half-precision outputs where the ONNX graph declares FP32: the
    parser follows the nodes, not the declaration. Readers of the buffers would then read garbage.
    Inputs keep the names of their dynamic axes, which are compared too. Axes of one name share
    their size in the engine.
    """
    pairs = (
        ("input", network.num_inputs, network.get_input, spec.inputs),
        ("output", network.num_outputs, network.get_output, spec.outputs),
    )
    for side, count, get, expected in pairs:
        found = [_describe(get(number), with_names=side == "input") for number in range(count)]
        want = [_describe_spec(tensor, with_names=side == "input") for tensor in expected]
        if found != want:
            odd = [text for text in found if text not in want]
            missing = [text for text in want if text not in found]
            raise EngineBuildError(
                f"{library.name} reads {graph.value} with {side}s {listed(odd or found)}; the "
                f"bundle says {listed(missing or want)}; export again: xclip-deploy export "
                "CHECKPOINT"
            )


def _describe(tensor: Any, *, with_names: bool) -> str:  # noqa: ANN401 - TensorRT's
    dtype = tensor.dtype.name
    sizes = [
        str(size) if size >= 0 else (tensor.get_dimension_name(axis) if with_names else None)
        for axis, size in enumerate(tensor.shape)
    ]
    return _text(
        tensor.name, TENSOR_DTYPES[dtype].value if dtype in TENSOR_DTYPES else dtype, sizes
    )


def _describe_spec(tensor: TensorSpec, *, with_names: bool) -> str:
    sizes = [str(size) if isinstance(size, int) or with_names else None for size in tensor.shape]
    return _text(tensor.name, tensor.dtype.value, sizes)


def _text(name: str, dtype: str, sizes: list[str | None]) -> str:
    return f"{name} {dtype} [{', '.join(size or '?' for size in sizes)}]"
