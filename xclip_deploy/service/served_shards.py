"""The gallery in shards that a service serves.

Actors of a cluster search it. The service reads records, pictures and explanations by itself, from
the same published versions: every shard is an ordinary gallery on a file system that all share.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.cluster import ActorOptions, ShardedRetriever, ShardFile, read_shards
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.gallery.reports import GalleryStats
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.runtime.search import Query, SearchOptions
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.served import ServedGallery
from xclip_deploy.service.settings import ClusterSettings, ServiceSettings

_LOG = logging.getLogger(__name__)


class ShardRecords(VideoRecords):
    """The videos of all shards at one publication."""

    def __init__(self, place: Path, shards: ShardFile, galleries: Sequence[Gallery]) -> None:
        """Take the shards' galleries, each open at its published version."""
        super().__init__(
            [gallery.snapshot() for gallery in galleries],
            [gallery.thumbnails for gallery in galleries],
        )
        self.shards = shards
        self._place = place
        self._galleries = tuple(galleries)

    @classmethod
    def open(
        cls, place: Path, shards: ShardFile, manifest: Manifest, before: ShardRecords | None = None
    ) -> ShardRecords:
        """Open the shards at their published versions, read-only.

        ``before``: records of an earlier publication, whose shards are kept where nothing changed.
        Raises GalleryError.
        """
        known: dict[tuple[str, int], Gallery] = {}
        if before is not None:
            entries = ((entry.path, entry.version) for entry in before.shards.shards)
            known = dict(zip(entries, before._galleries, strict=True))
        galleries = []
        for entry in shards.shards:
            gallery = known.get((entry.path, entry.version))
            if gallery is None:
                gallery = Gallery.open(place / entry.path, manifest, version=entry.version)
            galleries.append(gallery)
        return cls(place, shards, galleries)

    def stats(self) -> GalleryStats:
        """Summarize all shards in one pass."""
        parts = [gallery.stats() for gallery in self._galleries]
        sizes = [part.size_bytes for part in parts]
        return GalleryStats(
            uri=str(self._place),
            fingerprint=self.shards.fingerprint,
            num_videos=self.num_videos,
            num_segments=len(self),
            segmentation=self.shards.segmentation,
            num_files=sum(part.num_files for part in parts),
            total_duration_s=sum(part.total_duration_s for part in parts),
            metadata={name: kind for part in parts for name, kind in part.metadata.items()},
            size_bytes=None if None in sizes else sum(size or 0 for size in sizes),
            has_index=any(part.has_index for part in parts),
        )

    def close(self) -> None:
        """Release files and memory."""
        for gallery in self._galleries:
            gallery.close()


class ShardGallery(ServedGallery):
    """A gallery in shards: actors search it, this process reads it, and nothing here writes it."""

    is_writable = False

    def __init__(self, settings: ServiceSettings, cluster: ClusterSettings) -> None:
        """Open the bundle, find or start the actors, and open all shards for reading.

        Raises as :class:`ShardedRetriever` does, and InvalidArgumentError for ``settings.roots``.
        """
        if settings.roots:
            raise InvalidArgumentError(
                f"found --root {settings.roots[0]}, whose files clients may add; expected none, as "
                f"only {self._command_of(settings.gallery)} adds to a gallery in shards"
            )
        self._place = settings.gallery
        self.allow_partial = cluster.allow_partial
        # Ray starts before LanceDB, whose threads do not survive the fork of a local cluster.
        self._sharded = ShardedRetriever(
            settings.bundle,
            settings.gallery,
            address=cluster.address,
            replicas=cluster.replicas,
            timeout=cluster.timeout_s,
            allow_partial=cluster.allow_partial,
            actors=ActorOptions(num_cpus=cluster.num_cpus),
            max_batch=settings.max_batch,
            session=settings.session,
        )
        self._lost: dict[int, FailedShard] = {}
        self._refreshing = threading.Lock()
        try:
            shards = self._sharded.shards
            self.num_shards = len(shards.shards)
            self._records = ShardRecords.open(self._place, shards, self._manifest)
            super().__init__(self._sharded, settings)
        except BaseException:
            self._sharded.close()
            raise
        replicas = self._sharded.searches.replicas.shards
        _LOG.info("%d shards with %s actors", len(replicas), [len(each) for each in replicas])

    @property
    def _manifest(self) -> Manifest:
        return self._sharded.bundle.manifest

    @property
    def writer(self) -> Retriever:
        """Raise Refusal, as nothing here adds or removes videos."""
        self.check_writable()

    def check_writable(self) -> NoReturn:
        """Raise Refusal."""
        raise Refusal(
            409,
            "GalleryInShards",
            "the service only reads its gallery in shards; to add or prune videos, run on the "
            f"server: {self._command_of(self._place)}",
        )

    @staticmethod
    def _command_of(place: Path) -> str:
        return f"xclip-deploy index VIDEOS --gallery {place.name} --cluster auto"

    @property
    def placement(self) -> str:
        """Number of shards, in words."""
        return f"in {self.num_shards} shards on a cluster"

    def records(self) -> ShardRecords:
        """Return the videos as of the publication that searches read."""
        return self._records

    def refresh(self) -> None:
        """Move to the newest publication, if there is a newer one, once all actors have."""
        with self._refreshing:
            if read_shards(self._place) == self._records.shards:
                return
            self._sharded.refresh()
            # The versions of before stay open as long as somebody reads them.
            self._records = ShardRecords.open(
                self._place, self._sharded.shards, self._manifest, self._records
            )

    def search(
        self, queries: Sequence[Query], records: VideoRecords, options: SearchOptions
    ) -> list[SearchResults]:
        """Search by the actors. Shards that did not answer the last look are not waited for.

        That holds with ``allow_partial`` alone; without it, every search asks all shards.
        """
        assert isinstance(records, ShardRecords)
        return self._sharded.searches.search(queries, options, records.shards, self._lost)

    def warm_up(self, records: VideoRecords) -> bool:
        """Do nothing: actors load a version when they open it."""
        del records
        return False

    def stats(self) -> GalleryStats:
        """Summarize all shards in one pass."""
        return self._records.stats()

    def look_for_lost_shards(self) -> tuple[FailedShard, ...]:
        """Ask every replica whether it answers, and return the shards of which none does."""
        found = self._sharded.searches.lost(self._records.shards)
        self._lost = found
        return tuple(found[number] for number in sorted(found))

    def close(self) -> None:
        """Free the sessions, the shards, and the actors that this service started."""
        try:
            self._records.close()
        finally:
            super().close()
