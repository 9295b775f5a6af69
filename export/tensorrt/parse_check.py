"""Parse all graphs without building, to find what TensorRT refuses."""

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
    """Result of parsing one graph."""

    layers: int | None
    """Number of the network's layers; None where the graph did not parse."""
    unsupported: tuple[UnsupportedOperator, ...]
    """All operators that TensorRT refuses, in the graph's order."""


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run."""

    library: str
    """Module and version of TensorRT."""
    precision: Precision
    graphs: dict[Graph, GraphParse]

    @property
    def is_supported(self) -> bool:
        """Return whether TensorRT takes every operator of every graph."""
        return not any(parse.unsupported for parse in self.graphs.values())


def dry_run(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    *,
    precision: Precision = Precision.FP16,
    flavour: str = "auto",
) -> DryRun:
    """Parse the three graphs of a bundle with TensorRT, without building or writing anything.

    Raises BundleError, InvalidArgumentError and MissingExtraError as :func:`build_engines` does.
    Raises EngineBuildError where a parsed graph is not the one of the manifest.
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
