"""The halves of the video encoder, as modules, and the file of weights that graphs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xclip_deploy import Bundle
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.export.graphs import part_specs
from xclip_deploy.export.video_parts import FrameEncoder, VideoHead
from xclip_deploy.export.weights_file import WeightsFile
from xclip_deploy.runtime.manifest import Graph, Precision, VideoPart
from xclip_deploy.runtime.model_config import PatchEmbedding, TemporalHead
from xclip_deploy.training.precision import halve

Made = tuple[Any, FrameEncoder, VideoHead]


@pytest.fixture(scope="module", params=list(TemporalHead))
def made(request: pytest.FixtureRequest, make_model: Any) -> Made:
    """The encoder of a head, and its halves."""
    model = make_model(temporal_head=request.param)
    encoder = model.video_encoder
    if request.param is TemporalHead.TRANSFORMER:
        torch.nn.init.normal_(encoder.temporal.frame_position_embeddings.weight)
    size = model.config.vision.image_size
    return encoder, FrameEncoder(encoder).eval(), VideoHead(encoder, size).eval()


@settings(max_examples=30)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
@torch.inference_mode()
def test_the_halves_give_what_the_whole_gives(made: Made, counts: list[int], seed: int) -> None:
    encoder, frame_encoder, head = made
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (len(counts), 5, 32, 32, 3), generator=generator).byte()
    num_frames = torch.tensor(counts, dtype=torch.int32)
    is_valid = torch.arange(5) < num_frames[:, None]
    # What stands in a padded position must not matter.
    frame_raw = torch.full((len(counts), 5, 64), torch.nan)
    frame_raw[is_valid] = frame_encoder(frames[is_valid])[0]
    found = head(frame_raw, num_frames)
    expected = encoder(frames, num_frames)
    torch.testing.assert_close(found.video_features, expected.video_features, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.frame_features, expected.frame_features, rtol=0, atol=1e-6)


def test_padding_is_computed_in_fp32_in_half_precision(make_model: Any) -> None:
    model = make_model()
    wide = VideoHead(model.video_encoder, 32).padding
    halve(model)
    head = VideoHead(model.video_encoder, 32)
    assert head.padding.dtype == torch.float32
    torch.testing.assert_close(head.padding, wide, rtol=0, atol=2e-3)
    assert model.video_encoder.visual.conv1.weight.dtype == torch.float16, "as it was"


@pytest.mark.parametrize("precision", list(Precision))
def test_models_and_precisions_without_halves(make_model: Any, precision: Precision) -> None:
    assert part_specs(make_model(patch_embedding=PatchEmbedding.CONV_3D).config, precision) == {}
    found = part_specs(make_model().config, precision)
    assert set(found) == (set() if precision is Precision.BF16 else set(VideoPart))


def test_the_halves_share_the_weights_of_the_whole(bundle: Bundle) -> None:
    manifest = bundle.manifest
    for precision in bundle.precisions:
        name = f"{precision.value}/video_encoder.onnx.data"
        of_whole = manifest.files_of(Graph.VIDEO_ENCODER, precision)
        assert of_whole == (f"{precision.value}/video_encoder.onnx", name)
        for part in VideoPart:
            assert manifest.files_of(part, precision) == (
                f"{precision.value}/{part.value}.onnx",
                name,
            )
        whole, *parts = (
            external_places(bundle.path / manifest.files_of(graph, precision)[0])
            for graph in (Graph.VIDEO_ENCODER, *VideoPart)
        )
        assert all(part <= whole for part in parts), "the halves add nothing to the file"
        # Fused graphs lie beside them, and have weights of their own for the patches alone.
        used = set(whole)
        for graph in manifest.fused_graphs.get(precision, {}):
            file, *data = manifest.files_of(graph, precision, is_fused=True)
            if data == [name]:
                used |= external_places(bundle.path / file)
        assert len(used - whole) <= 1
        total = sum(length for _, length in used)
        alignment = 64 * len(used)
        assert total <= manifest.files[name].size_bytes <= total + alignment


def external_places(file: Path) -> set[tuple[int, int]]:
    """Offset and length of each of a graph's weights in the shared file."""
    model = onnx.load(str(file), load_external_data=False)
    found = set()
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found.add((int(entries["offset"]), int(entries["length"])))
    return found


def tiny_model(*weights: float) -> onnx_ir.Model:
    """A graph that adds tensors of 1,024 equal numbers to its input."""
    nodes, total, initializers = [], "x", []
    for number, weight in enumerate(weights):
        array = np.full(1024, weight, np.float32)
        initializers.append(onnx.numpy_helper.from_array(array, f"w{number}"))
        nodes.append(onnx.helper.make_node("Add", [total, f"w{number}"], [f"y{number}"]))
        total = f"y{number}"
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [1024]) for n in ("x", total))
    graph = onnx.helper.make_graph(nodes, "tiny", [x], [y], initializers)
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))


def test_graphs_share_equal_weights_and_are_told_apart_by_them(tmp_path: Path) -> None:
    totals = {"a": (1.0, 2.0), "b": (2.0, 3.0, 2.0), "c": (1.0, 4.0)}
    with WeightsFile(tmp_path / "weights.data") as weights:
        for name, values in totals.items():
            model = tiny_model(*values)
            weights.take(model)
            onnx_ir.save(model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "weights.data").stat().st_size == 4 * 4096, "1, 2, 3 and 4"
    for name, values in totals.items():
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"))
        (found,) = session.run(None, {"x": np.zeros(1024, np.float32)})
        np.testing.assert_array_equal(found, np.full(1024, sum(values), np.float32))
    # One architecture, other weights: caches and engines go by the hash of the graph's file.
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "c.onnx").read_bytes()
    with WeightsFile(tmp_path / "other.data") as weights:
        model, other = tiny_model(1.0, 2.0), tiny_model(5.0, 6.0)
        weights.take(model)
    with WeightsFile(tmp_path / "other.data") as weights:
        weights.take(other)
    assert model.metadata_props != other.metadata_props


def test_equal_bytes_of_two_types_have_two_places(tmp_path: Path) -> None:
    """TensorRT refuses a place with 1,024 FP16 zeros that also holds 512 of FP32."""
    nodes = [
        onnx.helper.make_node("Add", ["x", "half"], ["y"]),
        onnx.helper.make_node("Add", ["u", "single"], ["v"]),
    ]
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    shapes = {"x": (half, 1024), "u": (single, 512), "y": (half, 1024), "v": (single, 512)}
    values = [
        onnx.helper.make_tensor_value_info(name, kind, [size])
        for name, (kind, size) in shapes.items()
    ]
    initializers = [
        onnx.numpy_helper.from_array(np.zeros(1024, np.float16), "half"),
        onnx.numpy_helper.from_array(np.zeros(512, np.float32), "single"),
    ]
    graph = onnx.helper.make_graph(nodes, "zeros", values[:2], values[2:], initializers)
    opset = [onnx.helper.make_opsetid("", 18)]
    made = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    with WeightsFile(tmp_path / "weights.data") as weights:
        weights.take(onnx_ir.from_proto(made))
    assert (tmp_path / "weights.data").stat().st_size == 2 * 2048


def test_a_half_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidArgumentError, match="has no frame_encoder in fp32; run: xclip"):
        bundle.without_video_parts().graph_path(VideoPart.FRAME_ENCODER, Precision.FP32)
