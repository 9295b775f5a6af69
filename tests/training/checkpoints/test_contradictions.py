"""Checkpoints whose configuration contradicts their weights or bounds nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted_files import refusal
from safetensors.torch import save_file
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError
from xclip_deploy.training.checkpoints import (
    load_checkpoint,
    save_checkpoint,
)
from xclip_deploy.training.checkpoints.choosing import SAVED_CONFIG_KEY

StateDict = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("little_memory")
Save = Callable[..., Path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {"layers": 10_000_000}}, "says vision.layers 10000000, the weights have 2"),
        ({"text": {"layers": 10**30}}, "says text.layers 2^99, the weights have 3"),
        ({"embed_dim": 64}, "says embed_dim 64, the weights have 48"),
        ({"vision": {"patch_size": 4}}, "says vision.patch_size 4, the weights have 8"),
        ({"temporal_layers": 3}, "says temporal_layers 3, the weights have 2"),
        ({"max_words": 10}, "says max_words 10, but word_logit_weight fixes 9"),
        ({"temporal_positions": 16}, "says temporal_positions 16, the weights have 15"),
    ],
)
def test_a_saved_configuration_that_contradicts_the_weights(
    tmp_path: Path, layouts: Any, xclip_weights: StateDict, change: dict[str, Any], message: str
) -> None:
    config = layouts.config(layouts.heads.TRANSFORMER, is_xclip=True)
    path = tmp_path / "model.pt"
    save_checkpoint(path, config, xclip_weights)
    content = torch.load(path, weights_only=True)
    saved = json.loads(content[SAVED_CONFIG_KEY])
    for name, value in change.items():
        saved[name] = {**saved[name], **value} if isinstance(value, dict) else value
    torch.save({**content, SAVED_CONFIG_KEY: json.dumps(saved)}, path)
    assert message in refusal(path, CheckpointMismatchError)


def test_a_saved_number_of_frames_that_no_tensor_bounds(
    tmp_path: Path, layouts: Any, clip_weights: StateDict
) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, layouts.config(), clip_weights)
    content = torch.load(path, weights_only=True)
    saved = json.loads(content[SAVED_CONFIG_KEY])
    torch.save({**content, SAVED_CONFIG_KEY: json.dumps({**saved, "max_frames": 10**9})}, path)
    assert "says max_frames 1000000000, more than the 10000 allowed" in refusal(
        path, CheckpointMismatchError
    )


def test_hugging_faces_configuration_of_another_model(
    tmp_path: Path, layouts: Any, clip_weights: StateDict
) -> None:
    save_file(layouts.hugging_face(clip_weights), tmp_path / "model.safetensors")
    right: dict[str, Any] = {
        "model_type": "clip",
        "projection_dim": 48,
        "text_config": {"num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 50},
        "vision_config": {"num_attention_heads": 1, "image_size": 24, "num_hidden_layers": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(right))
    assert load_checkpoint(tmp_path).config == layouts.config()
    wrong = {**right, "vision_config": {**right["vision_config"], "num_hidden_layers": 10_000_000}}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    message = refusal(tmp_path, CheckpointMismatchError)
    assert "config.json says vision.layers 10000000, the weights have 2" in message


def test_open_clips_configuration_of_another_model(
    tmp_path: Path, layouts: Any, clip_weights: StateDict
) -> None:
    save_file(layouts.openai(clip_weights), tmp_path / "open_clip_model.safetensors")
    right = {
        "embed_dim": 48,
        "vision_cfg": {"width": 64, "layers": 2, "patch_size": 8, "image_size": 24},
        "text_cfg": {"width": 128, "layers": 3, "heads": 2, "vocab_size": 50},
    }
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": right}))
    assert load_checkpoint(tmp_path).config.vision.layers == 2
    file.write_text(json.dumps({"model_cfg": {**right, "text_cfg": {"layers": 12, "heads": 2}}}))
    message = refusal(tmp_path, CheckpointMismatchError)
    assert "open_clip_config.json says text.layers 12, the weights have 3" in message


@pytest.mark.parametrize("value", [100.0, -100.0, 14.0])
def test_a_logit_scale_that_is_no_logarithm(
    layouts: Any, clip_weights: StateDict, save: Save, value: float
) -> None:
    content = layouts.openai({**clip_weights, "scorer.logit_scale": torch.tensor(value)})
    message = refusal(save(content), CheckpointMismatchError)
    assert f"logit_scale is {value:g}; logits are multiplied by its exponential" in message


@pytest.mark.parametrize("value", [4.6052, 2.6593, 0.0])
def test_a_logit_scale_of_clips_range(
    layouts: Any, clip_weights: StateDict, save: Save, value: float
) -> None:
    content = layouts.openai({**clip_weights, "scorer.logit_scale": torch.tensor(value)})
    assert load_checkpoint(save(content)).state_dict["scorer.logit_scale"] == torch.tensor(value)
