"""The similarity of a query to the single frames of the rows on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

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
        parts: Iterable[tuple[npt.NDArray[np.intp], FloatArray]],
        times_s: Mapping[int, tuple[float, ...]],
    ) -> None:
        """Compare a query with the frames of ``rows``.

        ``parts``: places in ``rows`` and the frames [n, F, D] of the rows there. ``times_s``: times
        of the valid frames of each row, seconds.
        """
        self.times_s = times_s
        self.values: dict[int, list[float]] = {}
        """Similarities of the valid frames of each row. The curves of a few dozen frames are
        computed faster on lists."""
        self.best_time_s: dict[int, float] = {}
        """Time of the most similar frame of each row, seconds."""
        for places, features in parts:
            frames = to_float32(features)
            # One call: NumPy multiplies each row by itself, with the bits of a single product.
            found = _compare(query, frames)  # [n, F]
            best = first_best_each(found).tolist()
            for n, (place, values) in enumerate(zip(places.tolist(), found.tolist(), strict=True)):
                row = rows[place]
                times = times_s[row]
                if len(times) < len(values):
                    valid = _compare(query, frames[n, : len(times)])
                    best[n], values = first_best(valid), valid.tolist()
                self.values[row], self.best_time_s[row] = values, times[best[n]]


def _compare(query: Query, frames: Float32Array) -> Float32Array:
    """Return the similarity [..., F] of frames [..., F, D]."""
    if query.text is not None:
        return np.asarray(frames @ query.text.sentence_features[0])
    video = query.video
    assert video is not None
    others = video.frame_features[0, : video.num_frames[0]]
    return np.asarray((frames @ others.T).max(axis=-1))
