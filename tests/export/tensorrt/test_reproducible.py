"""Engines of the same graph are the same, bit by bit.

TensorRT-RTX lists a graph's outputs in the order of their addresses in memory. With address
randomisation, as processes normally run, two plans of one graph therefore differ in the order of
some table entries and in generated names, and in nothing else. Without it they are equal; so
the test switches it off for the processes that build.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xclip_deploy.runtime.manifest import Graph

pytestmark = pytest.mark.usefixtures("trt")

BUILD = """
import sys
from xclip_deploy import Bundle
from xclip_deploy.export.tensorrt import BatchRange, EngineShapes
from xclip_deploy.export.tensorrt.flavours import load_tensorrt
from xclip_deploy.export.tensorrt.network import parse_graph
from xclip_deploy.export.tensorrt.plan import build_plan
from xclip_deploy.runtime.engine_set import BuildOptions
from xclip_deploy.runtime.manifest import Graph, Precision

bundle, graph = Bundle.open(sys.argv[1]), Graph(sys.argv[2])
few = BatchRange(1, 2, 4)
spec = bundle.manifest.graphs[Precision.FP16][graph]
profiles = EngineShapes(few, few, few, few).profiles(graph, spec)
library = load_tensorrt("rtx")
parsed = parse_graph(library, graph, bundle.graph_path(graph, Precision.FP16))
plan = build_plan(library, graph, parsed, profiles, BuildOptions())
sys.stdout.buffer.write(plan)
"""


def plans(bundle_path: Path, graph: Graph, *prefix: str) -> list[bytes]:
    """Of two processes."""
    command = [*prefix, sys.executable, "-c", BUILD, bundle_path, graph.value]
    return [subprocess.run(command, check=True, stdout=-1).stdout for _ in range(2)]


@pytest.fixture
def fixed_addresses() -> list[str]:
    """A command that runs another one without address randomisation."""
    command = ["setarch", "-R"]
    if shutil.which("setarch") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("setarch cannot switch off address randomisation here")
    return command


@pytest.mark.parametrize(
    "graph",
    [
        Graph.SCORER,
        pytest.param(Graph.TEXT_ENCODER, marks=pytest.mark.slow),
        pytest.param(Graph.VIDEO_ENCODER, marks=pytest.mark.slow),
    ],
    ids=lambda graph: graph.value,
)
def test_two_processes_build_the_same(
    bundle_path: Path, fixed_addresses: list[str], graph: Graph
) -> None:
    first, second = plans(bundle_path, graph, *fixed_addresses)
    assert len(first) > 100_000
    assert hashlib.sha256(first).hexdigest() == hashlib.sha256(second).hexdigest()


@pytest.mark.slow
def test_with_randomised_addresses_next_to_nothing_differs(bundle_path: Path) -> None:
    first, second = plans(bundle_path, Graph.SCORER)
    assert len(first) == len(second)
    differing = sum(a != b for a, b in zip(first, second, strict=True))
    assert differing < len(first) / 1000
