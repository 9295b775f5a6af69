"""PyTorch model behind the runtime's interface: it takes texts and frames and returns arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.tokenizer import Tokenizer, count_tokens
from xclip_deploy.training.model import XClip


class TorchMatcher:
    """Encoder and scorer that run a PyTorch model where it is, without a copy of its weights.

    Every call runs in evaluation mode and without gradients. The model keeps its mode, so that
    it can be evaluated while it trains.
    """

    def __init__(self, model: XClip, *, max_batch: int = 16) -> None:
        """Prepare to run a model. ``max_batch``: most texts or videos in one run of an encoder.

        Raises InvalidArgumentError for a model with another vocabulary than CLIP's.
        """
        if max_batch < 1:
            raise InvalidArgumentError(f"max_batch {max_batch}: expected at least 1")
        self.model = model
        self.config = model.config
        self.max_batch = max_batch
        self.tokenizer = Tokenizer.default()
        if self.config.text.vocab_size != self.tokenizer.vocab_size:
            raise InvalidArgumentError(
                f"the model has {self.config.text.vocab_size} token embeddings; expected the "
                f"{self.tokenizer.vocab_size} of CLIP's tokenizer"
            )

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts, cut to the model's length, in FP32. Raises InvalidArgumentError."""
        token_ids = self.tokenizer.encode(texts, self.config.max_words)  # [T, W]
        dim = self.config.embed_dim
        sentences = np.empty((len(texts), dim), dtype=np.float32)
        words = np.empty((*token_ids.shape, dim), dtype=np.float32)
        with self._inference():
            for rows in slices(len(texts), self.max_batch):
                features = self.model.text_encoder(self._tensor(token_ids[rows]))
                sentences[rows] = _array(features.sentence_features)
                words[rows] = _array(features.word_features)
        return TextFeatures(sentences, words, count_tokens(token_ids))

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos given by their valid frames alone: uint8 RGB [n, S, S, 3] each.

        Returns FP32. Raises InvalidArgumentError for another dtype or shape.
        """
        size, most = self.config.vision.image_size, self.config.max_frames
        dim = self.config.embed_dim
        num_frames = np.array([len(video) for video in videos], dtype=np.int32)
        embeddings = np.empty((len(videos), dim), dtype=np.float32)
        frames = np.empty((len(videos), most, dim), dtype=np.float32)
        with self._inference():
            for rows in slices(len(videos), self.max_batch):
                batch = np.zeros((rows.stop - rows.start, most, size, size, 3), dtype=np.uint8)
                for padded, video in zip(batch, videos[rows], strict=True):
                    is_fit = video.shape[1:] == (size, size, 3) and 1 <= len(video) <= most
                    if video.dtype != np.uint8 or not is_fit:
                        raise InvalidArgumentError(
                            f"a video is {video.dtype} {list(video.shape)}, expected uint8 "
                            f"[1 to {most}, {size}, {size}, 3]"
                        )
                    padded[: len(video)] = video
                features = self.model.video_encoder(
                    self._tensor(batch), self._tensor(num_frames[rows])
                )
                embeddings[rows] = _array(features.video_features)
                frames[rows] = _array(features.frame_features)
        return VideoFeatures(embeddings, frames, num_frames)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video, all at once.

        Memory holds texts times videos times words times frames numbers, several times.
        ``similarity_matrix`` therefore asks for one block after the other.
        """
        with self._inference():
            scores = self.model.scorer(
                self._tensor(texts.sentence_features),
                self._tensor(texts.word_features),
                self._tensor(videos.video_features),
                self._tensor(videos.frame_features),
                self._tensor(texts.num_words),
                self._tensor(videos.num_frames),
            )
            grains = {name: _array(grain) for name, grain in scores.grains.items()}
            return Scores(_array(scores.logits), grains)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        device = next(self.model.parameters()).device
        return torch.from_numpy(array).to(device)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            # inference_mode would make tensors that the model caches here unusable in training.
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
