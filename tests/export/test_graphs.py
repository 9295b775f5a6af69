"""Each exported graph, alone, against its PyTorch module."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from xclip_deploy import Bundle
from xclip_deploy.errors import ExportError
from xclip_deploy.export.bfloat16 import round_to_bfloat16
from xclip_deploy.export.graphs import BF16_OPSET, OPSET, export_graph, graph_specs
from xclip_deploy.runtime.grains import PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.manifest import Graph, GraphSpec, Precision
from xclip_deploy.runtime.model_config import PatchEmbedding, TemporalHead
from xclip_deploy.training.model import XClip
from xclip_deploy.training.precision import halve, narrow

Arrays = dict[str, npt.NDArray[Any]]
# Of unit vectors and similarities; measured 3e-7, 4e-4 and 3e-3.
TOLERANCE = {Precision.FP32: 1e-5, Precision.FP16: 2e-3, Precision.BF16: 1.5e-2}
# INT8 graphs are made from the FP32 ones; see test_quantization.py.
PRECISIONS = list(TOLERANCE)
WRITTEN_SCORERS = [Precision.FP32, Precision.FP16]  # the others share them


def export(
    model: XClip, graph: Graph, precision: Precision, folder: Path
) -> tuple[GraphSpec, Path]:
    spec = graph_specs(model.config, precision)[graph]
    if precision is Precision.FP16:
        halve(model)
    elif precision is Precision.BF16:
        narrow(model, torch.bfloat16)
    export_graph(model, graph, spec, folder)
    return spec, folder / spec.file


def runnable(path: Path, graph: Graph, precision: Precision) -> Path:
    """The graph in a form that ONNX Runtime runs."""
    if precision is not Precision.BF16:
        return path
    round_to_bfloat16(graph, path, path.with_name("rounded.onnx"))
    return path.with_name("rounded.onnx")


def run(path: Path, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def video_inputs(model: XClip, batch: int) -> Arrays:
    random = np.random.default_rng(batch)
    size, most = model.config.vision.image_size, model.config.max_frames
    frames = random.integers(0, 256, (batch, most, size, size, 3), dtype=np.uint8)
    return {
        "frames": frames,
        "num_frames": random.integers(1, most + 1, batch).astype(np.int32),
    }


def feature_inputs(model: XClip, texts: int, videos: int, spec: GraphSpec) -> Arrays:
    random = np.random.default_rng(texts * videos)
    sizes = {"texts": texts, "videos": videos}
    arrays: Arrays = {}
    for tensor in spec.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        if tensor.name == "num_words":
            arrays[tensor.name] = random.integers(2, 11, shape).astype(np.int32)
        elif tensor.name == "num_frames":
            arrays[tensor.name] = random.integers(1, 6, shape).astype(np.int32)
        else:
            x = random.normal(size=shape)
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
            arrays[tensor.name] = x.astype(tensor.dtype.value)
    return arrays


# Each head, each kind of patches and each precision is compared every day, at seconds an export:
# this, a transformer and FP16 in the golden bundle (test_parity_matrix.py), BF16 in
# test_text_encoder, and mean pooling of 2D patches in
# test_weights_too_big_for_one_file_go_beside_the_graph.
EVERY_DAY = {(TemporalHead.LSTM, PatchEmbedding.CONV_3D, Precision.FP32)}


@pytest.mark.parametrize(
    ("head", "patch", "precision"),
    [
        pytest.param(*kind, marks=() if kind in EVERY_DAY else pytest.mark.slow)
        for kind in product(TemporalHead, PatchEmbedding, PRECISIONS)
    ],
)
def test_video_encoder(
    make_model: Any, tmp_path: Path, head: TemporalHead, patch: PatchEmbedding, precision: Precision
) -> None:
    model = make_model(temporal_head=head, patch_embedding=patch)
    batches = [video_inputs(model, batch) for batch in (1, 3, 8)]
    with torch.inference_mode():
        expected = [
            model.video_encoder(*(torch.from_numpy(array) for array in batch.values()))
            for batch in batches
        ]
    _, path = export(model, Graph.VIDEO_ENCODER, precision, tmp_path)
    path = runnable(path, Graph.VIDEO_ENCODER, precision)
    for batch, reference in zip(batches, expected, strict=True):
        found = run(path, batch)
        for name in ("video_features", "frame_features"):
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(
                found[name], getattr(reference, name), rtol=0, atol=TOLERANCE[precision]
            )


@pytest.mark.parametrize(
    "precision",
    # In the others, the golden bundle's is compared every day: test_parity_matrix.py.
    [Precision.BF16, *(pytest.param(p, marks=pytest.mark.slow) for p in PRECISIONS[:2])],
)
def test_text_encoder(make_model: Any, tmp_path: Path, precision: Precision) -> None:
    model = make_model()
    token_ids = np.zeros((5, 10), np.int32)
    for row, count in zip(token_ids, (10, 7, 3, 2, 9), strict=True):
        row[: count - 1] = np.arange(count - 1) * 500 + count
        row[count - 1] = 49407
    with torch.inference_mode():
        expected = model.text_encoder(torch.from_numpy(token_ids))
    _, path = export(model, Graph.TEXT_ENCODER, precision, tmp_path)
    path = runnable(path, Graph.TEXT_ENCODER, precision)
    for batch in (1, 5):
        found = run(path, {"token_ids": token_ids[:batch]})
        for name in ("sentence_features", "word_features"):
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(
                found[name],
                getattr(expected, name)[:batch],
                rtol=0,
                atol=TOLERANCE[precision],
            )


SCORERS: dict[str, dict[str, Any]] = {
    "x-clip": {},
    "x-clip, masked": {"mask_padding": True},
    "clip4clip": {"grains": (Grain.VIDEO_SENTENCE,), "sentence_projection": False},
    "frames alone, masked": {"grains": (Grain.FRAME_SENTENCE,), "mask_padding": True},
    "without frame-word": {"grains": PUBLISHED_GRAINS[:3]},
}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        # A scorer of FP16 computes in FP32 all the same.
        pytest.param(
            kind,
            precision,
            marks=pytest.mark.slow
            if precision is Precision.FP16 or kind not in ("clip4clip", "frames alone, masked")
            else (),
        )
        for kind, precision in product(SCORERS, WRITTEN_SCORERS)
    ],
)
def test_scorer(make_model: Any, tmp_path: Path, kind: str, precision: Precision) -> None:
    model = make_model(**SCORERS[kind])
    spec, path = export(model, Graph.SCORER, precision, tmp_path)
    for texts, videos in ((1, 1), (1, 7), (4, 3)):
        inputs = feature_inputs(model, texts, videos, spec)
        with torch.inference_mode():
            # The reference sees what FP16 kept of the gallery: the graph computes in FP32.
            expected = model.scorer(**{n: torch.from_numpy(a) for n, a in inputs.items()})
        found = run(path, inputs)
        scale = float(model.scorer.logit_scale.detach().exp())
        np.testing.assert_allclose(found["logits"], expected.logits, rtol=0, atol=scale * 1e-5)
        for name, grain in expected.grains.items():
            np.testing.assert_allclose(found[name], grain, rtol=0, atol=1e-5)
        assert set(found) == {"logits", *expected.grains}


@pytest.mark.slow
@pytest.mark.parametrize("graph", [Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER])
def test_islands_of_fp32_in_bf16_graphs(make_model: Any, tmp_path: Path, graph: Graph) -> None:
    model = make_model(temporal_head=TemporalHead.TRANSFORMER)
    _, path = export(model, graph, Precision.BF16, tmp_path)
    check_islands(path, graph, Precision.BF16)


@pytest.mark.parametrize("graph", list(Graph))
def test_islands_of_fp32_in_fp16_graphs(bundle: Bundle, graph: Graph) -> None:
    check_islands(bundle.graph_path(graph, Precision.FP16), graph, Precision.FP16)


def check_islands(path: Path, graph: Graph, precision: Precision) -> None:
    """Layer norms, L2 norms and the scorer's softmax compute in FP32; the heavy work does not."""
    narrow_type = TensorProto.FLOAT16 if precision is Precision.FP16 else TensorProto.BFLOAT16
    typed = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    dtypes = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    dtypes |= {value.name: value.type.tensor_type.elem_type for value in typed.graph.input}
    dtypes |= {value.name: value.type.tensor_type.elem_type for value in typed.graph.output}
    dtypes |= {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    seen = set()
    halves = 0
    for node in typed.graph.node:
        kind = dtypes[node.output[0]]
        if node.op_type in ("LayerNormalization", "ReduceL2"):
            assert {dtypes[name] for name in node.input if name in dtypes} <= {
                TensorProto.FLOAT,
                TensorProto.INT64,  # axes
            }
            seen.add(node.op_type)
        if graph is Graph.SCORER and node.op_type in ("Softmax", "MatMul", "Gemm"):
            assert kind == TensorProto.FLOAT
            seen.add(node.op_type)
        if node.op_type in ("MatMul", "Gemm", "Conv", "Softmax"):
            halves += kind == narrow_type
    if graph is Graph.SCORER:
        assert {"Softmax", "MatMul"} <= seen
        assert halves == 0
    else:
        assert seen == {"LayerNormalization", "ReduceL2"}
        assert halves >= 6  # of each block: in, scores, softmax, values, out and the MLP
    assert {output.type.tensor_type.elem_type for output in typed.graph.output} == {
        TensorProto.FLOAT
    }


@pytest.mark.slow
def test_opset_of_bf16(make_model: Any, tmp_path: Path) -> None:
    _, path = export(make_model(), Graph.TEXT_ENCODER, Precision.BF16, tmp_path)
    check_opset_and_traces(path, BF16_OPSET)


@pytest.mark.parametrize("graph", list(Graph))
def test_opset_and_no_traces_of_the_exporting_machine(bundle: Bundle, graph: Graph) -> None:
    check_opset_and_traces(bundle.graph_path(graph, Precision.FP32), OPSET)


def check_opset_and_traces(path: Path, opset: int) -> None:
    model = onnx.load(str(path))
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}
    assert not model.functions
    content = path.read_bytes()
    for trace in (b".py", b"stack_trace", str(Path.home()).encode()):
        assert trace not in content


