"""The gallery: it opens a store, checks input and writes."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from weakref import ref

from xclip_deploy.errors import GalleryError, InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_callback,
    as_instance,
    as_number,
    as_path,
    as_sequence,
    as_text,
    as_texts,
    as_truth,
    as_whole_number,
    shown,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.checking import (
    check_frame_times,
    check_manifest,
    check_model,
    check_records,
    check_segments,
    check_unique_ids,
    checked_features,
)
from xclip_deploy.runtime.gallery.lance_errors import require_packages
from xclip_deploy.runtime.gallery.readable import ReadableGallery
from xclip_deploy.runtime.gallery.records import (
    NO_ROWS,
    TYPE_NAMES,
    GalleryVideo,
    as_segment_of,
    check_metadata,
)
from xclip_deploy.runtime.gallery.reports import Verification
from xclip_deploy.runtime.gallery.store import (
    KEEP_VERSIONS,
    AdditionWatcher,
    FeatureModel,
    GalleryStore,
    SearchLimits,
)
from xclip_deploy.runtime.gallery.walking import keep_thumbnails, save_copy
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.progress import ProgressFunction, ignore_progress
from xclip_deploy.runtime.video.segmentation import Segmentation

_MOST_S = 1e9
_MOST_VERSIONS = 1 << 62


class Gallery(ReadableGallery):
    """Videos with their embeddings, all made by one model.

    Embeddings are kept in FP16. The scorer casts them to FP32 before it multiplies, so a search
    loses no more than FP16 rounding of a unit vector. It is safe to use from several threads. The
    next :meth:`snapshot` holds the writes of this object, and those of other processes after
    :meth:`refresh`.
    """

    def __init__(
        self, manifest: Manifest | FeatureModel, store: GalleryStore | None = None
    ) -> None:
        """Use ``store``, or start an empty gallery in memory, for the model of ``manifest``."""
        super().__init__(manifest, store)
        self._watchers: tuple[ref[AdditionWatcher], ...] = ()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        uri: PathName,
        manifest: Manifest | None = None,
        *,
        create: bool = False,
        limits: SearchLimits | None = None,
        version: int | None = None,
    ) -> Gallery:
        """Open a gallery in LanceDB: a directory, or a URI that LanceDB opens.

        Args:
            uri: The location.
            manifest: The manifest of the features' model; None accepts any model.
            create: Whether to make a gallery if there is none. This needs ``manifest``.
            limits: How much searches may keep in memory.
            version: The version to stay at, which nothing can be written to; None follows the
                newest. :attr:`version` tells that of an open gallery.

        Raises GalleryNotFoundError, GalleryVersionError, GalleryIntegrityError,
        InvalidArgumentError, GalleryModelError for features of another model, and
        MissingExtraError without LanceDB and PyArrow (extra ``gallery``).
        """
        if manifest is not None:
            check_manifest(manifest)
        as_truth("create", create)
        if version is not None:
            version = as_whole_number("version", version, 1, _MOST_VERSIONS)
            if create:
                raise InvalidArgumentError("create makes a new gallery; expected it or version")
        require_packages()
        # LanceDB takes a second to import.
        from xclip_deploy.runtime.gallery.lance_opening import open_existing_store, open_store

        if limits is not None:
            as_instance("limits", limits, SearchLimits, "SearchLimits or None")
        as_path("gallery", uri)
        # A path would make file:/x of file:///x.
        place = uri if isinstance(uri, str) else Path(uri)
        if manifest is None:
            if create:
                raise InvalidArgumentError("create needs a manifest; expected that of a bundle")
            existing = open_existing_store(place, limits, version)
            return cls(existing.model, existing)
        store = open_store(
            place,
            manifest.fingerprint,
            manifest.model.embed_dim,
            manifest.model.max_frames,
            create=create,
            limits=limits,
            version=version,
        )
        check_model(f"gallery {store.uri}", store.header.fingerprint, manifest)
        return cls(manifest, store)

    def declare(self, types: Mapping[str, type]) -> None:
        """Make metadata fields known, so that filters can name them before a video has them.

        Fields that are known keep their types. ``types``: ``bool``, ``int``, ``float`` or ``str``
        by name. Raises GalleryError, and MetadataError for a name that no gallery can hold.
        """
        as_instance("types", types, Mapping, "a mapping of names to types")
        for name, kind in types.items():
            if kind not in TYPE_NAMES:
                raise InvalidArgumentError(
                    f"the type of field {name!r:.100} is {shown(kind)}; expected bool, int, float "
                    "or str"
                )
        check_metadata({name: kind() for name, kind in types.items()})
        if types:
            self._store.declare(types)

    def exclusive(self) -> AbstractContextManager[None]:
        """Lock out other writers while several reads and writes belong together."""
        return self._store.exclusive()

    def add(
        self,
        videos: Sequence[GalleryVideo],
        features: VideoFeatures,
        *,
        replace: bool = False,
    ) -> None:
        """Add encoded videos, all or none.

        A video in segments comes with all of them, one record each. ``replace``: whether to
        overwrite videos with the same ids. Raises DuplicateIdError for an id twice among ``videos``
        or, without ``replace``, in the gallery. Raises MetadataError, GallerySegmentationError for
        videos that are cut in another way than the gallery's, and InvalidArgumentError for features
        of other shapes, not finite or not of unit length.
        """
        as_truth("replace", replace)
        given: list[GalleryVideo] = list(as_sequence("videos", videos, "GalleryVideo"))
        check_records(given)
        check_segments(given)
        ids, counts = [v.id for v in given], [len(v.frame_times_s) for v in given]
        features = checked_features(ids, counts, features, self._frames, self._dim)
        if given:
            with self._store.exclusive():
                for text in dict.fromkeys(video.segmentation for video in given):
                    if text is not None:
                        self.check_segmentation(Segmentation.from_text(text))
                keys = self._store.put(given, features, replace=replace)
            for reference in self._watchers:
                if (watcher := reference()) is not None:
                    watcher.added(keys, features)

    def watch(self, watcher: AdditionWatcher) -> None:
        """Tell ``watcher`` of every later :meth:`add` of this object, as long as it lives.

        Raises InvalidArgumentError for an object without the method ``added``.
        """
        if not callable(getattr(watcher, "added", None)):
            raise InvalidArgumentError(f"watcher is {shown(watcher)}; expected an AdditionWatcher")
        with self._lock:
            living = [each for each in self._watchers if each() is not None]
            self._watchers = (*living, ref(watcher))

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        """Replace the records of videos, such as their metadata, and keep the embeddings.

        All segments of a video get the id, files, duration and metadata of its record here.

        Raises GalleryError for an id that is not there, MetadataError, and InvalidArgumentError
        for more or fewer frame times than the video has.
        """
        given: list[GalleryVideo] = list(as_sequence("videos", videos, "GalleryVideo"))
        check_records(given)
        check_unique_ids([video.id for video in given])
        if not given:
            return
        with self._store.exclusive():
            snapshot = self.snapshot()
            is_cut = snapshot.groups() is not None
            long = snapshot.segments([video.id for video in given]) if is_cut else {}
            rows: list[GalleryVideo] = []
            for video in given:
                stored = long.get(video.id, NO_ROWS)
                segments = snapshot.videos(stored) if len(stored) > 1 else [video]
                rows += [as_segment_of(segment, video) for segment in segments]
            check_frame_times([row for row in rows if row.num_segments == 1], snapshot)
            self._store.update(rows)

    def remove(self, ids: str | Collection[str] | None = None, *, where: str | None = None) -> int:
        """Remove videos, all or none: those with ``ids``, or those that match a filter.

        Returns the number of removed videos. Raises GalleryError for an id that is not there.
        Raises InvalidArgumentError for an invalid filter, and unless exactly one argument is given.
        """
        if (ids is None) == (where is None):
            raise InvalidArgumentError("remove takes ids or where; expected one of the two")
        with self._store.exclusive():
            snapshot = self.snapshot()
            if where is not None:
                rows = snapshot.matching(as_text("where", where))
                names = [video.id for video in snapshot.videos(rows)]
            else:
                names = [ids] if isinstance(ids, str) else as_texts("ids", ids)
                found = snapshot.find(names)
                if unknown := sorted(set(names) - set(found)):
                    raise GalleryError(f"no video {unknown[0]!r:.200} in the gallery")
            return self._store.remove(list(dict.fromkeys(names))) if names else 0

    def optimize(
        self,
        progress: ProgressFunction | None = None,
        *,
        keep_s: float = KEEP_VERSIONS.total_seconds(),
    ) -> None:
        """Merge small files and, from 50,000 videos on, build or extend the index.

        Thumbnails older than a day that no segment has any more are deleted.

        ``progress``: called with the current step in ``note``. ``keep_s``: versions that were
        replaced longer ago are deleted from disk. Searches that began before then fail; in other
        processes, those without a refresh since. Raises GalleryError.
        """
        as_callback("progress", progress)
        keep_s = as_number("keep_s", keep_s, 0, _MOST_S)
        self._store.optimize(progress or ignore_progress, timedelta(seconds=keep_s))
        if self.thumbnails is not None and self.thumbnails.is_dir():
            keep_thumbnails(self.snapshot(), self.thumbnails)

    def verify(self, progress: ProgressFunction | None = None) -> Verification:
        """Read the whole gallery and compare it with its checksums.

        The result names damaged videos and files. ``progress``: called with the videos read so
        far. Raises GalleryIntegrityError for damage that leaves nothing to read.
        """
        as_callback("progress", progress)
        return self._store.verify(progress or ignore_progress)

    def save(self, path: PathName) -> None:
        """Write a copy to a directory in one step: an interrupted save leaves the old content.

        If it replaces a gallery, processes that have that open can read on after :meth:`refresh`.
        Raises GalleryError if ``path`` is this gallery itself, holds something else or cannot be
        written.
        """
        save_copy(self.snapshot(), self.model, self.uri, as_path("path", path))
