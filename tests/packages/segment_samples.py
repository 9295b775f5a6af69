"""Galleries of long videos with planted vectors, for tests of search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.search import Query
from xclip_deploy.runtime.video.segmentation import Segmentation


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    lengths: npt.NDArray[np.floating] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / lengths).astype(np.float32)


@dataclass
class Planter:
    """A maker of videos whose frames resemble one query as much as asked for."""

    config: ModelConfig
    segmentation: Segmentation
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.target = unit(self._rng.standard_normal(self.config.embed_dim))

    def query(self) -> Query:
        """Return the query that the videos resemble."""
        words = np.repeat(self.target[np.newaxis, np.newaxis], self.config.max_words, axis=1)
        count = np.array([self.config.max_words], np.int32)
        return Query(TextFeatures(self.target[np.newaxis], words, count))

    def video(
        self,
        name: str,
        likeness: Sequence[float] | npt.NDArray[np.floating],
        noise: float = 1.0,
        **metadata: object,
    ) -> tuple[list[GalleryVideo], VideoFeatures]:
        """Make a video with one segment for each likeness."""
        window_s, stride_s = self.segmentation.window_s, self.segmentation.stride_s
        assert window_s is not None
        assert stride_s is not None
        count, frames = len(likeness), self.config.max_frames
        shape = (count, frames, self.config.embed_dim)
        spread = noise * unit(self._rng.standard_normal(shape))
        share = np.asarray(likeness)[:, np.newaxis, np.newaxis]
        vectors = unit(share * self.target + spread)
        features = VideoFeatures(
            unit(vectors.mean(axis=1)), vectors, np.full(count, frames, np.int32)
        )
        duration_s = stride_s * (count - 1) + window_s
        rows = [
            GalleryVideo(
                id=name,
                path=name,
                duration_s=duration_s,
                segment=n,
                num_segments=count,
                start_s=n * stride_s,
                end_s=n * stride_s + window_s,
                segmentation=self.segmentation.text,
                frame_times_s=tuple(n * stride_s + window_s * f / frames for f in range(frames)),
                metadata=dict(metadata),  # type: ignore[arg-type]
            )
            for n in range(count)
        ]
        return rows, features


def together(
    videos: Mapping[str, tuple[list[GalleryVideo], VideoFeatures]]
    | Sequence[tuple[list[GalleryVideo], VideoFeatures]],
) -> tuple[list[GalleryVideo], VideoFeatures]:
    """Join the rows of several videos."""
    parts = list(videos.values()) if isinstance(videos, Mapping) else list(videos)
    rows = [row for part, _ in parts for row in part]
    return rows, VideoFeatures.concatenate([features for _, features in parts])
