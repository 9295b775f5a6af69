"""Transformer that CLIP uses for images and text, and X-CLIP for frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from xclip_deploy.runtime.model_config import Activation
from xclip_deploy.training.activation import quick_gelu
from xclip_deploy.training.precision import LayerNorm


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of OpenAI's CLIP.

    The product is written as MatMul, Softmax, MatMul: TensorRT fuses that form. It does not
    fuse ONNX's own ``Attention`` operator (opset 23).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each sequence.

        ``x``: [B, L, width]. ``mask``: added to the scores, broadcastable to [B, heads, L, L],
        or None. Returns [B, L, width].
        """
        batch, length, width = x.shape
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)  # [B, L, 3 width]
        qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, head width]
        scale = (width // self.heads) ** -0.5
        scores = (query * scale) @ key.transpose(-2, -1)  # [B, heads, L, L]
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        attended = scores.softmax(dim=-1) @ value  # [B, heads, L, head width]
        mixed: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, length, width))
        return mixed


class MLP(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Transform [..., width] to [..., width]."""
        x = self.c_fc(x)
        x = quick_gelu(x) if self.activation is Activation.QUICK_GELU else functional.gelu(x)
        projected: Tensor = self.c_proj(x)
        return projected


class ResidualAttentionBlock(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Transform [B, L, width] to [B, L, width]; ``mask`` as in :class:`Attention`."""
        x = x + self.attn(self.ln_1(x), mask)
        mixed: Tensor = x + self.mlp(self.ln_2(x))
        return mixed


class Transformer(nn.Module):
    """A stack of residual attention blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, activation) for _ in range(layers)
        )
        self.gradient_checkpointing = False
        """True to compute activations again in the backward pass, which saves memory."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the blocks compute in."""
        first = self.resblocks[0]
        assert isinstance(first, ResidualAttentionBlock)
        return first.mlp.c_fc.weight.dtype

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run all blocks, [B, L, width] to [B, L, width]; ``mask`` as in :class:`Attention`."""
        for block in self.resblocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x

    def initialize(self) -> None:
        """Draw random weights as OpenAI's CLIP does in ``initialize_parameters``."""
        projection_std = self.width**-0.5 * (2 * len(self.resblocks)) ** -0.5
        for block in self.resblocks:
            assert isinstance(block, ResidualAttentionBlock)
            nn.init.normal_(block.attn.in_proj_weight, std=self.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=projection_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=projection_std)
            for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(linear.bias)
            nn.init.zeros_(block.attn.in_proj_bias)
