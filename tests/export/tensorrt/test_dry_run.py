"""Parsing without building."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.export.tensorrt import dry_run
from xclip_deploy.runtime.manifest import Graph, Precision

pytestmark = pytest.mark.usefixtures("trt")


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_exported_graphs_are_supported(bundle_path: Path, precision: Precision) -> None:
    found = dry_run(bundle_path, flavour="rtx", precision=precision)
    assert found.is_supported
    assert set(found.graphs) == set(Graph)
    assert all((parse.layers or 0) > 100 for parse in found.graphs.values())
    assert not (bundle_path / "engines").exists()


def test_unsupported_operators_of_all_graphs(bundle_copy: Path, put_graph: Any) -> None:
    for graph in (Graph.VIDEO_ENCODER, Graph.SCORER):
        model = onnx.load(str(bundle_copy / "fp16" / f"{graph.value}.onnx"))
        next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Odd"
        put_graph(bundle_copy, graph, model)
    found = dry_run(bundle_copy, flavour="rtx")
    assert not found.is_supported
    refused = {
        graph: [one.operator for one in parse.unsupported] for graph, parse in found.graphs.items()
    }
    assert refused == {Graph.VIDEO_ENCODER: ["Odd"], Graph.TEXT_ENCODER: [], Graph.SCORER: ["Odd"]}


def test_a_precision_that_is_not_there(bundle_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="has no bf16 graphs"):
        dry_run(bundle_path, flavour="rtx", precision=Precision.BF16)
