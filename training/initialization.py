"""Start a retrieval model from CLIP's weights, as the authors do."""

from __future__ import annotations

import re

import torch

from xclip_deploy.errors import CheckpointMismatchError, InvalidArgumentError
from xclip_deploy.runtime.model_config import ModelConfig, PatchEmbedding, TemporalHead
from xclip_deploy.training.checkpoints import Checkpoint
from xclip_deploy.training.model import XClip

_BLOCK = re.compile(r"(?:video_encoder\.visual|text_encoder)\.transformer\.resblocks\.(\d+)\.")
# CLIP4Clip's main_task_retrieval.py never freezes these.
_ALWAYS_TRAINED = (
    "text_encoder.ln_final.",
    "text_encoder.text_projection",
    "video_encoder.visual.ln_post.",
    "video_encoder.visual.proj",
    "scorer.logit_scale",
)


def initialize_from(checkpoint: Checkpoint, config: ModelConfig) -> XClip:
    """Make the model of ``config`` with the weights that a checkpoint has.

    CLIP alone lacks some weights. The temporal transformer then starts as the first blocks of
    CLIP's text transformer, and frame positions as its text positions. A 3d patch convolution
    starts as the 2d one on the middle frame, and X-CLIP's matrices as identity.

    Raises CheckpointMismatchError for a checkpoint of other dimensions; the message says both.
    """
    model = XClip(config)
    expected = model.state_dict()
    weights = dict(checkpoint.state_dict)
    if config.temporal_head is TemporalHead.TRANSFORMER:
        weights = {**_temporal_from_text(weights, config), **weights}
    if config.patch_embedding is PatchEmbedding.CONV_3D:
        name = "video_encoder.visual.conv1.weight"
        flat = weights[name]
        if flat.ndim == 4:
            weights[name] = torch.stack([torch.zeros_like(flat), flat, torch.zeros_like(flat)], 2)
    for name, tensor in expected.items():
        found = weights.get(name)
        if found is None:
            continue  # XClip's own start: the checkpoint lacks this head or matrix
        if found.shape != tensor.shape:
            raise CheckpointMismatchError(
                f"{name} is {list(found.shape)} in the checkpoint, {list(tensor.shape)} in the "
                "configuration; train with the checkpoint's dimensions or start from another"
            )
        tensor.copy_(found)
    model.load_state_dict(expected)
    return model


def _temporal_from_text(
    weights: dict[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """Return the temporal transformer's start; empty where the text transformer's width differs."""
    if config.text.width != config.embed_dim:
        return {}
    prefix, target = "text_encoder.transformer.", "video_encoder.temporal.transformer."
    start = {
        target + name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix) and int(name.split(".")[3]) < config.temporal_layers
    }
    positions = weights["text_encoder.positional_embedding"]
    if len(positions) >= config.temporal_positions:
        name = "video_encoder.temporal.frame_position_embeddings.weight"
        start[name] = positions[: config.temporal_positions]
    return start


def freeze_layers(model: XClip, layers: int, *, freeze_3d: bool = True) -> None:
    """Freeze the lowest ``layers`` blocks of both CLIP towers and the embeddings below them.

    0 freezes the embeddings alone, as CLIP4Clip's ``freeze_layer_num`` does. A negative number
    freezes nothing. The head, the scorer and CLIP's projections always train. ``freeze_3d``
    False freezes nothing in a model with 3d patches either, as CLIP4Clip's code does: its test
    for the name of the patch convolution is true for every name.
    """
    is_3d = model.config.patch_embedding is PatchEmbedding.CONV_3D
    if layers < 0 or (is_3d and not freeze_3d):
        return
    deepest = max(model.config.vision.layers, model.config.text.layers)
    if layers > deepest:
        raise InvalidArgumentError(f"freeze_layers {layers}: the model has {deepest} layers")
    for name, parameter in model.named_parameters():
        if not name.startswith(("video_encoder.visual.", "text_encoder.")):
            continue
        if name.startswith(_ALWAYS_TRAINED):
            continue
        block = _BLOCK.match(name)
        if block is not None and int(block.group(1)) >= layers:
            continue
        if is_3d and name == "video_encoder.visual.conv1.weight":
            continue  # these weights are new, not CLIP's
        parameter.requires_grad_(False)
