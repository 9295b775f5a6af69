"""Every temporal head and patch embedding, in FP16: exported, audited, parsed and built."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import build_engines
from xclip_deploy.export.graphs import export_graph, graph_specs
from xclip_deploy.export.tensorrt import BatchRange, EngineShapes, TensorRT
from xclip_deploy.export.tensorrt.graph_audit import audit_graph, count_fused_attention
from xclip_deploy.export.tensorrt.network import ParsedNetwork, check_network, parse_graph
from xclip_deploy.export.tensorrt.plan import build_plan
from xclip_deploy.runtime.engine_set import BuildOptions
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.model_config import (
    PatchEmbedding,
    TemporalHead,
    TextConfig,
    VisionConfig,
)
from xclip_deploy.training.precision import halve

TWO_HEADS: dict[str, Any] = {
    "embed_dim": 128,
    "vision": VisionConfig(image_size=32, patch_size=16, width=128, layers=1, heads=2),
    "text": TextConfig(width=128, layers=1, heads=2),
}
FEW = BatchRange(1, 2, 4)
slow = pytest.mark.slow


def prove(rtx: TensorRT, model: Any, graph: Graph, folder: Path) -> tuple[Any, Any]:
    """What the audit found in one graph and what was fused in its engine."""
    halve(model)
    spec = graph_specs(model.config, Precision.FP16)[graph]
    export_graph(model, graph, spec, folder)
    path = folder / spec.file
    audit = audit_graph(path, graph, model.config)
    parsed = parse_graph(rtx, graph, path)
    assert isinstance(parsed, ParsedNetwork)
    check_network(rtx, graph, parsed.network, spec)
    profiles = EngineShapes(FEW, FEW, FEW, FEW).profiles(graph, spec)
    plan = build_plan(rtx, graph, parsed, profiles, BuildOptions())
    return audit, count_fused_attention(rtx, plan, len(profiles), audit)


@pytest.mark.parametrize(
    ("head", "patches"),
    [
        # Tests of the builder build the transformer's in 2D every day.
        pytest.param(TemporalHead.LSTM, PatchEmbedding.CONV_3D, marks=slow),
        pytest.param(TemporalHead.LSTM, PatchEmbedding.CONV_2D, marks=slow),
        pytest.param(TemporalHead.MEAN_POOLING, PatchEmbedding.CONV_2D, marks=slow),
        pytest.param(TemporalHead.MEAN_POOLING, PatchEmbedding.CONV_3D, marks=slow),
        pytest.param(TemporalHead.TRANSFORMER, PatchEmbedding.CONV_2D, marks=slow),
        pytest.param(TemporalHead.TRANSFORMER, PatchEmbedding.CONV_3D, marks=slow),
    ],
    ids=lambda value: value.value,
)
def test_video_encoders(
    rtx: TensorRT, make_model: Any, tmp_path: Path, head: TemporalHead, patches: PatchEmbedding
) -> None:
    model = make_model(**TWO_HEADS, temporal_head=head, patch_embedding=patches)
    audit, attention = prove(rtx, model, Graph.VIDEO_ENCODER, tmp_path)
    blocks = 2 if head is TemporalHead.TRANSFORMER else 1
    assert (attention.blocks, attention.expected, attention.fused) == (blocks, blocks, blocks)
    # The mean of unit frames, the unit mean, and the frames' own features; with mean pooling
    # the first and the last are the same.
    norms = audit.float32_islands.pop("L2 norm")
    assert norms in ((2, 3) if head is TemporalHead.MEAN_POOLING else (3,))
    assert audit.float32_islands == {"layer norm": 2 * blocks + 2, "output": 2}


@slow
def test_text_encoders_with_several_heads_are_fused(
    rtx: TensorRT, make_model: Any, tmp_path: Path
) -> None:
    """In each of the two profiles, the causal mask notwithstanding."""
    model = make_model(**TWO_HEADS)
    _, attention = prove(rtx, model, Graph.TEXT_ENCODER, tmp_path)
    assert (attention.blocks, attention.expected, attention.fused) == (1, 1, 1)


@slow
@pytest.mark.parametrize("mask_padding", [False, True])
def test_scorers(rtx: TensorRT, make_model: Any, tmp_path: Path, mask_padding: bool) -> None:
    model = make_model(mask_padding=mask_padding)
    audit, attention = prove(rtx, model, Graph.SCORER, tmp_path)
    assert audit.float32_islands["scorer softmax"] == 6
    assert attention.blocks == 0


@slow
def test_bfloat16_engines(every_precision: Any, tmp_path: Path, rtx: TensorRT) -> None:
    """From the bundle's own BF16 graphs, with the same islands."""
    path = tmp_path / "bundle"
    shutil.copytree(every_precision.bundle.path, path)
    shapes = EngineShapes(FEW, FEW, FEW, FEW)
    built = build_engines(path, precision=Precision.BF16, flavour="rtx", shapes=shapes)
    engines = built.engine_set.engines
    video = engines[Graph.VIDEO_ENCODER]
    assert video.float32_islands == {"layer norm": 16, "L2 norm": 3, "output": 2}
    assert video.attention.fused == video.attention.expected == 3
    assert engines[Graph.SCORER].float32_islands["scorer softmax"] == 6
    assert built.path.name.endswith("-bf16-portable")
