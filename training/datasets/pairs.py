"""Caption-video pairs as tensors of the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.training.datasets.frames import FrameSource, draws, in_order


class Pair(NamedTuple):
    """Caption and video as tensors of the model."""

    token_ids: Tensor
    """int32 [W]."""
    frames: Tensor
    """uint8 RGB [F, S, S, 3], zeros from ``num_frames`` on."""
    num_frames: int
    video_index: int
    """Index into ``Split.videos``."""
    caption_index: int
    """Index into ``Split.captions``."""


class PairDataset(Dataset[Pair]):
    """Pairs of a split: one a caption, or one a video.

    The same index and epoch give the same pair at any time.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        source: FrameSource,
        max_words: int,
        *,
        expand_sentences: bool = True,
        frame_order: int = 0,
        seed: int = 0,
    ) -> None:
        """Prepare to read. W is ``max_words``; F and S are those of ``source``.

        ``expand_sentences``: one pair a caption; else one a video, with a random caption in
        every epoch. ``frame_order``: as in ``DataConfig``. ``seed``: of captions and orders.
        """
        self.split = split
        self.tokenizer = tokenizer
        self.source = source
        self.max_words = max_words
        self.expand_sentences = expand_sentences
        self.frame_order = frame_order
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.captions if self.expand_sentences else self.split.videos)

    def __getitem__(self, index: int) -> Pair:
        """Read one pair of the first epoch."""
        return self.read(index, 0)

    def read(self, index: int, epoch: int) -> Pair:
        """Read one pair; raises VideoError where the video cannot be read (any more)."""
        caption_index = index if self.expand_sentences else self._caption(index, epoch)
        video_index = int(self.split.video_of_caption[caption_index])
        read = self.source.read(self.split.videos[video_index])  # [n, S, S, 3]
        read = in_order(read, self.frame_order, (self.seed, epoch, index))
        frames = np.zeros(
            (self.source.reading.sampling.max_frames, *read.shape[1:]), dtype=np.uint8
        )
        frames[: len(read)] = read
        token_ids = self.tokenizer.encode([self.split.captions[caption_index]], self.max_words)[0]
        return Pair(
            torch.from_numpy(token_ids),
            torch.from_numpy(frames),
            len(read),
            video_index,
            caption_index,
        )

    def _caption(self, video: int, epoch: int) -> int:
        """Draw one of a video's captions, which stand next to each other."""
        first, end = np.searchsorted(self.split.video_of_caption, [video, video + 1])
        # Another stream than that of the frames' order, which has three numbers.
        drawn = int(draws((self.seed, epoch, video, 1), 1)[0])
        return int(first) + drawn % int(end - first)
