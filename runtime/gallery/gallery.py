"""The gallery: what goes in is checked, what comes out is a snapshot."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    GalleryModelError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.atomic import replaced_directory
from xclip_deploy.runtime.features import VideoFeatures, check_finite
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.gallery.records import GalleryVideo, check_metadata, check_texts
from xclip_deploy.runtime.gallery.store import KEEP_VERSIONS, GalleryStore, Snapshot
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.progress import ProgressFunction, ignore_progress

if TYPE_CHECKING:
    from xclip_deploy.runtime.gallery.lance_snapshot import SearchLimits

_SAVE_VIDEOS = 4096
_REINDEX = "xclip-deploy index VIDEOS --gallery {path}"


class Gallery:
    """Videos with their embeddings, all made by one model.

    Embeddings are kept in FP16: the scorer casts them up before it multiplies, so that search
    loses nothing that FP16 rounding of a unit vector does not. Safe to use from several
    threads. What this object writes is in the next :meth:`snapshot`; what other processes write,
    after :meth:`refresh`.
    """

    def __init__(self, manifest: Manifest, store: GalleryStore | None = None) -> None:
        """Use ``store``, or start an empty gallery in memory, for the model of ``manifest``."""
        self._fingerprint = manifest.fingerprint
        self._frames = manifest.model.max_frames
        self._dim = manifest.model.embed_dim
        if store is None:
            store = MemoryStore(self._dim, self._frames)
        self._store: GalleryStore = store

    @classmethod
    def open(
        cls,
        uri: str | Path,
        manifest: Manifest,
        *,
        create: bool = False,
        limits: SearchLimits | None = None,
    ) -> Gallery:
        """Open a gallery that is kept in LanceDB: a directory, or a URI that LanceDB opens.

        ``create``: whether to make it where there is none. ``limits``: what searches may keep in
        memory. Raises GalleryNotFoundError, GalleryVersionError, GalleryIntegrityError,
        GalleryModelError for features of another model.
        """
        from xclip_deploy.runtime.gallery.lance_store import open_store  # LanceDB takes a second

        store = open_store(
            uri,
            manifest.fingerprint,
            manifest.model.embed_dim,
            manifest.model.max_frames,
            create=create,
            limits=limits,
        )
        _check_model(f"gallery {store.uri}", store.header.fingerprint, manifest)
        return cls(manifest, store)

    @property
    def uri(self) -> str | None:
        """Where the gallery is; None in memory."""
        return self._store.uri

    def check_model(self, manifest: Manifest) -> None:
        """Raise GalleryModelError unless the features are of the model of ``manifest``."""
        _check_model("the gallery", self._fingerprint, manifest)

    def __len__(self) -> int:
        return len(self.snapshot())

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and bool(self.snapshot().find([video_id]))

    def snapshot(self) -> Snapshot:
        """Everything in the gallery now, as it stays whatever is written later."""
        return self._store.snapshot()

    def refresh(self) -> None:
        """See what other processes wrote. Raises GalleryError."""
        self._store.refresh()

    def warm_up(self) -> None:
        """Read into memory what makes searches faster, as far as :class:`SearchLimits` allows.

        Holds until the gallery changes. Raises GalleryIntegrityError for a damaged file.
        """
        self.snapshot().warm_up()

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other writers out while several reads and writes belong together."""
        return self._store.exclusive()

    def add(
        self,
        videos: Sequence[GalleryVideo],
        features: VideoFeatures,
        *,
        replace: bool = False,
    ) -> None:
        """Add encoded videos, all or none.

        ``replace``: whether they take the place of videos with the same ids. Raises
        DuplicateIdError for an id twice among ``videos`` or, without ``replace``, in the
        gallery; MetadataError; InvalidArgumentError for features of other shapes, or not finite.
        """
        self._check(videos, features)
        features = _half(features)
        _check_unique([video.id for video in videos])
        _check_records(videos)
        if videos:
            self._store.put(videos, features, replace=replace)

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        """Change what is known of videos, metadata say; embeddings stay.

        Raises GalleryError for an id that is not there, MetadataError.
        """
        _check_unique([video.id for video in videos])
        _check_records(videos)
        if videos:
            self._store.update(videos)

    def remove(self, ids: Collection[str]) -> None:
        """Remove videos, all or none. Raises GalleryError for an id that is not there."""
        if not ids:
            return
        with self._store.exclusive():
            found = self.snapshot().find(list(ids))
            if unknown := sorted(set(ids) - set(found)):
                raise GalleryError(f"no video {unknown[0]!r} in the gallery")
            self._store.remove(ids)

    def check_new(self, ids: Sequence[str]) -> None:
        """Raise DuplicateIdError for an id in the gallery, or twice in ``ids``."""
        _check_unique(ids)
        if found := self.snapshot().find(ids):
            raise DuplicateIdError(
                f"a video {min(found)!r} is already in the gallery; "
                "add it under another id, or pass on_duplicate='skip' or 'replace'"
            )

    def optimize(
        self,
        progress: ProgressFunction | None = None,
        *,
        keep_s: float = KEEP_VERSIONS.total_seconds(),
    ) -> None:
        """Put small files together and, from 50,000 videos on, build or extend the index.

        ``progress``: called with what is being done in ``note``. ``keep_s``: what was replaced
        longer ago is removed from disk; searches that began before then fail, in other
        processes those that did not refresh since. Raises GalleryError.
        """
        if keep_s < 0:
            raise InvalidArgumentError(f"keep_s is {keep_s}: expected 0 or more seconds")
        self._store.optimize(progress or ignore_progress, timedelta(seconds=keep_s))

    def save(self, path: str | Path) -> None:
        """Write a copy to a directory, in one step: an interrupted save leaves the old one.

        Where a gallery is replaced, those who have it open can read on after :meth:`refresh`.
        Raises GalleryError where ``path`` holds something else or cannot be written, or is where
        this gallery is kept.
        """
        path = Path(path)
        from xclip_deploy.runtime.gallery.lance_store import kept_from_writers, open_store

        if self.uri is not None and Path(self.uri) == path.resolve():
            raise GalleryError(f"{path} is this gallery itself, where every change is kept at once")
        if path.exists() and not _may_replace(path):
            raise GalleryError(f"{path} is no gallery and not empty; choose another path")
        snapshot = self.snapshot()
        try:
            with kept_from_writers(path), replaced_directory(path) as directory:
                store = open_store(
                    directory, self._fingerprint, self._dim, self._frames, create=True
                )
                for rows, features in snapshot.scan(_SAVE_VIDEOS):
                    store.put(snapshot.videos(rows), features, replace=False)
                store.close()
        except OSError as error:
            raise GalleryError(
                f"gallery {path} cannot be written ({error.strerror}); what was there stands"
            ) from error

    def close(self) -> None:
        """Let go of files and memory."""
        self._store.close()

    def _check(self, videos: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        shapes = {
            "video_features": (len(videos), self._dim),
            "frame_features": (len(videos), self._frames, self._dim),
            "num_frames": (len(videos),),
        }
        for name, expected in shapes.items():
            found = getattr(features, name).shape
            if found != expected:
                raise InvalidArgumentError(
                    f"{name} has shape {list(found)}, expected {list(expected)} "
                    f"for {len(videos)} videos"
                )
        for video, count in zip(videos, features.num_frames, strict=True):
            if not 1 <= count <= self._frames or len(video.frame_times_s) != count:
                raise InvalidArgumentError(
                    f"video {video.id!r} has num_frames {count} and "
                    f"{len(video.frame_times_s)} frame times, expected the same, "
                    f"1 to {self._frames}"
                )


def _half(features: VideoFeatures) -> VideoFeatures:
    with np.errstate(over="ignore"):  # what does not fit becomes infinity, and is refused
        half = VideoFeatures(
            features.video_features.astype(np.float16),
            features.frame_features.astype(np.float16),
            features.num_frames.astype(np.int32),
        )
    check_finite("video_features", half.video_features)
    check_finite("frame_features", half.frame_features)
    return half


def _check_unique(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for video_id in ids:
        if video_id in seen:
            raise DuplicateIdError(f"the id {video_id!r} is given to two videos")
        seen.add(video_id)


def _check_records(videos: Sequence[GalleryVideo]) -> None:
    for video in videos:
        check_texts(video)
        check_metadata(video.metadata)  # model_copy() has not


def _check_model(gallery: str, fingerprint: str, manifest: Manifest) -> None:
    if fingerprint != manifest.fingerprint:
        raise GalleryModelError(
            f"{gallery} holds features of model {fingerprint[:12]}…, the bundle "
            f"is model {manifest.fingerprint[:12]}…; run: {_REINDEX.format(path='NEW_GALLERY')}"
        )


def _may_replace(path: Path) -> bool:
    if not path.is_dir():
        return False
    is_gallery = (path / "videos.lance").is_dir() or (path / "gallery.json").is_file()
    return is_gallery or not any(path.iterdir())
