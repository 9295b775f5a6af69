"""The protocols that a database implements to hold a gallery."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import GalleryVideo, Rows
from xclip_deploy.runtime.gallery.reports import Verification
from xclip_deploy.runtime.progress import ProgressFunction

QueryVectors: TypeAlias = npt.NDArray[np.floating[Any]]
"""Vectors to compare with ``video_features``, [Q, D]."""
FeatureKeys: TypeAlias = npt.NDArray[np.uint64]
"""Keys that tell rows apart by their features, [N, 2]."""
KEEP_VERSIONS = timedelta(hours=1)
"""Time after a change for which older snapshots stay readable."""
NearestMethod = Literal["flat", "index"]


@dataclass(frozen=True)
class SearchLimits:
    """Limits of searches without an index, and of memory.

    The defaults suit a machine with a few gigabytes to spare for a gallery.
    """

    flat_videos: int = 50_000
    """Largest gallery that is searched in full although it has an index."""
    flat_bytes: int = 512 << 20
    """Most memory for ``video_features`` in FP32; beyond it LanceDB reads them at each search."""
    held_bytes: int = 1536 << 20
    """Most memory for all features in FP16; beyond it each exact search reads them from disk."""
    warm_bytes: int = 1536 << 20
    """Most memory for ``video_features`` in FP16 alone. A warmed-up gallery keeps them if all
    features exceed ``held_bytes``."""
    listing_bytes: int = 512 << 20
    """Most memory for the records of all videos, which a warmed-up gallery keeps."""
    partitions: float = 0.1
    """Share of the index's partitions that a query reads."""
    min_partitions: int = 20
    """Least partitions that a query reads."""
    index_from: int = 50_000
    """Number of videos from which ``optimize`` builds an index."""


@dataclass(frozen=True)
class FeatureModel:
    """Properties of the model that made a gallery's embeddings."""

    fingerprint: str
    """Fingerprint of the model's bundle."""
    embed_dim: int
    """D, the length of an embedding."""
    max_frames: int
    """F, the most frames of a video."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """Videos with the largest inner products with one query, best first."""

    rows: Rows
    similarities: npt.NDArray[np.float32]
    """[n]; from an index, approximate."""
    method: NearestMethod
    """``flat`` compared every video, ``index`` those of the nearest partitions."""


class Snapshot(Protocol):
    """A gallery as it was at one moment; later changes do not touch it.

    It is safe to use from several threads. Methods that read raise GalleryIntegrityError for a
    damaged file. Methods that take ``where`` raise InvalidArgumentError for a filter that they
    cannot parse.
    """

    @property
    def num_partitions(self) -> int | None:
        """Number of partitions of the approximate index; None where there is no index."""
        ...

    @property
    def segmentation(self) -> str | None:
        """Policy by which videos are cut, as :attr:`Segmentation.text`; None while none is set."""
        ...

    @property
    def num_videos(self) -> int:
        """Number of videos; a long one has several rows."""
        ...

    def __len__(self) -> int:
        """Return the number of rows: of videos, or of their segments."""
        ...

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the first row of each of these ids that is there."""
        ...

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        """Return the first row of each of these SHA-256 of contents that is there."""
        ...

    def named(self, paths: Sequence[str], name: str | None) -> list[GalleryVideo]:
        """Return the videos with a file at one of ``paths``, or with this file name.

        The file name is that of a path or of an id. The result holds the first segment of each
        video, without metadata.
        """
        ...

    def segments(self, ids: Sequence[str]) -> dict[str, Rows]:
        """Return the rows of each of these ids that is there, ordered by segment."""
        ...

    def groups(self) -> Groups | None:
        """Return the video of every row; None where every row is a video of its own."""
        ...

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        """Return the records of the videos in ``rows``, in that order."""
        ...

    def frame_times(self, rows: Rows) -> list[tuple[float, ...]]:
        """Return ``frame_times_s`` alone of ``rows``, in that order."""
        ...

    def features(self, rows: Rows) -> VideoFeatures:
        """Return embeddings of the videos in ``rows``, in that order, FP16."""
        ...

    def video_features(self, rows: Rows) -> FloatArray:
        """Return ``video_features`` alone of ``rows``, in that order, FP16 or FP32."""
        ...

    def rows(self) -> Rows:
        """Return all rows, ascending, in the order in which they were added."""
        ...

    def feature_keys(self) -> tuple[Rows, FeatureKeys]:
        """Return all rows, ascending, and the key of each row's features, uint64 [N, 2].

        Rows with equal keys have equal features, whichever snapshots of the gallery they are of.
        """
        ...

    def matching(self, where: str) -> Rows:
        """Return the rows that match a filter; ``filters.py`` describes the language."""
        ...

    def count_older(self, reading_version: int) -> int:
        """Count the videos whose files were read before this version of the reader.

        A video without a hash of its file's content counts for none: it was added by its features.
        """
        ...

    def nearest(
        self,
        queries: QueryVectors,
        limit: int,
        where: str | None = None,
        without: Rows | None = None,
    ) -> list[Nearest]:
        """Return for each query the ``limit`` rows with the largest inner product.

        ``without``: rows to leave out, ascending.
        """
        ...

    def held(self) -> tuple[Rows, VideoFeatures] | None:
        """Return all embeddings if they fit into memory, the same object at every call.

        Returns None if they do not fit: :meth:`scan` then reads them in parts.
        """
        ...

    def warm_up(self) -> None:
        """Load what makes searches faster, within the limits of memory."""
        ...

    def scan(
        self, num_videos: int, where: str | None = None
    ) -> Iterator[tuple[Rows, VideoFeatures]]:
        """Yield all videos in parts of at most ``num_videos``."""
        ...

    def listing(self) -> Iterator[GalleryVideo]:
        """Yield the first row of every video without metadata, read ahead in parts."""
        ...


