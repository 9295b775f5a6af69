"""Encode each frame once where windows overlap, for models that encode frames independently.

With mean pooling (CLIP, CLIP4Clip-meanP) and 2d patches, a frame's embedding is the same in every
window, and a video's embedding follows from those of its frames (CLIP4Clip, section 3.3)::

    video = normalize(mean over valid frames of normalize(frame))

A temporal head mixes the frames of a window before it averages them, so its windows are encoded
one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.model_config import ModelConfig, PatchEmbedding, TemporalHead

Encode = Callable[[Sequence[npt.NDArray[np.uint8]]], VideoFeatures]
"""Function that embeds videos, given by their frames: uint8 [n, S, S, 3] each."""


@dataclass(frozen=True, eq=False)
class Window:
    """Frames of one window, and names under which other windows share them."""

    frames: npt.NDArray[np.uint8]
    """[n, S, S, 3]."""
    names: tuple[Hashable, ...] | None = None
    """Name of each frame, the same in every window that shares it; None shares none."""


def encodes_frames_independently(config: ModelConfig) -> bool:
    """Tell whether a frame's embedding does not depend on the other frames."""
    return (
        config.temporal_head is TemporalHead.MEAN_POOLING
        and config.patch_embedding is PatchEmbedding.CONV_2D
        and config.max_frames > 1
    )


class FrameReuse:
    """An encoder of windows that remembers the frames of the windows before."""

    def __init__(self, encode: Encode, max_frames: int) -> None:
        """Use ``encode`` for packs of ``max_frames`` frames that no window has shown before."""
        self._encode = encode
        self._most = max_frames
        self._known: dict[Hashable, npt.NDArray[np.float32]] = {}
        self._padding: npt.NDArray[np.float32] | None = None
        self.num_encoded = 0
        """Number of frames that were encoded."""

    def encode(self, windows: Sequence[Window]) -> VideoFeatures:
        """Return the features of windows, as ``encode`` gives them within rounding of FP32."""
        new: dict[Hashable, npt.NDArray[np.uint8]] = {}
        named: list[list[Hashable]] = []
        for n, window in enumerate(windows):
            alone = ((id(windows), n, place) for place in range(len(window.frames)))
            names: list[Hashable] = list(window.names or alone)
            named.append(names)
            for name, frame in zip(names, window.frames, strict=True):
                if name not in self._known:
                    new.setdefault(name, frame)
        self._learn(list(new.items()))
        assert self._padding is not None  # every window has a frame
        counts = np.array([len(names) for names in named], np.int32)
        frames = np.tile(self._padding, (len(windows), self._most, 1))
        videos = np.empty((len(windows), len(self._padding)), np.float32)
        for row, names in enumerate(named):
            own = np.stack([self._known[name] for name in names])
            frames[row, : len(own)] = own
            mean = own.mean(axis=0)
            videos[row] = mean / np.linalg.norm(mean)
        # The next windows begin at or after these: they share no older frame.
        self._known = {name: self._known[name] for names in named for name in names}
        return VideoFeatures(videos, frames, counts)

    def _learn(self, new: Sequence[tuple[Hashable, npt.NDArray[np.uint8]]]) -> None:
        """Encode frames in packs, each as a video of its own."""
        if self._padding is None and new:
            # What follows the only frame of a video is what the encoder gives for padding.
            alone = self._encode([new[0][1][np.newaxis]])
            self._padding = alone.frame_features[0, 1].astype(np.float32)
        packs = [new[part] for part in slices(len(new), self._most)]
        if not packs:
            return
        found = self._encode([np.stack([frame for _, frame in pack]) for pack in packs])
        for pack, embeddings in zip(packs, found.frame_features, strict=True):
            for place, (name, _) in enumerate(pack):
                self._known[name] = embeddings[place].astype(np.float32)
        self.num_encoded += len(new)
