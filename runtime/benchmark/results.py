"""The results of a benchmark."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xclip_deploy.runtime.manifest import Graph, Sha256
from xclip_deploy.runtime.model_config import FrozenModel
from xclip_deploy.runtime.presentation import brief, html_table

ITEMS = {
    Graph.VIDEO_ENCODER: "videos",
    Graph.TEXT_ENCODER: "texts",
    Graph.SCORER: "pairs",
}
"""Items that throughput counts: videos or texts encoded, or scored pairs of text and video."""


def readable(number: float) -> str:
    """Format a number with three significant digits: ``0.174``, ``54.5``, ``132,000``."""
    if number < 100:
        return f"{number:.3g}"
    return f"{round(number, 2 - int(np.log10(number))):,.0f}"


class Machine(FrozenModel):
    """Machine that a benchmark ran on."""

    cpu: str
    cores: int
    """CPU cores that this process may use: its affinity or its container's quota, if smaller."""
    memory_bytes: int | None
    """Memory that this process may use, within its container's limit."""
    gpus: tuple[str, ...]
    """Names of the GPUs that the NVIDIA driver lists."""
    system: str
    load_average: float
    """Mean number of processes that wanted a core in the minute before the run. Above ``cores``,
    other work slowed the machine."""


class BenchmarkedSession(FrozenModel):
    """A session as it was opened."""

    name: str
    """Name for people, unique within the benchmark."""
    backend: str
    device: str
    precision: str
    """Arithmetic of the session, by the name that ``SessionOptions.precision`` takes."""
    options: dict[str, Any]
    """Options that were asked for, without those at their default."""
    reason: str = ""
    """Reason of the session's placement, which names fused graphs and engines."""


class SkippedSession(FrozenModel):
    """A session that could not be opened on this machine."""

    options: dict[str, Any]
    reason: str


class Loading(FrozenModel):
    """Cost of opening one graph in one session."""

    session: str
    graph: Graph
    seconds: float
    """Time from the file on disk to a session that is ready. It includes the check of the file's
    hash, not the first run."""
    memory_bytes: int | None
    """Resident memory that it took, in a process of its own, without libraries."""
    device_memory_bytes: int | None
    """GPU memory that it took, by the driver's count of free memory; None on a CPU."""


class Measurement(FrozenModel):
    """Speed and memory of one graph at one size in one session."""

    session: str
    graph: Graph
    size: int
    """Videos or texts in one run; for the scorer, videos scored for one text."""
    latencies_s: tuple[float, ...]
    """Seconds of each timed run, in order. Inputs and outputs are NumPy arrays, so that a run on a
    GPU includes the copies."""
    peak_memory_bytes: int | None
    """Peak of resident memory beyond that before the graph was opened: weights, activations and
    outputs, at this size and the smaller ones before it."""
    device_memory_bytes: int | None
    """GPU memory in use after the runs at this size; None on a CPU."""
    error: str | None = None
    """Reason why it could not run at this size; then there are no latencies."""

    def percentile_s(self, percent: float) -> float:
        """Return the latency that this share of the runs did not exceed, seconds.

        It is interpolated linearly between runs. With fewer than 100 runs, p99 lies just below the
        slowest one.
        """
        return float(np.percentile(self.latencies_s, percent))

    @property
    def items_per_s(self) -> float:
        """Throughput of one caller, in items a second over all timed runs."""
        return self.size * len(self.latencies_s) / sum(self.latencies_s)


class Benchmark(FrozenModel):
    """Sessions side by side on one machine."""

    format: Literal["xclip-benchmark"] = "xclip-benchmark"
    schema_version: Literal[1] = 1
    bundle: str
    fingerprint: Sha256
    """Fingerprint of the bundle's model."""
    model: str
    """Description of the model for people."""
    machine: Machine
    versions: dict[str, str]
    created_utc: str
    rounds: int
    seconds: float
    """Least time that each session was timed at each size, over all rounds."""
    warmup: int
    """Untimed runs at each size."""
    sessions: tuple[BenchmarkedSession, ...]
    skipped: tuple[SkippedSession, ...]
    loadings: tuple[Loading, ...]
    measurements: tuple[Measurement, ...]
    choice: str | None = None
    """The choice of a GPU session that was stored beside the bundle, in one line, or the reason why
    it was not. None where fewer than two were measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, with percentiles (milliseconds) and throughput added."""
        content = self.model_dump(mode="json")
        for entry, found in zip(content["measurements"], self.measurements, strict=True):
            entry["runs"] = len(found.latencies_s)
            if found.error is None:
                for percent in (50, 90, 99):
                    entry[f"p{percent}_ms"] = found.percentile_s(percent) * 1e3
                entry["items_per_s"] = found.items_per_s
        return content

    def __repr__(self) -> str:
        return brief(
            self,
            bundle=self.bundle,
            model=self.model,
            sessions=[session.name for session in self.sessions],
            measurements=len(self.measurements),
        )

    def _repr_html_(self) -> str:
        columns = ("session", "graph", "size", "p50_ms", "p99_ms", "items_per_s", "error")
        rows = [
            (found.session, found.graph.value, found.size, None, None, None, found.error)
            if found.error is not None
            else (
                found.session,
                found.graph.value,
                found.size,
                found.percentile_s(50) * 1e3,
                found.percentile_s(99) * 1e3,
                found.items_per_s,
                None,
            )
            for found in self.measurements
        ]
        title = f"{self.model} on {self.machine.cpu}, created {self.created_utc}"
        return html_table(title, columns, rows, len(rows))
