"""Load on a service: searches a second, latency and memory, with and without batching.

    python -m benchmarks.serving --bundle demo-output/bundle --output benchmarks/results

The gallery holds synthetic features of the bundle's size. Server and clients are two processes on
one machine and share its cores; clients keep their connections open, and every text is another.
``paced`` searches come at a fixed rate, whether or not earlier ones are answered: the latency
counts from the time at which a search was due. ``full`` clients ask again as soon as they have an
answer. The long run compares the memory of the server after its first tenth with that at its end.
``--toy`` does all of it within seconds, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.galleries import unit
from benchmarks.serving_report import draw_serving, table
from xclip_deploy import Bundle
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.wire import API

K = 10
_COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
_MOVES = ("moves left", "moves right", "moves up", "moves down", "grows", "spins")
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of one benchmark."""

    videos: int = 10_000
    clients: int = 32
    seconds: float = 20.0
    """Length of each measurement."""
    rate: float = 150.0
    """Searches a second of the paced clients."""
    requests: int = 50_000
    """Searches of the long run."""


TOY = Sizes(videos=50, clients=4, seconds=0.5, rate=20.0, requests=100)
MODES: dict[str, dict[str, float]] = {
    "batched": {"max_batch": 16, "batch_wait_ms": 2.0},
    "unbatched": {"max_batch": 1, "batch_wait_ms": 0.0},
}


