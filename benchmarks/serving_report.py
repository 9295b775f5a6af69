"""Table and picture of ``benchmarks/serving.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.runtime.theme import write_pngs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Result = dict[str, Any]
LATENCIES = ("p50_ms", "p90_ms", "p99_ms")


def table(result: Result) -> str:
    """Return Markdown tables of the modes and of the long run."""
    sizes, run = result["sizes"], result["long_run"]
    lines = [
        f"Text searches over HTTP in {sizes['videos']:,} synthetic videos by {sizes['clients']} "
        f"clients, on {result['cores']} cores that server and clients share. Latencies are "
        "milliseconds: median / 90th / 99th percentile. Written by `python -m benchmarks.serving`.",
        "",
        "| | clients at full speed | latency | server CPU a search | at "
        f"{sizes['rate']:g} searches/s | latency | failed |",
        "|---" * 7 + "|",
    ]
    for mode, found in result["modes"].items():
        full, paced = found["full"], found["paced"]
        cells = [
            mode,
            f"{full['searches_per_s']:.0f} searches/s",
            latency(full),
            f"{full['server_cpu_ms']:.1f} ms",
            f"{paced['searches_per_s']:.0f} searches/s",
            latency(paced),
            str(failed(full["statuses"]) + failed(paced["statuses"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    first, last = run["resident_bytes"][0], run["resident_bytes"][-1]
    lines += [
        "",
        f"{run['requests']:,} searches in {run['seconds']:.0f} s, of which "
        f"{failed(run['statuses'])} failed. The server's memory was {first / 1e6:.0f} MB after the "
        f"first tenth, and {last / 1e6:.0f} MB at the end ({run['growth']:+.1%}).",
    ]
    return "\n".join(lines) + "\n"


def latency(found: Result) -> str:
    """Return three percentiles as text."""
    return " / ".join(f"{found[name]:.0f}" for name in LATENCIES)


def failed(statuses: dict[str, int]) -> int:
    """Count the answers with another status than 200."""
    return sum(number for status, number in statuses.items() if status != "200")


def draw_serving(result: Result, path: Path) -> None:
    """Draw throughput, latency and memory as PNG, light and dark."""
    write_pngs(lambda: _figure(result), path)


def _figure(result: Result) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    throughput, latencies, memory = figure.subplots(1, 3)
    modes, sizes = result["modes"], result["sizes"]
    throughput.bar(list(modes), [found["full"]["searches_per_s"] for found in modes.values()])
    throughput.axhline(sizes["rate"], color="tab:grey", linestyle="--")
    throughput.set(ylabel="searches a second")
    throughput.set_title(f"{sizes['clients']} clients at full speed")
    names = [name.removesuffix("_ms") for name in LATENCIES]
    for mode, found in modes.items():
        for load, style in (("full", "o-"), ("paced", "s--")):
            values = [found[load][name] for name in LATENCIES]
            latencies.plot(names, values, style, label=f"{mode}, {load}")
    latencies.set(yscale="log", ylabel="ms")
    latencies.set_title(f"Latency at full speed, and at {sizes['rate']:g} searches/s")
    latencies.legend(fontsize=8)
    run = result["long_run"]
    megabytes = [size / 1e6 for size in run["resident_bytes"]]
    searches = [run["requests"] * (n + 1) / 10 for n in range(len(megabytes))]
    memory.plot(searches, megabytes, "o-")
    memory.set(xlabel="searches", ylabel="MB", ylim=(0, 1.2 * max(megabytes)))
    memory.set_title("Memory of the server")
    for axes in (throughput, latencies, memory):
        axes.grid(alpha=0.3)
    return figure
