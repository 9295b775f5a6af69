"""The similarity of a query to the single frames of the rows on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from xclip_deploy.runtime.arrays import (
    Float32Array,
    FloatArray,
    first_best,
    first_best_each,
    to_float32,
)
from xclip_deploy.runtime.search.ranked import Query


class FrameSimilarities:
    """The similarity of each valid frame, and the best frame, by row."""

    def __init__(
        self,
        query: Query,
        rows: Sequence[int],
        frame_features: FloatArray,
        times_s: Mapping[int, tuple[float, ...]],
    ) -> None:
        """Compare a query with the frames of ``rows``.

        ``frame_features``: [rows, F, D]. ``times_s``: times of the valid frames of each row,
        seconds.
        """
        self.times_s = times_s
        frames = to_float32(frame_features)
        # One call: NumPy multiplies each row by itself, with the bits of a single product.
        found = _compare(query, frames)  # [rows, F]
        best = first_best_each(found).tolist()
        # Lists, since the curves of a few dozen frames are computed on them.
        values: list[list[float]] = found.tolist()
        for n, row in enumerate(rows):
            if (count := len(times_s[row])) < found.shape[1]:
                valid = _compare(query, frames[n, :count])
                best[n], values[n] = first_best(valid), valid.tolist()
        self.values = dict(zip(rows, values, strict=True))
        """Similarities of the valid frames of each row."""
        self.best_time_s = {row: times_s[row][n] for row, n in zip(rows, best, strict=True)}
        """Time of the most similar frame of each row, seconds."""


def _compare(query: Query, frames: Float32Array) -> Float32Array:
    """Return the similarity [..., F] of frames [..., F, D]."""
    if query.text is not None:
        return np.asarray(frames @ query.text.sentence_features[0])
    video = query.video
    assert video is not None
    others = video.frame_features[0, : video.num_frames[0]]
    return np.asarray((frames @ others.T).max(axis=-1))
