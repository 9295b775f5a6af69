"""The actor that reads and encodes videos, and returns their features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.cluster.actors import ActorOptions, bundle_of_model
from xclip_deploy.runtime.cluster.routing import shard_of
from xclip_deploy.runtime.gallery import Gallery, VideoFile
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore
from xclip_deploy.runtime.indexing.claims import ContentFilter, Elsewhere
from xclip_deploy.runtime.indexing.records import EncodedVideo, SegmentTimes, SourceVideo
from xclip_deploy.runtime.video import VideoReader
from xclip_deploy.runtime.video.segmentation import Segmentation


@dataclass(frozen=True)
class EncoderOptions:
    """Settings by which the actors of one run read and encode."""

    fingerprint: str
    """Fingerprint of the model, which the bundle of every machine must be of."""
    segmentation: Segmentation
    reader: VideoReader = "pyav"
    workers: int | None = None
    """Processes that decode in each actor; None takes one for each of its cores."""
    timeout_s: float = 120.0
    thumbnails: tuple[str, ...] | None = None
    """Folder of each shard's thumbnails; None makes none."""


@dataclass(frozen=True, eq=False)
class EncodedFile:
    """One file that was read."""

    file: VideoFile
    content_sha256: str
    encoded: EncodedVideo | None
    """Features; None where the gallery or another file of the part has the same content."""


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """The outcome of the files that one task of an actor read."""

    files: tuple[EncodedFile, ...]
    failed: tuple[tuple[str, str], ...]
    """Path and reason of each file that could not be read."""
    warnings: tuple[tuple[str, str], ...]
    """Path and fault of each file that was read all the same."""


class ShardThumbnails(ThumbnailStore):
    """Thumbnails in the folder of the shard that their content belongs to."""

    def __init__(self, directories: Sequence[str]) -> None:
        """Use the folder of each shard."""
        super().__init__(Path(directories[0]))
        self._stores = [ThumbnailStore(directory) for directory in directories]

    def put(self, key: str, rgb: npt.NDArray[np.uint8]) -> bool:
        """Write a thumbnail in its shard's folder; see :class:`ThumbnailStore`."""
        store = self._stores[shard_of(key, len(self._stores))]
        is_there = store.put(key, rgb)
        self.warning = self.warning or store.warning
        return is_there


class EncoderActor:
    """A reader and encoder of videos. Frames stay in its process and its decoders'."""

    def __init__(self, bundle: str, actors: ActorOptions, options: EncoderOptions) -> None:
        """Open the bundle, and start the decoders."""
        from xclip_deploy.runtime.decoding import DecoderPool
        from xclip_deploy.runtime.deployed_model import DeployedModel

        opened = bundle_of_model(bundle, options.fingerprint)
        self._manifest = opened.manifest
        self._reading = opened.manifest.video_reading(options.reader)
        self._model = DeployedModel(opened, actors.session)
        self._options = options
        self._stored = ContentFilter()
        workers = options.workers or max(1, int(actors.num_cpus))
        self._pool: DecoderPool[Any] = DecoderPool(
            self._reading, workers=workers, timeout_s=options.timeout_s
        )

    def ping(self) -> int:
        """Return the number of the process, once the actor is ready."""
        return os.getpid()

    def encode(
        self,
        paths: Sequence[str],
        read: npt.NDArray[np.uint64],
        stored: ContentFilter | None = None,
        *,
        is_forced: bool = False,
    ) -> EncodedPart:
        """Read and encode files; what cannot be read is reported in the result.

        A file whose content the shards hold, or another actor read, is hashed alone. ``read``: the
        contents that others read since the last call, each by its ``prefix_of``. ``stored``: those
        that the shards hold, in the first call. ``is_forced``: whether to decode every file all the
        same.
        """
        from xclip_deploy.runtime.indexing import Sources, add_sources

        folders = self._options.thumbnails
        gallery = Gallery(self._manifest)
        self._stored = stored or self._stored
        self._stored.update(read)
        elsewhere = Elsewhere(ContentFilter() if is_forced else self._stored)
        report = add_sources(
            gallery,
            self._model,
            self._reading,
            Sources([SourceVideo(path) for path in paths]),
            segmentation=self._options.segmentation,
            on_duplicate="update",
            prune=False,
            thumbnails=None if folders is None else ShardThumbnails(folders),
            workers=None,
            timeout_s=self._options.timeout_s,
            progress=lambda _progress: None,
            pool=self._pool,
            elsewhere=elsewhere,
        )
        hashed = (
            EncodedFile(item.file, item.content_sha256, None)
            for item in elsewhere.files
            if item.content_sha256 is not None
        )
        return EncodedPart(
            (*_encoded_files(gallery), *hashed),
            tuple((failed.path, failed.reason) for failed in report.failed),
            tuple((fault.path, fault.reason) for fault in report.warnings),
        )


def _encoded_files(gallery: Gallery) -> list[EncodedFile]:
    """Return the files of a gallery in memory, with the features of each video once."""
    snapshot = gallery.snapshot()
    found = []
    for video in gallery:
        rows = snapshot.segments([video.id])[video.id]
        times = [
            SegmentTimes(row.start_s or 0.0, row.end_s or 0.0, row.frame_times_s)
            for row in snapshot.videos(rows)
        ]
        assert video.content_sha256 is not None
        assert video.duration_s is not None
        encoded = EncodedVideo(
            video.duration_s, tuple(times), snapshot.features(rows), video.segmentation
        )
        for n, file in enumerate(video.files):
            found.append(EncodedFile(file, video.content_sha256, None if n else encoded))
    return found
