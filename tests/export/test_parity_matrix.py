"""Every model in every precision, through the product's runtime, against PyTorch.

Batches of one, an odd number, and more than the largest batch; videos with fewer frames than
the model takes. BF16 runs nowhere but in engines: test_bfloat16.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy import Bundle, DeployedModel, export_bundle
from xclip_deploy.export.exporter import ExportResult
from xclip_deploy.export.parity import TOLERANCES, compare, run_pytorch
from xclip_deploy.export.reference_inputs import ReferenceInputs, reference_inputs
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, VideoPart
from xclip_deploy.runtime.model_config import (
    PatchEmbedding,
    TemporalHead,
    TextConfig,
    VisionConfig,
)
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.training.checkpoints import load_checkpoint, save_checkpoint
from xclip_deploy.training.model import XClip

MAX_BATCH = 4
PRECISIONS = [Precision.FP32, Precision.FP16, Precision.INT8]
# Every pair of head, patches and padding is among them.
VARIANTS: dict[str, dict[str, Any]] = {
    f"{head.value}, {patch.value}{', masked' if masked else ''}": {
        "temporal_head": head,
        "patch_embedding": patch,
        "mask_padding": masked,
    }
    for head, patch, masked in [
        (TemporalHead.MEAN_POOLING, PatchEmbedding.CONV_2D, False),
        (TemporalHead.MEAN_POOLING, PatchEmbedding.CONV_3D, True),
        (TemporalHead.TRANSFORMER, PatchEmbedding.CONV_2D, True),
        (TemporalHead.TRANSFORMER, PatchEmbedding.CONV_3D, False),
        (TemporalHead.LSTM, PatchEmbedding.CONV_2D, False),
        (TemporalHead.LSTM, PatchEmbedding.CONV_3D, True),
    ]
}
VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision": VisionConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12),
    "text": TextConfig(width=512, layers=12, heads=8),
    "temporal_head": TemporalHead.TRANSFORMER,
    "max_words": 32,
    "max_frames": 12,
}


@dataclass(frozen=True)
class Exported:
    """A model, and the bundle of it."""

    model: XClip
    bundle: Bundle


@pytest.fixture(scope="module")
def exported(
    request: pytest.FixtureRequest,
    once_per_run: Callable[..., Path],
    make_model: Callable[..., XClip],
    checkpoint_path: Path,
) -> Exported:
    """Exported once for all precisions and batches."""
    if request.param == "golden":
        bundle: Bundle = request.getfixturevalue("bundle")
        return Exported(load_checkpoint(checkpoint_path).build(), bundle)
    if request.param == "golden with INT8":
        result: ExportResult = request.getfixturevalue("every_precision")
        return Exported(load_checkpoint(checkpoint_path).build(), result.bundle)
    is_small = request.param != "ViT-B/32"
    changes = VARIANTS[request.param] if is_small else VIT_B_32
    # At D = 512, as much noise in each element would turn an embedding further.
    model = make_model(scorer_noise=0.02 if is_small else 0.002, **changes)

    def export(folder: Path) -> None:
        save_checkpoint(folder / "checkpoint.pt", model.config, model.state_dict())
        export_bundle(folder / "checkpoint.pt", folder / "bundle", int8=True)

    folder = once_per_run(f"matrix {request.param}".replace("/", "-"), export)
    return Exported(model, Bundle.open(folder / "bundle"))


def take(inputs: ReferenceInputs, rows: list[int]) -> ReferenceInputs:
    return ReferenceInputs(
        inputs.token_ids[np.array(rows) % len(inputs.token_ids)],
        inputs.frames[np.array(rows) % len(inputs.frames)],
        inputs.num_frames[np.array(rows) % len(inputs.num_frames)],
    )


def run(model: DeployedModel, inputs: ReferenceInputs) -> dict[tuple[AnyGraph, str], Any]:
    text = model.encode_token_ids(inputs.token_ids)
    video = model.encode_frames(inputs.frames, inputs.num_frames)
    scores = model.score(text, video)
    parts: dict[tuple[AnyGraph, str], Any] = {}
    if model.encodes_valid_frames:
        pairs = zip(inputs.frames, inputs.num_frames, strict=True)
        valid = np.concatenate([frames[:count] for frames, count in pairs])
        parts = {
            (VideoPart.FRAME_ENCODER, "frame_raw"): model.embed_frames(valid),
            (VideoPart.TEMPORAL_HEAD, "video_features"): video.video_features,
            (VideoPart.TEMPORAL_HEAD, "frame_features"): video.frame_features,
        }
    return {
        **parts,
        (Graph.TEXT_ENCODER, "sentence_features"): text.sentence_features,
        (Graph.TEXT_ENCODER, "word_features"): text.word_features,
        (Graph.VIDEO_ENCODER, "video_features"): video.video_features,
        (Graph.VIDEO_ENCODER, "frame_features"): video.frame_features,
        (Graph.SCORER, "logits"): scores.logits,
        **{(Graph.SCORER, name): grain for name, grain in scores.grains.items()},
    }


@pytest.mark.parametrize(
    ("exported", "precision"),
    [
        ("golden", Precision.FP32),
        ("golden", Precision.FP16),
        pytest.param("golden with INT8", Precision.INT8, marks=pytest.mark.slow),
        *(
            pytest.param(name, precision, marks=pytest.mark.slow)
            for name, precision in product([*VARIANTS, "ViT-B/32"], PRECISIONS)
        ),
    ],
    indirect=["exported"],
)
def test_agrees_with_pytorch(exported: Exported, precision: Precision) -> None:
    config = exported.bundle.manifest.model
    inputs = reference_inputs(config, exported.bundle.tokenizer())
    assert inputs.num_frames.min() == 1  # of the videos, one is a single frame
    assert inputs.num_frames.max() == config.max_frames
    logit_scale = float(exported.model.scorer.logit_scale.detach().exp())
    options = SessionOptions(device="cpu", precision=precision.value, threads=1)
    halves, whole = exported.bundle, exported.bundle.without_video_parts()
    is_2d = config.patch_embedding is PatchEmbedding.CONV_2D
    assert (precision in halves.manifest.video_parts) is is_2d
    for bundle in (halves, whole) if is_2d else (whole,):
        with DeployedModel(bundle, options, max_batch=MAX_BATCH) as model:
            # One full video; a single frame; an odd number; more than the largest batch takes.
            for rows in ([0], [2], [0, 1, 2], list(range(MAX_BATCH + 3))):
                batch = take(inputs, rows)
                reference = run_pytorch(exported.model, batch)
                if bundle is whole:
                    reference = {
                        k: array for k, array in reference.items() if isinstance(k[0], Graph)
                    }
                found = run(model, batch)
                assert found.keys() == reference.keys()
                for key, array in found.items():
                    assert array.shape == reference[key].shape
                    assert array.dtype == np.float32
                records = compare(reference, found, precision, logit_scale)
                assert [record for record in records if not record.passed] == []
                if precision is not Precision.FP32:
                    # Coarser arithmetic shows, or something else ran.
                    worst = max(record.max_abs_error for record in records)
                    assert worst > TOLERANCES[Precision.FP32].feature
