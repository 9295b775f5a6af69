"""Graphs in ONNX Runtime's fused operators: what is rewritten, refused and computed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from xclip_deploy import Bundle
from xclip_deploy.export.exporter import ExportResult
from xclip_deploy.export.fused_graphs.exporting import FUSED_PRECISIONS, check_fused, write_fused
from xclip_deploy.export.fused_graphs.rewriting import (
    DOMAIN,
    PATCHES,
    expected_operators,
    fuse,
)
from xclip_deploy.export.graphs import export_graph, graph_specs, part_specs
from xclip_deploy.export.parity import run_pytorch
from xclip_deploy.export.reference_inputs import reference_inputs
from xclip_deploy.export.weights_file import WeightsFile
from xclip_deploy.runtime.manifest import (
    MANIFEST_NAME,
    AnyGraph,
    Graph,
    GraphSpec,
    Manifest,
    ParityMethod,
    Precision,
    VideoPart,
    file_records,
)
from xclip_deploy.runtime.model_config import (
    Activation,
    PatchEmbedding,
    TemporalHead,
    VisionConfig,
)
from xclip_deploy.runtime.sessions.backend import Placement
from xclip_deploy.runtime.sessions.onnx_session import FP32, OnnxRuntimeSession
from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
from xclip_deploy.training.precision import halve

FUSED = (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER, *VideoPart)
Change = Callable[[onnx_ir.Model], None]


def load(bundle: Bundle, graph: AnyGraph, precision: Precision) -> onnx_ir.Model:
    return onnx_ir.load(bundle.graph_path(graph, precision))


def test_every_encoder_of_the_bundle_has_a_fused_form(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert tuple(manifest.fused_graphs) == FUSED_PRECISIONS
    for precision, specs in manifest.fused_graphs.items():
        assert set(specs) == set(FUSED)
        for graph, spec in specs.items():
            plain = manifest.spec(graph, precision)
            assert (spec.inputs, spec.outputs) == (plain.inputs, plain.outputs)
            assert spec.operators == expected_operators(manifest.model, graph, precision)
            model = onnx.load(str(bundle.path / spec.file), load_external_data=False)
            found = Counter(
                node.op_type
                for node in model.graph.node
                if node.domain == DOMAIN or node.op_type == PATCHES
            )
            assert found == spec.operators, "what the manifest says is in the file"
            has_patches = graph is VideoPart.FRAME_ENCODER
            assert has_patches != any(node.op_type == "Conv" for node in model.graph.node) or (
                graph in (Graph.TEXT_ENCODER, VideoPart.TEMPORAL_HEAD)
            )
            # All that is left of the attention is that of the temporal head.
            softmaxes = sum(node.op_type == "Softmax" for node in model.graph.node)
            has_head = graph in (Graph.VIDEO_ENCODER, VideoPart.TEMPORAL_HEAD)
            assert softmaxes == (manifest.model.temporal_layers if has_head else 0)


def test_the_counts_are_those_of_the_configuration(bundle: Bundle) -> None:
    """Written out once, so that the rule itself is checked."""
    model = bundle.manifest.model
    assert (model.vision.layers, model.text.layers, model.temporal_layers) == (3, 4, 4)
    assert expected_operators(model, Graph.VIDEO_ENCODER, Precision.FP16) == {
        "MultiHeadAttention": 3,
        "SkipLayerNormalization": 12,
        "QuickGelu": 7,
    }
    for precision, norms in ((Precision.FP32, 8), (Precision.FP16, 7)):
        assert expected_operators(model, Graph.TEXT_ENCODER, precision) == {
            "MultiHeadAttention": 4,
            "SkipLayerNormalization": norms,
            "QuickGelu": 4,
        }
    assert expected_operators(model, Graph.SCORER, Precision.FP16) == {}
    assert expected_operators(model, VideoPart.FRAME_ENCODER, Precision.FP16)["Gemm"] == 1


def test_both_forms_share_their_weights(bundle: Bundle) -> None:
    """The fused form adds its nodes, and norms in FP16: no second copy of a weight."""
    manifest = bundle.manifest
    for precision, specs in manifest.fused_graphs.items():
        for graph, spec in specs.items():
            data = manifest.files_of(graph, precision)[1]
            assert spec.weights == (data,)
            sizes = [manifest.files[name].size_bytes for name in (spec.file, data)]
            assert sizes[0] < 150_000
    plain_bytes = 0
    for value in load(bundle, Graph.TEXT_ENCODER, Precision.FP16).graph.initializers.values():
        assert value.const_value is not None
        plain_bytes += value.const_value.nbytes
    data = "fp16/text_encoder.onnx.data"
    assert manifest.files[data].size_bytes < 1.01 * plain_bytes


def test_the_comparison_of_fused_graphs_is_on_record(bundle: Bundle) -> None:
    records = [each for each in bundle.manifest.parity if each.method is ParityMethod.FUSED]
    found = {(each.precision, each.graph, each.tensor) for each in records}
    assert found == {
        (precision, graph, tensor.name)
        for precision, specs in bundle.manifest.fused_graphs.items()
        for graph, spec in specs.items()
        for tensor in spec.outputs
    }
    for record in records:
        assert record.passed
        assert record.max_abs_error > 0


def test_fused_fp32_computes_what_the_plain_form_does(bundle: Bundle) -> None:
    placement = Placement("onnxruntime", "cpu", FP32)
    ids = np.zeros((5, bundle.manifest.model.max_words), dtype=np.int32)
    for row, length in enumerate((3, 4, 9, 31, 32)):
        ids[row, :length] = np.arange(7, 7 + length) * 101
        ids[row, 0], ids[row, length - 1] = 49406, 49407
    outputs = [
        OnnxRuntimeSession(bundle, Graph.TEXT_ENCODER, placement, is_fused=is_fused).run(
            {"token_ids": ids}
        )
        for is_fused in (False, True)
    ]
    for name, array in outputs[0].items():
        np.testing.assert_allclose(outputs[1][name], array, rtol=0, atol=1e-6)


@pytest.mark.parametrize("graph", [Graph.TEXT_ENCODER, VideoPart.FRAME_ENCODER])
def test_the_last_norm_stays_in_fp32(bundle: Bundle, graph: AnyGraph) -> None:
    """Rounded to FP16, its weights and its result would be errors of the features themselves."""
    model = onnx_ir.load(bundle.graph_path(graph, Precision.FP16, is_fused=True))
    projection = next(
        each
        for each in model.graph
        if each.op_type == "MatMul" and each.inputs[0].dtype is onnx_ir.DataType.FLOAT  # type: ignore[union-attr]
    )
    norm = projection.inputs[0].producer()  # type: ignore[union-attr]
    assert norm is not None
    assert norm.op_type == "LayerNormalization"
    weights = norm.inputs[1:]
    assert [each.dtype for each in weights] == [onnx_ir.DataType.FLOAT] * 2  # type: ignore[union-attr]


# Refusals


def node(model: onnx_ir.Model, op_type: str) -> onnx_ir.Node:
    return next(each for each in model.graph if each.op_type == op_type)


def constant(model: onnx_ir.Model, value: onnx_ir.Value | None, array: Any) -> None:
    assert value is not None
    value.const_value = onnx_ir.tensor(array, name=value.name)


def other_scale(model: onnx_ir.Model) -> None:
    scores = node(model, "Softmax").inputs[0].producer().inputs[0].producer()  # type: ignore[union-attr]
    scale = scores.inputs[0].producer().inputs[1]  # type: ignore[union-attr]
    constant(model, scale, np.array(0.25, dtype=np.float32))


def other_mask(model: onnx_ir.Model) -> None:
    mask = node(model, "Softmax").inputs[0].producer().inputs[1]  # type: ignore[union-attr]
    array = mask.const_value.numpy().copy()  # type: ignore[union-attr]
    array[3, 9] = 0.0  # one position sees one that comes later
    constant(model, mask, array)


def weak_mask(model: onnx_ir.Model) -> None:
    mask = node(model, "Softmax").inputs[0].producer().inputs[1]  # type: ignore[union-attr]
    constant(model, mask, mask.const_value.numpy() / 1e4)  # type: ignore[union-attr]


def other_axis(model: onnx_ir.Model) -> None:
    node(model, "Softmax").attributes["axis"] = onnx_ir.AttrInt64("axis", 1)


def other_order(model: onnx_ir.Model) -> None:
    """Queries and keys change places in the fused weight."""
    first, second = [each for each in model.graph if each.op_type == "Slice"][:2]
    starts, stops = (first.inputs[1], first.inputs[2]), (second.inputs[1], second.inputs[2])
    for each, (start, stop) in ((first, stops), (second, starts)):
        each.replace_input_with(1, start)
        each.replace_input_with(2, stop)


def read_twice(model: onnx_ir.Model) -> None:
    """Someone else reads the attention's weights: they cannot be fused away."""
    softmax = node(model, "Softmax")
    extra = onnx_ir.node("Identity", [softmax.outputs[0]])
    model.graph.insert_after(softmax, [extra])
    extra.outputs[0].name = "weights"
    model.graph.outputs.append(extra.outputs[0])