def main() -> None:
    """Build the gallery, measure every mode, then write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("serving-work"))
    parser.add_argument("--toy", action="store_true", help="measure next to nothing")
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=type(value), help=f"default: {value:,}")
    parser.add_argument("--serve", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.bundle, options.work, MODES[options.serve], options.port)
        return
    given = {name: value for name in asdict(TOY) if (value := getattr(options, name)) is not None}
    sizes = replace(TOY if options.toy else Sizes(), **given)
    options.work.mkdir(parents=True, exist_ok=True)
    build(options.bundle, options.work / "gallery", sizes.videos)
    result = measure(options.bundle, options.work, sizes)
    options.output.mkdir(parents=True, exist_ok=True)
    replace_text(options.output / "serving.json", json.dumps(result, indent=1) + "\n")
    replace_text(options.output / "serving.md", table(result))
    draw_serving(result, options.output / "serving.png")
    print(table(result))


def build(bundle: Path, path: Path, count: int) -> None:
    """Write a gallery of synthetic features, unless there is one of this size."""
    manifest = Bundle.open(bundle).manifest
    if path.is_dir():
        with contextlib.closing(Gallery.open(path, manifest)) as there:
            if len(there) == count:
                return
        shutil.rmtree(path)
    dim, frames = manifest.model.embed_dim, manifest.model.max_frames
    rng = np.random.default_rng(7)
    core = unit(rng.standard_normal((count, dim)))
    of_frames = unit(core[:, np.newaxis] + 0.6 * unit(rng.standard_normal((count, frames, dim))))
    features = VideoFeatures(
        unit(of_frames.mean(axis=1)).astype(np.float16),
        of_frames.astype(np.float16),
        np.full(count, frames, np.int32),
    )
    videos = [
        GalleryVideo(
            id=f"/videos/{n:08d}.mp4",
            path=f"/videos/{n:08d}.mp4",
            content_sha256=f"{n:064x}",
            duration_s=float(frames),
            frame_times_s=tuple(float(t) for t in range(frames)),
            reading_version=1,
            metadata={"source": f"cam{n % 8}"},
        )
        for n in range(count)
    ]
    with contextlib.closing(Gallery.open(path, manifest, create=True)) as gallery:
        gallery.add(videos, features)
        gallery.optimize(keep_s=0)


# -- the server ----------------------------------------------------------------------------


def serve(bundle: Path, work: Path, mode: dict[str, float], port: int) -> None:
    """Serve until a signal comes."""
    from xclip_deploy.service import ServiceSettings
    from xclip_deploy.service.serving import serve as run_server

    settings = ServiceSettings(
        bundle,
        work / "gallery",
        work / "data",
        port=port,
        max_batch=int(mode["max_batch"]),
        batch_wait_ms=mode["batch_wait_ms"],
    )
    run_server(settings, lambda address: print(address, file=sys.stderr))


@contextlib.contextmanager
def served(bundle: Path, work: Path, mode: str) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server in a process of its own; give its port and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.serving", "--serve", mode, "--port", str(port)]
    command += ["--bundle", str(bundle), "--work", str(work)]
    process = subprocess.Popen(command)  # noqa: S603
    try:
        deadline_s = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the server did not start (exit status {process.poll()})")
            time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


# -- the clients ---------------------------------------------------------------------------


class Texts:
    """Captions of coloured shapes, each with a number of its own, so that none comes twice."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> str:
        """Return another text."""
        n = self._count = self._count + 1
        colour, shape = _COLOURS[n % 6], _SHAPES[n // 6 % 6]
        return f"a {colour} {shape} {_MOVES[n // 36 % 6]} {n}"


class Client:
    """A connection that stays open, with one search at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.statuses: dict[int, int] = {}
        """Status to the number of its answers; 0 counts broken connections."""

    async def search(self, text: str) -> None:
        """Search once, read the whole answer and count its status."""
        try:
            status = await asyncio.wait_for(self._search(text), _TIMEOUT_S)
        except (OSError, EOFError, asyncio.TimeoutError):
            status = 0
            await self.close()
        self.statuses[status] = self.statuses.get(status, 0) + 1

    async def _search(self, text: str) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        body = json.dumps({"text": text, "k": K}).encode()
        head = (
            f"POST {API}/search HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, rest = answer.partition(b"content-length:")
        await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
        return int(answer.split(b" ", 2)[1])

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
        self._streams = None


async def full(port: int, clients: int, seconds: float, texts: Texts) -> dict[str, Any]:
    """Let every client search again as soon as it has an answer."""
    end_s = time.perf_counter() + seconds

    async def work(client: Client, times_ms: list[float]) -> None:
        while (began_s := time.perf_counter()) < end_s:
            await client.search(texts.next())
            times_ms.append((time.perf_counter() - began_s) * 1e3)

    return await _work(port, clients, work)


async def counted(port: int, clients: int, count: int, texts: Texts) -> dict[str, Any]:
    """Search ``count`` times, as fast as the clients get answers."""
    left = iter(range(count))

    async def work(client: Client, times_ms: list[float]) -> None:
        for _ in left:
            began_s = time.perf_counter()
            await client.search(texts.next())
            times_ms.append((time.perf_counter() - began_s) * 1e3)

    return await _work(port, clients, work)


async def paced(
    port: int, clients: int, seconds: float, rate: float, texts: Texts
) -> dict[str, Any]:
    """Search at a fixed rate; the latency counts from the time at which a search was due."""
    start_s = time.perf_counter()
    due = iter(np.arange(0, seconds, 1 / rate).tolist())

    async def work(client: Client, times_ms: list[float]) -> None:
        for offset_s in due:
            due_s = start_s + offset_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            await client.search(texts.next())
            times_ms.append((time.perf_counter() - due_s) * 1e3)

    return {"rate": rate, **await _work(port, clients, work)}


async def _work(port: int, count: int, work: Any) -> dict[str, Any]:  # noqa: ANN401
    clients = [Client(port) for _ in range(count)]
    times_ms: list[float] = []
    began_s = time.perf_counter()
    await asyncio.gather(*(work(client, times_ms) for client in clients))
    seconds = time.perf_counter() - began_s
    statuses: dict[str, int] = {}
    for client in clients:
        await client.close()
        for status, number in client.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + number
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    return {
        "searches_per_s": len(times_ms) / seconds,
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "max_ms": max(times_ms),
        "statuses": statuses,
    }


# -- the measurements ----------------------------------------------------------------------


def measure(bundle: Path, work: Path, sizes: Sizes) -> dict[str, Any]:
    """Measure every mode on a server of its own, then the long run with batching."""
    texts = Texts()
    result: dict[str, Any] = {
        "sizes": asdict(sizes),
        "cores": usable_cores(),
        "load_before": os.getloadavg()[0],
        "modes": {},
    }
    for mode in MODES:
        with served(bundle, work, mode) as (port, process):
            asyncio.run(full(port, sizes.clients, sizes.seconds / 4, texts))  # to warm up
            began_s = _cpu_s(process)
            loaded = asyncio.run(full(port, sizes.clients, sizes.seconds, texts))
            spent_s = _cpu_s(process) - began_s
            steady = asyncio.run(paced(port, sizes.clients, sizes.seconds, sizes.rate, texts))
        number = sum(loaded["statuses"].values())
        loaded["server_cpu_ms"] = spent_s * 1e3 / number
        result["modes"][mode] = {"settings": MODES[mode], "full": loaded, "paced": steady}
        print(json.dumps({mode: result["modes"][mode]}), file=sys.stderr, flush=True)
    with served(bundle, work, "batched") as (port, process):
        result["long_run"] = long_run(port, process, sizes, texts)
    return result


def long_run(port: int, process: psutil.Process, sizes: Sizes, texts: Texts) -> dict[str, Any]:
    """Search ``sizes.requests`` times and note the server's memory ten times."""
    began_s = time.perf_counter()
    resident: list[int] = []
    statuses: dict[str, int] = {}
    for part in range(10):
        count = sizes.requests * (part + 1) // 10 - sizes.requests * part // 10
        found = asyncio.run(counted(port, sizes.clients, count, texts))
        for status, number in found["statuses"].items():
            statuses[status] = statuses.get(status, 0) + number
        resident.append(process.memory_info().rss)
    return {
        "requests": sizes.requests,
        "seconds": time.perf_counter() - began_s,
        "statuses": statuses,
        "resident_bytes": resident,
        "growth": resident[-1] / resident[0] - 1,
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
