"""Reading of the features that a resident gallery lacks, in parts of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from xclip_deploy.runtime.arrays import AnyArray, Int64Array, slices
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.records import Rows

READ_ROWS = 2048
"""Rows that are read from the store and uploaded at a time."""


def read_missing(
    snapshot: Snapshot, rows: Rows, missing: Int64Array, *, with_frames: bool
) -> Iterator[tuple[Rows, Mapping[str, AnyArray]]]:
    """Yield the features of ``rows[missing]`` in parts, by name.

    Many missing rows are read in one pass over the gallery, few by their numbers. ``rows``: all
    rows, ascending. ``with_frames``: whether to read more than ``video_features``. Raises
    GalleryError.
    """
    if not with_frames:
        for part in slices(len(missing), READ_ROWS):
            some = rows[missing[part]]
            yield some, {"video_features": snapshot.video_features(some)}
    elif 2 * len(missing) < len(rows):
        for part in slices(len(missing), READ_ROWS):
            some = rows[missing[part]]
            yield some, vars(snapshot.features(some))
    else:
        is_missing = np.zeros(len(rows), np.bool_)
        is_missing[missing] = True
        for some, features in snapshot.scan(READ_ROWS):
            wanted = np.flatnonzero(is_missing[np.searchsorted(rows, some)])
            if len(wanted):
                yield some[wanted], vars(features[wanted])
