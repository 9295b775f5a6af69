"""Questions to the replicas of all shards: who answers, who takes over, and who is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from xclip_deploy.errors import ClusterError, ShardError, XclipDeployError
from xclip_deploy.runtime.cluster.connecting import check_head
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.search import Query, QueryBank, SearchOptions

_HEDGE = 0.5
"""Share of the time after which a replica that has not answered yet gets a rival."""
_AVOIDED_S = 10.0
"""Time for which a replica that failed is asked after the others only, seconds."""
_Answer = TypeVar("_Answer")


class ShardLostError(XclipDeployError):
    """A shard was lost during a search that may go on without it."""


@dataclass
class Replica:
    """One actor of a shard."""

    handle: Any
    node: str = "a node that is not known yet"
    pid: int | None = None
    failed_s: float = float("-inf")
    """Time of the last failure, on the monotonic clock."""


@dataclass
class Replicas:
    """The actors of every shard. It is safe to use from several threads."""

    ray: Any
    shards: list[list[Replica]]
    """Replicas by shard."""
    _banks: WeakKeyDictionary[QueryBank, Any] = field(default_factory=WeakKeyDictionary)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: int = 0

    @property
    def ids(self) -> list[list[object]]:
        """Ids of the actors, by shard."""
        return [[replica.handle._actor_id for replica in own] for own in self.shards]

    def in_turn(self, shard: int) -> list[Replica]:
        """Return the replicas of a shard, the one to ask first at the front."""
        own = self.shards[shard]
        with self._lock:
            self._turn += 1
            first = self._turn % len(own)
        now = time.monotonic()
        return sorted(own[first:] + own[:first], key=lambda each: now - each.failed_s < _AVOIDED_S)

    def sendable(self, value: object) -> object:
        """Return a query bank as a reference, so that it travels once to each node."""
        if not isinstance(value, QueryBank):
            return value
        with self._lock:
            if value not in self._banks:
                self._banks[value] = self.ray.put(value)
            return self._banks[value]

    def stop(self) -> None:
        """End all actors."""
        for own in self.shards:
            for replica in own:
                self.ray.kill(replica.handle)

    def call(
        self, calls: Mapping[int, Callable[[Any], Any]], deadline: float
    ) -> tuple[dict[int, Any], dict[int, FailedShard]]:
        """Ask one replica of each shard, and others where it fails; wait until ``deadline``.

        ``calls``: for each shard, the function that calls an actor's method. ``deadline``: on the
        monotonic clock. Returns the answers and the shards without one. Raises the error that an
        actor's method raised.
        """
        started = time.monotonic()
        hedge = started + _HEDGE * (deadline - started)
        asked = {shard: _Asked(self.in_turn(shard)) for shard in calls}
        waiting: dict[Any, tuple[int, Replica]] = {}
        answers: dict[int, Any] = {}
        failed: dict[int, FailedShard] = {}

        def ask_next(shard: int) -> None:
            replica = asked[shard].next()
            if replica is not None:
                waiting[calls[shard](replica.handle)] = (shard, replica)

        for shard in calls:
            ask_next(shard)
        while len(answers) + len(failed) < len(calls):
            now = time.monotonic()
            if now >= deadline:
                break
            until = hedge if now < hedge else deadline
            ready, _ = self.ray.wait(list(waiting), num_returns=1, timeout=max(until - now, 0.001))
            if not ready and time.monotonic() >= hedge:
                for shard in set(calls) - set(answers) - set(failed):
                    ask_next(shard)
                hedge = deadline
            for reference in ready:
                shard, replica = waiting.pop(reference)
                if shard in answers:
                    continue
                reason = self._take(reference, shard, answers)
                if reason is None:
                    continue
                replica.failed_s = time.monotonic()
                asked[shard].reasons.append((replica, reason))
                ask_next(shard)
                if not any(each == shard for each, _ in waiting.values()):
                    failed[shard] = asked[shard].failure(shard)
        for reference, (shard, replica) in waiting.items():
            if shard not in answers:
                replica.failed_s = time.monotonic()
                asked[shard].reasons.append(
                    (replica, f"no answer within {deadline - started:.2g} s")
                )
            self.ray.cancel(reference, recursive=False)
        for shard in set(calls) - set(answers) - set(failed):
            failed[shard] = asked[shard].failure(shard)
        return answers, failed

    def _take(self, reference: Any, shard: int, answers: dict[int, Any]) -> str | None:  # noqa: ANN401
        """Take an answer; return the reason if the actor is gone."""
        errors = self.ray.exceptions
        try:
            answers[shard] = self.ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from None
        except errors.RayError as error:
            return reason_of(error)
        return None


def locate(ray: Any, replica: Replica) -> None:  # noqa: ANN401
    """Find the machine and process of an actor that does not answer, in the head's records."""
    from ray._private.state import actors

    with suppress(ClusterError, ray.exceptions.RayError):
        check_head(ray)  # else Ray waits for it
        record = actors(actor_id=replica.handle._actor_id.hex())
        if record.get("Pid"):
            replica.pid = record["Pid"]
        for node in ray.nodes():
            if node["NodeID"] == record.get("Address", {}).get("NodeID"):
                replica.node = node["NodeManagerHostname"]


