"""The published dimensions export and build: random weights, real graphs, real engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import build_engines, export_bundle
from xclip_deploy.runtime.engine_set import FusedAttention
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.model_config import TemporalHead, TextConfig, VisionConfig

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this platform")

SIZES: dict[str, dict[str, Any]] = {
    "ViT-B/32": {
        "embed_dim": 512,
        "vision": VisionConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12),
        "text": TextConfig(width=512, layers=12, heads=8),
    },
    "ViT-B/16": {
        "embed_dim": 512,
        "vision": VisionConfig(image_size=224, patch_size=16, width=768, layers=12, heads=12),
        "text": TextConfig(width=512, layers=12, heads=8),
    },
    "ViT-L/14": {
        "embed_dim": 768,
        "vision": VisionConfig(image_size=224, patch_size=14, width=1024, layers=24, heads=16),
        "text": TextConfig(width=768, layers=12, heads=12),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["ViT-B/32", "ViT-B/16", "ViT-L/14"])
def test_exports_and_builds(
    size: str, make_model: Any, write_checkpoint: Any, tmp_path: Path
) -> None:
    model = make_model(**SIZES[size], temporal_head=TemporalHead.TRANSFORMER, max_words=32)
    config = model.config
    checkpoint = write_checkpoint(model)
    del model
    result = export_bundle(checkpoint, tmp_path / "bundle")
    assert result.bundle.manifest.model == config
    assert all(record.passed for record in result.parity)
    fused = result.bundle.manifest.fused_graphs
    assert [note for note in result.notes if "fused" in note] == []
    assert [len(graphs) for graphs in fused.values()] == [4, 4], "every encoder and both halves"
    built = build_engines(result.bundle)
    assert built.notes == ()
    engines = built.engine_set.engines
    expected = {
        Graph.VIDEO_ENCODER: config.vision.layers + config.temporal_layers,
        Graph.TEXT_ENCODER: config.text.layers,
    }
    for graph, blocks in expected.items():
        engine = engines[graph]
        assert engine.attention == FusedAttention(blocks=blocks, expected=blocks, fused=blocks)
        # Two in a block; before and after the image tower, or after the text tower.
        norms = 2 * blocks + (2 if graph is Graph.VIDEO_ENCODER else 1)
        assert engine.float32_islands["layer norm"] == norms
        assert engine.memory.source == "builder log"
        manifest = result.bundle.manifest
        names = manifest.files_of(graph, Precision.FP16)
        nbytes = sum(manifest.files[name].size_bytes for name in names)
        assert engine.memory.weights_bytes == pytest.approx(nbytes, rel=0.05)
    query, bulk = engines[Graph.TEXT_ENCODER].memory.activation_bytes
    assert query < bulk
