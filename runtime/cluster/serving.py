"""The actors of a gallery in shards: found, started, opened, asked how they are, and ended."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xclip_deploy.errors import ClusterError
from xclip_deploy.runtime.arguments import PathName, as_instance, as_whole_number
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cluster.actors import ActorOptions, Residence, start_actor, warn_if_full
from xclip_deploy.runtime.cluster.connecting import NAMESPACE, connect
from xclip_deploy.runtime.cluster.replicas import Replica, Replicas, locate, lost, reason_of
from xclip_deploy.runtime.cluster.shard_file import (
    ShardFile,
    check_shards,
    directory_of,
    missing_shards,
    read_shards,
)
from xclip_deploy.runtime.failures import FailedShard

MOST_REPLICAS = 64
READY = "ready"
"""State of a replica that answers."""
_OPENING_S = 300.0
"""Longest time to start actors and to open a version, seconds."""


@dataclass(frozen=True)
class ShardState:
    """State of one replica of a shard."""

    number: int
    """Number of the shard, from 0."""
    replica: int | None
    """Number of the replica, from 0; None where no actor serves the shard."""
    num_videos: int
    num_segments: int
    version: int
    """Published version."""
    node: str | None
    """Name of the machine; None where it is not known."""
    state: str
    """``ready``, ``not served``, ``missing``, or the reason why the replica does not answer."""

    @property
    def is_ready(self) -> bool:
        """Whether the replica answers."""
        return self.state == READY

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers and texts for JSON."""
        return asdict(self)


class ShardActors:
    """The actors of one gallery for one model, which ``serve-shards`` names after both."""

    def __init__(self, ray: Any, bundle: Bundle, gallery: Path, shards: ShardFile) -> None:  # noqa: ANN401
        self._ray = ray
        self._bundle = str(Path(bundle.path).absolute())
        self._gallery = gallery
        self._shards = shards
        place = hashlib.sha256(str(self._gallery).encode()).hexdigest()[:12]
        self._prefix = f"{place}-{shards.fingerprint[:12]}"

    def find(self) -> Replicas | None:
        """Return the actors that ``serve-shards`` started; None if a shard has none."""
        found = [self.served(number) for number in range(len(self._shards.shards))]
        return Replicas(self._ray, found) if all(found) else None

    def served(self, number: int) -> list[Replica]:
        """Return the actors of a shard that ``serve-shards`` started."""
        own: list[Replica] = []
        for n in range(MOST_REPLICAS):
            try:
                handle = self._ray.get_actor(self._name(number, n), namespace=NAMESPACE)
            except ValueError:  # there is none
                break
            own.append(Replica(handle))
        return own

    def start(self, replicas: int, options: ActorOptions, *, keep: bool) -> Replicas:
        """Start actors; with ``keep``, they have names and outlive this process."""
        warn_if_full(self._ray, options, replicas * len(self._shards.shards))
        started = []
        for number, entry in enumerate(self._shards.shards):
            own = []
            for n in range(replicas):
                handle = start_actor(
                    self._ray,
                    self._bundle,
                    str(self._gallery / entry.path),
                    options,
                    self._shards.fingerprint,
                    name=self._name(number, n) if keep else None,
                    namespace=NAMESPACE,
                )
                own.append(Replica(handle))
            started.append(own)
        return Replicas(self._ray, started)

    def _name(self, number: int, replica: int) -> str:
        return f"{self._prefix}-{number}-{replica}"


def open_version(replicas: Replicas, shards: ShardFile, *, allow_partial: bool = False) -> None:
    """Open the published version of every shard in all its replicas.

    Raises the error of a replica that cannot open it, and ShardError for a shard of which no
    replica answers, unless ``allow_partial`` and others do.
    """
    ray = replicas.ray
    asked: dict[Any, tuple[int, Replica]] = {}
    for number, own in enumerate(replicas.shards):
        version = shards.shards[number].version
        for replica in own:
            asked[replica.handle.open.remote(version)] = (number, replica)
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_OPENING_S)
    opened: set[int] = set()
    failed: dict[int, FailedShard] = {}
    for reference, (number, replica) in asked.items():
        reason = f"not open after {_OPENING_S:g} s"
        if reference in ready:
            try:
                residence: Residence = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except ray.exceptions.RayError as error:
                reason = reason_of(error)
            else:
                replica.node, replica.pid = residence.node, residence.pid
                opened.add(number)
                continue
        locate(ray, replica)
        failed[number] = FailedShard(number, replica.node, reason)
    missing = [failed[number] for number in sorted(failed) if number not in opened]
    if missing and not (allow_partial and opened):
        raise lost(missing, len(shards.shards))


