"""INT8 weights: what NNCF compresses, what OpenVINO computes by it, and what refuses it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from xclip_deploy import Bundle, DeployedModel, export_bundle
from xclip_deploy.errors import ExportError, InvalidArgumentError, MissingExtraError
from xclip_deploy.export import weight_compression
from xclip_deploy.export.tensorrt.network import graph_sources
from xclip_deploy.export.triton.sources import onnx_sources
from xclip_deploy.export.weight_compression import compress_graph
from xclip_deploy.runtime.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Graph,
    Manifest,
    ParityMethod,
    Precision,
    Tolerance,
    file_records,
)
from xclip_deploy.runtime.sessions import SessionOptions, offers, place
from xclip_deploy.runtime.sessions.openvino import backend as openvino_backend
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16, why_no_openvino
from xclip_deploy.runtime.sessions.openvino.compiled import CACHE_VARIABLE

missing = why_no_openvino() or why_no_bf16()
if missing is None and find_spec("nncf") is None:
    missing = "NNCF is not installed; run: pip install 'xclip-deploy[int8-weights]'"
runs = pytest.mark.skipif(missing is not None, reason=str(missing))
ENCODERS = (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def extended(bundle: Bundle, folder: Path, graphs: tuple[Graph, ...]) -> Bundle:
    """Return a bundle that has INT8 weights too; those of other graphs are in FP32."""
    source = bundle.manifest.graphs[Precision.FP32]
    specs = dict(source)
    for name in bundle.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((bundle.path / name).read_bytes())
    for graph in graphs:
        specs[graph] = source[graph].model_copy(update={"file": f"int8-weights/{graph.value}.onnx"})
        compress_graph(folder / source[graph].file, graph, specs[graph], folder)
    files: dict[str, FileRecord] = file_records(folder)
    manifest: Manifest = bundle.manifest.model_copy(
        update={
            "graphs": {**bundle.manifest.graphs, Precision.INT8_WEIGHTS: specs},
            "files": files,
            "tolerances": {
                **bundle.manifest.tolerances,
                Precision.INT8_WEIGHTS: Tolerance(feature=1, cosine=0.9, score=1),
            },
        }
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def compressed(bundle: Bundle, checkpoint_path: Path, once_per_code: Callable[..., Path]) -> Bundle:
    """The tests' bundle, whose text encoder has INT8 weights."""

    def make(folder: Path) -> None:
        extended(bundle, folder, (Graph.TEXT_ENCODER,))

    return Bundle.open(once_per_code("int8-weights", [checkpoint_path, Path(__file__)], make))


@runs
def test_products_are_compressed_and_the_rest_is_not(compressed: Bundle) -> None:
    path = compressed.graph_path(Graph.TEXT_ENCODER, Precision.INT8_WEIGHTS)
    model = onnx.load(str(path))
    types = {each.name: each.data_type for each in model.graph.initializer}
    assert types["module.text_projection"] == onnx.TensorProto.FLOAT
    assert types["module.token_embedding.weight"] == onnx.TensorProto.FLOAT
    products = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    layers = compressed.manifest.model.text.layers
    assert len(products) == 4 * layers - 4 * layers // 6
    assert {types[node.input[0]] for node in products} == {onnx.TensorProto.INT8}
    assert {each.domain for each in model.opset_import} == {""}


@runs
def test_openvino_multiplies_in_int8(compressed: Bundle) -> None:
    texts = ["a dog on a leash", "rain"]
    found = {}
    for precision in ("fp32", "mixed-bf16", "int8-weights"):
        options = SessionOptions(device="cpu", precision=precision)
        with DeployedModel(compressed, options) as model:
            found[precision] = model.encode_texts(texts).word_features
            again = model.encode_texts(texts[:1]).word_features
        # A scale covers one row of one text alone: the batch does not matter.
        np.testing.assert_allclose(again[0], found[precision][0], atol=0.01)
    least = {name: (array * found["fp32"]).sum(-1).min() for name, array in found.items()}
    assert least["int8-weights"] > 0.999
    assert np.abs(found["int8-weights"] - found["mixed-bf16"]).max() > 0


@runs
def test_it_is_asked_for_and_always_offered(compressed: Bundle) -> None:
    """The model is too narrow to gain; a bundle that has the graphs is verified all the same."""
    assert place(SessionOptions(device="cpu"), compressed).placement.arithmetic.name == "fp32"
    offered = [each for each in offers(compressed) if isinstance(each, SessionOptions)]
    names = {(each.backend, each.precision) for each in offered}
    assert ("openvino", "int8-weights") in names
    assert ("openvino", "mixed-bf16") not in names


@runs
def test_others_refuse_it(compressed: Bundle) -> None:
    with pytest.raises(InvalidArgumentError, match="int8-weights: for OpenVINO alone"):
        onnx_sources(compressed, Precision.INT8_WEIGHTS, "cpu")
    with pytest.raises(InvalidArgumentError, match="int8-weights graphs are for the CPU"):
        graph_sources(compressed, Precision.INT8_WEIGHTS)


@runs
@pytest.mark.slow
def test_a_damaged_source_is_an_export_error(bundle: Bundle, tmp_path: Path) -> None:
    spec = bundle.manifest.graphs[Precision.FP32][Graph.TEXT_ENCODER]
    with pytest.raises(ExportError, match="NNCF cannot compress the weights of text_encoder"):
        weight_compression._run_nncf(
            Graph.TEXT_ENCODER, tmp_path / "none.onnx", tmp_path / spec.file, []
        )


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_compression, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"'xclip-deploy\[int8-weights\]'"):
        export_bundle(tmp_path / "none.pt", tmp_path / "bundle", int8_weights=True)


def test_a_cpu_without_bf16_cannot_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_compression, "find_spec", lambda _: True)
    monkeypatch.setattr(weight_compression, "why_no_bf16", lambda: "this CPU has no BF16 products")
    with pytest.raises(InvalidArgumentError, match="compared with PyTorch here: this CPU has no"):
        export_bundle(tmp_path / "none.pt", tmp_path / "bundle", int8_weights=True)
    assert openvino_backend.INT8_WEIGHTS.is_automatic is False


@runs
@pytest.mark.slow
def test_an_export_compares_it_on_openvino(checkpoint_path: Path, tmp_path: Path) -> None:
    result: Any = export_bundle(checkpoint_path, tmp_path / "bundle", int8_weights=True)
    records = [each for each in result.parity if each.precision is Precision.INT8_WEIGHTS]
    assert {each.method for each in records} == {ParityMethod.OPENVINO}
    assert {each.graph for each in records} == set(Graph)
    manifest = result.bundle.manifest
    graphs = manifest.graphs
    assert graphs[Precision.INT8_WEIGHTS][Graph.SCORER] == graphs[Precision.FP32][Graph.SCORER]
    assert [path.name for path in (tmp_path / "bundle").glob(".compressed*")] == []
