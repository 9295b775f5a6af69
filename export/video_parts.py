"""The two halves of the video encoder, for backends that encode valid frames alone.

With 2d patches, a frame's embedding before the temporal head does not depend on other frames. A
padded frame, whose pixels are zero after normalisation, has the same embedding always. So a runtime
encodes valid frames of several videos together, and the temporal head holds that one embedding.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from xclip_deploy.runtime.manifest import VideoPart
from xclip_deploy.training.video_encoder import (
    VideoEncoder,
    VideoEncoderOutput,
    VisionTransformer,
    combine_frames,
    mark_valid,
)


class FrameEncoder(nn.Module):
    """``frame_encoder``: the image tower over single frames."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.visual = encoder.visual

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        """Encode ``frames``, uint8 RGB [N, H, W, 3], to embeddings before normalisation [N, D]."""
        pixels = self.visual.normalize(frames).permute(0, 3, 1, 2)
        return (self.visual(pixels[:, None])[:, 0],)


class VideoHead(nn.Module):
    """``temporal_head``: what follows the image tower, over frames that it encoded apart."""

    padding: Tensor

    def __init__(self, encoder: VideoEncoder, image_size: int) -> None:
        super().__init__()
        self.temporal = encoder.temporal
        self.register_buffer("padding", padding_embedding(encoder.visual, image_size))

    def forward(self, frame_raw: Tensor, num_frames: Tensor) -> VideoEncoderOutput:
        """Combine frames to videos.

        ``frame_raw``: embeddings before normalisation [V, F, D]; padding at the end may hold
        anything. ``num_frames``: integer [V], number of valid frames, at least 1.
        """
        is_valid = mark_valid(frame_raw.shape[1], num_frames)
        frame_raw = torch.where(is_valid[..., None], frame_raw, self.padding)
        return combine_frames(self.temporal, frame_raw, is_valid)


@torch.no_grad()
def padding_embedding(visual: VisionTransformer, image_size: int) -> Tensor:
    """Return the embedding of a padded frame before normalisation, FP32 [D].

    A tower in half precision computes it in FP32, with its own weights.
    """
    if visual.ln_pre.weight.dtype != visual.conv1.weight.dtype:
        visual = deepcopy(visual).float()
    embedding: Tensor = visual(torch.zeros(1, 1, 3, image_size, image_size))[0, 0]
    return embedding


def part_module(part: VideoPart, encoder: VideoEncoder, image_size: int) -> nn.Module:
    """Return the module of a half of ``encoder``, which takes frames of ``image_size`` pixels."""
    if part is VideoPart.FRAME_ENCODER:
        return FrameEncoder(encoder)
    return VideoHead(encoder, image_size)
