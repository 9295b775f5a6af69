"""The command ``xclip-deploy bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    json_option,
    theme_option,
    wide_option,
)
from xclip_deploy.cli.progress import step_progress
from xclip_deploy.cli.table import Column, print_table

if TYPE_CHECKING:
    from xclip_deploy.runtime.benchmark import Benchmark
    from xclip_deploy.runtime.sessions import SessionOptions
    from xclip_deploy.runtime.theme import Theme


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them."""
    del ctx, param
    try:
        sizes = tuple(int(word) for word in value.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{value!r}: expected sizes of at least 1, such as 1,8")
    return sizes


@click.command("bench", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@click.option(
    "--session",
    "sessions",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Measure a session with these options: device, backend, precision, threads and others, "
    "such as device=cpu,precision=fp16,threads=2. Repeat it to compare sessions.  "
    "[default: all that this machine offers]",
)
@click.option(
    "--graph",
    "graphs",
    type=Choice(["video_encoder", "text_encoder", "scorer"]),
    multiple=True,
    help="Measure this graph. Repeat it for several.  [default: all three]",
)
@click.option(
    "--video-batches",
    callback=_sizes,
    default="1,8",
    show_default=True,
    help="Encode this many videos in one run.",
)
@click.option(
    "--text-batches",
    callback=_sizes,
    default="1,32",
    show_default=True,
    help="Encode this many texts in one run.",
)
@click.option(
    "--scored-videos",
    callback=_sizes,
    default="100,1000",
    show_default=True,
    help="Score this many videos for one text in one run.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Run every session at every size for at least this many seconds.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Let the sessions take turns this many times at every size.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Run this many times at every size before timing.",
)
@click.option(
    "--plot",
    type=PathArgument(dir_okay=False),
    help="Draw the result into this PNG file.",
)
@theme_option
@wide_option
@json_option
def command(
    bundle: Path,
    sessions: tuple[str, ...],
    graphs: tuple[str, ...],
    video_batches: tuple[int, ...],
    text_batches: tuple[int, ...],
    scored_videos: tuple[int, ...],
    seconds: float,
    rounds: int,
    warmup: int,
    plot: Path | None,
    theme: Theme,
    wide: bool,
    as_json: bool,
) -> None:
    """Measure how fast BUNDLE (default: xclip-bundle) runs on this machine.

    It prints latency, throughput and memory of each graph, with the sessions side by side.
    """
    import xclip_deploy
    from xclip_deploy.runtime.benchmark.picture import draw_benchmark
    from xclip_deploy.runtime.manifest import Graph
    from xclip_deploy.runtime.theme import require_matplotlib

    if plot is not None:
        # Check this before minutes of measuring.
        if not plot.absolute().parent.is_dir():
            raise click.UsageError(f"--plot {plot}: expected a file in a folder that is there")
        require_matplotlib("Drawing a benchmark")
    given = {
        Graph.VIDEO_ENCODER: video_batches,
        Graph.TEXT_ENCODER: text_batches,
        Graph.SCORER: scored_videos,
    }
    from xclip_deploy.runtime.benchmark import BenchmarkPlan

    plan = BenchmarkPlan(
        sizes={graph: given[graph] for graph in Graph if not graphs or graph.value in graphs},
        seconds=seconds,
        rounds=rounds,
        warmup=warmup,
    )
    with step_progress("loading the libraries") as progress:
        result = xclip_deploy.benchmark_sessions(
            bundle,
            [_session(text) for text in sessions] if sessions else None,
            plan=plan,
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result, wide=wide)
    if plot is not None:
        draw_benchmark(result, plot, theme)
        say(f"wrote {plot}", err=as_json)


def _session(text: str) -> SessionOptions:
    """Read options such as ``device=cpu,threads=2``."""
    from dataclasses import fields

    from xclip_deploy.runtime.sessions import SessionOptions

    # The type of a field says how its value on the command line is read.
    known = {
        each.name: each.type for each in fields(SessionOptions) if each.name != "provider_options"
    }
    chosen: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise click.UsageError(
                f"--session {text}: found {part!r}, expected KEY=VALUE with a key of "
                f"{', '.join(known)}"
            )
        if key in chosen:
            raise click.UsageError(f"--session {text}: {key} is given twice")
        kind = str(known[key])
        if kind == "bool":
            if value not in ("true", "false"):
                raise click.UsageError(f"--session {text}: {key} is true or false")
            chosen[key] = value == "true"
        elif kind.startswith("int"):
            if not value.isdecimal():
                raise click.UsageError(f"--session {text}: {key} is a whole number")
            chosen[key] = int(value)
        else:
            chosen[key] = value
    return SessionOptions(**chosen)


def _print(result: Benchmark, *, wide: bool) -> None:
    from xclip_deploy.runtime.benchmark.results import ITEMS, readable

    machine = result.machine
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB"
    gpus = ", ".join(machine.gpus) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    say(f"{result.bundle}: {result.model}")
    say(
        f"{machine.cpu}, {machine.cores} cores{memory}, {gpus}; {machine.system}; load before "
        f"{machine.load_average:g}"
    )
    say(versions)
    say()
    loaded = {(each.session, each.graph): each for each in result.loadings}
    rows: list[tuple[str, ...]] = []
    failures = []
    for each in result.measurements:
        loading = loaded[each.session, each.graph]
        start = (each.graph.value, str(each.size), each.session)
        if each.error is not None:
            failures.append(f"failed: {', '.join(start)}: {each.error}")
            continue
        times = [f"{each.percentile_s(percent) * 1e3:.2f}" for percent in (50, 90, 99)]
        memory_bytes = [each.peak_memory_bytes]
        if each.device_memory_bytes is not None:
            memory_bytes.append(each.device_memory_bytes)
        taken = " + ".join("?" if b is None else f"{b / 1e6:.0f}" for b in memory_bytes)
        rate = f"{readable(each.items_per_s)} {ITEMS[each.graph]}/s"
        runs = str(len(each.latencies_s))
        rows.append((*start, *times, runs, rate, taken, f"{loading.seconds:.2f} s"))
    columns = (
        Column("graph"),
        Column("size", right=True),
        Column("session", least=14),
        Column("p50 ms", right=True),
        Column("p90 ms", right=True, wide=True),
        Column("p99 ms", right=True),
        Column("runs", right=True, wide=True),
        Column("throughput", right=True),
        Column("peak MB", right=True, wide=True),
        Column("opened in", right=True, wide=True),
    )
    print_table(columns, rows, wide=wide)
    for failure in failures:
        say(failure)
    for session in result.sessions:
        if session.device != "cpu":
            say(f"{session.name}: {session.reason}")
    if result.choice is not None:
        say(result.choice)
    if machine.load_average > machine.cores:
        say(
            f"note: {machine.load_average:g} processes competed for the {machine.cores} cores "
            "before the run; an idle machine would be faster"
        )
    for skipped in result.skipped:
        options = ",".join(f"{name}={value}" for name, value in skipped.options.items())
        say(f"left out: {options}: {skipped.reason}")
