"""INT8 encoders: what is quantised, what is not, and how far it may stray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

from xclip_deploy.errors import ExportError
from xclip_deploy.export.graphs import export_graph, graph_specs
from xclip_deploy.export.parity import TOLERANCES
from xclip_deploy.export.quantization import (
    quantize_for_products,
    quantize_graph,
    quantize_symmetrically,
)
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.model_config import TemporalHead
from xclip_deploy.training.model import XClip

ENCODERS = (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER)
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def model(make_model: Callable[..., XClip]) -> XClip:
    return make_model(temporal_head=TemporalHead.TRANSFORMER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: XClip) -> Path:
    """FP32 and INT8 graphs of both encoders."""
    path = tmp_path_factory.mktemp("graphs")
    for graph in ENCODERS:
        export_graph(model, graph, graph_specs(model.config, Precision.FP32)[graph], path)
        quantize(model, graph, path)
    return path


def quantize(model: XClip, graph: Graph, folder: Path, target: Path | None = None) -> Path:
    spec = graph_specs(model.config, Precision.INT8)[graph]
    quantize_graph(folder / "fp32" / f"{graph.value}.onnx", graph, spec, target or folder)
    return (target or folder) / spec.file


def run(path: Path, inputs: Arrays, *, never_saturates: bool = False) -> Arrays:
    """By ONNX Runtime as it comes: the graph must be right without options of ours.

    ``never_saturates``: have it use its exact products, which are slower, where there is no VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(never_saturates)))
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def inputs_of(model: XClip, graph: Graph) -> Arrays:
    random = np.random.default_rng(7)
    size, most = model.config.vision.image_size, model.config.max_frames
    if graph is Graph.VIDEO_ENCODER:
        frames = random.integers(0, 256, (4, most, size, size, 3), dtype=np.uint8)
        return {"frames": frames, "num_frames": np.array([most, 1, 3, most], np.int32)}
    token_ids = random.integers(1, 49406, (5, model.config.max_words)).astype(np.int32)
    token_ids[:, -1] = 49407
    return {"token_ids": token_ids}


@pytest.mark.parametrize("graph", ENCODERS)
def test_close_to_pytorch_and_not_the_same(model: XClip, folder: Path, graph: Graph) -> None:
    inputs = inputs_of(model, graph)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        expected = getattr(model, graph.value)(**tensors)
    found = run(folder / "int8" / f"{graph.value}.onnx", inputs)
    for name, array in found.items():
        reference = getattr(expected, name).numpy()
        assert array.dtype == np.float32
        error = np.abs(array - reference).max()
        assert 1e-4 < error < TOLERANCES[Precision.INT8].feature


