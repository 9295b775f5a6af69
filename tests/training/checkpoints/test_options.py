"""What the user says, against what the weights say; and saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError, InvalidArgumentError
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import Activation, PatchEmbedding, TemporalHead
from xclip_deploy.training.checkpoints import (
    CheckpointOptions,
    load_checkpoint,
    save_checkpoint,
    to_authors_state_dict,
)

StateDict = dict[str, Tensor]
Save = Callable[..., Path]
AssertSame = Callable[[StateDict, StateDict], None]


@pytest.fixture
def clip_file(layouts: Any, clip_weights: StateDict, save: Save) -> Path:
    return save(layouts.openai(clip_weights), "clip.pt")


@pytest.fixture
def xclip_file(layouts: Any, xclip_weights: StateDict, save: Save) -> Path:
    return save(layouts.authors(xclip_weights), "xclip.pt")


def test_defaults_are_noted(clip_file: Path) -> None:
    checkpoint = load_checkpoint(clip_file)
    assert (checkpoint.config.max_words, checkpoint.config.max_frames) == (20, 12)
    assert any("max_words=20 was assumed" in note for note in checkpoint.notes)
    assert any("max_frames=12 was assumed" in note for note in checkpoint.notes)


def test_options_are_taken_where_the_weights_leave_it_open(clip_file: Path) -> None:
    options = CheckpointOptions(
        max_words=11,
        max_frames=64,
        activation=Activation.GELU,
        vision_heads=4,
        text_heads=8,
        temporal_head=TemporalHead.MEAN_POOLING,
        mask_padding=True,
    )
    checkpoint = load_checkpoint(clip_file, options)
    config = checkpoint.config
    assert (config.max_words, config.max_frames) == (11, 64)
    assert config.activation is Activation.GELU
    assert (config.vision.heads, config.text.heads) == (4, 8)
    assert config.mask_padding
    assert not any("assumed" in note for note in checkpoint.notes)


def test_matrices_of_xclip_fix_words_and_frames(xclip_file: Path) -> None:
    checkpoint = load_checkpoint(xclip_file, CheckpointOptions(max_words=9, max_frames=5))
    assert (checkpoint.config.max_words, checkpoint.config.max_frames) == (9, 5)
    assert not any("assumed" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("option", "both"),
    [
        ({"max_words": 32}, "max_words=32.*word_logit_weight fixes 9"),
        ({"max_frames": 12}, "max_frames=12.*frame_logit_weight fixes 5"),
        ({"temporal_head": TemporalHead.LSTM}, "temporal_head=seqLSTM.*seqTransf"),
        ({"vision_heads": 5}, "vision_heads=5.*width 64"),
        ({"text_heads": 3}, "text_heads=3.*width 128"),
    ],
)
def test_contradictions_say_both(xclip_file: Path, option: dict[str, Any], both: str) -> None:
    with pytest.raises(InvalidArgumentError, match=both):
        load_checkpoint(xclip_file, CheckpointOptions(**option))


def test_lengths_beyond_the_position_tables(clip_file: Path, layouts: Any, save: Save) -> None:
    with pytest.raises(InvalidArgumentError, match=r"max_words=21.*20 token positions"):
        load_checkpoint(clip_file, CheckpointOptions(max_words=21))
    config = layouts.config(TemporalHead.TRANSFORMER)
    path = save(layouts.authors(layouts.weights(config)))
    with pytest.raises(InvalidArgumentError, match=r"max_frames=16.*15 frame positions"):
        load_checkpoint(path, CheckpointOptions(max_frames=16))


@pytest.mark.parametrize("name", ["max_words", "max_frames", "vision_heads", "text_heads"])
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_options(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgumentError, match=name):
        CheckpointOptions(**options)


def test_two_words_are_too_few() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 3"):
        CheckpointOptions(max_words=2)


def test_results_are_frozen(clip_file: Path) -> None:
    checkpoint = load_checkpoint(clip_file)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.layout = "other"  # type: ignore[misc]  # it is frozen


@pytest.mark.parametrize("is_xclip", [True, False])
@pytest.mark.parametrize("head", list(TemporalHead))
def test_round_trip_of_the_authors_layout(
    layouts: Any, save: Save, assert_same: AssertSame, head: TemporalHead, is_xclip: bool
) -> None:
    original = layouts.authors(layouts.weights(layouts.config(head, is_xclip=is_xclip)))
    checkpoint = load_checkpoint(save(original))
    assert_same(to_authors_state_dict(checkpoint.config, checkpoint.state_dict), original)


def test_round_trip_of_the_golden_checkpoint(golden: Path, assert_same: AssertSame) -> None:
    original = torch.load(golden / "pytorch_model.bin", weights_only=True)
    checkpoint = load_checkpoint(golden)
    assert_same(to_authors_state_dict(checkpoint.config, checkpoint.state_dict), original)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    head=st.sampled_from(TemporalHead),
    patch=st.sampled_from(PatchEmbedding),
    grains=st.lists(st.sampled_from(Grain), min_size=1, unique=True),
    projection=st.booleans(),
    mask_padding=st.booleans(),
    activation=st.sampled_from(Activation),
    heads=st.sampled_from([1, 2, 4, 8]),
)
def test_save_and_load_give_the_same_model_back(
    layouts: Any,
    tmp_path: Path,
    assert_same: AssertSame,
    head: TemporalHead,
    patch: PatchEmbedding,
    grains: list[Grain],
    projection: bool,
    mask_padding: bool,
    activation: Activation,
    heads: int,
) -> None:
    base = layouts.config(head, patch)
    config = base.model_copy(
        update={
            "grains": tuple(grains),
            "sentence_projection": projection,
            "mask_padding": mask_padding,
            "activation": activation,
            "max_words": 7,
            "max_frames": 6,
            "vision": base.vision.model_copy(update={"heads": heads}),
            "temporal_heads": base.temporal_heads and heads,
        }
    )
    weights = layouts.weights(config)
    save_checkpoint(tmp_path / "saved.pt", config, weights)
    checkpoint = load_checkpoint(tmp_path / "saved.pt")
    assert checkpoint.config == config
    assert_same(checkpoint.state_dict, weights)


def test_mask_padding_against_training_is_noted(
    tmp_path: Path, layouts: Any, xclip_weights: StateDict, xclip_file: Path
) -> None:
    asked = CheckpointOptions(mask_padding=True)
    checkpoint = load_checkpoint(xclip_file, asked)
    assert checkpoint.config.mask_padding
    assert any("mask_padding=True as asked" in note for note in checkpoint.notes)
    save_checkpoint(tmp_path / "saved.pt", checkpoint.config, xclip_weights)
    off = CheckpointOptions(mask_padding=False)
    assert any("mask_padding=False" in n for n in load_checkpoint(tmp_path / "saved.pt", off).notes)


def test_configuration_in_safetensors_metadata(
    tmp_path: Path, layouts: Any, xclip_weights: StateDict, xclip_file: Path
) -> None:
    config = load_checkpoint(xclip_file).config.model_copy(update={"mask_padding": True})
    metadata = {"xclip_deploy_config": config.model_dump_json()}
    save_file(layouts.authors(xclip_weights), tmp_path / "x.safetensors", metadata=metadata)
    assert load_checkpoint(tmp_path / "x.safetensors").config == config


def test_saved_configuration_of_another_release(
    save: Save, layouts: Any, clip_weights: StateDict
) -> None:
    content = {"state_dict": layouts.authors(clip_weights), "xclip_deploy_config": '{"dim": 3}'}
    with pytest.raises(CheckpointMismatchError, match="not a configuration of this release"):
        load_checkpoint(save(content))


def test_saving_weights_of_another_model(
    tmp_path: Path, layouts: Any, clip_weights: StateDict
) -> None:
    config = layouts.config(TemporalHead.LSTM)
    with pytest.raises(CheckpointMismatchError, match=r"missing video_encoder\.temporal"):
        save_checkpoint(tmp_path / "saved.pt", config, clip_weights)
    assert not (tmp_path / "saved.pt").exists()
