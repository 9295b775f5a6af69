"""open_clip: read a model's settings from its open_clip_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xclip_deploy.errors import CheckpointMismatchError
from xclip_deploy.runtime.model_config import Activation
from xclip_deploy.training.checkpoints.options import Stated
from xclip_deploy.training.checkpoints.refusals import listing

_FILE = "open_clip_config.json"
# Settings of open_clip that change what the same weights compute.
_SUPPORTED: dict[str, dict[str, object]] = {
    "vision_cfg": {
        "pool_type": "tok",
        "no_ln_pre": False,
        "final_ln_after_pool": False,
        "timm_model_name": None,
        "norm_kwargs": {},
        "act_kwargs": {},
    },
    "text_cfg": {
        "pool_type": "argmax",
        "no_causal_mask": False,
        "hf_model_name": None,
        "norm_kwargs": {},
        "act_kwargs": {},
    },
}

_DIMENSIONS = (
    {"embed_dim": "embed_dim"},
    {"width": "vision.width", "layers": "vision.layers", "patch_size": "vision.patch_size"},
    {
        "width": "text.width",
        "layers": "text.layers",
        "context_length": "text.context_length",
        "vocab_size": "text.vocab_size",
    },
)


def stated_by_config(config: Mapping[str, Any]) -> Stated:
    """Read activation and heads from ``open_clip_config.json``.

    Raises:
        CheckpointMismatchError: it describes a model that these encoders cannot compute.
    """
    model = config.get("model_cfg", config)
    is_object = isinstance(model, dict)
    towers: dict[str, Any] = {
        key: model.get(key, {}) if is_object else None for key in ("vision_cfg", "text_cfg")
    }
    if not is_object or not all(isinstance(tower, dict) for tower in towers.values()):
        raise CheckpointMismatchError(f"{_FILE}: expected vision_cfg and text_cfg objects")
    differing = [
        f"{key}.{name}={towers[key][name]!r}"
        for key, settings in _SUPPORTED.items()
        for name, supported in settings.items()
        if towers[key].get(name, supported) != supported
    ]
    if differing:
        raise CheckpointMismatchError(f"{_FILE}: not supported: {listing(differing)}")
    vision, text = towers["vision_cfg"], towers["text_cfg"]
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    heads = (width, head_width, text.get("heads", 8))
    if not all(isinstance(value, int) and value > 0 for value in heads):
        raise CheckpointMismatchError(f"{_FILE}: width, head_width or heads are no integers")
    image_size = vision.get("image_size", 224)
    return Stated(
        origin=_FILE,
        activation=Activation.QUICK_GELU if model.get("quick_gelu") else Activation.GELU,
        vision_heads=width // head_width,
        text_heads=heads[2],
        image_size=image_size if isinstance(image_size, int) else None,
        dimensions={
            path: section[name]
            for section, names in zip((model, vision, text), _DIMENSIONS, strict=True)
            for name, path in names.items()
            if isinstance(section.get(name), int)
        },
    )
