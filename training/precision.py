"""Rules of half precision, written once for the model and for its export.

A module runs in FP16 or BF16 when its weights do. Four things stay in FP32 for accuracy: layer
norms, the projections into the shared embedding space, L2 norms, and the scorer. These casts do
nothing in an FP32 or FP64 model, so one definition serves training and every exported precision.
"""

from __future__ import annotations

import re
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_Module = TypeVar("_Module", bound=nn.Module)
MASKED = -1e4
"""Addend of masked attention scores. Its exponential is zero in FP32. It does not overflow FP16,
as the published code's -1e6 does."""


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision tensors to FP32 and leave wider ones alone."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a tensor of another dtype; an exported graph gets no cast to its own."""
    return x if x.dtype == dtype else x.to(dtype)


def l2_normalize(x: Tensor) -> Tensor:
    """Divide by the L2 norm over the last axis, in FP32 or wider.

    The published code divides by the bare norm. A vector of zeros would become NaN there; here
    it stays zero.
    """
    x = at_least_float32(x)
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12)


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in FP32 or wider, returned in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        """Normalise the last axis; any shape [..., width]."""
        wide = at_least_float32(input)
        normed = functional.layer_norm(
            wide, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.to(input.dtype)


def narrow(module: _Module, dtype: torch.dtype) -> _Module:
    """Cast a module's weights to ``dtype`` in place, except those that must stay in FP32.

    ``dtype``: ``torch.float16`` or ``torch.bfloat16``. FP32 stay: layer norms, submodules with
    ``keep_float32 = True``, and parameters named in a submodule's ``float32_parameters``.
    Returns the module.
    """
    for child in module.modules():
        names: frozenset[str] = getattr(child, "float32_parameters", frozenset())
        if isinstance(child, nn.LayerNorm) or getattr(child, "keep_float32", False):
            continue
        for name, parameter in child.named_parameters(recurse=False):
            if name not in names:
                parameter.data = parameter.data.to(dtype)
    return module


def halve(module: _Module) -> _Module:
    """Cast a module to FP16 by :func:`narrow`."""
    return narrow(module, torch.float16)


_CLIP_IN_FP16 = re.compile(
    r"(video_encoder\.visual|text_encoder)\."
    r"(conv1\.weight|proj|text_projection|.*\.(attn|mlp)\..*)"
)


def halve_clip(model: _Module) -> _Module:
    """Cast CLIP's weights to FP16 in place, as the authors' ``convert_weights`` does.

    FP16 become the convolution, the linear layers, attention and the projections. Embeddings,
    layer norms, logit_scale, the temporal head and the scorer stay in FP32. ``model``: an
    ``XClip``. Returns it.
    """
    for name, parameter in model.named_parameters():
        if _CLIP_IN_FP16.fullmatch(name):
            parameter.data = parameter.data.half()
    return model
