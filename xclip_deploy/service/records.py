"""The videos of a served gallery, read from one snapshot or from those of all shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.walking import rows_of_videos
from xclip_deploy.runtime.search.numbering import SHIFT, local, numbered
from xclip_deploy.runtime.search.scope import chosen, look_up, names_of

_NO_ROWS: Rows = np.empty(0, np.int64)


class VideoRecords:
    """The videos of a gallery as they were at one moment.

    A row holds the number of its shard, as in searches; rows of one gallery are its own. It is
    safe to use from several threads. Methods raise as those of :class:`Snapshot` do.
    """

    def __init__(self, parts: Sequence[Snapshot], thumbnails: Sequence[Path | None] = ()) -> None:
        """Join snapshots, in the order of shards. ``thumbnails``: folder of each one's pictures."""
        self.parts = tuple(parts)
        self._thumbnails = tuple(thumbnails) or (None,) * len(self.parts)
        self.num_videos = sum(part.num_videos for part in self.parts)

    def __len__(self) -> int:
        """Return the number of rows: of videos, or of their segments."""
        return sum(map(len, self.parts))

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the first row of each of these ids that is there."""
        return self._joined([part.find(ids) for part in self.parts])

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        """Return the first row of each of these SHA-256 of contents that is there."""
        return self._joined([part.find_content(hashes) for part in self.parts])

    def find_video(self, name: str) -> str:
        """Return the id of the video that ``name`` means: see :func:`chosen`."""
        names, file_name = names_of(name)
        matches = [look_up(part, names, file_name) for part in self.parts]
        return chosen(name, matches, self.num_videos)

    def segments(self, ids: Sequence[str]) -> dict[str, Rows]:
        """Return the rows of each of these ids that is there, ordered by segment."""
        found: dict[str, Rows] = {}
        for number, part in enumerate(self.parts):
            for name, rows in part.segments(ids).items():
                found.setdefault(name, numbered(rows, number))
        return found

    def first_rows(self, where: str | None = None) -> Rows:
        """Return the first row of every video, or of those with a row that matches a filter.

        Videos follow their shards and, within one, the order in which they were added.
        """
        rows = [
            numbered(rows_of_videos(part, where), number) for number, part in enumerate(self.parts)
        ]
        return np.concatenate(rows) if rows else _NO_ROWS

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        """Return the records of the videos in ``rows``, in that order."""
        found: dict[int, GalleryVideo] = {}
        for part, places in self._divided(rows):
            videos = part.videos(local(rows[places]))
            found.update(zip(places.tolist(), videos, strict=True))
        return [found[place] for place in range(len(rows))]

    def features(self, rows: Rows) -> VideoFeatures:
        """Return embeddings of the videos in ``rows``, in that order, FP16."""
        divided = list(self._divided(rows))
        if len(divided) <= 1:
            part = divided[0][0] if divided else self.parts[0]
            return part.features(local(rows))
        found = [part.features(local(rows[places])) for part, places in divided]
        places = np.concatenate([places for _, places in divided])
        return VideoFeatures.concatenate(found)[np.argsort(places, kind="stable")]

    def snapshot_of(self, row: int) -> Snapshot:
        """Return the snapshot that holds a row."""
        return self.parts[row >> SHIFT]

    def thumbnails_of(self, row: int) -> Path | None:
        """Return the folder of a row's thumbnail; None without one."""
        return self._thumbnails[row >> SHIFT]

    def _divided(self, rows: Rows) -> Iterator[tuple[Snapshot, Rows]]:
        """Yield each snapshot that holds some of ``rows``, and their places among ``rows``."""
        shards = rows >> SHIFT
        for number in np.unique(shards).tolist():
            yield self.parts[number], np.flatnonzero(shards == number)

    @staticmethod
    def _joined(found: Sequence[dict[str, int]]) -> dict[str, int]:
        # The first shard counts, should two hold one id.
        return {
            name: row + (number << SHIFT)
            for number, part in reversed(list(enumerate(found)))
            for name, row in part.items()
        }
