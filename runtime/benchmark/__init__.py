"""Measure how fast a bundle runs on this machine: sessions side by side, with their memory."""

from xclip_deploy.runtime.benchmark.measuring import BenchmarkPlan, benchmark_sessions
from xclip_deploy.runtime.benchmark.picture import draw_benchmark
from xclip_deploy.runtime.benchmark.results import (
    Benchmark,
    BenchmarkedSession,
    Loading,
    Machine,
    Measurement,
    SkippedSession,
)

__all__ = [
    "Benchmark",
    "BenchmarkPlan",
    "BenchmarkedSession",
    "Loading",
    "Machine",
    "Measurement",
    "SkippedSession",
    "benchmark_sessions",
    "draw_benchmark",
]
