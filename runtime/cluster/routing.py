"""Choice of the shard that a video belongs to, and of the actor that reads it."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xclip_deploy.errors import ClusterError
from xclip_deploy.runtime.cluster.connecting import check_head
from xclip_deploy.runtime.cluster.replicas import reason_of
from xclip_deploy.runtime.indexing.claims import prefix_of

PARTS_IN_FLIGHT = 2
"""Parts that an actor has at a time: it works on one while the other waits."""
MOST_LOSSES = 3
"""Actors that may die over one file before it fails."""
WATCH = "watch"
"""Concurrency group of an actor in which it answers while it reads."""
_WATCH_S = 15.0
"""Time between two questions whether an actor lives, seconds."""
_HUNG_S = 60.0
"""Time without an answer after which an actor is ended, seconds."""
_STARTING_S = 300.0
"""Longest time until the first actor starts, seconds."""
_POLL_S = 1.0
_HEAD_S = 60.0
"""Time for which the head may be away, seconds."""


def shard_of(content_sha256: str, count: int) -> int:
    """Return the number of the shard for a content, by its hash in hexadecimal."""
    return int(content_sha256[:12], 16) % count


@dataclass(eq=False)
class Part:
    """Files that one task of an actor reads."""

    paths: tuple[str, ...]
    losses: int = 0
    """Actors that died while they had it."""
    is_forced: bool = False
    """Whether its files are decoded even if their contents are known."""


@dataclass(eq=False)
class _Worker:
    handle: Any
    parts: dict[Any, Part] = field(default_factory=dict)
    """References of tasks, and their parts."""
    ping: Any = None
    """Reference of the question whether it is ready; None once it is."""
    told: int | None = None
    """Number of the contents that it was told of, besides those in the shards; None for none."""
    watch: Any = None
    """Reference of the last question whether it lives."""
    watched_s: float = field(default_factory=time.monotonic)
    """Time of that question, or of its answer, on the monotonic clock."""

    def has_room(self, part: Part) -> bool:
        if self.ping is not None:
            return False
        alone = part.losses or any(each.losses for each in self.parts.values())
        return len(self.parts) < (1 if alone else PARTS_IN_FLIGHT)


class Dispatcher:
    """The actors that read files, and the parts that they have.

    The parts of an actor that dies are read again, each file by itself and alone on its actor, so
    that a file that kills actors takes no other with it.
    """

    def __init__(self, ray: Any, handles: Sequence[Any], stored: Any = None) -> None:  # noqa: ANN401
        """Begin with actors that start.

        ``stored``: reference of the filter of the contents that the shards hold.
        """
        self._ray = ray
        self._stored = stored
        self._workers = [_Worker(handle, ping=handle.ping.remote()) for handle in handles]
        self._todo: deque[Part] = deque()
        self._contents = array("Q")
        self._head_lost_s: float | None = None
        self._started_s: float | None = time.monotonic()

    def add(self, part: Part) -> None:
        """Add files to read."""
        self._todo.append(part)

    def note(self, content_sha256: str) -> None:
        """Note a content that was read and encoded: no actor decodes another file with it."""
        self._contents.append(prefix_of(content_sha256))

    @property
    def is_done(self) -> bool:
        """Whether no file is left to read."""
        return not self._todo and not any(worker.parts for worker in self._workers)

    @property
    def num_waiting(self) -> int:
        """Number of parts that no actor has yet."""
        return len(self._todo)

    def take(self, on_loss: Callable[[str], None]) -> list[tuple[Part, Any]]:
        """Wait about a second for parts, and return those that were read, with their results.

        ``on_loss``: called with each file that is given up. Raises the error of an actor's method,
        and ClusterError where the cluster is lost.
        """
        self._submit()
        self._look_for_hung()
        waiting = {ref: worker for worker in self._workers for ref in worker.parts}
        pings = {worker.ping: worker for worker in self._workers if worker.ping is not None}
        try:
            ready, _ = self._ray.wait(
                [*waiting, *pings], num_returns=1, timeout=_POLL_S, fetch_local=True
            )
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise _lost(reason_of(error)) from error
        if not ready:
            self._look_for_head()
            self._look_for_start()
        found = []
        for reference in ready:
            if reference in pings:
                self._greet(pings[reference])
                continue
            worker = waiting[reference]
            part = worker.parts.pop(reference)
            try:
                found.append((part, self._ray.get(reference)))
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except self._ray.exceptions.RayError:
                worker.ping = worker.ping or worker.handle.ping.remote()
                worker.told = None
                self._lose(part, on_loss)
        return found

    def stop(self) -> None:
        """End the actors."""
        for worker in self._workers:
            self._ray.kill(worker.handle)

    def _look_for_head(self) -> None:
        """Raise ClusterError once the head has been away for a minute.

        Actors cannot start meanwhile, and Ray waits for them without end.
        """
        try:
            check_head(self._ray)
        except ClusterError as error:
            now = time.monotonic()
            self._head_lost_s = self._head_lost_s or now
            if now - self._head_lost_s > _HEAD_S:
                raise _lost(f"its head was away for {_HEAD_S:g} s") from error
        else:
            self._head_lost_s = None

    def _look_for_start(self) -> None:
        """Raise ClusterError if no actor could start in five minutes."""
        if self._started_s is None or time.monotonic() - self._started_s < _STARTING_S:
            return
        free, total = self._ray.available_resources(), self._ray.cluster_resources()
        raise ClusterError(
            f"no actor started within {_STARTING_S:g} s: {free.get('CPU', 0):g} of "
            f"{total.get('CPU', 0):g} cores of the cluster are free; end other actors, such as by: "
            "xclip-deploy serve-shards GALLERY --stop"
        )

    def _look_for_hung(self) -> None:
        """Ask actors at work whether they live, and end those that do not answer.

        Their parts are lost then, as those of an actor that died.
        """
        now = time.monotonic()
        for worker in self._workers:
            if worker.watch is not None:
                answered, _ = self._ray.wait([worker.watch], timeout=0)
                if answered:
                    worker.watch, worker.watched_s = None, now
                elif now - worker.watched_s > _HUNG_S:
                    worker.watch, worker.watched_s = None, now
                    self._ray.kill(worker.handle, no_restart=False)
            elif worker.parts and now - worker.watched_s > _WATCH_S:
                ping = worker.handle.ping.options(concurrency_group=WATCH)
                worker.watch, worker.watched_s = ping.remote(), now

    def _submit(self) -> None:
        while self._todo:
            part = self._todo[0]
            free = [worker for worker in self._workers if worker.has_room(part)]
            if not free:
                return
            worker = min(free, key=lambda each: len(each.parts))
            self._todo.popleft()
            stored = self._stored if worker.told is None else None
            news = np.array(self._contents[worker.told or 0 :], np.uint64)
            worker.told = len(self._contents)
            task = worker.handle.encode.remote(part.paths, news, stored, is_forced=part.is_forced)
            worker.parts[task] = part

    def _greet(self, worker: _Worker) -> None:
        """Take the answer of an actor that starts, or ask again."""
        try:
            self._ray.get(worker.ping)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except self._ray.exceptions.RayActorError as error:
            if "creation task" in str(error):
                raise ClusterError(f"an actor cannot start ({reason_of(error)})") from error
            worker.ping = worker.handle.ping.remote()
        else:
            worker.ping = self._started_s = None

    def _lose(self, part: Part, on_loss: Callable[[str], None]) -> None:
        losses = part.losses + 1
        for path in part.paths:
            if losses >= MOST_LOSSES:
                on_loss(path)
            else:
                self._todo.append(Part((path,), losses, part.is_forced))


def _lost(reason: str) -> ClusterError:
    return ClusterError(
        f"the cluster is lost ({reason}); what was committed stands: start it again, and run the "
        "same command"
    )
