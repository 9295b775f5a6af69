"""Encode each frame once where windows overlap, for models that encode frames independently.

With 2d patches, a frame's embedding before the temporal head is the same in every window. A model
that runs the two halves of ``video_encoder`` keeps those embeddings, and runs the temporal head for
each window.

Other bundles and engines have the whole ``video_encoder`` alone. With mean pooling (CLIP,
CLIP4Clip-meanP), a video's embedding still follows from those of its frames (CLIP4Clip, section
3.3)::

    video = normalize(mean over valid frames of normalize(frame))

There, a temporal head encodes windows one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float32Array, slices
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.model_config import ModelConfig, PatchEmbedding, TemporalHead

Pixels = npt.NDArray[np.uint8]
Encode = Callable[[Sequence[Pixels]], VideoFeatures]
"""Function that embeds videos, given by their frames: uint8 [n, S, S, 3] each."""


@dataclass(frozen=True, eq=False)
class Window:
    """Frames of one window, and names under which other windows share them."""

    frames: Pixels
    """[n, S, S, 3]."""
    names: tuple[Hashable, ...] | None = None
    """Name of each frame, the same in every window that shares it; None shares none."""


class FrameByFrame(Protocol):
    """Encoder of single frames, which makes videos of them. A :class:`DeployedModel` may be one."""

    def embed_frames(self, frames: Pixels) -> Float32Array:
        """Embed N > 0 frames, uint8 [N, S, S, 3], to [N, D]."""
        ...

    def combine_frames(
        self, frame_raw: Float32Array, num_frames: npt.NDArray[np.int32]
    ) -> VideoFeatures:
        """Return the features of V videos of embedded frames [V, F, D], padded at the end."""
        ...


class MeanPooling:
    """Frame by frame with the whole ``video_encoder`` of a model that pools the mean."""

    def __init__(self, encode: Encode, max_frames: int) -> None:
        """Use ``encode`` for packs of ``max_frames`` frames, each as a video of its own."""
        self._encode = encode
        self._most = max_frames
        self._padding: Float32Array | None = None

    def embed_frames(self, frames: Pixels) -> Float32Array:
        """Embed frames to unit vectors; see :class:`FrameByFrame`."""
        if self._padding is None:
            # What follows the only frame of a video is what the encoder gives for padding.
            alone = self._encode([frames[:1]])
            self._padding = alone.frame_features[0, 1].astype(np.float32)
        packs = [frames[part] for part in slices(len(frames), self._most)]
        found = self._encode(packs).frame_features
        valid = np.concatenate([row[: len(pack)] for row, pack in zip(found, packs, strict=True)])
        return valid.astype(np.float32, copy=False)

    def combine_frames(
        self, frame_raw: Float32Array, num_frames: npt.NDArray[np.int32]
    ) -> VideoFeatures:
        """Average valid frames; see :class:`FrameByFrame`."""
        assert self._padding is not None  # every window has a frame, which was embedded
        is_valid = np.arange(self._most) < num_frames[:, np.newaxis]
        frames = np.where(is_valid[..., np.newaxis], frame_raw, self._padding)
        means = np.stack(
            [row[:count].mean(axis=0) for row, count in zip(frames, num_frames, strict=True)]
        )
        videos = means / np.linalg.norm(means, axis=1, keepdims=True)
        return VideoFeatures(videos, frames, num_frames)


class FrameReuse:
    """An encoder of windows that remembers the frames of the windows before."""

    def __init__(self, encoder: FrameByFrame, max_frames: int) -> None:
        """Use ``encoder`` for windows of at most ``max_frames`` frames."""
        self._encoder = encoder
        self._most = max_frames
        self._known: dict[Hashable, Float32Array] = {}
        self.num_encoded = 0
        """Number of frames that were encoded."""

    def encode(self, windows: Sequence[Window]) -> VideoFeatures:
        """Return the features of windows, as the model's own encoder within rounding of FP32."""
        new: dict[Hashable, Pixels] = {}
        named: list[list[Hashable]] = []
        for n, window in enumerate(windows):
            alone = ((id(windows), n, place) for place in range(len(window.frames)))
            names: list[Hashable] = list(window.names or alone)
            named.append(names)
            for name, frame in zip(names, window.frames, strict=True):
                if name not in self._known:
                    new.setdefault(name, frame)
        if new:
            embeddings = self._encoder.embed_frames(np.stack(list(new.values())))
            self._known.update(zip(new, embeddings, strict=True))
            self.num_encoded += len(new)
        counts = np.array([len(names) for names in named], np.int32)
        dim = len(self._known[named[0][0]])
        frames = np.zeros((len(windows), self._most, dim), np.float32)
        for row, names in zip(frames, named, strict=True):
            row[: len(names)] = [self._known[name] for name in names]
        # The next windows begin at or after these: they share no older frame.
        self._known = {name: self._known[name] for names in named for name in names}
        return self._encoder.combine_frames(frames, counts)


def pools_the_mean(config: ModelConfig) -> bool:
    """Tell whether a video's embedding follows from the unit embeddings of its frames."""
    return (
        config.temporal_head is TemporalHead.MEAN_POOLING
        and config.patch_embedding is PatchEmbedding.CONV_2D
        and config.max_frames > 1
    )


def shares_frames(model: DeployedModel) -> bool:
    """Tell whether each frame of overlapping windows is encoded once."""
    return model.encodes_valid_frames or pools_the_mean(model.config)


def frame_reuse(model: DeployedModel) -> FrameReuse | None:
    """Return the encoder of overlapping windows; None where the model encodes windows whole."""
    most = model.config.max_frames
    if model.encodes_valid_frames:
        return FrameReuse(model, most)
    if pools_the_mean(model.config):
        return FrameReuse(MeanPooling(model.encode_videos, most), most)
    return None
