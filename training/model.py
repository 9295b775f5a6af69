"""X-CLIP, CLIP4Clip and CLIP, as three modules that training and export share."""

from __future__ import annotations

from torch import Tensor, nn

from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.training.scorer import Scorer, ScorerOutput
from xclip_deploy.training.text_encoder import TextEncoder, count_tokens
from xclip_deploy.training.video_encoder import VideoEncoder


class XClip(nn.Module):
    """Complete model: ``scorer(text_encoder(ids), video_encoder(frames))``.

    It starts with random weights (CLIP's initialisation).
    :func:`xclip_deploy.training.checkpoints.load_checkpoint` loads checkpoints.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video_encoder = VideoEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.scorer = Scorer(config)
        self.video_encoder.initialize()
        self.text_encoder.initialize()

    def forward(self, token_ids: Tensor, frames: Tensor, num_frames: Tensor) -> ScorerOutput:
        """Score T texts against V videos.

        ``token_ids``: integer [T, W]. ``frames``: uint8 RGB [V, F, H, W, 3]. ``num_frames``:
        integer [V]. Returns logits and grains, each [T, V].
        """
        text = self.text_encoder(token_ids)
        video = self.video_encoder(frames, num_frames)
        scores: ScorerOutput = self.scorer(*text, *video, count_tokens(token_ids), num_frames)
        return scores