def test_nothing_has_bf16_at_its_boundary_and_scorers_are_shared(make_model: Any) -> None:
    specs = {precision: graph_specs(make_model().config, precision) for precision in Precision}
    for graphs in specs.values():
        for spec in graphs.values():
            for tensor in (*spec.inputs, *spec.outputs):
                np.dtype(tensor.dtype.value)  # a NumPy type
    assert specs[Precision.BF16][Graph.SCORER] == specs[Precision.FP16][Graph.SCORER]
    assert specs[Precision.INT8][Graph.SCORER] == specs[Precision.FP32][Graph.SCORER]
    files = {spec.file for graphs in specs.values() for spec in graphs.values()}
    assert specs[Precision.INT8_WEIGHTS][Graph.SCORER] == specs[Precision.FP32][Graph.SCORER]
    assert len(files) == len(Precision) * len(Graph) - 3


def test_export_is_deterministic(make_model: Any, tmp_path: Path) -> None:
    paths = [
        export(make_model(**SCORERS["clip4clip"]), Graph.SCORER, Precision.FP32, tmp_path / name)[1]
        for name in "ab"
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_weights_too_big_for_one_file_go_beside_the_graph(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xclip_deploy.export.graphs._EXTERNAL_DATA_BYTES", 1000)
    model = make_model()
    inputs = video_inputs(model, 2)
    with torch.inference_mode():
        expected = model.video_encoder(*(torch.from_numpy(array) for array in inputs.values()))
    _, path = export(model, Graph.VIDEO_ENCODER, Precision.FP32, tmp_path)
    assert path.with_name("video_encoder.onnx.data").stat().st_size > path.stat().st_size
    np.testing.assert_allclose(
        run(path, inputs)["video_features"], expected.video_features, rtol=0, atol=1e-5
    )


def test_what_pytorch_cannot_export_is_an_export_error(make_model: Any, tmp_path: Path) -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if int(token_ids.sum()) > 3:  # depends on the data
                raise ArithmeticError
            return (token_ids, token_ids)

    model = make_model()
    model.text_encoder = Untraceable()
    spec = graph_specs(model.config, Precision.FP32)[Graph.TEXT_ENCODER]
    with pytest.raises(ExportError, match="cannot export text_encoder"):
        export_graph(model, Graph.TEXT_ENCODER, spec, tmp_path)


def test_a_graph_that_came_out_otherwise_is_refused(make_model: Any, tmp_path: Path) -> None:
    model = halve(make_model())
    spec = graph_specs(model.config, Precision.FP32)[Graph.TEXT_ENCODER]
    outputs = (spec.outputs[0].model_copy(update={"shape": ("batch", 65)}), spec.outputs[1])
    with pytest.raises(ExportError, match="text_encoder came out with"):
        export_graph(
            model, Graph.TEXT_ENCODER, spec.model_copy(update={"outputs": outputs}), tmp_path
        )
