"""Measuring a model while it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xclip_deploy.runtime.metrics import retrieval_metrics
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.training.datasets.frames import FrameSource
from xclip_deploy.training.datasets.split import Split
from xclip_deploy.training.model import XClip

_BATCH = 16
"""Videos or texts encoded at once."""
_SCORED_TEXTS, _SCORED_VIDEOS = 64, 256
"""Texts and videos in a block of the similarity matrix: with 64 words and 64 frames its word by
frame similarities take 268 MB."""


@torch.inference_mode()
def validate(model: XClip, split: Split, source: FrameSource) -> dict[str, Any]:
    """Retrieval metrics of a split, both directions, as plain dictionaries.

    Frames come from ``source`` and so, where it has one, from its cache. Leaves the model in
    the mode that it was in. Raises VideoError for a video that cannot be read any more.
    """
    was_training = model.training
    model.eval()
    try:
        similarity = _similarity(model, split, source)
    finally:
        model.train(was_training)
    return retrieval_metrics(similarity, split.video_of_caption).to_dict()


def _similarity(model: XClip, split: Split, source: FrameSource) -> npt.NDArray[np.float32]:
    """Logits of every caption and every video, [captions, videos]."""
    device = model.scorer.logit_scale.device
    config = model.config
    token_ids = torch.from_numpy(Tokenizer.default().encode(split.captions, config.max_words))
    texts = [model.text_encoder(part.to(device)) for part in token_ids.split(_BATCH)]
    sentence = torch.cat([part.sentence_features for part in texts])
    word = torch.cat([part.word_features for part in texts])
    num_words = (token_ids.argmax(dim=-1) + 1).to(device)
    videos, counts = [], []
    for start in range(0, len(split.videos), _BATCH):
        frames, num_frames = _frames(split, source, start)
        counts.append(num_frames.to(device))
        videos.append(model.video_encoder(frames.to(device), counts[-1]))
    video = torch.cat([part.video_features for part in videos])
    frame = torch.cat([part.frame_features for part in videos])
    num_frames = torch.cat(counts)
    similarity = np.empty((len(sentence), len(video)), np.float32)
    for top in range(0, len(sentence), _SCORED_TEXTS):
        rows = slice(top, top + _SCORED_TEXTS)
        for left in range(0, len(video), _SCORED_VIDEOS):
            columns = slice(left, left + _SCORED_VIDEOS)
            scores = model.scorer(
                sentence[rows],
                word[rows],
                video[columns],
                frame[columns],
                num_words[rows],
                num_frames[columns],
            )
            similarity[rows, columns] = scores.logits.float().cpu().numpy()
    return similarity


def _frames(split: Split, source: FrameSource, start: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [B, F, S, S, 3] of the videos from ``start`` on, and how many are valid."""
    clips = [source.read(video) for video in split.videos[start : start + _BATCH]]
    size, most = source.image_size, source.sampling.max_frames
    frames = np.zeros((len(clips), most, size, size, 3), np.uint8)
    for row, clip in zip(frames, clips, strict=True):
        row[: len(clip)] = clip
    return torch.from_numpy(frames), torch.tensor([len(clip) for clip in clips])