class AdditionWatcher(Protocol):
    """An object that is told of every addition to a gallery."""

    def added(self, keys: FeatureKeys, features: VideoFeatures) -> None:
        """Take rows that were just added, FP16, with their keys as in later snapshots.

        The thread that added them calls it, perhaps with the gallery locked. It must not raise.
        """
        ...


class GalleryStore(Protocol):
    """A place that keeps videos and embeddings.

    Writes are atomic and safe from several threads.
    """

    @property
    def uri(self) -> str | None:
        """Location of the gallery; None in memory."""
        ...

    @property
    def version(self) -> int | None:
        """Number of the version that snapshots read; None in memory."""
        ...

    def fields(self) -> dict[str, type]:
        """Return the type of every metadata field, also of those that no video has any more."""
        ...

    def declare(self, types: Mapping[str, type]) -> None:
        """Make metadata fields known, so that filters can name them before a video has them."""
        ...

    def snapshot(self) -> Snapshot:
        """Return the gallery with every write of this object, as of the last :meth:`refresh`."""
        ...

    def refresh(self) -> None:
        """Load the changes of other writers."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Lock out other writers, also of other processes, and load their changes first.

        The thread that holds the lock may enter again.
        """
        ...

    def put(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool
    ) -> FeatureKeys:
        """Add all videos or none; with ``replace``, overwrite those with the same ids.

        Every video comes with all its segments. Those of an overwritten one are all removed.
        Returns the key of each row's features, as :meth:`Snapshot.feature_keys` will, in the order
        given. Raises MetadataError, and DuplicateIdError without ``replace``.
        """
        ...

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        """Replace the records of rows, by id and segment, and keep their embeddings.

        Raises GalleryError for a row that is not there.
        """
        ...

    def remove(self, ids: Collection[str]) -> int:
        """Remove the videos with these ids and return their number."""
        ...

    def optimize(self, progress: ProgressFunction, keep: timedelta = KEEP_VERSIONS) -> None:
        """Merge small files and, for many videos, build the index.

        Files that only snapshots older than ``keep`` read are deleted.
        """
        ...

    def verify(self, progress: ProgressFunction) -> Verification:
        """Read everything and compare it with its checksums, in the version on disk.

        Raises GalleryIntegrityError for damage that leaves nothing to read.
        """
        ...

    def size_bytes(self) -> int | None:
        """Return the size on disk; None in memory or where it is unknown."""
        ...

    def close(self) -> None:
        """Release files and memory."""
        ...
