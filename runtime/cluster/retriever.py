"""The retriever of a gallery in shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_instance,
    as_number,
    as_path,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cluster.actors import ActorOptions, Residence, start_actor
from xclip_deploy.runtime.cluster.connecting import NAMESPACE, connect
from xclip_deploy.runtime.cluster.replicas import (
    RemoteShards,
    Replica,
    Replicas,
    ShardLostError,
    lost,
)
from xclip_deploy.runtime.cluster.shard_file import ShardFile, check_shards, read_shards
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.opened import Opened
from xclip_deploy.runtime.results import SearchResult, SearchResults
from xclip_deploy.runtime.search import Query, SearchOptions
from xclip_deploy.runtime.search.merging import search_shards
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.search.shard import ShardSearch
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.video import VideoReader

_GRACE_S = 0.4
"""Time for a search without the shards that were lost, seconds."""
_OPENING_S = 300.0
"""Longest time to start actors and to open a version, seconds."""
_MOST_REPLICAS = 64


@dataclass(frozen=True)
class ShardState:
    """State of one replica of a shard."""

    number: int
    replica: int
    num_videos: int
    version: int
    """Published version."""
    node: str
    state: str
    """``ready``, or the reason why it does not answer."""


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

        Actors of :meth:`serve` are used if they run; else this object starts its own, which end
        with it.

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
        self._timeout_s = as_number("timeout", timeout, 1e-3, 1e6)
        self._allow_partial = as_truth("allow_partial", allow_partial)
        self._replicas_wanted = as_whole_number("replicas", replicas, 1, _MOST_REPLICAS)
        self._actor_options = as_instance(
            "actors", actors or ActorOptions(), ActorOptions, "ActorOptions or None"
        )
        self._path = as_path("gallery", gallery).absolute()
        self._ray = connect(address)
        options = SessionOptions.of(device, precision, threads, session)
        super().__init__(bundle, options, max_batch, reader)
        shards = read_shards(self._path)
        check_shards(self._path, shards, self.bundle.manifest.fingerprint)
        self._planner = Planner()
        self._owns_actors = False
        self._replicas = self._find(shards) or self._start(shards, keep=False)
        self._shards = shards
        self._open(shards)

    @classmethod
    def serve(
        cls,
        bundle: PathName,
        gallery: PathName,
        *,
        address: str = "auto",
        replicas: int = 1,
        actors: ActorOptions | None = None,
    ) -> ShardedRetriever:
        """Start actors that outlive this process, as ``xclip-deploy serve-shards`` does."""
        raise NotImplementedError

    # -- gallery ---------------------------------------------------------------------------

    @property
    def shards(self) -> ShardFile:
        """The shards at the versions that searches read."""
        return self._shards

    def refresh(self) -> None:
        """Move all replicas to the newest published version.

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
        self._open(shards)
        self._shards = shards

    def warm_up(self) -> None:
        """Load what the first searches would wait for."""
        if len(self):
            self.search("warm-up", 1)

    def states(self) -> list[ShardState]:
        """Return the state of every replica, in the order of shards. Waits ``timeout`` at most."""
        self._check_open()
        asked: dict[Any, tuple[int, int]] = {}
        for number, own in enumerate(self._replicas.shards):
            version = self._shards.shards[number].version
            for n, replica in enumerate(own):
                asked[replica.handle.open.remote(version)] = (number, n)
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=self._timeout_s)
        found = []
        for reference, (number, n) in asked.items():
            entry = self._shards.shards[number]
            replica, state = self._replicas.shards[number][n], "ready"
            if reference not in ready:
                state = f"no answer within {self._timeout_s:g} s"
            else:
                try:
                    replica.node = self._ray.get(reference).node
                except self._ray.exceptions.RayError as error:
                    state = str(error).strip().splitlines()[0]
            found.append(
                ShardState(number, n, entry.num_videos, entry.version, replica.node, state)
            )
        return found

    def __len__(self) -> int:
        """Return the number of videos in all shards."""
        self._check_open()
        return self._shards.num_videos

    def __bool__(self) -> bool:
        """Return True, for an empty gallery too."""
        return True

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
        versions = self._versions()
        deadline = time.monotonic() + self._timeout_s
        shards = RemoteShards(
            self._replicas, versions, (), SearchOptions(), deadline, {}, allow_partial=False
        )
        matches = shards.ask(ShardSearch.find, dict.fromkeys(range(len(versions)), ([name], None)))
        owner = next((shard for shard, match in matches.items() if match.ids), None)
        if owner is None:
            raise GalleryError(f"no video {name!r:.200} in the gallery of {len(self)}")
        sent = replace(hit, media=None) if isinstance(hit, SearchResult) else hit
        answers, failed = self._replicas.call(
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

    def _versions(self) -> list[int]:
        return [shard.version for shard in self._shards.shards]

    def _search(self, queries: Sequence[Query], options: SearchOptions) -> list[SearchResults]:
        self._check_open()
        versions = self._versions()
        deadline = time.monotonic() + self._timeout_s
        failed: dict[int, FailedShard] = {}
        while True:
            shards = RemoteShards(
                self._replicas,
                versions,
                queries,
                options,
                deadline,
                failed,
                allow_partial=self._allow_partial,
            )
            try:
                found = search_shards(queries, shards, options, self._planner)
            except ShardLostError:
                deadline = max(deadline, time.monotonic() + _GRACE_S)
                continue
            answered, missing = tuple(shards.numbers), tuple(failed.values())
            return [
                replace(each, answered_shards=answered, failed_shards=missing) for each in found
            ]

    def _open(self, shards: ShardFile) -> None:
        """Open a published version in every replica."""
        asked: dict[Any, tuple[int, Replica]] = {}
        for number, own in enumerate(self._replicas.shards):
            version = shards.shards[number].version
            for replica in own:
                asked[replica.handle.open.remote(version)] = (number, replica)
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_OPENING_S)
        opened: set[int] = set()
        failed: dict[int, FailedShard] = {}
        for reference, (number, replica) in asked.items():
            reason = f"not open after {_OPENING_S:g} s"
            if reference in ready:
                try:
                    residence: Residence = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    raise (error.cause or error) from None
                except self._ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[0]
                else:
                    replica.node = residence.node
                    opened.add(number)
                    continue
            failed[number] = FailedShard(number, replica.node, reason)
        missing = [failed[number] for number in sorted(failed) if number not in opened]
        if missing and not (self._allow_partial and opened):
            raise lost(missing, len(shards.shards))

    def _start(self, shards: ShardFile, *, keep: bool) -> Replicas:
        self._owns_actors = not keep
        bundle = str(Path(self.bundle.path).absolute())
        started = []
        for number, entry in enumerate(shards.shards):
            gallery = str(self._path / entry.path)
            names = [self._name(number, n) if keep else None for n in range(self._replicas_wanted)]
            started.append(
                [
                    Replica(
                        start_actor(
                            self._ray,
                            bundle,
                            gallery,
                            self._actor_options,
                            name=name,
                            namespace=NAMESPACE,
                        )
                    )
                    for name in names
                ]
            )
        return Replicas(self._ray, started)

    def _find(self, shards: ShardFile) -> Replicas | None:
        """Return the actors that ``serve-shards`` started; None if a shard has none."""
        found: list[list[Replica]] = []
        for number in range(len(shards.shards)):
            own = []
            for n in range(_MOST_REPLICAS):
                try:
                    handle = self._ray.get_actor(self._name(number, n), namespace=NAMESPACE)
                except ValueError:
                    break
                own.append(Replica(handle))
            if not own:
                return None
            found.append(own)
        return Replicas(self._ray, found)

    def _name(self, number: int, replica: int) -> str:
        place = hashlib.sha256(str(self._path).encode()).hexdigest()[:12]
        return f"{place}-{self.bundle.manifest.fingerprint[:12]}-{number}-{replica}"

    def _close_gallery(self) -> None:
        if self._owns_actors:
            for own in self._replicas.shards:
                for replica in own:
                    self._ray.kill(replica.handle)
