"""What makes two exports the same model: features of one fit those of the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from xclip_deploy.runtime.manifest import Preprocessing
from xclip_deploy.runtime.model_config import ModelConfig


def model_fingerprint(
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    frames_per_second: float,
    preprocessing: Preprocessing,
) -> str:
    """SHA-256, hexadecimal, over all that the features depend on, whatever file it came in.

    ``state_dict``: the weights under the names of ``XClip.state_dict()``. Precisions of the
    graphs do not enter: their features are those of one model, rounded.
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
