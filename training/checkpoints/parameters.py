"""Canonical names and shapes of a model's parameters, their check and their hash.

Canonical names are those of ``XClip.state_dict()``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError
from xclip_deploy.runtime.grains import matrix_shapes
from xclip_deploy.runtime.manifest import Preprocessing
from xclip_deploy.runtime.model_config import (
    ModelConfig,
    PatchEmbedding,
    TemporalHead,
)
from xclip_deploy.training.checkpoints.refusals import dtype_name, listing

Shape = tuple[int, ...]

MAX_LOGIT_SCALE = 10.0
"""Largest size of a logit_scale. CLIP's own bound is ln 100 = 4.6, which other code may lack."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the canonical name and shape of every parameter of ``XClip(config)``."""
    vision, text, dim = config.vision, config.text, config.embed_dim
    patch = (vision.patch_size, vision.patch_size)
    kernel = patch if config.patch_embedding is PatchEmbedding.CONV_2D else (3, *patch)
    visual: dict[str, Shape] = {
        "class_embedding": (vision.width,),
        "positional_embedding": ((vision.image_size // vision.patch_size) ** 2 + 1, vision.width),
        "proj": (vision.width, dim),
        "conv1.weight": (vision.width, 3, *kernel),
        **_norm("ln_pre", vision.width),
        **_blocks(vision.width, vision.layers),
        **_norm("ln_post", vision.width),
    }
    encoder: dict[str, Shape] = {
        "token_embedding.weight": (text.vocab_size, text.width),
        "positional_embedding": (text.context_length, text.width),
        "text_projection": (text.width, dim),
        **_blocks(text.width, text.layers),
        **_norm("ln_final", text.width),
    }
    return {
        **{f"video_encoder.visual.{name}": shape for name, shape in visual.items()},
        **{f"video_encoder.temporal.{name}": shape for name, shape in _temporal(config).items()},
        **{f"text_encoder.{name}": shape for name, shape in encoder.items()},
        "scorer.logit_scale": (),
        **{f"scorer.{name}": shape for name, shape in matrix_shapes(config).items()},
    }


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _blocks(width: int, layers: int) -> dict[str, Shape]:
    block: dict[str, Shape] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        **_norm("ln_1", width),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **_norm("ln_2", width),
    }
    return {
        f"transformer.resblocks.{layer}.{name}": shape
        for layer in range(layers)
        for name, shape in block.items()
    }


def _temporal(config: ModelConfig) -> dict[str, Shape]:
    dim = config.embed_dim
    if config.temporal_head is TemporalHead.TRANSFORMER:
        return {
            "frame_position_embeddings.weight": (config.temporal_positions, dim),
            **_blocks(dim, config.temporal_layers),
        }
    if config.temporal_head is TemporalHead.LSTM:
        return {
            "lstm.weight_ih_l0": (4 * dim, dim),
            "lstm.weight_hh_l0": (4 * dim, dim),
            "lstm.bias_ih_l0": (4 * dim,),
            "lstm.bias_hh_l0": (4 * dim,),
        }
    return {}


def check_parameters(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    unexpected: Iterable[str] = (),
    name_in_file: Callable[[str], str] = str,
) -> None:
    """Check names, shapes, dtypes and finiteness of canonical tensors against a configuration.

    ``unexpected``: names in the file that have no canonical name. ``name_in_file``: translates
    a canonical name to the file's, for the message.

    Raises:
        CheckpointMismatchError: the message names the tensors, and the shapes found and expected.
    """
    shapes = parameter_shapes(config)
    missing = [name_in_file(name) for name in shapes if name not in tensors]
    surplus = [name_in_file(name) for name in tensors if name not in shapes]
    surplus = sorted([*surplus, *unexpected])
    if missing or surplus:
        parts = [f"missing {listing(missing)}"] if missing else []
        parts += [f"unexpected {listing(surplus)}"] if surplus else []
        raise CheckpointMismatchError("its tensors are not those of the model: " + "; ".join(parts))
    wrong = [
        f"{name_in_file(name)} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise CheckpointMismatchError("tensors of the wrong shape: " + listing(wrong, limit=3))
    for name in shapes:
        _check_values(tensors[name], name_in_file(name))
    _check_scale(tensors["scorer.logit_scale"], name_in_file("scorer.logit_scale"))


def _check_scale(logit_scale: Tensor, name: str) -> None:
    """Refuse a logit_scale whose exponential is no factor of logits."""
    value = float(logit_scale)
    if abs(value) > MAX_LOGIT_SCALE:
        raise CheckpointMismatchError(
            f"{name} is {value:g}; logits are multiplied by its exponential, which CLIP keeps "
            f"below 100, so expected at most {MAX_LOGIT_SCALE:g} in size; where the file holds "
            "the factor itself, save its logarithm"
        )


def _check_values(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in _DTYPES:
        known = listing(dtype_name(dtype) for dtype in _DTYPES)
        raise CheckpointMismatchError(
            f"{name} is {dtype_name(tensor.dtype)}; expected one of {known}"
        )
    if not bool(tensor.isfinite().all()):
        broken = int((~tensor.isfinite()).sum())
        raise CheckpointMismatchError(
            f"{name} has {broken} of {tensor.numel()} values that are NaN or infinite; "
            "the training diverged or the file is damaged"
        )


def model_fingerprint(
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    frames_per_second: float,
    preprocessing: Preprocessing,
) -> str:
    """Return the SHA-256, hexadecimal, of weights, configuration and preprocessing.

    Equal fingerprints mean the same model: features of one fit those of the other.

    ``state_dict``: the weights under the names of ``XClip.state_dict()``. The precision of the
    graphs is left out: it only rounds the same model's features.
    """
    settings = {
        "model": config.model_dump(mode="json"),
        "frames_per_second": frames_per_second,
        "preprocessing": preprocessing.model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().to(torch.float32).contiguous()
        digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).numpy().data.cast("B"))
    return digest.hexdigest()
