"""A small X-CLIP that learns the demo's scenes in half a minute on two CPU cores.

A bare loop, enough to have a checkpoint whose search results can be judged by eye.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from demo.scenes import ALL_SCENES, DURATION_S
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead, TextConfig, VisionConfig
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.training.model import XClip
from xclip_deploy.training.temporal import TemporalTransformer

CONFIG = ModelConfig(
    embed_dim=64,
    vision=VisionConfig(image_size=64, patch_size=16, width=64, layers=2, heads=2),
    text=TextConfig(width=64, layers=1, heads=2),
    temporal_head=TemporalHead.TRANSFORMER,
    temporal_layers=1,
    temporal_heads=1,
    temporal_positions=77,
    max_words=8,
    max_frames=5,
)
STEPS = 500
_RENDERINGS = 20
"""Different drawings of every scene to learn from."""


def train(report: Callable[[int, float], None]) -> XClip:
    """Train on drawings of the scenes; ``report`` is called with every step and its loss."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = XClip(CONFIG)
    assert isinstance(model.video_encoder.temporal, TemporalTransformer)
    # From random weights, unlike from CLIP's, the order of frames must be made audible and
    # the similarities not too loud.
    torch.nn.init.normal_(model.video_encoder.temporal.frame_position_embeddings.weight, std=0.5)
    torch.nn.init.constant_(model.scorer.logit_scale, np.log(20))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, STEPS)
    captions = [scene.caption for scene in ALL_SCENES]
    token_ids = torch.from_numpy(Tokenizer.default().encode(captions, CONFIG.max_words))
    # What the reader takes of a video: a frame each second.
    times = np.arange(DURATION_S) / DURATION_S
    size = CONFIG.vision.image_size
    drawings = torch.from_numpy(
        np.stack(
            [
                [scene.render(times, size, random) for scene in ALL_SCENES]
                for _ in range(_RENDERINGS)
            ]
        )
    )  # [renderings, scenes, F, S, S, 3]
    scenes = torch.arange(len(ALL_SCENES))
    num_frames = torch.full((len(scenes),), DURATION_S)
    for step in range(STEPS):
        # Every scene once: the loss takes every other pair of a batch for a mismatch.
        frames = drawings[torch.from_numpy(random.integers(0, _RENDERINGS, len(scenes))), scenes]
        logits = model(token_ids, frames, num_frames).logits
        loss = functional.cross_entropy(logits, scenes) / 2
        loss = loss + functional.cross_entropy(logits.T, scenes) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    return model.eval()
