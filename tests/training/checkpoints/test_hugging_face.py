"""Hugging Face's and open_clip's configurations, and numbers against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError, InvalidArgumentError, UnknownLayoutError
from xclip_deploy.runtime.model_config import Activation
from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint

StateDict = dict[str, Tensor]
AssertSame = Callable[[StateDict, StateDict], None]
MakeFolder = Callable[[dict[str, Any]], Path]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
END = 99


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def make_clip(transformers: Any, activation: str) -> Any:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": END + 1,
            "max_position_embeddings": 16,
            "hidden_act": activation,
            "bos_token_id": END - 1,
            "eos_token_id": END,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": activation,
        },
        projection_dim=40,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases would hide a lost one
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def features(output: Any) -> Tensor:
    # transformers 5 returns an output object, 4 the tensor itself.
    value = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(value, dim=-1)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("given", ["folder", "file"])
def test_embeddings_equal_those_of_transformers(
    tmp_path: Path, transformers: Any, activation: Activation, given: str
) -> None:
    reference = make_clip(transformers, activation.value)
    reference.save_pretrained(tmp_path)
    path = tmp_path if given == "folder" else tmp_path / "model.safetensors"
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.activation is activation
    assert (checkpoint.config.vision.heads, checkpoint.config.text.heads) == (3, 4)
    assert checkpoint.config.max_words == 16
    assert not any("activation" in note for note in checkpoint.notes)

    token_ids = torch.randint(1, END - 1, (3, 16))
    for row, end in enumerate((5, 15, 9)):
        token_ids[row, end] = END
        token_ids[row, end + 1 :] = 0
    frames = torch.randint(0, 256, (2, 1, 32, 32, 3), dtype=torch.uint8)
    pixels = (frames[:, 0] / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    model = checkpoint.build()
    with torch.inference_mode():
        text = model.text_encoder(token_ids).sentence_features
        video = model.video_encoder(frames, torch.ones(2, dtype=torch.int64))
        expected_text = features(reference.get_text_features(input_ids=token_ids))
        expected_image = features(
            reference.get_image_features(pixel_values=pixels.permute(0, 3, 1, 2))
        )
        expected_scale = reference.logit_scale
    torch.testing.assert_close(text, expected_text, atol=1e-5, rtol=0)
    torch.testing.assert_close(video.video_features, expected_image, atol=1e-5, rtol=0)
    torch.testing.assert_close(video.frame_features[:, 0], expected_image, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.scorer.logit_scale, expected_scale)


def test_sharded_and_half_precision(
    tmp_path: Path, transformers: Any, assert_same: AssertSame
) -> None:
    model = make_clip(transformers, "quick_gelu").half()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole, sharded = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "sharded")
    assert_same(sharded.state_dict, whole.state_dict)
    assert whole.config == sharded.config
    assert any("float16" in note for note in whole.notes)


def test_pickled_folder(tmp_path: Path, transformers: Any, assert_same: AssertSame) -> None:
    model = make_clip(transformers, "gelu")
    model.save_pretrained(tmp_path)
    expected = load_checkpoint(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    found = load_checkpoint(tmp_path)
    assert found.config == expected.config
    assert_same(found.state_dict, expected.state_dict)


@pytest.fixture
def folder(tmp_path: Path, layouts: Any, clip_weights: StateDict) -> MakeFolder:
    """Make a folder of Hugging Face's naming with the given config.json."""

    def make(config: dict[str, Any]) -> Path:
        save_file(layouts.hugging_face(clip_weights), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def clip_config(
    text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **rest: Any
) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "text_config": {"num_attention_heads": 4, **(text or {})},
        "vision_config": {"num_attention_heads": 2, "image_size": 24, **(vision or {})},
        **rest,
    }


def test_heads_come_from_the_configuration(folder: MakeFolder) -> None:
    config = load_checkpoint(folder(clip_config())).config
    assert (config.vision.heads, config.text.heads) == (2, 4)
    older = clip_config(text_config_dict={"num_attention_heads": 8}, vision_config_dict=None)
    assert load_checkpoint(folder(older)).config.text.heads == 8


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (clip_config(text={"hidden_act": "gelu"}), CheckpointMismatchError, "hidden_act"),
        (
            clip_config(text={"hidden_act": "gelu_new"}, vision={"hidden_act": "gelu_new"}),
            CheckpointMismatchError,
            "gelu_new",
        ),
        (clip_config(text={"hidden_act": ["gelu"]}), CheckpointMismatchError, "hidden_act"),
        (clip_config(vision={"layer_norm_eps": 1e-6}), CheckpointMismatchError, "layer_norm_eps"),
        (clip_config(text={"eos_token_id": 7}), CheckpointMismatchError, "eos_token_id"),
        (clip_config(vision={"num_attention_heads": "2"}), CheckpointMismatchError, "integer"),
        (clip_config(vision={"num_attention_heads": 7}), CheckpointMismatchError, "7 heads"),
        (clip_config(vision={"num_attention_heads": 0}), CheckpointMismatchError, "positive"),
        (clip_config(vision={"image_size": 224}), CheckpointMismatchError, "image_size 224"),
        ({**clip_config(), "model_type": "altclip"}, UnknownLayoutError, "altclip"),
    ],
)
def test_configurations_that_do_not_fit(
    folder: MakeFolder, config: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        load_checkpoint(folder(config))


def test_option_against_the_configuration(folder: MakeFolder) -> None:
    path = folder(clip_config())
    with pytest.raises(InvalidArgumentError, match=r"activation=gelu.*config\.json.*quick_gelu"):
        load_checkpoint(path, CheckpointOptions(activation=Activation.GELU))
    with pytest.raises(InvalidArgumentError, match=r"vision_heads=4.*says 2"):
        load_checkpoint(path, CheckpointOptions(vision_heads=4))


def open_clip_folder(tmp_path: Path, layouts: Any, clip_weights: StateDict, **model: Any) -> Path:
    save_file(layouts.openai(clip_weights), tmp_path / "open_clip_model.safetensors")
    config: dict[str, Any] = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 24, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"width": 128, "heads": 4},
    }
    for key, value in model.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return tmp_path


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_folder_tells_activation_and_heads(
    tmp_path: Path, layouts: Any, clip_weights: StateDict, quick: bool
) -> None:
    path = open_clip_folder(tmp_path, layouts, clip_weights, quick_gelu=quick)
    checkpoint = load_checkpoint(path)
    expected = Activation.QUICK_GELU if quick else Activation.GELU
    assert checkpoint.config.activation is expected
    assert (checkpoint.config.vision.heads, checkpoint.config.text.heads) == (2, 4)
    assert not any("activation" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "model",
    [
        {"vision_cfg": {"pool_type": "avg"}},
        {"text_cfg": {"no_causal_mask": True}},
        {"text_cfg": {"heads": "8"}},
        {"text_cfg": None},
        {"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}},
    ],
)
def test_open_clip_models_that_compute_otherwise(
    tmp_path: Path, layouts: Any, clip_weights: StateDict, model: dict[str, Any]
) -> None:
    path = open_clip_folder(tmp_path, layouts, clip_weights, **model)
    with pytest.raises(CheckpointMismatchError, match=r"open_clip_config\.json"):
        load_checkpoint(path)
