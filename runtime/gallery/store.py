"""What a database must do to hold a gallery."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.records import GalleryVideo
from xclip_deploy.runtime.progress import ProgressFunction

Rows: TypeAlias = npt.NDArray[np.int64]
"""Places of videos in one snapshot, without meaning outside it."""
QueryVectors: TypeAlias = npt.NDArray[np.floating[Any]]
"""Vectors to compare with ``video_features``, [Q, D]."""
KEEP_VERSIONS = timedelta(hours=1)
"""For how long after a change a snapshot that began before it can be read."""
NearestMethod = Literal["flat", "index"]


@dataclass(frozen=True)
class FeatureModel:
    """The model that made a gallery's embeddings, as far as the gallery must know it."""

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
    """``flat``: every video was compared; ``index``: those of the nearest partitions."""


class Snapshot(Protocol):
    """A gallery as it was at one moment; later changes do not touch it.

    Safe to use from several threads. Everything that reads raises GalleryIntegrityError for a
    damaged file, and what takes ``where`` raises InvalidArgumentError for a filter that it does
    not understand.
    """

    @property
    def num_partitions(self) -> int | None:
        """Number of partitions of the approximate index; None where there is no index."""
        ...

    def __len__(self) -> int: ...

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of the videos with these ids, those that are there."""
        ...

    def find_content(self, hashes: Sequence[str]) -> dict[str, int]:
        """Rows of the videos whose content has these SHA-256, those that are there."""
        ...

    def videos(self, rows: Rows) -> list[GalleryVideo]:
        """What is known of the videos in ``rows``, in that order."""
        ...

    def features(self, rows: Rows) -> VideoFeatures:
        """Embeddings of the videos in ``rows``, in that order, FP16."""
        ...

    def video_features(self, rows: Rows) -> FloatArray:
        """``video_features`` alone of the videos in ``rows``, in that order, FP16 or FP32."""
        ...

    def rows(self) -> Rows:
        """Rows of all videos, in the order in which they were added."""
        ...

    def matching(self, where: str) -> Rows:
        """Rows that a filter lets through; ``filters.py`` describes the language."""
        ...

    def nearest(self, queries: QueryVectors, limit: int, where: str | None = None) -> list[Nearest]:
        """For each query the ``limit`` videos with the largest inner product."""
        ...

    def held(self) -> tuple[Rows, VideoFeatures] | None:
        """All embeddings, where they are few enough to stay in memory; the same object each time.

        None where they are not: :meth:`scan` then reads them in parts.
        """
        ...

    def warm_up(self) -> None:
        """Read into memory what makes searches faster, as far as there is room for it."""
        ...

    def scan(
        self, num_videos: int, where: str | None = None
    ) -> Iterator[tuple[Rows, VideoFeatures]]:
        """All videos in parts of at most ``num_videos``."""
        ...

    def listing(self) -> Iterator[GalleryVideo]:
        """All videos without embeddings and metadata, in parts read ahead of the consumer."""
        ...


class GalleryStore(Protocol):
    """Keeps videos with their embeddings. Writes are atomic and safe from several threads."""

    @property
    def uri(self) -> str | None:
        """Where the gallery is; None in memory."""
        ...

    def snapshot(self) -> Snapshot:
        """The gallery with every write of this object, and what :meth:`refresh` last found."""
        ...

    def refresh(self) -> None:
        """See what others wrote."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other writers out, of other processes too, and see what they wrote before.

        May be entered again by the thread that is in it.
        """
        ...

    def put(
        self, videos: Sequence[GalleryVideo], features: VideoFeatures, *, replace: bool
    ) -> None:
        """Add videos, or take the place of those with the same ids; all or none.

        Raises DuplicateIdError without ``replace``, MetadataError.
        """
        ...

    def update(self, videos: Sequence[GalleryVideo]) -> None:
        """Change what is known of videos and keep their embeddings.

        Raises GalleryError for one that is not there.
        """
        ...

    def remove(self, ids: Collection[str]) -> int:
        """Remove the videos with these ids; returns how many there were."""
        ...

    def optimize(self, progress: ProgressFunction, keep: timedelta = KEEP_VERSIONS) -> None:
        """Put small files together and, where there are many videos, build the index.

        Files that only snapshots older than ``keep`` read are removed.
        """
        ...

    def size_bytes(self) -> int | None:
        """Size on disk; None in memory, and where it cannot be told."""
        ...

    def close(self) -> None:
        """Let go of files and memory."""
        ...
