"""Caption-video pairs as tensors of the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.training.datasets.frames import FrameSource


class Pair(NamedTuple):
    """Caption and video as tensors of the model."""

    token_ids: Tensor
    """int32 [W]."""
    frames: Tensor
    """uint8 RGB [F, S, S, 3], zeros from ``num_frames`` on."""
    num_frames: int
    video_index: int
    """Index into ``Split.videos``."""


class PairDataset(Dataset[Pair]):
    """Pairs of a split, one a caption. The same index gives the same pair at any time."""

    def __init__(
        self, split: Split, tokenizer: Tokenizer, source: FrameSource, max_words: int
    ) -> None:
        """Prepare to read. W is ``max_words``; F and S are those of ``source``."""
        self.split = split
        self.tokenizer = tokenizer
        self.source = source
        self.max_words = max_words

    def __len__(self) -> int:
        return len(self.split.captions)

    def __getitem__(self, index: int) -> Pair:
        """Read one pair; raises VideoError where the video cannot be read (any more)."""
        video_index = int(self.split.video_of_caption[index])
        read = self.source.read(self.split.videos[video_index])  # [n, S, S, 3]
        frames = np.zeros(
            (self.source.reading.sampling.max_frames, *read.shape[1:]), dtype=np.uint8
        )
        frames[: len(read)] = read
        token_ids = self.tokenizer.encode([self.split.captions[index]], self.max_words)[0]
        return Pair(
            torch.from_numpy(token_ids),
            torch.from_numpy(frames),
            len(read),
            video_index,
        )