def other_gelu(model: onnx_ir.Model) -> None:
    factor = node(model, "Sigmoid").inputs[0].producer().inputs[1]  # type: ignore[union-attr]
    constant(model, factor, np.array(1.5, dtype=np.float32))


def other_norm(model: onnx_ir.Model) -> None:
    for each in model.graph:
        if each.op_type == "LayerNormalization":
            each.attributes["axis"] = onnx_ir.AttrInt64("axis", 1)


@pytest.mark.parametrize(
    ("change", "operator"),
    [
        (other_scale, "MultiHeadAttention"),
        (other_mask, "MultiHeadAttention"),
        (weak_mask, "MultiHeadAttention"),
        (other_axis, "MultiHeadAttention"),
        (other_order, "MultiHeadAttention"),
        (read_twice, "MultiHeadAttention"),
        (other_gelu, "QuickGelu"),
        (other_norm, "SkipLayerNormalization"),
    ],
)
def test_what_is_not_exactly_the_pattern_stays(
    bundle: Bundle, change: Change, operator: str
) -> None:
    """A rewrite that looks less closely would compute another model."""
    whole = load(bundle, Graph.TEXT_ENCODER, Precision.FP32)
    expected = fuse(whole)
    model = load(bundle, Graph.TEXT_ENCODER, Precision.FP32)
    change(model)
    assert fuse(model).get(operator, 0) < expected[operator]


