"""The search of one gallery, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.resident.on_device import OnDevice
from xclip_deploy.runtime.resident.residence import Residence
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.search.merging import search_shards
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.search.ranked import Query
from xclip_deploy.runtime.search.shard import Samples, Shard, ShardSearch

_Answer = TypeVar("_Answer")


class Searcher:
    """A search of snapshots with a model. It is safe to use from several threads."""

    def __init__(
        self,
        model: DeployedModel,
        weights: Callable[[], ScorerWeights],
        thumbnails: Path | None = None,
        planner: Planner | None = None,
        residence: Residence | None = None,
    ) -> None:
        """Prepare to search.

        ``weights`` loads the scorer's matrices when needed. ``thumbnails``: folder of the
        gallery's thumbnails, which hits show. ``planner``: None for one with the usual budget.
        ``residence``: the galleries on a GPU, if any.
        """
        self._residence = residence
        self._thumbnails = thumbnails
        self._model = model
        self._weights = weights
        self._planner = planner or Planner()
        self._samples = Samples()

    def search(
        self, queries: Sequence[Query], snapshot: Snapshot, options: SearchOptions
    ) -> list[SearchResults]:
        """Return the hits of each query; all queries have a text, or none has.

        Raises InvalidArgumentError for a filter that cannot be parsed, and GalleryError for a
        ``within`` that is no video.
        """

        def search(on_device: OnDevice | None, why: str) -> list[SearchResults]:
            shards = LocalShards([self.shard(snapshot, on_device)], queries, options)
            return search_shards(queries, shards, options, self._planner, why)

        if self._residence is None or not len(snapshot) or not queries:
            return search(None, "")
        return self._residence.run(snapshot, search)

    def shard(self, snapshot: Snapshot, on_device: OnDevice | None = None) -> Shard:
        """Return a snapshot as the shard of a search. ``on_device``: the snapshot on the GPU."""
        return Shard(
            self._model,
            self._weights,
            snapshot,
            self._planner,
            self._samples,
            self._thumbnails,
            on_device,
        )


class LocalShards:
    """The shards of one search, in this process: usually one."""

    def __init__(
        self, shards: Sequence[Shard], queries: Sequence[Query], options: SearchOptions
    ) -> None:
        """Begin a search."""
        self.numbers = range(len(shards))
        self._shards = shards
        self._queries = queries
        self.limit(options)

    def limit(self, options: SearchOptions) -> None:
        """Search with other options from here on."""
        self._searches = [ShardSearch(shard, self._queries, options) for shard in self._shards]

    def ask(
        self, method: Callable[..., _Answer], arguments: Mapping[int, tuple[object, ...]]
    ) -> dict[int, _Answer]:
        """Call a method of the searches, one after the other."""
        return {number: method(self._searches[number], *each) for number, each in arguments.items()}
