"""Video encoder: encode frames to one video embedding and one embedding per frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xclip_deploy.runtime.model_config import ModelConfig, PatchEmbedding
from xclip_deploy.runtime.video.preprocessing import CLIP_MEAN, CLIP_STD
from xclip_deploy.training.precision import LayerNorm, at_least_float32, in_dtype, l2_normalize
from xclip_deploy.training.temporal import temporal_head
from xclip_deploy.training.transformer import Transformer


class VideoEncoderOutput(NamedTuple):
    """Features of V videos."""

    video_features: Tensor
    """Embeddings of the videos after the temporal head, [V, D], unit length."""
    frame_features: Tensor
    """Embeddings of the frames before the temporal head, [V, F, D], unit length."""


class VisionTransformer(nn.Module):
    """CLIP's image tower, over frames."""

    # The projection is small, and its results are the embeddings themselves.
    float32_parameters = frozenset({"proj"})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision = config.vision
        width, patch = vision.width, vision.patch_size
        self.conv1: nn.Conv2d | nn.Conv3d
        if config.patch_embedding is PatchEmbedding.CONV_2D:
            self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        else:
            self.conv1 = nn.Conv3d(
                3,
                width,
                (3, patch, patch),
                stride=(1, patch, patch),
                padding=(1, 0, 0),
                bias=False,
            )
        self.class_embedding = nn.Parameter(torch.empty(width))
        positions = (vision.image_size // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, vision.layers, vision.heads, config.activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised ``pixels`` [V, F, 3, H, W] to frame embeddings [V, F, D]."""
        videos, frames = pixels.shape[:2]
        pixels = pixels.to(self.conv1.weight.dtype)
        if isinstance(self.conv1, nn.Conv3d):
            x = self.conv1(pixels.transpose(1, 2)).transpose(1, 2)  # [V, F, width, g, g]
            x = x.flatten(0, 1)
        else:
            x = self.conv1(pixels.flatten(0, 1))  # [V F, width, g, g]
        x = x.flatten(2).transpose(1, 2)  # [V F, g g, width]
        token = in_dtype(self.class_embedding, x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([token, x], dim=1) + in_dtype(self.positional_embedding, x.dtype)
        x = self.transformer(self.ln_pre(x))
        x = at_least_float32(self.ln_post(x[:, 0])) @ at_least_float32(self.proj)  # [V F, D]
        return x.reshape(videos, frames, -1)

    def normalize(self, frames: Tensor) -> Tensor:
        """Normalise ``frames``, uint8 [..., 3], as CLIP does, in the dtype of the weights."""
        # TensorRT cannot transpose uint8: the cast comes first.
        assert frames.dtype == torch.uint8  # another dtype might not be copied by the cast
        pixels = frames.to(self.ln_pre.weight.dtype)
        mean = torch.tensor(CLIP_MEAN, dtype=pixels.dtype, device=pixels.device)
        std = torch.tensor(CLIP_STD, dtype=pixels.dtype, device=pixels.device)
        # Compute in place: three more copies of the pixels took a twentieth of a training step.
        return pixels.div_(255.0).sub_(mean).div_(std)

    def initialize(self) -> None:
        """Draw random weights as OpenAI's CLIP does."""
        scale = self.transformer.width**-0.5
        nn.init.normal_(self.class_embedding, std=scale)
        nn.init.normal_(self.positional_embedding, std=scale)
        nn.init.normal_(self.proj, std=scale)
        nn.init.normal_(self.conv1.weight, std=0.02)
        self.transformer.initialize()


class VideoEncoder(nn.Module):
    """Image tower and temporal head: frames of V videos to video and frame embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.visual = VisionTransformer(config)
        self.temporal = temporal_head(config)

    def forward(self, frames: Tensor, num_frames: Tensor) -> VideoEncoderOutput:
        """Encode videos.

        ``frames``: uint8 RGB [V, F, H, W, 3]; padding at the end may hold anything.
        ``num_frames``: integer [V], number of valid frames, at least 1.
        """
        is_valid = mark_valid(frames.shape[1], num_frames)
        return combine_frames(self.temporal, self.encode_frames(frames, is_valid), is_valid)

    def encode_frames(self, frames: Tensor, is_valid: Tensor) -> Tensor:
        """Return frame embeddings before normalisation and temporal head, [V, F, D].

        ``frames``: uint8 [V, F, H, W, 3]. ``is_valid``: bool [V, F].
        """
        pixels = self.visual.normalize(frames)
        # Padded frames are zero after normalisation, which is the mean colour and not black.
        pixels = torch.where(is_valid[..., None, None, None], pixels, 0.0)
        frame_raw: Tensor = self.visual(pixels.permute(0, 1, 4, 2, 3))
        return frame_raw

    def initialize(self) -> None:
        """Draw random weights."""
        self.visual.initialize()
        if self.temporal is not None:
            self.temporal.initialize()


def mark_valid(max_frames: int, num_frames: Tensor) -> Tensor:
    """Mark the frames that are not padding, bool [V, F]. ``num_frames``: integer [V]."""
    positions = torch.arange(max_frames, device=num_frames.device, dtype=num_frames.dtype)
    return positions[None, :] < num_frames[:, None]


def combine_frames(
    temporal: nn.Module | None, frame_raw: Tensor, is_valid: Tensor
) -> VideoEncoderOutput:
    """Run the temporal head, average the valid frames, and normalise.

    ``frame_raw``: [V, F, D], as :meth:`VideoEncoder.encode_frames` gives it. ``is_valid``: bool
    [V, F].
    """
    x = frame_raw if temporal is None else temporal(frame_raw, is_valid)
    # CLIP4Clip, section 3.3: normalise frames, average the valid ones, normalise the video.
    x = l2_normalize(x) * is_valid[..., None]
    pooled = x.sum(dim=1) / is_valid.sum(dim=1, keepdim=True).clamp_min(1)
    return VideoEncoderOutput(l2_normalize(pooled), l2_normalize(frame_raw))