def test_a_graph_without_the_pattern_keeps_its_form_and_says_so(
    bundle: Bundle, tmp_path: Path
) -> None:
    model = load(bundle, Graph.TEXT_ENCODER, Precision.FP32)
    other_scale(model)
    plain = bundle.manifest.graphs[Precision.FP32][Graph.TEXT_ENCODER]
    with WeightsFile(tmp_path / "fp32" / "text_encoder.onnx.data") as weights:
        weights.take(model)
        onnx_ir.save(model, tmp_path / plain.file)
        config = bundle.manifest.model
        given = (Graph.TEXT_ENCODER, Precision.FP32, plain, config)
        made = write_fused(*given, tmp_path, weights)
    assert isinstance(made, str)
    # One constant serves all layers.
    assert made.startswith("8 SkipLayerNormalization, 4 QuickGelu found to fuse, expected 4 Multi")
    assert not list(tmp_path.rglob("*.fused.onnx"))


def test_a_fused_graph_out_of_tolerance_is_deleted(
    bundle_copy: Path, checkpoint_path: Path
) -> None:
    """Of one graph: the others stay, and the plain form too."""
    manifest = Manifest.model_validate_json(strip(bundle_copy))
    spec = manifest.fused_graphs[Precision.FP32][Graph.TEXT_ENCODER]
    path = bundle_copy / spec.file
    model = onnx.load(str(path), load_external_data=False)
    attention = next(each for each in model.graph.node if each.op_type == "MultiHeadAttention")
    next(each for each in attention.attribute if each.name == "scale").f = 0.3
    path.write_bytes(model.SerializeToString())
    loaded = load_checkpoint(checkpoint_path, CheckpointOptions())
    bundle = Bundle.open(bundle_copy)
    inputs = reference_inputs(loaded.config, bundle.tokenizer())
    files = dict(manifest.files)
    files[spec.file] = file_records(bundle_copy)[spec.file]
    altered = Bundle(bundle_copy, manifest.model_copy(update={"files": files}))
    kept, records, notes = check_fused(altered, inputs, run_pytorch(loaded.build(), inputs))
    assert not path.exists()
    (note,) = notes
    assert note.startswith("fp32/text_encoder.fused.onnx is left out: ")
    assert note.endswith(", allowed 2e-05")
    assert spec.file not in kept.files
    assert set(kept.fused_graphs[Precision.FP32]) == set(FUSED) - {Graph.TEXT_ENCODER}
    assert set(kept.fused_graphs[Precision.FP16]) == set(FUSED)
    assert all(record.passed for record in records)


def strip(bundle: Path) -> str:
    """The manifest's content without its checksum."""
    content = json.loads((bundle / MANIFEST_NAME).read_text())
    del content["checksum"]
    return json.dumps(content)


def test_bundles_of_earlier_releases_have_no_fused_graphs(bundle: Bundle) -> None:
    old = bundle.manifest.model_copy(update={"fused_graphs": {}})
    assert b"fused_graphs" not in old.to_json()
    assert not Bundle(bundle.path, old).has_fused(Graph.TEXT_ENCODER, Precision.FP16)


# Other models


@pytest.mark.slow
@pytest.mark.parametrize("precision", FUSED_PRECISIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"activation": Activation.GELU, "temporal_head": TemporalHead.LSTM},
        {"patch_embedding": PatchEmbedding.CONV_3D, "temporal_head": TemporalHead.TRANSFORMER},
        {"temporal_head": TemporalHead.MEAN_POOLING},
    ],
)
def test_models_of_every_kind(
    make_model: Any, tmp_path: Path, changes: dict[str, Any], precision: Precision
) -> None:
    vision = VisionConfig(image_size=32, patch_size=16, width=128, layers=3, heads=2)
    model = make_model(vision=vision, **changes)
    config = model.config
    if precision is Precision.FP16:
        halve(model)
    specs: dict[AnyGraph, GraphSpec] = dict(graph_specs(config, precision).items())
    specs |= part_specs(config, precision).items()
    del specs[Graph.SCORER]
    for graph, spec in specs.items():
        with WeightsFile(tmp_path / f"{spec.file}.data") as weights:
            export_graph(model, graph, spec, tmp_path, weights)
            made = write_fused(graph, precision, spec, config, tmp_path, weights)
        if expected_operators(config, graph, precision):
            assert not isinstance(made, str), made
            assert made.operators == expected_operators(config, graph, precision)
        else:
            assert made == "it has no operators to fuse"


@pytest.mark.slow
def test_precisions_without_fused_graphs(every_precision: ExportResult) -> None:
    assert tuple(every_precision.bundle.manifest.fused_graphs) == FUSED_PRECISIONS
    assert not [name for name in every_precision.notes if "fused" in name]
