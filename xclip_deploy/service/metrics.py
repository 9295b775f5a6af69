"""Counters and timings of the service, in Prometheus's text format.

Every service has a registry of its own, so that several in one process do not mix. A part of the
service with numbers of its own registers them in :attr:`ServiceMetrics.registry`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from xclip_deploy.runtime.failures import FailedShard

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServiceMetrics:
    """Numbers that a service counts.

    >>> metrics = ServiceMetrics()
    >>> with metrics.time("encode_text"):
    ...     pass
    >>> metrics.batch("encode_text").observe(4)
    >>> metrics.failures.labels("VideoReadError").inc()
    >>> metrics.waiting("search").inc()
    """

    def __init__(self) -> None:
        """Register all numbers in a new registry."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "xclip_requests",
            "Requests that were answered, by method, route and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.running = Gauge(
            "xclip_requests_running", "Requests that are being answered.", registry=registry
        )
        self.failures = Counter(
            "xclip_failures",
            "Refusals and errors, by the kind that the error's body names.",
            ["kind"],
            registry=registry,
        )
        """Counter with the label ``kind``; the handlers of errors count every error response."""
        self._stages = Histogram(
            "xclip_stage_seconds",
            "Seconds that a stage took, by stage; the stage request is the whole.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "xclip_batch_size",
            "Inputs that shared one run, by stage.",
            ["stage"],
            buckets=_SIZES,
            registry=registry,
        )
        self._waiting = Gauge(
            "xclip_waiting", "Requests or jobs that wait, by queue.", ["queue"], registry=registry
        )
        self._videos = Gauge("xclip_gallery_videos", "Videos in the gallery.", registry=registry)
        self._segments = Gauge(
            "xclip_gallery_segments", "Segments in the gallery.", registry=registry
        )
        self._failed_shards = Counter(
            "xclip_failed_shards",
            "Searches that a shard did not answer, by the number of the shard.",
            ["shard"],
            registry=registry,
        )
        self.lost_shards = Gauge(
            "xclip_lost_shards",
            "Shards that did not answer when the service last looked.",
            registry=registry,
        )
        self._ready = Gauge(
            "xclip_ready", "1 while the service takes requests, else 0.", registry=registry
        )

    def stage(self, name: str) -> Histogram:
        """Return the timings of a stage, whose ``observe`` takes seconds."""
        return self._stages.labels(name)

    def batch(self, stage: str) -> Histogram:
        """Return the batch sizes of a stage, whose ``observe`` takes a number of inputs."""
        return self._batches.labels(stage)

    def waiting(self, queue: str) -> Gauge:
        """Return the gauge of a queue: ``set``, ``inc`` and ``dec``."""
        return self._waiting.labels(queue)

    def count_failed_shards(self, shards: Iterable[FailedShard], num_searches: int) -> None:
        """Count the searches that these shards did not answer."""
        for shard in shards:
            self._failed_shards.labels(str(shard.number)).inc(num_searches)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Observe how long the block takes, whether or not it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage(stage).observe(time.perf_counter() - start)

    def watch(
        self,
        num_videos: Callable[[], int],
        num_segments: Callable[[], int],
        is_ready: Callable[[], bool],
    ) -> None:
        """Read gallery size and readiness from these functions whenever metrics are asked for."""
        self._videos.set_function(num_videos)
        self._segments.set_function(num_segments)
        self._ready.set_function(lambda: float(is_ready()))

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        return generate_latest(self.registry)
