"""The retriever of a gallery in shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_instance,
    as_number,
    as_text,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cluster.actors import ActorOptions
from xclip_deploy.runtime.cluster.connecting import connect
from xclip_deploy.runtime.cluster.replicas import RemoteShards, lost
from xclip_deploy.runtime.cluster.searching import ShardSearches
from xclip_deploy.runtime.cluster.serving import (
    MOST_REPLICAS,
    ShardActors,
    ShardState,
    open_version,
)
from xclip_deploy.runtime.cluster.shard_file import (
    ShardFile,
    check_shards,
    directory_of,
    read_shards,
)
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit
from xclip_deploy.runtime.opened import Opened
from xclip_deploy.runtime.results import SearchResult, SearchResults
from xclip_deploy.runtime.search import Query, SearchOptions
from xclip_deploy.runtime.search.shard import ShardSearch
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.video import VideoReader


class ShardedRetriever(Opened):
    """A search engine for the videos of a gallery in shards, with the verbs of ``Retriever``.

    Actors of a Ray cluster hold the shards; this object encodes queries and merges. Results do not
    depend on the number of shards. A query sees one published version of all shards, and
    :meth:`refresh` moves on to the newest. It is safe to use from several threads.
    """

    def __init__(
        self,
        bundle: PathName | Bundle = "xclip-bundle",
        gallery: PathName = "gallery",
        *,
        address: str = "auto",
        replicas: int = 1,
        timeout: float = 10.0,
        allow_partial: bool = False,
        actors: ActorOptions | None = None,
        device: DeviceName = "auto",
        precision: str = "auto",
        threads: int | None = None,
        max_batch: int = 16,
        reader: VideoReader = "pyav",
        session: SessionOptions | None = None,
    ) -> None:
        """Open a bundle, and find or start the actors of a gallery in shards.

        The actors that ``xclip-deploy serve-shards`` started are used if they run; else this object
        starts its own, which end with it.

        Args:
            bundle: The bundle. Every node finds it under the same path.
            gallery: Directory with ``shards.json``, on a file system that all nodes share.
            address: Address of the cluster; ``auto`` finds it, ``local`` starts one here.
            replicas: Actors of each shard. Another takes over where one is lost.
            timeout: Longest time of a search, seconds.
            allow_partial: Whether searches go on without shards that do not answer. The results
                list them in ``failed_shards``.
            actors: What each actor asks the cluster for.
            device: See :class:`Retriever`; likewise for all that follow. They are those of the
                encoders in this process.

        Raises ClusterError, ShardError, BundleError, GalleryError, MissingExtraError.
        """
        timeout_s = as_number("timeout", timeout, 1e-3, 1e6)
        as_truth("allow_partial", allow_partial)
        asked = as_instance(
            "actors",
            ActorOptions() if actors is None else actors,
            ActorOptions,
            "ActorOptions or None",
        )
        self._path = directory_of(gallery)
        as_text("address", address)
        count = as_whole_number("replicas", replicas, 1, MOST_REPLICAS)
        options = SessionOptions.of(device, precision, threads, session)
        super().__init__(bundle, options, max_batch, reader)
        shards = read_shards(self._path)
        check_shards(self._path, shards, self.bundle.manifest.fingerprint)
        self._ray = connect(address)
        actors_of = ShardActors(self._ray, self.bundle, self._path, shards)
        found = actors_of.find()
        self._owns_actors = found is None
        replicas_of = found or actors_of.start(count, asked, keep=False)
        find = None if self._owns_actors else actors_of.find
        self.searches = ShardSearches(replicas_of, timeout_s, allow_partial, find)
        """Searches at any published version, for services."""
        self._shards = shards
        try:
            open_version(replicas_of, shards, allow_partial=allow_partial)
        except BaseException:
            self.close()
            raise

    # -- gallery ---------------------------------------------------------------------------

    @property
    def shards(self) -> ShardFile:
        """The shards at the versions that searches read."""
        return self._shards

    def refresh(self) -> None:
        """Move all replicas to the newest published version, and to actors started since.

        Searches go on in the old one meanwhile. Raises GalleryError, ShardError.
        """
        self._check_open()
        shards = read_shards(self._path)
        check_shards(self._path, shards, self.bundle.manifest.fingerprint)
        if len(shards.shards) != len(self._shards.shards):
            raise GalleryError(
                f"gallery {self._path} has {len(shards.shards)} shards now, it had "
                f"{len(self._shards.shards)}; open another ShardedRetriever"
            )
        searches = self.searches
        searches.find_again()
        open_version(searches.replicas, shards, allow_partial=searches.allow_partial)
        self._shards = shards

    def warm_up(self) -> None:
        """Load what the first searches would wait for."""
        if len(self):
            self.search("warm-up", 1)

    def states(self) -> list[ShardState]:
        """Return the state of every replica, in the order of shards. Waits ``timeout`` at most."""
        self._check_open()
        return self.searches.states(self._shards)

    def __len__(self) -> int:
        """Return the number of videos in all shards."""
        self._check_open()
        return self._shards.num_videos

    # -- evidence --------------------------------------------------------------------------

    @overload
    def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Explain a video's score for a text or, with ``b``, the order of two videos.

        See :meth:`Retriever.explain`. Raises ShardError, too.
        """
        found = [self._explain(query, hit) for hit in ([a] if b is None else [a, b])]
        return found[0] if b is None else Contrast(*found)

    def _explain(self, query: str, hit: Hit) -> Explanation:
        self._check_open()
        name = hit.id if isinstance(hit, SearchResult) else hit
        versions, replicas = self._shards.versions, self.searches.replicas
        deadline = time.monotonic() + self.searches.timeout_s
        shards = RemoteShards(
            replicas, versions, (), SearchOptions(), deadline, {}, allow_partial=False
        )
        matches = shards.ask(ShardSearch.find, dict.fromkeys(range(len(versions)), ([name], None)))
        owner = next((shard for shard, match in matches.items() if match.ids), None)
        if owner is None:
            raise GalleryError(f"no video {name!r:.200} in the gallery of {len(self)}")
        sent = replace(hit, media=None) if isinstance(hit, SearchResult) else hit
        answers, failed = replicas.call(
            {owner: lambda handle: handle.explain.remote(versions[owner], query, sent)}, deadline
        )
        if failed:
            raise lost(list(failed.values()), len(versions))
        explanation: Explanation = answers[owner]
        return explanation

    # -- actors ----------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        return f"gallery {str(self._path)!r} in {len(self._shards.shards)} shards"

    @property
    def _uri(self) -> str | None:
        return str(self._path)

    def _search(self, queries: Sequence[Query], options: SearchOptions) -> list[SearchResults]:
        self._check_open()
        return self.searches.search(queries, options, self._shards)

    def _close_gallery(self) -> None:
        if self._owns_actors:
            self.searches.replicas.stop()
