"""The actor that searches one shard, and how a cluster runs it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.errors import BundleError, InvalidArgumentError
from xclip_deploy.runtime.arguments import as_number, as_whole_number
from xclip_deploy.runtime.evidence import Explanation, explain_hits
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.search import Query, SearchOptions
from xclip_deploy.runtime.sessions import SessionOptions

if TYPE_CHECKING:
    from xclip_deploy.runtime.bundle import Bundle

_LOG = logging.getLogger(__name__)
_KEPT_VERSIONS = 2
"""Versions that an actor keeps open: the published one, and the one before, for searches that
are under way."""
_SEARCHES = 4
_MAX_CPUS = 1024


@dataclass(frozen=True)
class ActorOptions:
    """Resources that an actor asks the cluster for.

    Raises InvalidArgumentError for a number out of range.
    """

    num_cpus: float = 1
    """Processor cores of each actor. Its sessions have as many threads."""
    num_gpus: float = 0
    """GPUs of each actor; it then runs its model there."""
    held_bytes: int | None = None
    """Most memory for the features of a shard; None takes that of a single machine."""

    def __post_init__(self) -> None:
        as_number("num_cpus", self.num_cpus, 0, _MAX_CPUS)
        as_number("num_gpus", self.num_gpus, 0, _MAX_CPUS)
        if self.held_bytes is not None:
            as_whole_number("held_bytes", self.held_bytes, 0, 1 << 50)

    @property
    def session(self) -> SessionOptions:
        """Options of the actor's sessions."""
        threads = max(1, int(self.num_cpus))
        if self.num_gpus:
            return SessionOptions(device="cuda", threads=None)
        return SessionOptions(device="cpu", threads=threads)


@dataclass(frozen=True)
class Residence:
    """The place of an actor."""

    node: str
    """Name of the machine."""
    pid: int
    version: int
    """Version of the shard that was opened last."""


class ShardActor:
    """One replica of a shard: its gallery at published versions, and the model."""

    def __init__(self, bundle: str, gallery: str, options: ActorOptions, fingerprint: str) -> None:
        """Open the bundle of the model with ``fingerprint``; galleries are opened by version."""
        from xclip_deploy.runtime.deployed_model import DeployedModel
        from xclip_deploy.runtime.search.planner import Planner
        from xclip_deploy.runtime.search.shard import Samples

        self._bundle = bundle_of_model(bundle, fingerprint)
        self._place = Path(gallery)
        self._options = options
        self._model = DeployedModel(self._bundle, options.session)
        self._weights = cache(self._bundle.scorer_weights)
        self._planner = Planner()
        self._samples = Samples()
        self._shards: dict[int, Any] = {}
        self._table: Any = None
        self._lock = threading.Lock()

    def open(self, version: int) -> Residence:
        """Open a version, and load what its first searches would wait for."""
        from xclip_deploy.runtime.gallery.lance_files import Place

        with self._lock:
            # Versions of a gallery that was made anew have the numbers of the old one's.
            if self._table is None or self._table.is_replaced():
                self._shards.clear()
                self._table = Place(str(self._place))
        self._shard(version)
        return Residence(socket.gethostname(), os.getpid(), version)

    def answer(
        self,
        version: int,
        method: str,
        queries: Sequence[Query],
        options: SearchOptions,
        *arguments: object,
    ) -> object:
        """Answer one question of a search: call a method of :class:`ShardSearch`."""
        from xclip_deploy.runtime.search.shard import ShardSearch

        if method.startswith("_") or not callable(getattr(ShardSearch, method, None)):
            raise InvalidArgumentError(f"a shard has no answer {method!r:.100}")
        search = ShardSearch(self._shard(version), queries, options)
        return getattr(search, method)(*arguments)

    def explain(self, version: int, query: str, hit: SearchResult | str) -> Explanation:
        """Explain the score of a video of this shard."""
        shard = self._shard(version)
        return explain_hits(query, [hit], shard.snapshot, self._model, self._weights())[0]

    def _shard(self, version: int) -> Any:  # noqa: ANN401 - a Shard, whose module is slow to import
        with self._lock:
            if version not in self._shards:
                self._shards[version] = self._opened(version)
                for old in sorted(self._shards)[:-_KEPT_VERSIONS]:
                    if old != version:
                        del self._shards[old]
            return self._shards[version]

    def _opened(self, version: int) -> Any:  # noqa: ANN401
        from xclip_deploy.runtime.gallery import Gallery
        from xclip_deploy.runtime.gallery.store import SearchLimits
        from xclip_deploy.runtime.search.shard import Shard

        limits = SearchLimits()
        if self._options.held_bytes is not None:
            limits = replace(limits, held_bytes=self._options.held_bytes)
        gallery = Gallery.open(self._place, self._bundle.manifest, limits=limits, version=version)
        gallery.warm_up()
        return Shard(
            self._model,
            self._weights,
            gallery.snapshot(),
            self._planner,
            self._samples,
            gallery.thumbnails,
        )


def bundle_of_model(bundle: str, fingerprint: str) -> Bundle:
    """Open the bundle of an actor's machine. Raises BundleError if it is of another model."""
    from xclip_deploy.runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    found = opened.manifest.fingerprint
    if found != fingerprint:
        raise BundleError(
            f"bundle {bundle} of machine {socket.gethostname()} is model {found[:12]}…, expected "
            f"model {fingerprint[:12]}…, as on the others; copy the bundle to that machine"
        )
    return opened


def warn_if_full(ray: Any, options: ActorOptions, count: int) -> None:  # noqa: ANN401
    """Log a warning if ``count`` actors have to wait for cores or GPUs of the cluster."""
    free, total = ray.available_resources(), ray.cluster_resources()
    for name, words, each in (
        ("CPU", "cores", options.num_cpus),
        ("GPU", "GPUs", options.num_gpus),
    ):
        if each * count > free.get(name, 0):
            _LOG.warning(
                "%d actors ask for %g %s, of which the cluster has %g free of %g: they wait for "
                "others to end, such as by: xclip-deploy serve-shards GALLERY --stop",
                count,
                each * count,
                words,
                free.get(name, 0),
                total.get(name, 0),
            )


def start_actor(
    ray: Any,  # noqa: ANN401 - the module ray
    bundle: str,
    gallery: str,
    options: ActorOptions,
    fingerprint: str,
    *,
    name: str | None = None,
    namespace: str | None = None,
) -> Any:  # noqa: ANN401 - a handle
    """Start an actor, which Ray starts anew whenever it dies.

    ``name``: name by which other processes find it, and which lets it outlive this process.
    """
    settings: dict[str, Any] = {
        "num_cpus": options.num_cpus,
        "num_gpus": options.num_gpus,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": _SEARCHES,
        "scheduling_strategy": "SPREAD",
    }
    if name is not None:
        settings |= {"name": name, "namespace": namespace, "lifetime": "detached"}
    return ray.remote(ShardActor).options(**settings).remote(bundle, gallery, options, fingerprint)
