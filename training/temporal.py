"""Temporal heads: from a sequence of frame embeddings to one that knows its neighbours.

Each keeps a residual to its input, as in CLIP4Clip (Luo et al., 2022, section 3.3), from
which X-CLIP takes them.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from xclip_deploy.runtime.model_config import Activation, ModelConfig, TemporalHead
from xclip_deploy.training.precision import MASKED, at_least_float32
from xclip_deploy.training.transformer import Transformer


class TemporalTransformer(nn.Module):
    """``seqTransf``: frame positions and transformer blocks; padded frames are masked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(config.temporal_positions, config.embed_dim)
        # QuickGELU whatever the encoders have: the published head knows no other.
        self.transformer = Transformer(
            config.embed_dim, config.temporal_layers, config.temporal_heads, Activation.QUICK_GELU
        )

    def forward(self, frame_raw: Tensor, is_valid: Tensor) -> Tensor:
        """``frame_raw`` [V, F, D] and ``is_valid`` bool [V, F] to [V, F, D]."""
        frames = frame_raw.shape[1]
        x = frame_raw + at_least_float32(self.frame_position_embeddings.weight[:frames])
        mask = torch.where(is_valid, 0.0, MASKED)[:, None, None, :]  # [V, 1, 1, F]
        mixed: Tensor = self.transformer(x.to(self.transformer.dtype), mask)
        return mixed.to(frame_raw.dtype) + frame_raw

    def initialize(self) -> None:
        """Random weights, of CLIP's own scales but for the positions.

        Frames come with a variance of about one, in which positions of 0.01, as of CLIP's text
        tower, drown: after 480 steps of the demo preset, with one seed, text-to-video R@1
        among 800 videos was 21 % with them and 36 % with these. After the preset's 800
        steps there is no gain left: 74.5 % with them, 68.5 and 74.5 % with these, of 200 videos.
        """
        nn.init.normal_(self.frame_position_embeddings.weight)
        self.transformer.initialize()


class TemporalLSTM(nn.Module):
    """``seqLSTM``: a one-layer LSTM.

    It runs forward in time, so padded frames, which come last, cannot reach the valid ones
    and need no packing; the mean over valid frames drops what it makes of them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.embed_dim, config.embed_dim, batch_first=True)

    def forward(self, frame_raw: Tensor, is_valid: Tensor) -> Tensor:
        """``frame_raw`` [V, F, D] and ``is_valid`` bool [V, F] to [V, F, D]."""
        weight: Tensor = self.lstm.get_parameter("weight_ih_l0")
        device = frame_raw.device.type
        # Mixed precision leaves it in FP32: on CPU there is no LSTM in FP16. Asked first,
        # because an export would carry the context into the graph.
        is_mixed = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if is_mixed else nullcontext():
            x, _ = self.lstm(frame_raw.to(weight.dtype))
        # Padded positions: the residual alone.
        return torch.where(is_valid[..., None], x.to(frame_raw.dtype), 0.0) + frame_raw

    def initialize(self) -> None:
        """Random weights, as PyTorch starts an LSTM from."""
        self.lstm.reset_parameters()


def temporal_head(config: ModelConfig) -> TemporalTransformer | TemporalLSTM | None:
    """Make the head that the configuration asks for; None for mean pooling."""
    if config.temporal_head is TemporalHead.TRANSFORMER:
        return TemporalTransformer(config)
    if config.temporal_head is TemporalHead.LSTM:
        return TemporalLSTM(config)
    return None
