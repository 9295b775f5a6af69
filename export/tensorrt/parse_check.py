"""Parsing all graphs without building, to see what TensorRT would not take."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from xclip_deploy.export.tensorrt.flavours import load_tensorrt
from xclip_deploy.export.tensorrt.network import (
    UnsupportedOperator,
    check_network,
    graph_sources,
    parse_graph,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, Precision


@dataclass(frozen=True)
class GraphParse:
    """How one graph parsed."""

    layers: int | None
    """Of the network; None where it did not parse."""
    unsupported: tuple[UnsupportedOperator, ...]
    """All operators that TensorRT refuses, in the graph's order."""


@dataclass(frozen=True)
class DryRun:
    """What a build would meet."""

    library: str
    """Module and version."""
    precision: Precision
    graphs: dict[Graph, GraphParse]

    @property
    def is_supported(self) -> bool:
        """Whether every operator of every graph is."""
        return not any(parse.unsupported for parse in self.graphs.values())


def dry_run(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    *,
    precision: Precision = Precision.FP16,
    flavour: str = "auto",
) -> DryRun:
    """Parse the three graphs of a bundle with TensorRT, build nothing, write nothing.

    Raises BundleError, InvalidArgumentError, MissingExtraError as :func:`build_engines` does,
    and EngineBuildError where a graph that parses is not the one of the manifest.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    library = load_tensorrt(flavour)
    graphs: dict[Graph, GraphParse] = {}
    for graph, (path, spec) in graph_sources(bundle, precision).items():
        parsed = parse_graph(library, graph, path)
        if isinstance(parsed, list):
            graphs[graph] = GraphParse(None, tuple(parsed))
        else:
            check_network(library, graph, parsed.network, spec)
            graphs[graph] = GraphParse(parsed.network.num_layers, ())
    return DryRun(library.name, precision, graphs)
