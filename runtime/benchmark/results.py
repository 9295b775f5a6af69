"""What a benchmark found."""

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
"""What throughput counts: videos or texts encoded, pairs of a text and a video scored."""


def readable(number: float) -> str:
    """A number for people, in three digits and more: ``0.174``, ``54.5``, ``132,000``."""
    if number < 100:
        return f"{number:.3g}"
    return f"{round(number, 2 - int(np.log10(number))):,.0f}"


class Machine(FrozenModel):
    """Where a benchmark ran."""

    cpu: str
    cores: int
    """That this process may use: of its affinity and its container's quota, the smaller."""
    memory_bytes: int | None
    """That this process may use, its container's limit included."""
    gpus: tuple[str, ...]
    """Names of the GPUs that the NVIDIA driver lists."""
    system: str
    load_average: float
    """Processes that wanted a core in the minute before the run: above ``cores``, others took
    part of the machine."""


class BenchmarkedSession(FrozenModel):
    """One way of running the graphs, as it was opened."""

    name: str
    """For people, and unique within the benchmark."""
    backend: str
    device: str
    precision: str
    """What it computes in, by the name that ``SessionOptions.precision`` takes."""
    options: dict[str, Any]
    """As asked for, without what was left at its default."""


class SkippedSession(FrozenModel):
    """A session that this machine should have offered and that could not be opened."""

    options: dict[str, Any]
    reason: str


class Loading(FrozenModel):
    """Opening one graph in one session."""

    session: str
    graph: Graph
    seconds: float
    """From the file on disk to a session that is ready, without the first run. The file's hash
    is checked in it."""
    memory_bytes: int | None
    """Resident memory that it took, in a process of its own; libraries are not counted."""
    device_memory_bytes: int | None
    """GPU memory that it took, by the driver's count of what is free; None on a CPU."""


class Measurement(FrozenModel):
    """One graph at one size in one session."""

    session: str
    graph: Graph
    size: int
    """Videos or texts in one run; of the scorer, videos scored for one text."""
    latencies_s: tuple[float, ...]
    """Seconds of every timed run, in the order they were made. Arrays go in and come out as
    NumPy's: on a GPU, copying is part of a run."""
    peak_memory_bytes: int | None
    """Most resident memory beyond what the process had before it opened the graph: weights,
    activations and outputs, at this size and the smaller ones before it."""
    device_memory_bytes: int | None
    """GPU memory taken after runs at this size; None on a CPU."""
    error: str | None = None
    """Why it could not run at this size; then there are no latencies."""

    def percentile_s(self, percent: float) -> float:
        """Latency that this share of the runs did not exceed, seconds.

        Interpolated linearly between runs: of fewer than 100, p99 lies just below the slowest.
        """
        return float(np.percentile(self.latencies_s, percent))

    @property
    def items_per_s(self) -> float:
        """Throughput of one caller: items a second over all timed runs."""
        return self.size * len(self.latencies_s) / sum(self.latencies_s)


class Benchmark(FrozenModel):
    """Sessions side by side on one machine."""

    format: Literal["xclip-benchmark"] = "xclip-benchmark"
    schema_version: Literal[1] = 1
    bundle: str
    fingerprint: Sha256
    """Of the bundle's model."""
    model: str
    """For people: what the graphs compute."""
    machine: Machine
    versions: dict[str, str]
    created_utc: str
    rounds: int
    seconds: float
    """Least time that every session was timed for at every size, over all rounds."""
    warmup: int
    """Runs at every size before any was timed."""
    sessions: tuple[BenchmarkedSession, ...]
    skipped: tuple[SkippedSession, ...]
    loadings: tuple[Loading, ...]
    measurements: tuple[Measurement, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the percentiles (milliseconds) and throughput of every measurement."""
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
