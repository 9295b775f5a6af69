"""Starting from CLIP."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xclip_deploy.errors import CheckpointMismatchError, InvalidArgumentError
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import PatchEmbedding, TemporalHead
from xclip_deploy.training.checkpoints import Checkpoint
from xclip_deploy.training.initialization import freeze_layers, initialize_from
from xclip_deploy.training.model import XClip

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def clip_of(model: XClip) -> Checkpoint:
    return Checkpoint(model.config, model.state_dict(), "OpenAI CLIP", "0" * 64, ())


@pytest.fixture
def clip(make_model: Any) -> XClip:
    model: XClip = make_model(grains=(Grain.VIDEO_SENTENCE,), sentence_projection=False)
    return model


def test_a_3d_model_starts_as_the_2d_one(clip: XClip, inputs: Inputs) -> None:
    config = clip.config.model_copy(update={"patch_embedding": PatchEmbedding.CONV_3D})
    model = initialize_from(clip_of(clip), config).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(*inputs).logits, clip(*inputs).logits)


def test_the_temporal_transformer_starts_as_the_text_blocks(make_model: Any, clip: XClip) -> None:
    config = make_model(temporal_head=TemporalHead.TRANSFORMER).config
    config = config.model_copy(update={"temporal_layers": 1})
    state = initialize_from(clip_of(clip), config).state_dict()
    text = clip.state_dict()
    blocks = [name for name in state if name.startswith("video_encoder.temporal.transformer.")]
    assert len(blocks) == 12
    for name in blocks:
        source = name.replace("video_encoder.temporal.", "text_encoder.")
        assert torch.equal(state[name], text[source])
    positions = state["video_encoder.temporal.frame_position_embeddings.weight"]
    assert torch.equal(positions, text["text_encoder.positional_embedding"][: len(positions)])
    for name in ("global_mat_weight", "word_mat_weight2"):
        matrix = state[f"scorer.{name}"]
        assert torch.equal(matrix, torch.eye(len(matrix)))
    for name in ("video_encoder.visual.proj", "scorer.logit_scale"):
        assert torch.equal(state[name], text[name])


def test_other_dimensions_are_refused(make_model: Any, clip: XClip) -> None:
    from xclip_deploy.runtime.model_config import VisionConfig

    wide = VisionConfig(image_size=32, patch_size=16, width=128, layers=1, heads=2)
    config = make_model(vision=wide).config
    with pytest.raises(CheckpointMismatchError, match=r"\[64\] in the checkpoint, \[128\]"):
        initialize_from(clip_of(clip), config)


@pytest.mark.parametrize(
    ("layers", "frozen_block", "frozen_embedding"),
    [(-1, False, False), (0, False, True), (1, True, True)],
)
def test_frozen_layers(
    make_model: Any, layers: int, frozen_block: bool, frozen_embedding: bool
) -> None:
    model = make_model(temporal_head=TemporalHead.TRANSFORMER)
    freeze_layers(model, layers)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for tower in ("video_encoder.visual", "text_encoder"):
        assert trained[f"{tower}.transformer.resblocks.0.mlp.c_fc.weight"] is not frozen_block
    assert trained["text_encoder.token_embedding.weight"] is not frozen_embedding
    assert trained["video_encoder.visual.conv1.weight"] is not frozen_embedding
    assert trained["video_encoder.visual.proj"]
    assert trained["scorer.global_mat_weight"]
    assert trained["video_encoder.temporal.transformer.resblocks.0.ln_1.weight"]


def test_more_frozen_layers_than_there_are(make_model: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="has 1 layers"):
        freeze_layers(make_model(), 2)
