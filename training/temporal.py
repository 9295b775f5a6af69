"""Temporal heads: mix each frame embedding with those of the other frames.

Each head adds its input to its output, as in CLIP4Clip (Luo et al., 2022, section 3.3). X-CLIP
takes them from there.
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
        # The published head has QuickGELU, whatever the encoders have.
        self.transformer = Transformer(
            config.embed_dim, config.temporal_layers, config.temporal_heads, Activation.QUICK_GELU
        )

    def forward(self, frame_raw: Tensor, is_valid: Tensor) -> Tensor:
        """Mix ``frame_raw`` [V, F, D] where ``is_valid``, bool [V, F]; return [V, F, D]."""
        frames = frame_raw.shape[1]
        x = frame_raw + at_least_float32(self.frame_position_embeddings.weight[:frames])
        mask = torch.where(is_valid, 0.0, MASKED)[:, None, None, :]  # [V, 1, 1, F]
        mixed: Tensor = self.transformer(x.to(self.transformer.dtype), mask)
        return mixed.to(frame_raw.dtype) + frame_raw

    def initialize(self) -> None:
        """Draw random weights, in CLIP's own scales but for the positions.

        Frames have a variance of about one. Positions with the standard deviation of CLIP's
        text tower, 0.01, would drown in it. After 480 steps of the demo preset, with one seed,
        text-to-video R@1 among 800 videos was 21 % with 0.01 and 36 % with 1. After the
        preset's 800 steps no gain is left: 74.5 % with 0.01, 68.5 and 74.5 % with 1, among 200
        videos.
        """
        nn.init.normal_(self.frame_position_embeddings.weight)
        self.transformer.initialize()


class TemporalLSTM(nn.Module):
    """``seqLSTM``: a one-layer LSTM.

    It runs forward in time. Padded frames come last, so they cannot reach the valid ones and
    need no packing. The mean over valid frames drops their output.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.embed_dim, config.embed_dim, batch_first=True)

    def forward(self, frame_raw: Tensor, is_valid: Tensor) -> Tensor:
        """Mix ``frame_raw`` [V, F, D] where ``is_valid``, bool [V, F]; return [V, F, D]."""
        weight: Tensor = self.lstm.get_parameter("weight_ih_l0")
        device = frame_raw.device.type
        # Mixed precision leaves the LSTM in FP32: the CPU has none in FP16. An export would
        # carry the context into its graph, hence the question first.
        is_mixed = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if is_mixed else nullcontext():
            x, _ = self.lstm(frame_raw.to(weight.dtype))
        # Padded positions keep the residual alone.
        return torch.where(is_valid[..., None], x.to(frame_raw.dtype), 0.0) + frame_raw

    def initialize(self) -> None:
        """Draw random weights as PyTorch does for an LSTM."""
        self.lstm.reset_parameters()


def temporal_head(config: ModelConfig) -> TemporalTransformer | TemporalLSTM | None:
    """Make the head of the configuration; return None for mean pooling."""
    if config.temporal_head is TemporalHead.TRANSFORMER:
        return TemporalTransformer(config)
    if config.temporal_head is TemporalHead.LSTM:
        return TemporalLSTM(config)
    return None
