"""Settings of a service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from xclip_deploy.runtime.sessions import SessionOptions

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ClusterSettings:
    """The Ray cluster whose actors search a gallery in shards."""

    address: str = "auto"
    """Address of the cluster; ``auto`` finds it, ``local`` starts one here."""
    replicas: int = 1
    """Actors of each shard, where ``serve-shards`` has started none."""
    timeout_s: float = 10.0
    """Longest time of a search, seconds."""
    allow_partial: bool = False
    """Whether searches go on without shards that do not answer."""
    num_cpus: float = 1.0
    """Processor cores that each actor asks for."""


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service, checked where it starts."""

    bundle: Path
    gallery: Path
    """Folder of the gallery; it is made if there is none."""
    data: Path
    """Folder for uploads, jobs and caches, the only one that the service writes beside the
    gallery."""
    cluster: ClusterSettings | None = None
    """Cluster that searches a gallery in shards; None for one gallery in this process."""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    """Secret that every request must give; required on any address but the loopback's."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may name, beside the address that is served."""
    roots: tuple[Path, ...] = ()
    """Folders whose files may be added by path; none allows uploads alone."""
    show_paths: bool = False
    """Whether responses name files by their paths."""
    read_only: bool = False
    """Whether additions and removals are refused."""
    session: SessionOptions | None = None
    max_batch: int = 16
    batch_wait_ms: float = 2.0
    """Longest time that a search waits for others to share a run with."""
    max_waiting: int = 256
    """Most requests that wait for the model; more are refused with 429."""
    requests_per_minute: int | None = None
    """Most requests a minute of one client; None for no limit."""
    max_running: int = 512
    """Most requests that are answered at the same time; more are refused with 429."""
    max_upload_bytes: int = 4 << 30
    """Largest file that is uploaded to the gallery."""
    max_upload_files: int = 32
    """Most files in one upload."""
    max_query_bytes: int = 256 << 20
    """Largest image or video that is searched by."""
    max_duration_s: float = 6 * 3600.0
    """Longest uploaded video."""
    max_stored_bytes: int = 200 << 30
    """Most bytes that uploads take together."""
    cache_bytes: int = 10 << 30
    """Most bytes that transcoded moments take together."""
    workers: int | None = None
    """Processes that decode; None for one per core."""
    timeout_s: float = 120.0
    """Longest time to decode one video, seconds."""
    stall_s: float = 30.0
    """Longest time between two pieces of a request's body, seconds."""
    refresh_s: float = 2.0
    """Time between looks for the gallery's changes by other processes, seconds."""
    shutdown_s: float = 60.0
    """Longest time that a shutdown waits for running requests, seconds."""
