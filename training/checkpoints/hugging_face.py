"""Hugging Face's CLIP: read its config.json and convert its tensors to OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError
from xclip_deploy.runtime.model_config import Activation
from xclip_deploy.training.checkpoints.names import (
    HUGGING_FACE_BLOCK,
    HUGGING_FACE_PREFIXES,
    to_canonical,
    to_source,
)
from xclip_deploy.training.checkpoints.options import Stated

_ACTIVATIONS = {
    "quick_gelu": Activation.QUICK_GELU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
}
# transformers leaves its own defaults out of config.json.
_TEXT_DEFAULTS = {"hidden_act": "quick_gelu", "num_attention_heads": 8, "layer_norm_eps": 1e-5}
_VISION_DEFAULTS = {"hidden_act": "quick_gelu", "num_attention_heads": 12, "layer_norm_eps": 1e-5}
_DIMENSIONS = {
    "": {"projection_dim": "embed_dim"},
    "vision": {
        "hidden_size": "vision.width",
        "num_hidden_layers": "vision.layers",
        "patch_size": "vision.patch_size",
    },
    "text": {
        "hidden_size": "text.width",
        "num_hidden_layers": "text.layers",
        "max_position_embeddings": "text.context_length",
        "vocab_size": "text.vocab_size",
    },
}
_CLIP_END_TOKEN = 49407
# config.json held this value before transformers 4.31, which did not use it.
_LEGACY_END_TOKEN = 2


def stated_by_config(config: Mapping[str, Any]) -> Stated:
    """Read the settings that the weights do not tell from ``config.json``.

    Raises:
        CheckpointMismatchError: it describes a model that these encoders cannot compute.
    """
    text = _section(config, "text", _TEXT_DEFAULTS)
    vision = _section(config, "vision", _VISION_DEFAULTS)
    activations = {text["hidden_act"], vision["hidden_act"]}
    if len(activations) != 1 or not activations <= _ACTIVATIONS.keys():
        raise CheckpointMismatchError(
            f"config.json: hidden_act is {text['hidden_act']!r} for text and "
            f"{vision['hidden_act']!r} for vision; expected quick_gelu or gelu for both"
        )
    for name, section in (("text", text), ("vision", vision)):
        if section["layer_norm_eps"] != 1e-5:
            raise CheckpointMismatchError(
                f"config.json: layer_norm_eps of the {name} tower is "
                f"{section['layer_norm_eps']!r}; expected 1e-05"
            )
    end_token = text.get("eos_token_id")
    known_ends = (
        None,
        _LEGACY_END_TOKEN,
        _CLIP_END_TOKEN,
        _integer(text, "vocab_size", _CLIP_END_TOKEN + 1) - 1,
    )
    if end_token not in known_ends:
        raise CheckpointMismatchError(
            f"config.json: eos_token_id is {end_token!r}; expected the last token of the "
            "vocabulary, by whose size the end of a text is found"
        )
    return Stated(
        origin="config.json",
        activation=_ACTIVATIONS[activations.pop()],
        vision_heads=_integer(vision, "num_attention_heads", 12),
        text_heads=_integer(text, "num_attention_heads", 8),
        image_size=_integer(vision, "image_size", 224),
        dimensions=_dimensions(config),
    )


def _dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that the file says itself, by their path in ``ModelConfig``."""
    found = {}
    for tower, names in _DIMENSIONS.items():
        section = config if not tower else _section(config, tower, {"hidden_act": ""})
        for name, path in names.items():
            if name in section:
                found[path] = _integer(section, name, 1)
    return found


def _section(
    config: Mapping[str, Any], tower: str, defaults: Mapping[str, object]
) -> dict[str, Any]:
    # Older files hold the values in text_config_dict, which then take precedence.
    section: dict[str, Any] = dict(defaults)
    for key in (f"{tower}_config", f"{tower}_config_dict"):
        value = config.get(key)
        if isinstance(value, dict):
            section.update(value)
    if not isinstance(section["hidden_act"], str):
        raise CheckpointMismatchError("config.json: hidden_act is no text")
    return section


def _integer(section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise CheckpointMismatchError(
            f"config.json: {key} is {value!r}; expected a positive integer"
        )
    return value


def fuse_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the query, key and value projections of every block.

    Three tensors ``self_attn.q_proj.weight`` [w, w] and so on become one,
    ``self_attn.{q,k,v}_proj.weight`` [3 w, w], as in OpenAI's CLIP. The two final projections,
    Linear layers' [D, w], become [w, D].

    Raises:
        CheckpointMismatchError: the three do not have the same shape.
    """
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, is_query, kind = name.partition(".self_attn.q_proj.")
        if is_query:
            parts = [tensors.get(f"{owner}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            together = [part for part in parts if part is not None]
            # Where one is missing, the names stay as they are, and the check reports them.
            if len(together) == 3:
                if len({tuple(part.shape) for part in together}) != 1 or not tensor.ndim:
                    shapes = [list(part.shape) for part in together]
                    raise CheckpointMismatchError(
                        f"{owner}.self_attn: the {kind} of q_proj, k_proj and v_proj are "
                        f"{shapes}; expected the same shape"
                    )
                fused[f"{owner}.self_attn.{{q,k,v}}_proj.{kind}"] = torch.cat(together)
                continue
        elif _is_fused(name, tensors):
            continue
        is_projection = name in ("visual_projection.weight", "text_projection.weight")
        fused[name] = tensor.T if is_projection and tensor.ndim == 2 else tensor
    return fused


def _is_fused(name: str, tensors: Mapping[str, Tensor]) -> bool:
    for part in ("k", "v"):
        owner, found, kind = name.partition(f".self_attn.{part}_proj.")
        if found:
            return all(f"{owner}.self_attn.{p}_proj.{kind}" in tensors for p in "qkv")
    return False


_BLOCKS = ".transformer.resblocks."


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a tensor after :func:`fuse_projections`."""
    canonical = to_canonical(name, HUGGING_FACE_PREFIXES)
    if canonical is None or _BLOCKS not in canonical:
        return canonical
    tower, _, rest = canonical.partition(_BLOCKS)
    layer, _, leaf = rest.partition(".")
    inner = to_canonical(leaf, HUGGING_FACE_BLOCK)
    return None if inner is None else f"{tower}{_BLOCKS}{layer}.{inner}"


def source_name(canonical: str) -> str:
    """Return Hugging Face's name of a canonical one."""
    source = to_source(canonical, HUGGING_FACE_PREFIXES)
    if _BLOCKS not in canonical:
        return source
    start = canonical.index(_BLOCKS) + len(_BLOCKS)
    layer, _, leaf = canonical[start:].partition(".")
    return f"{to_source(canonical[:start], HUGGING_FACE_PREFIXES)}{layer}." + to_source(
        leaf, HUGGING_FACE_BLOCK
    )