@pytest.mark.parametrize("graph", ENCODERS)
def test_weights_that_would_saturate(
    model: XClip, folder: Path, tmp_path: Path, graph: Graph
) -> None:
    """Every weight at plus or minus its channel's largest, in long runs of one sign.

    On x86 without VNNI this fails where two products can exceed 16 bits; elsewhere it cannot.
    """
    whole = onnx.load(str(folder / "fp32" / f"{graph.value}.onnx"))
    products = {node.input[1] for node in whole.graph.node if node.op_type == "MatMul"}
    for tensor in whole.graph.initializer:
        if tensor.name in products and not tensor.name.endswith(("proj", "projection")):
            weight = onnx.numpy_helper.to_array(tensor)
            signs = np.where(np.arange(len(weight)) // 8 % 2, -1, 1)[:, np.newaxis]
            extreme = (signs * np.abs(weight).max(axis=0)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(extreme, tensor.name))
    (tmp_path / "fp32").mkdir()
    onnx.save(whole, str(tmp_path / "fp32" / f"{graph.value}.onnx"))
    path = quantize(model, graph, tmp_path)
    for count in (1, None):  # a product with one row has a kernel of its own
        inputs = {name: array[:count] for name, array in inputs_of(model, graph).items()}
        exact = run(path, inputs, never_saturates=True)
        for name, array in run(path, inputs).items():
            np.testing.assert_array_equal(array, exact[name], err_msg=name)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("zero_point", [0, 3])
@pytest.mark.parametrize("depth", [64, 515])
def test_products_are_exact(depth: int, zero_point: int, rows: int) -> None:
    """ONNX Runtime's integer product, at inputs of 255 and the weights that add up highest."""
    random = np.random.default_rng(9)
    pool = np.array([-1.0, -0.99, 0.0, 0.5, 0.99, 1.0], np.float32)
    weight = random.choice(pool, (depth, 40), p=[0.2, 0.1, 0.1, 0.1, 0.1, 0.4])
    values, _ = quantize_for_products(weight)
    names = {"a": TensorProto.UINT8, "zero": TensorProto.UINT8, "y": TensorProto.INT32}
    tensors = {n: onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in names.items()}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "w", "zero"], ["y"])],
        "product",
        [tensors["a"], tensors["zero"]],
        [tensors["y"]],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    session = onnxruntime.InferenceSession(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    a = np.full((rows, depth), 255, np.uint8)
    (found,) = session.run(None, {"a": a, "zero": np.array(zero_point, np.uint8)})
    np.testing.assert_array_equal(found, (a.astype(np.int64) - zero_point) @ values.astype(int))


@pytest.mark.parametrize("graph", ENCODERS)
def test_what_is_quantised_and_what_is_not(model: XClip, folder: Path, graph: Graph) -> None:
    whole = onnx.load(str(folder / "fp32" / f"{graph.value}.onnx"))
    small = onnx.load(str(folder / "int8" / f"{graph.value}.onnx"))

    def count(loaded: onnx.ModelProto, kind: str) -> int:
        return sum(node.op_type == kind for node in loaded.graph.node)

    blocks = {Graph.VIDEO_ENCODER: 2, Graph.TEXT_ENCODER: 1}[graph]  # with the temporal one
    assert count(small, "MatMulInteger") == count(small, "DynamicQuantizeLinear") == 4 * blocks
    # Left in FP32: two products of each attention, and the projection.
    assert count(small, "MatMul") == 2 * blocks + 1
    for kind in ("LayerNormalization", "Softmax", "ReduceL2", "Conv"):
        assert count(small, kind) == count(whole, kind)
    weights = {tensor.name: tensor for tensor in small.graph.initializer}
    (projection,) = (name for name in weights if name.endswith((".proj", ".text_projection")))
    assert weights[projection].data_type == TensorProto.FLOAT
    # ONNX's own operators alone: any runtime with them can run the graph.
    assert {entry.domain for entry in small.opset_import} == {""}
    # Nothing that was quantised is there twice.
    large = [tensor for tensor in weights.values() if np.prod(tensor.dims) > 10_000]
    floats = [tensor.name for tensor in large if tensor.data_type == TensorProto.FLOAT]
    floats = [name for name in floats if not name.endswith("_scale")]
    assert floats == (["module.visual.conv1.weight"] if graph is Graph.VIDEO_ENCODER else [])


def test_sizes(folder: Path) -> None:
    sizes = {path.parent.name: path.stat().st_size for path in folder.glob("*/text_encoder.onnx")}
    # Of the token embeddings, which are most of it here, a row of 64 has a scale of 4 bytes.
    assert sizes["int8"] < 0.28 * sizes["fp32"]


def test_deterministic(model: XClip, folder: Path, tmp_path: Path) -> None:
    again = quantize(model, Graph.TEXT_ENCODER, folder, tmp_path)
    assert again.read_bytes() == (folder / "int8" / "text_encoder.onnx").read_bytes()


def test_weights_too_big_for_one_file(
    model: XClip, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from beside the FP32 graph, written beside the INT8 one."""
    monkeypatch.setattr("xclip_deploy.export.graphs._EXTERNAL_DATA_BYTES", 1000)
    graph = Graph.TEXT_ENCODER
    export_graph(model, graph, graph_specs(model.config, Precision.FP32)[graph], tmp_path)
    assert (tmp_path / "fp32" / "text_encoder.onnx.data").exists()
    path = quantize(model, graph, tmp_path)
    assert path.with_name("text_encoder.onnx.data").stat().st_size > path.stat().st_size
    inputs = inputs_of(model, graph)
    expected = run(folder / "int8" / "text_encoder.onnx", inputs)
    for name, array in run(path, inputs).items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_graph_without_a_projection_is_refused(model: XClip, tmp_path: Path) -> None:
    """The scorer is none of the encoders."""
    graph = Graph.SCORER
    export_graph(model, graph, graph_specs(model.config, Precision.FP32)[graph], tmp_path)
    with pytest.raises(ExportError, match="scorer has 0 projections"):
        quantize(model, graph, tmp_path)
    assert not (tmp_path / "int8").exists()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    st.sampled_from([0, 1]),
)
def test_symmetric_quantisation(weight: npt.NDArray[np.float32], axis: int) -> None:
    values, scales = quantize_symmetrically(weight, axis)
    assert values.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.abs(values.astype(int)).max() <= 127
    assert (values[weight == 0] == 0).all()
    error = np.abs(values.astype(np.float64) * scales - weight)
    # Half a step, and what rounding the division and the scale may add.
    assert (error <= scales * np.float64(0.5001)).all()
    largest = np.abs(weight).max(axis=axis, keepdims=True)
    reached = np.abs(values).max(axis=axis, keepdims=True)
    assert (reached[largest > 1e-20] == 127).all()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
def test_no_pair_of_weights_can_saturate(weight: npt.NDArray[np.float32]) -> None:
    """Neighbours along K times 255 each, of which either may be zero, stay within 16 bits."""
    values, scales = quantize_for_products(weight)
    assert values.dtype == np.int8
    assert scales.shape == (1, weight.shape[1])
    even = np.concatenate([values, np.zeros_like(values)])[: (len(values) + 1) // 2 * 2]
    first, second = even[::2].astype(int), even[1::2].astype(int)
    for pair in (first, second, first + second):
        assert (np.abs(255 * pair) <= 32767).all()
    error = np.abs(values.astype(np.float64) * scales - weight)
    assert (error <= scales * np.float64(0.5001)).all()
    # At worst, with two alike side by side, they keep 7 bits.
    largest = np.abs(weight).max(axis=0)
    assert (np.abs(values).max(axis=0)[largest > 1e-20] >= 63).all()
