"""Windows of long videos, ranked by brute force: the reference that a gallery is held against.

Every window is encoded by itself and scored in full, and nothing is stored. The frames of a window
are those that the model samples of the whole video, thinned evenly to its ``max_frames``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.datasets.moments import MomentSplit
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evaluation import similarity_matrix
from xclip_deploy.runtime.evaluation.moments import Prediction, temporal_iou
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.video import FrameSampling, VideoFrames, read_video
from xclip_deploy.runtime.video.segmentation import Segmentation

_ALL_FRAMES = 1_000_000


@dataclass(frozen=True)
class ReadVideos:
    """Frames of every video of a split, each read once, and the seconds that it took."""

    frames: dict[str, VideoFrames]
    seconds: float

    @classmethod
    def of(cls, model: DeployedModel, split: MomentSplit) -> ReadVideos:
        """Read all frames at the model's rate. A frame of the demo preset takes 7 kB."""
        began_s = time.perf_counter()
        manifest = model.bundle.manifest
        sampling = FrameSampling(
            frames_per_second=manifest.frames_per_second, max_frames=_ALL_FRAMES
        )
        size = manifest.preprocessing.image_size
        frames = {video.id: read_video(video.path, sampling, size) for video in split.videos}
        return cls(frames, time.perf_counter() - began_s)


@dataclass(frozen=True)
class Windows:
    """Windows of all videos of a split, encoded and scored against its queries."""

    video_ids: tuple[str, ...]
    """Video of each window, [windows]."""
    spans: npt.NDArray[np.float64]
    """Starts and ends in seconds, [windows, 2]."""
    similarity: npt.NDArray[np.float32]
    """Scores of the queries, [queries, windows]."""
    texts: dict[str, int]
    """Row of each query's text."""
    encoding_s: float
    num_bytes: int
    """Size of the embeddings."""
    nms: float | None = None
    """IoU with a better window of the same video above which a window is left out."""

    @classmethod
    def of(
        cls,
        model: DeployedModel,
        split: MomentSplit,
        read: ReadVideos,
        segmentation: Segmentation,
    ) -> Windows:
        """Cut, encode and score."""
        began_s = time.perf_counter()
        ids, spans, parts = [], [], []
        for video in split.videos:
            found = read.frames[video.id]
            windows = segmentation.spans(found.duration_s or float(found.times_s[-1]))
            times = np.asarray(found.times_s)
            cut = []
            for start_s, end_s in windows:
                chosen = np.flatnonzero((times >= start_s) & (times < end_s))
                if not len(chosen):
                    continue
                ids.append(video.id)
                spans.append((start_s, end_s))
                cut.append(found.frames[_thinned(chosen, model.config.max_frames)])
            parts.append(model.encode_videos(cut))
        features = VideoFeatures.concatenate(parts)
        seconds = time.perf_counter() - began_s
        texts = list(dict.fromkeys(query.text for query in split.queries))
        return cls(
            video_ids=tuple(ids),
            spans=np.array(spans),
            similarity=similarity_matrix(model, texts, features),
            texts={text: row for row, text in enumerate(texts)},
            encoding_s=seconds,
            num_bytes=sum(
                part.nbytes for part in vars(features).values() if isinstance(part, np.ndarray)
            ),
        )

    def suppressing(self, nms: float | None) -> Windows:
        """Return the same windows, ranked with another suppression."""
        return replace(self, nms=nms)

    def rank(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        """Rank all windows for each text."""
        everything = np.arange(len(self.video_ids))
        return [self._ranked(text, everything, k) for text in texts]

    def rank_within(
        self, texts: Sequence[str], video_ids: Sequence[str], k: int
    ) -> list[list[Prediction]]:
        """Rank the windows of one video for each text."""
        return [
            self._ranked(text, self._rows_of[video_id], k)
            for text, video_id in zip(texts, video_ids, strict=True)
        ]

    def _ranked(self, text: str, rows: npt.NDArray[np.intp], k: int) -> list[Prediction]:
        scores = self.similarity[self.texts[text]]
        is_left = np.ones(len(scores), dtype=bool)
        ranking: list[Prediction] = []
        for row in rows[np.argsort(-scores[rows], kind="stable")].tolist():
            if len(ranking) == k:
                break
            if not is_left[row]:
                continue
            video_id, (start_s, end_s) = self.video_ids[row], self.spans[row].tolist()
            ranking.append(Prediction(video_id, start_s, end_s, float(scores[row])))
            if self.nms is not None:
                others = self._rows_of[video_id]
                overlaps = temporal_iou(self.spans[others], (start_s, end_s))
                is_left[others[overlaps > self.nms]] = False
        return ranking

    @cached_property
    def _rows_of(self) -> dict[str, npt.NDArray[np.intp]]:
        videos = np.array(self.video_ids)
        return {video_id: np.flatnonzero(videos == video_id) for video_id in set(self.video_ids)}


def _thinned(chosen: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    if len(chosen) <= most:
        return chosen
    thinned: npt.NDArray[np.intp] = chosen[np.linspace(0, len(chosen) - 1, most).astype(int)]
    return thinned
