"""The training loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy over a batch's similarities.

    ``logits``: [B, B], text i and video i belonging together. Returns the mean of both
    directions (X-CLIP, section 3.4).
    """
    target = torch.arange(len(logits), device=logits.device)
    text_to_video = functional.cross_entropy(logits, target)
    video_to_text = functional.cross_entropy(logits.T, target)
    return (text_to_video + video_to_text) / 2
