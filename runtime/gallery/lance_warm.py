"""Features of a gallery that is too large for memory: videos there, frames on disk."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from xclip_deploy.runtime.arrays import FloatArray, slices
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.checksums import Part, Words, vector_checksums
from xclip_deploy.runtime.gallery.lance_pages import PagedColumn
from xclip_deploy.runtime.gallery.lance_reader import Columns, RowReader
from xclip_deploy.runtime.gallery.lance_schema import matrix_of
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.row_places import RowPlaces

_FRAMES = "frame_features"


class WarmFeatures:
    """``video_features`` and the checksums of the frames in memory, and the frames' places."""

    def __init__(self, reader: RowReader, gallery: Path | None, version: int) -> None:
        """Read all videos. ``gallery``: its directory; None in object storage."""
        self._reader = reader
        self._columns: Columns = reader.read_all(Part.VIDEO, sums_of=[Part.FRAMES])
        self._places = RowPlaces(self._columns.rows)
        self._dim: int = reader.schema.field("video_features").type.list_size
        values: int = reader.schema.field(_FRAMES).type.list_size
        self._shape = values // self._dim, self._dim
        self.pages: PagedColumn | None = None
        """Places of the frames; None where LanceDB reads them."""
        if gallery is not None:
            self.pages = PagedColumn.open(gallery, version, _FRAMES, 2 * values)

    def videos(self, rows: Rows) -> FloatArray:
        """Return ``video_features`` of existing rows, in their order."""
        vectors: FloatArray = self._columns.values["video_features"][self._places.of(rows)]
        return vectors

    def features(self, rows: Rows) -> VideoFeatures:
        """Return all features of existing rows. Raises GalleryIntegrityError."""
        places, values = self._places.of(rows), self._columns.values
        frames = self._frames(rows, values[Part.FRAMES.value][places])
        return VideoFeatures(
            values["video_features"][places],
            frames.reshape(len(rows), *self._shape),
            values["num_frames"][places],
        )

    def scan(self, num_videos: int) -> Iterator[tuple[Rows, VideoFeatures]]:
        """Yield all rows, ascending, in parts of at most ``num_videos``.

        A thread reads the next part, so that reading overlaps with what the caller does. Two
        parts are in memory. Raises GalleryIntegrityError.
        """
        rows = self._columns.rows
        parts = [rows[part] for part in slices(len(rows), num_videos)]
        with ThreadPoolExecutor(1, thread_name_prefix="xclip-deploy-scan") as pool:
            ahead = [pool.submit(self.features, part) for part in parts[:1]]
            for part, following in zip_longest(parts, parts[1:]):
                found = ahead.pop().result()
                if following is not None:
                    ahead.append(pool.submit(self.features, following))
                yield part, found

    def _frames(self, rows: Rows, sums: Words) -> Any:  # noqa: ANN401 - PyArrow has no types
        """Return the frames of rows [n, F * D]; ``sums``: their checksums."""
        pages = self.pages
        found = None if pages is None else pages.read(rows)
        if found is not None:
            frames = found.view(np.float16)
            if np.array_equal(vector_checksums(frames, _FRAMES), sums):
                return frames
            # LanceDB tells damage from pages that lie in another way.
            self.pages = None
        return matrix_of(self._reader.take(rows, [Part.FRAMES], {Part.FRAMES: sums}), _FRAMES)
