"""The graphs that a set of engines is built from."""

from __future__ import annotations

from pathlib import Path

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, GraphSpec, Precision


def graph_sources(bundle: Bundle, precision: Precision) -> dict[Graph, tuple[Path, GraphSpec]]:
    """Path, with its content checked, and specification of each graph.

    Raises InvalidArgumentError for a precision that TensorRT does not build from or that the
    bundle lacks, BundleIntegrityError for an altered file.
    """
    if precision is Precision.INT8:
        raise InvalidArgumentError(
            "int8 graphs are for the CPU: TensorRT refuses their dynamically quantised operators; "
            f"run: xclip-deploy build-trt {bundle.path} --fp16"
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
