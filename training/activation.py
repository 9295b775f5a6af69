"""QuickGELU, CLIP's activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SLOPE = 1.702
"""Slope of the sigmoid approximation of GELU, x * sigmoid(1.702 x).

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415."""


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x * sigmoid(1.702 x) elementwise, for any shape."""
    # Half precision keeps PyTorch's order of roundings: another order moves gradients.
    is_wide = x.dtype in (torch.float32, torch.float64)
    if torch.is_grad_enabled() and x.requires_grad and is_wide:
        result: Tensor = _QuickGELU.apply(x)  # type: ignore[no-untyped-call]
        return result
    return x * torch.sigmoid(SLOPE * x)


class _QuickGELU(torch.autograd.Function):
    """QuickGELU whose gradient takes one pass over memory instead of five.

    With z = 1.702 x, the value is SiLU(z) / 1.702. The derivative by x is SiLU's by z.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - PyTorch's own type
        z = x * SLOPE
        ctx.save_for_backward(z)
        return functional.silu(z).div_(SLOPE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        (z,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.silu_backward(gradient, z)
        return result
