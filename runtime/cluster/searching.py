"""Searches of the shards at one published version, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xclip_deploy.runtime.cluster.replicas import RemoteShards, Replicas, ShardLostError
from xclip_deploy.runtime.cluster.serving import ShardState, states_of
from xclip_deploy.runtime.cluster.shard_file import ShardFile
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, SearchOptions
from xclip_deploy.runtime.search.merging import search_shards
from xclip_deploy.runtime.search.planner import Planner

_GRACE_S = 0.4
"""Time for a search without the shards that were lost, seconds."""


@dataclass
class ShardSearches:
    """The searches of a gallery in shards. It is safe to use from several threads."""

    replicas: Replicas
    timeout_s: float
    """Longest time of a search, seconds."""
    allow_partial: bool
    """Whether searches go on without shards that do not answer."""
    find: Callable[[], Replicas | None] | None = None
    """Function that finds the actors of ``serve-shards``; None for actors of this process."""
    planner: Planner = field(default_factory=Planner)

    def search(
        self,
        queries: Sequence[Query],
        options: SearchOptions,
        shards: ShardFile,
        known: Mapping[int, FailedShard] | None = None,
    ) -> list[SearchResults]:
        """Search the shards at their versions in ``shards``.

        ``known``: shards that are known to be lost. With ``allow_partial`` they are not asked,
        unless all are; else they are asked like the others. Raises ShardError.
        """
        versions = shards.versions
        deadline = time.monotonic() + self.timeout_s
        failed: dict[int, FailedShard] = {}
        if known and self.allow_partial and len(known) < len(versions):
            failed.update(known)
        while True:
            remote = RemoteShards(
                self.replicas,
                versions,
                queries,
                options,
                deadline,
                failed,
                allow_partial=self.allow_partial,
            )
            try:
                found = search_shards(queries, remote, options, self.planner)
            except ShardLostError:
                deadline = max(deadline, time.monotonic() + _GRACE_S)
                continue
            answered = tuple(remote.numbers)
            missing = tuple(failed[number] for number in sorted(failed))
            return [
                replace(each, answered_shards=answered, failed_shards=missing) for each in found
            ]

    def states(self, shards: ShardFile) -> list[ShardState]:
        """Return the state of every replica, in the order of shards."""
        return states_of(self.replicas, shards, self.timeout_s)

    def lost(self, shards: ShardFile) -> dict[int, FailedShard]:
        """Ask every replica, and return the shards of which none is ready, by number.

        Where some are lost, the actors that ``serve-shards`` may have started since are asked.
        Waits ``timeout_s`` at most, and twice as long for new actors.
        """
        found = self._lost(shards)
        return self._lost(shards) if found and self.find_again() else found

    def find_again(self) -> bool:
        """Use the actors that ``serve-shards`` has started since; return whether it has."""
        found = None if self.find is None else self.find()
        if found is None or found.ids == self.replicas.ids:
            return False
        self.replicas = found
        return True

    def _lost(self, shards: ShardFile) -> dict[int, FailedShard]:
        by_shard: dict[int, list[ShardState]] = {}
        for state in self.states(shards):
            by_shard.setdefault(state.number, []).append(state)
        return {
            number: FailedShard(
                number,
                ", ".join(dict.fromkeys(state.node or "no machine" for state in states)),
                "; ".join(dict.fromkeys(state.state for state in states)),
            )
            for number, states in by_shard.items()
            if not any(state.is_ready for state in states)
        }