def reason_of(error: Exception) -> str:
    """Return the sentence that matters of an error of Ray, which has many lines."""
    lines = str(error).strip().splitlines()
    if lines and "creation task" in lines[0]:
        return lines[-1].rpartition("errors.")[2]  # the error of the actor's own code
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@dataclass
class _Asked:
    """The replicas of one shard that a call has not asked yet."""

    left: list[Replica]
    reasons: list[tuple[Replica, str]] = field(default_factory=list)

    def next(self) -> Replica | None:
        return self.left.pop(0) if self.left else None

    def failure(self, shard: int) -> FailedShard:
        nodes = ", ".join(dict.fromkeys(replica.node for replica, _ in self.reasons))
        reasons = "; ".join(dict.fromkeys(reason for _, reason in self.reasons))
        return FailedShard(shard, nodes, reasons)


class RemoteShards:
    """The shards of one search, in a cluster, at one published version."""

    def __init__(
        self,
        replicas: Replicas,
        versions: Sequence[int],
        queries: Sequence[Query],
        options: SearchOptions,
        deadline: float,
        failed: dict[int, FailedShard],
        *,
        allow_partial: bool,
    ) -> None:
        """Begin a search of the shards that are not in ``failed``, which it adds lost ones to."""
        self.numbers = [number for number in range(len(versions)) if number not in failed]
        self._replicas = replicas
        self._versions = versions
        self._queries = queries
        self._deadline = deadline
        self._failed = failed
        self._allow_partial = allow_partial
        self.limit(options)

    def limit(self, options: SearchOptions) -> None:
        """Search with other options from here on."""
        # The bank travels apart.
        self._options = replace(options, query_bank=None)

    def ask(
        self, method: Callable[..., _Answer], arguments: Mapping[int, tuple[object, ...]]
    ) -> dict[int, _Answer]:
        """Call a method of :class:`ShardSearch` in the actors.

        Raises ShardError for a shard that does not answer, or ShardLostError where the search may
        go on without it.
        """

        def call(shard: int, given: tuple[object, ...]) -> Callable[[Any], Any]:
            sent = [self._replicas.sendable(each) for each in given]
            head = (self._versions[shard], method.__name__, self._queries, self._options)
            return lambda handle: handle.answer.remote(*head, *sent)

        calls = {shard: call(shard, given) for shard, given in arguments.items()}
        answers, failed = self._replicas.call(calls, self._deadline)
        if failed:
            self._failed.update(failed)
            if self._allow_partial and len(self._failed) < len(self._versions):
                raise ShardLostError("a shard was lost")
            raise lost(list(failed.values()), len(self._versions))
        return cast("dict[int, _Answer]", answers)


def lost(failed: Sequence[FailedShard], count: int) -> ShardError:
    """Make the error for shards that did not answer."""
    first = failed[0]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return ShardError(
        f"shard {first.number} of {count} on {first.node}{more} did not answer ({first.reason}); "
        "pass allow_partial to search the others, or run: xclip-deploy shards GALLERY",
        failed,
    )