def states_of(replicas: Replicas, shards: ShardFile, timeout_s: float) -> list[ShardState]:
    """Ask every replica for its state, and wait ``timeout_s`` at most."""
    ray = replicas.ray
    asked: dict[Any, tuple[int, int]] = {}
    for number, own in enumerate(replicas.shards):
        for n, replica in enumerate(own):
            asked[replica.handle.open.remote(shards.shards[number].version)] = (number, n)
    ready: list[Any] = []
    if asked:
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    states: dict[tuple[int, int], str] = {}
    for reference, (number, n) in asked.items():
        replica = replicas.shards[number][n]
        if reference in ready:
            try:
                residence: Residence = ray.get(reference)
                replica.node, replica.pid = residence.node, residence.pid
                states[number, n] = READY
            except ray.exceptions.RayTaskError as error:
                states[number, n] = str(error.cause or error)
            except ray.exceptions.RayError as error:
                states[number, n] = reason_of(error)
        else:
            # Else the questions to a process that hangs pile up.
            ray.cancel(reference, recursive=False)
            locate(ray, replica)
            process = "" if replica.pid is None else f" from process {replica.pid}"
            states[number, n] = f"no answer within {timeout_s:g} s{process}"
    found = []
    for number, entry in enumerate(shards.shards):
        size = (entry.num_videos, entry.num_segments, entry.version)
        for n, replica in enumerate(replicas.shards[number]):
            found.append(ShardState(number, n, *size, replica.node, states[number, n]))
        if not replicas.shards[number]:
            found.append(ShardState(number, None, *size, None, "not served"))
    return found


def serve_shards(
    bundle: PathName,
    gallery: PathName,
    *,
    address: str = "auto",
    replicas: int = 1,
    actors: ActorOptions | None = None,
) -> list[ShardState]:
    """Start actors for every shard that outlive this process, and open the published version.

    Actors that run already are ended first. Every ShardedRetriever of the cluster then uses these.
    Returns the state of each replica. Raises ClusterError, ShardError, BundleError, GalleryError.
    """
    count = as_whole_number("replicas", replicas, 1, MOST_REPLICAS)
    asked = ActorOptions() if actors is None else actors
    options = as_instance("actors", asked, ActorOptions, "ActorOptions or None")
    known = _known(bundle, gallery, address)
    _end(known)
    _, shards, actors_of = known
    started = actors_of.start(count, options, keep=True)
    try:
        open_version(started, shards)
    except BaseException:
        started.stop()  # else they outlive this process, and nobody can use them
        raise
    return states_of(started, shards, _OPENING_S)


def stop_shards(bundle: PathName, gallery: PathName, *, address: str = "auto") -> int:
    """End the actors that :func:`serve_shards` started; return their number."""
    return _end(_known(bundle, gallery, address))


def shard_states(
    gallery: PathName,
    bundle: PathName | None = None,
    *,
    address: str | None = None,
    timeout_s: float = 10.0,
) -> list[ShardState]:
    """Return the shards of a gallery and the state of their replicas.

    Without ``address``, nothing is asked, no shard is served, and a shard whose directory is gone
    is ``missing``. Raises GalleryError and ClusterError.
    """
    shards = read_shards(gallery)
    if address is None:
        found = states_of(Replicas(None, [[] for _ in shards.shards]), shards, timeout_s)
        missing = missing_shards(directory_of(gallery), shards)
        return [
            replace(each, state="missing") if each.number in missing else each for each in found
        ]
    if bundle is None:
        raise ClusterError("the actors are named after their model too; expected a bundle")
    ray, shards, actors_of = _known(bundle, gallery, address)
    served = [actors_of.served(number) for number in range(len(shards.shards))]
    return states_of(Replicas(ray, served), shards, timeout_s)


def _known(bundle: PathName, gallery: PathName, address: str) -> tuple[Any, ShardFile, ShardActors]:
    opened = Bundle.open(bundle)
    path = directory_of(gallery)
    shards = read_shards(path)
    check_shards(path, shards, opened.manifest.fingerprint)
    ray = connect(address)
    return ray, shards, ShardActors(ray, opened, path, shards)


def _end(known: tuple[Any, ShardFile, ShardActors]) -> int:
    ray, shards, actors_of = known
    served = [actors_of.served(number) for number in range(len(shards.shards))]
    Replicas(ray, served).stop()
    return sum(map(len, served))
