"""The reading half of a gallery: properties, snapshots and listings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from xclip_deploy.errors import (
    ClosedError,
    DuplicateIdError,
    GalleryError,
    GallerySegmentationError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.arguments import (
    as_instance,
    as_text,
    as_texts,
    as_whole_number,
    shown,
)
from xclip_deploy.runtime.gallery.checking import check_manifest, check_model, check_unique_ids
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.gallery.records import NO_ROWS, GalleryVideo
from xclip_deploy.runtime.gallery.reports import GalleryStats
from xclip_deploy.runtime.gallery.store import FeatureModel, GalleryStore, Snapshot
from xclip_deploy.runtime.gallery.walking import THUMBNAILS, pages, rows_of_videos, summarize
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.video.segmentation import Segmentation

_MOST_VIDEOS = 1 << 40


class ReadableGallery:
    """A gallery's videos, without the methods that change them; :class:`Gallery` adds those."""

    def __init__(
        self, manifest: Manifest | FeatureModel, store: GalleryStore | None = None
    ) -> None:
        """Use ``store``, or start an empty gallery in memory, for the model of ``manifest``."""
        if not isinstance(manifest, FeatureModel):
            check_manifest(manifest)
        if store is not None and not callable(getattr(store, "snapshot", None)):
            raise InvalidArgumentError(f"store is {shown(store)}; expected a GalleryStore or None")
        model = manifest if isinstance(manifest, FeatureModel) else manifest.model
        self._fingerprint = manifest.fingerprint
        self._frames = model.max_frames
        self._dim = model.embed_dim
        if store is None:
            store = MemoryStore(self._dim, self._frames)
        self._open_store: GalleryStore = store
        self._is_closed = False

    @property
    def uri(self) -> str | None:
        """Location of the gallery; None in memory."""
        return self._open_store.uri

    @property
    def version(self) -> int | None:
        """Number of the version that snapshots read; None in memory.

        Each write makes a new one, and :meth:`optimize` deletes old ones.
        """
        return self._store.version

    @property
    def fields(self) -> dict[str, type]:
        """Type of every metadata field, by name."""
        return self._store.fields()

    @property
    def thumbnails(self) -> Path | None:
        """Folder of the segments' thumbnails; None in memory and in object storage."""
        uri = self._open_store.uri
        return None if uri is None or "://" in uri else Path(uri, THUMBNAILS)

    @property
    def model(self) -> FeatureModel:
        """The model that makes the embeddings."""
        return FeatureModel(self._fingerprint, self._dim, self._frames)

    def check_model(self, manifest: Manifest) -> None:
        """Raise GalleryModelError unless the features are of the model of ``manifest``."""
        check_manifest(manifest)
        check_model("the gallery", self._fingerprint, manifest)

    @property
    def segmentation(self) -> Segmentation | None:
        """The policy by which its videos are cut; None until the first video that has one."""
        text = self.snapshot().segmentation
        return None if text is None else Segmentation.from_text(text)

    def check_segmentation(self, wanted: Segmentation) -> None:
        """Raise GallerySegmentationError unless videos are cut as ``wanted``, or none is yet."""
        as_instance("wanted", wanted, Segmentation, "a Segmentation")
        found = self.segmentation
        if found is not None and found != wanted:
            raise GallerySegmentationError(
                f"gallery {self.uri or 'in memory'} holds {_cut(found)}, not {_cut(wanted)}; run: "
                f"xclip-deploy index VIDEOS --gallery NEW_GALLERY {wanted.options}"
            )

    def __len__(self) -> int:
        """Return the number of videos; a long one in segments counts once."""
        return self.snapshot().num_videos

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and bool(self.snapshot().find([video_id]))

    def snapshot(self) -> Snapshot:
        """Return the gallery as it is now; later writes do not change the snapshot."""
        return self._store.snapshot()

    def refresh(self) -> None:
        """Load the changes of other processes. Raises GalleryError."""
        self._store.refresh()

    def warm_up(self) -> None:
        """Load what makes searches faster, within :class:`SearchLimits`.

        The effect lasts until the gallery changes. Raises GalleryIntegrityError for a damaged file.
        """
        self.snapshot().warm_up()

    def count(self, where: str | None = None) -> int:
        """Count all videos, or those that match a filter."""
        snapshot = self.snapshot()
        return snapshot.num_videos if where is None else len(rows_of_videos(snapshot, where))

    def videos(
        self, where: str | None = None, *, offset: int = 0, limit: int | None = None
    ) -> list[GalleryVideo]:
        """List videos with their metadata, in the order in which they were added.

        A long video is listed by its first segment; :meth:`segments` lists all of them. A filter
        finds a video that has a matching segment.

        ``where``: a filter, as for searches. ``offset``: number of videos to skip. ``limit``: most
        videos to list, None for all. Raises InvalidArgumentError, GalleryError.
        """
        start = as_whole_number("offset", offset, 0, _MOST_VIDEOS)
        stop = None if limit is None else start + as_whole_number("limit", limit, 0, _MOST_VIDEOS)
        snapshot = self.snapshot()
        return snapshot.videos(rows_of_videos(snapshot, where)[start:stop])

    def get(self, video_id: str) -> GalleryVideo:
        """Return one video with its metadata. Raises GalleryError if it is not there."""
        snapshot = self.snapshot()
        found = snapshot.find([as_text("video_id", video_id)])
        if video_id not in found:
            raise GalleryError(f"no video {video_id!r:.200} in the gallery of {len(self)}")
        return snapshot.videos(np.array([found[video_id]], np.int64))[0]

    def segments(self, video_id: str) -> list[GalleryVideo]:
        """List the segments of a video in order. Raises GalleryError if it is not there."""
        self.get(video_id)
        snapshot = self.snapshot()
        return snapshot.videos(snapshot.segments([video_id]).get(video_id, NO_ROWS))

    def __iter__(self) -> Iterator[GalleryVideo]:
        """Yield all videos as :meth:`videos` lists them, read a page at a time."""
        snapshot = self.snapshot()
        yield from pages(snapshot, rows_of_videos(snapshot, None))

    def stats(self) -> GalleryStats:
        """Summarize the gallery in one pass. Raises GalleryError."""
        return summarize(self.snapshot(), self.model, self.uri, self._store.size_bytes())

    def check_new(self, ids: Sequence[str]) -> None:
        """Raise DuplicateIdError for an id in the gallery, or twice in ``ids``."""
        ids = as_texts("ids", ids)
        check_unique_ids(ids)
        if found := self.snapshot().find(ids):
            raise DuplicateIdError(
                f"a video {min(found)!r:.200} is already in the gallery; "
                "add it under another id, or pass on_duplicate='skip' or 'replace'"
            )

    def close(self) -> None:
        """Release files and memory. Using the gallery afterwards raises ClosedError."""
        self._is_closed = True
        self._open_store.close()

    def __repr__(self) -> str:
        where = "in memory" if self.uri is None else f"at {self.uri!r}"
        if self._is_closed:
            return f"<{type(self).__name__} {where}, closed>"
        videos = "1 video" if len(self) == 1 else f"{len(self)} videos"
        return f"<{type(self).__name__} {where}, {videos}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "a Gallery cannot be pickled or copied; open it in the worker, by its path, or save() "
            "it first if it is in memory"
        )

    @property
    def _store(self) -> GalleryStore:
        if self._is_closed:
            raise ClosedError(f"this gallery ({self.uri or 'in memory'}) is closed; open it again")
        return self._open_store


def _cut(segmentation: Segmentation) -> str:
    return "whole videos" if segmentation.kind == "whole" else segmentation.text
