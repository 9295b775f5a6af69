"""Encode the valid frames of videos alone, several videos in one run.

A video with fewer frames than the model takes is padded at its end, and a padded frame has the same
embedding always. ``video_encoder`` encodes it all the same. Its two halves need not:
``frame_encoder`` gets valid frames alone, and ``temporal_head`` holds the embedding of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import AnyArray, Float32Array
from xclip_deploy.runtime.manifest import Graph, VideoPart
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.sessions import GraphLoader, Session
from xclip_deploy.runtime.sessions.backend import TakesRows, close_all

Pixels = npt.NDArray[np.uint8]


class ValidFrameEncoder:
    """``video_encoder`` made of its two halves: a :class:`Session` with its inputs and outputs."""

    graph = Graph.VIDEO_ENCODER

    def __init__(self, open_part: Callable[[VideoPart], Session], config: ModelConfig) -> None:
        """Open both halves. Raises SessionError or BundleIntegrityError."""
        self._config = config
        self._frames = open_part(VideoPart.FRAME_ENCODER)
        try:
            self._head = open_part(VideoPart.TEMPORAL_HEAD)
        except BaseException:
            self._frames.close()
            raise

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See :meth:`Session.run`. Frames beyond ``num_frames`` are not read."""
        counts = inputs["num_frames"]
        videos = [row[:count] for row, count in zip(inputs["frames"], counts, strict=True)]
        return self.encode(videos)

    def encode(self, videos: Sequence[Pixels]) -> dict[str, AnyArray]:
        """Encode V videos in one run of either half; return the outputs of ``video_encoder``.

        ``videos``: uint8 [n, S, S, 3] each, from 1 to F frames.
        """
        counts = np.array([len(video) for video in videos], dtype=np.int32)
        if isinstance(self._frames, TakesRows):
            raw = self._frames.run_rows({"frames": videos})["frame_raw"]
        else:
            raw = self.embed(np.concatenate(videos))
        padded = np.zeros((len(videos), self._config.max_frames, raw.shape[1]), dtype=np.float32)
        padded[np.arange(padded.shape[1]) < counts[:, np.newaxis]] = raw
        return self.combine(padded, counts)

    def embed(self, frames: Pixels) -> Float32Array:
        """Return the embeddings of frames before normalisation and temporal head, [N, D].

        ``frames``: uint8 [N, S, S, 3].
        """
        return self._frames.run({"frames": frames})["frame_raw"]

    def combine(self, frame_raw: Float32Array, num_frames: AnyArray) -> dict[str, AnyArray]:
        """Return the outputs of ``video_encoder`` for videos of embedded frames.

        ``frame_raw``: [V, F, D]; padding at the end may hold anything. ``num_frames``: integer [V].
        """
        return self._head.run({"frame_raw": frame_raw, "num_frames": num_frames})

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """See :meth:`Session.chunk`. Graphs take any size."""
        return dict(wanted)

    def close(self) -> None:
        """See :meth:`Session.close`."""
        failure = close_all((self._frames, self._head))
        if failure is not None:
            raise failure


def open_video_encoder(loader: GraphLoader) -> Session:
    """Open the two halves of ``video_encoder`` where the loader runs them, else the whole.

    Raises SessionError, EngineError or BundleIntegrityError.
    """
    if loader.runs_video_parts:
        return ValidFrameEncoder(loader.open_part, loader.bundle.manifest.model)
    return loader.open(Graph.VIDEO_ENCODER)
