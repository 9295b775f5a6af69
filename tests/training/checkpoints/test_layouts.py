"""Every published naming becomes the same canonical weights and configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError, UnknownLayoutError
from xclip_deploy.runtime.model_config import (
    Activation,
    Family,
    PatchEmbedding,
    TemporalHead,
)
from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
from xclip_deploy.training.checkpoints.dimensions import (
    OPEN_CLIP_VISION_HEAD_WIDTHS,
    ConfigReader,
)
from xclip_deploy.training.checkpoints.options import Stated
from xclip_deploy.training.checkpoints.parameters import parameter_shapes
from xclip_deploy.training.model import XClip

StateDict = dict[str, Tensor]
Save = Callable[..., Path]
AssertSame = Callable[[StateDict, StateDict], None]


def test_golden_checkpoint_reproduces_the_published_logits(golden: Path) -> None:
    checkpoint = load_checkpoint(golden / "pytorch_model.bin")
    config = checkpoint.config
    assert checkpoint.layout == "X-CLIP"
    assert config.family is Family.XCLIP
    assert (config.vision.image_size, config.vision.patch_size, config.vision.heads) == (64, 16, 2)
    assert (config.temporal_head, config.temporal_layers) == (TemporalHead.TRANSFORMER, 4)
    assert (config.max_words, config.max_frames, config.temporal_positions) == (32, 12, 77)
    assert checkpoint.notes == ()
    assert len(checkpoint.source_sha256) == 64
    with np.load(golden / "golden.npz") as data:
        inputs = [torch.from_numpy(data[n]) for n in ("input_ids", "frames_uint8", "num_frames")]
        expected = torch.from_numpy(data["logits"])
    with torch.inference_mode():
        logits = checkpoint.build()(*inputs).logits
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


def test_golden_folder_is_an_authors_run(golden: Path) -> None:
    # Its config.json is the authors' own, not Hugging Face's.
    assert load_checkpoint(golden).config == load_checkpoint(golden / "pytorch_model.bin").config


@pytest.mark.parametrize("head", list(TemporalHead))
@pytest.mark.parametrize("patch", list(PatchEmbedding))
@pytest.mark.parametrize("is_xclip", [True, False])
def test_authors_layout(
    layouts: Any,
    save: Save,
    assert_same: AssertSame,
    head: TemporalHead,
    patch: PatchEmbedding,
    is_xclip: bool,
) -> None:
    config = layouts.config(head, patch, is_xclip=is_xclip)
    weights = layouts.weights(config)
    checkpoint = load_checkpoint(save(layouts.authors(weights)))
    assert checkpoint.config == config
    assert checkpoint.layout == ("X-CLIP" if is_xclip else "CLIP4Clip")
    assert_same(checkpoint.state_dict, weights)
    assert not checkpoint.build().training


@pytest.mark.parametrize("head", list(TemporalHead))
@pytest.mark.parametrize("patch", list(PatchEmbedding))
@pytest.mark.parametrize("is_xclip", [True, False])
def test_expected_parameters_are_those_of_the_model(
    layouts: Any, head: TemporalHead, patch: PatchEmbedding, is_xclip: bool
) -> None:
    config = layouts.config(head, patch, is_xclip=is_xclip)
    model = {name: tuple(value.shape) for name, value in XClip(config).state_dict().items()}
    assert parameter_shapes(config) == model


@pytest.mark.parametrize(
    ("naming", "name"),
    [
        ("openai", "OpenAI CLIP"),
        ("custom_text", "open_clip (custom text)"),
        ("hugging_face", "Hugging Face CLIP"),
    ],
)
def test_clip_layouts(
    layouts: Any,
    clip_weights: StateDict,
    save: Save,
    assert_same: AssertSame,
    naming: str,
    name: str,
) -> None:
    checkpoint = load_checkpoint(save(getattr(layouts, naming)(clip_weights)))
    assert checkpoint.layout == name
    assert checkpoint.config == layouts.config()
    assert checkpoint.config.family is Family.CLIP
    assert_same(checkpoint.state_dict, clip_weights)
    assert any("quick_gelu was assumed" in note for note in checkpoint.notes)


def test_our_own_state_dict(xclip_weights: StateDict, save: Save, assert_same: AssertSame) -> None:
    checkpoint = load_checkpoint(save(xclip_weights))
    assert checkpoint.layout == "xclip-deploy"
    assert_same(checkpoint.state_dict, xclip_weights)


def test_openai_extras_are_ignored_and_tell_its_activation(
    layouts: Any, clip_weights: StateDict, save: Save
) -> None:
    content = layouts.openai(clip_weights)
    content |= {n: torch.tensor(24) for n in ("input_resolution", "context_length", "vocab_size")}
    checkpoint = load_checkpoint(save(content))
    assert checkpoint.config.activation is Activation.QUICK_GELU
    assert not any("activation" in note for note in checkpoint.notes)


@pytest.mark.parametrize("extra", ["attn_mask", "text_model.embeddings.position_ids"])
def test_buffers_are_ignored(layouts: Any, clip_weights: StateDict, save: Save, extra: str) -> None:
    naming = layouts.hugging_face if "text_model" in extra else layouts.openai
    load_checkpoint(save({**naming(clip_weights), extra: torch.arange(3)[None]}))


def test_mixed_precision_of_the_authors_becomes_float32(
    layouts: Any, xclip_weights: StateDict, save: Save
) -> None:
    mixed = {
        name: value.half() if name.startswith("clip.") and "ln_" not in name else value
        for name, value in layouts.authors(xclip_weights).items()
    }
    checkpoint = load_checkpoint(save(mixed))
    assert {value.dtype for value in checkpoint.state_dict.values()} == {torch.float32}
    proj = checkpoint.state_dict["video_encoder.visual.proj"]
    assert torch.equal(proj, xclip_weights["video_encoder.visual.proj"].half().float())
    assert any("float16" in note for note in checkpoint.notes)


def test_weights_do_not_depend_on_the_file_afterwards(
    layouts: Any, clip_weights: StateDict, save: Save, assert_same: AssertSame
) -> None:
    path = save(layouts.openai(clip_weights))
    checkpoint = load_checkpoint(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert_same(checkpoint.state_dict, clip_weights)


def test_unused_tensors_of_the_authors_are_dropped_and_noted(layouts: Any, save: Save) -> None:
    config = layouts.config(TemporalHead.LSTM, PatchEmbedding.CONV_3D)
    content = layouts.authors(layouts.weights(config))
    content["clip.visual.conv1.weight"] = torch.zeros(64, 3, 8, 8)
    content["frame_position_embeddings.weight"] = torch.zeros(15, 48)
    checkpoint = load_checkpoint(save(content))
    assert checkpoint.config == config
    assert sum("was dropped" in note for note in checkpoint.notes) == 2


@pytest.mark.parametrize(("widths", "heads"), [(OPEN_CLIP_VISION_HEAD_WIDTHS, 16), (None, 20)])
def test_heads_of_open_clips_vit_h_are_not_of_64_channels(
    layouts: Any, widths: dict[int, int] | None, heads: int
) -> None:
    config = layouts.config()
    config = config.model_copy(update={"vision": config.vision.model_copy(update={"width": 1280})})
    shapes = parameter_shapes(config)
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    reader = ConfigReader(weights, str, CheckpointOptions(), Stated(), vision_head_widths=widths)
    assert reader.read().vision.heads == heads
    assert any("vision_heads=16 was assumed" in note for note in reader.notes) is (heads == 16)


def test_two_temporal_heads_are_refused(layouts: Any, save: Save) -> None:
    both = layouts.authors(layouts.weights(layouts.config(TemporalHead.LSTM)))
    both |= layouts.authors(layouts.weights(layouts.config(TemporalHead.TRANSFORMER)))
    with pytest.raises(CheckpointMismatchError, match="two temporal heads"):
        load_checkpoint(save(both))


@pytest.mark.parametrize(
    ("telling", "reason"),
    [
        ("visual.layer1.0.conv1.weight", "ResNet"),
        ("clip.visual.layer1.0.conv1.weight", "ResNet"),
        ("cross.embeddings.position_embeddings.weight", "no separate video and text encoders"),
        ("visual.trunk.cls_token", "timm"),
        ("visual.blocks.0.norm1.weight", "EVA"),
        ("visual.attn_pool.query", "CoCa"),
        ("logit_bias", "sigmoid"),
        ("text.transformer.embeddings.word_embeddings.weight", "Hugging Face text tower"),
        ("mit.resblocks.0.ln_1.weight", "Microsoft's X-CLIP"),
    ],
)
def test_other_families_are_refused_with_their_reason(
    layouts: Any, clip_weights: StateDict, save: Save, telling: str, reason: str
) -> None:
    content = {**layouts.openai(clip_weights), telling: torch.zeros(2)}
    with pytest.raises(UnknownLayoutError, match=re.escape(reason)) as caught:
        load_checkpoint(save(content))
    assert telling in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tower", ["text_model", "vision_model"])
def test_one_tower_alone_is_refused(
    layouts: Any, clip_weights: StateDict, save: Save, tower: str
) -> None:
    content = layouts.hugging_face(clip_weights)
    content = {name: value for name, value in content.items() if name.startswith(tower)}
    with pytest.raises(UnknownLayoutError, match="one tower"):
        load_checkpoint(save(content))


def test_unknown_layout_says_what_it_was_compared_with(save: Save) -> None:
    with pytest.raises(UnknownLayoutError) as caught:
        load_checkpoint(save({"encoder.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("encoder, fc", "clip.visual.class_embedding", "text_model", "OpenAI CLIP"):
        assert part in message


@pytest.mark.parametrize(
    "name",
    [
        "global_mat_weight",
        "clip.token_embedding.weight",
        "clip.visual.conv1.weight",
        "clip.logit_scale",
        "clip.visual.transformer.resblocks.1.mlp.c_fc.bias",
        "frame_position_embeddings.weight",
    ],
)
def test_a_missing_tensor_is_named_as_in_the_file(
    layouts: Any, xclip_weights: StateDict, save: Save, name: str
) -> None:
    content = layouts.authors(xclip_weights)
    del content[name]
    with pytest.raises(CheckpointMismatchError, match="missing.*" + re.escape(name)):
        load_checkpoint(save(content))


def test_a_missing_tensor_of_hugging_face_is_named_as_in_the_file(
    layouts: Any, clip_weights: StateDict, save: Save
) -> None:
    content = layouts.hugging_face(clip_weights)
    del content["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointMismatchError) as caught:
        load_checkpoint(save(content))
    assert "missing text_model.encoder.layers.1.self_attn.{q,k,v}_proj.bias" in str(caught.value)


def test_a_missing_block_is_named(layouts: Any, clip_weights: StateDict, save: Save) -> None:
    content = {n: t for n, t in layouts.openai(clip_weights).items() if ".resblocks.1." not in n}
    with pytest.raises(CheckpointMismatchError, match="block 1 is missing"):
        load_checkpoint(save(content))


@pytest.mark.parametrize("naming", ["openai", "custom_text", "hugging_face", "authors"])
def test_an_unexpected_tensor_is_never_lost_silently(
    layouts: Any, clip_weights: StateDict, save: Save, naming: str
) -> None:
    content = {**getattr(layouts, naming)(clip_weights), "extra.adapter.weight": torch.ones(2)}
    with pytest.raises(CheckpointMismatchError, match=r"unexpected extra\.adapter\.weight"):
        load_checkpoint(save(content))


@pytest.mark.parametrize("naming", ["openai", "hugging_face"])
def test_a_wrong_shape_names_both(
    layouts: Any, clip_weights: StateDict, save: Save, naming: str
) -> None:
    content = getattr(layouts, naming)(clip_weights)
    name = next(n for n in content if n.endswith(("mlp.c_fc.weight", "mlp.fc1.weight")))
    content[name] = torch.zeros(100, 64)
    with pytest.raises(CheckpointMismatchError) as caught:
        load_checkpoint(save(content))
    assert f"{name} is [100, 64], expected [256, 64]" in str(caught.value)


def test_projections_of_different_shapes(layouts: Any, clip_weights: StateDict, save: Save) -> None:
    content = layouts.hugging_face(clip_weights)
    content["vision_model.encoder.layers.0.self_attn.k_proj.weight"] = torch.zeros(3, 64)
    with pytest.raises(CheckpointMismatchError, match="k_proj"):
        load_checkpoint(save(content))


@pytest.mark.parametrize("positions", [1, 3, 9])
def test_a_grid_that_is_no_square(
    layouts: Any, clip_weights: StateDict, save: Save, positions: int
) -> None:
    content = layouts.openai(clip_weights)
    content["visual.positional_embedding"] = torch.zeros(positions, 64)
    with pytest.raises(CheckpointMismatchError, match="square"):
        load_checkpoint(save(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite(
    layouts: Any, clip_weights: StateDict, save: Save, value: float, dtype: torch.dtype
) -> None:
    content = layouts.openai(clip_weights)
    content["ln_final.weight"] = content["ln_final.weight"].to(dtype, copy=True)
    content["ln_final.weight"][3] = value
    with pytest.raises(CheckpointMismatchError, match=r"ln_final\.weight has 1 of 128"):
        load_checkpoint(save(content))


def test_integer_weights_are_refused(layouts: Any, clip_weights: StateDict, save: Save) -> None:
    content = layouts.openai(clip_weights)
    content["ln_final.weight"] = torch.ones(128, dtype=torch.int64)
    with pytest.raises(CheckpointMismatchError, match=r"ln_final\.weight is int64"):
        load_checkpoint(save(content))


def test_a_width_without_heads_of_64_asks_for_them(layouts: Any, save: Save) -> None:
    config = layouts.config()
    config = config.model_copy(update={"vision": config.vision.model_copy(update={"width": 96})})
    content = layouts.openai(layouts.weights(config))
    path = save(content)
    with pytest.raises(CheckpointMismatchError, match=r"width 96 .* pass vision_heads"):
        load_checkpoint(path)
    assert load_checkpoint(path, CheckpointOptions(vision_heads=3)).config.vision.heads == 3
