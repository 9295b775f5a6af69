"""Tell where time and accuracy of the encoders go on an NVIDIA GPU, in less than 100 seconds.

    python -m benchmarks.gpu_probe BUNDLE OUTPUT [--only text --only videos] [--device cpu]

Steps: ``nodes`` tells which provider runs each operator. ``text`` times one text: plain, fused,
with each kernel of the attention, from host memory, replayed. ``steps`` tells what a replay waits
for. ``videos`` gives rates from host memory, with one caller and with two. ``errors`` compares
fused forms with FP32 on the CPU, operator by operator. ``probe.json`` is written after every entry.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_encoders import timed
from xclip_deploy import Bundle, SessionOptions
from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.runtime_api import Cuda
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, VideoPart
from xclip_deploy.runtime.sessions import Placement, place
from xclip_deploy.runtime.sessions.device_lanes import Lane
from xclip_deploy.runtime.sessions.device_runs import DeviceRuns
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider
from xclip_deploy.runtime.sessions.onnx_session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    FP16,
    FP32,
    import_onnxruntime,
    providers_of,
)
from xclip_deploy.runtime.sessions.registry import Device
from xclip_deploy.runtime.valid_frames import open_video_encoder

KERNELS = {"default": "0", "flash": "1", "efficient": "2", "trt": "4", "cudnn": "8", "math": "16"}
"""Value of the provider's option ``sdpa_kernel`` for each kernel of the attention."""
ENCODERS: tuple[AnyGraph, ...] = (Graph.TEXT_ENCODER, VideoPart.FRAME_ENCODER)
STEPS = ("nodes", "text", "steps", "videos", "errors")
Entry = dict[str, Any]


class Probe:
    """The steps on one bundle and one device."""

    def __init__(self, bundle: Bundle, device: Device, *, is_toy: bool) -> None:
        self.bundle, self.device, self.is_toy = bundle, device, is_toy
        self.rounds = 3 if is_toy else 30

    def nodes(self) -> Iterator[Entry]:
        """Count the operators of each provider, in every form of the encoders."""
        for graph in ENCODERS:
            for is_fused in (False, True):
                session = self._raw(graph, is_fused=is_fused)
                found: dict[str, Counter[str]] = defaultdict(Counter)
                for part in session.get_provider_graph_assignment_info():
                    found[part.ep_name].update(node.op_type for node in part.get_nodes())
                nodes = {name: dict(counts.most_common()) for name, counts in found.items()}
                yield {"graph": graph.value, "fused": is_fused, "nodes": nodes}

    def text(self) -> Iterator[Entry]:
        """Time one text with inputs on the device, and from host memory."""
        feeds = {"token_ids": self._ids(1)}
        yield {"fused": False, "attention": "default"} | self._bound_time(
            Graph.TEXT_ENCODER, feeds, "default", is_fused=False
        )
        for name in KERNELS:
            found = self._bound_time(Graph.TEXT_ENCODER, feeds, name)
            yield {"fused": True, "attention": name} | found
        for changes in ({"fused_graphs": False}, {"cuda_graphs": False}, {}):
            with self._opened(Graph.TEXT_ENCODER, changes) as (session, loader):
                found = timed(lambda: session.run(feeds), self.rounds)
                yield {"options": changes, "reason": loader.placement.reason} | found

    def steps(self) -> Iterator[Entry]:
        """Time what a replay of one text and an upload of 32 videos consist of."""
        with self._opened(Graph.TEXT_ENCODER, {}) as (session, _), stopwatch() as spent:
            yield self._spent("1 text", session, {"token_ids": self._ids(1)}, spent)
        frames = self._frames((1 if self.is_toy else 32) * self.bundle.manifest.model.max_frames)
        with self._opened(VideoPart.FRAME_ENCODER, {}) as (session, _), stopwatch() as spent:
            yield self._spent("32 videos", session, {"frames": frames}, spent)

    def videos(self) -> Iterator[Entry]:
        """Time the video encoder from host memory: batches by callers."""
        model = self.bundle.manifest.model
        for size in (1, 2) if self.is_toy else (1, 8, 32, 64, 128):
            side = model.vision.image_size
            shape = (size, model.max_frames, side, side, 3)
            frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            counts = np.full(size, model.max_frames, np.int32)
            feeds: dict[str, AnyArray] = {"frames": frames, "num_frames": counts}
            with self._opened(Graph.VIDEO_ENCODER, {}) as (session, _):
                for callers in (1, 2):
                    yield {"videos": size, "callers": callers} | self._rate(session, feeds, callers)
        feeds = {"frames": self._frames((1 if self.is_toy else 32) * model.max_frames)}
        kernels = ("default",) if self.is_toy else ("default", "flash", "trt", "cudnn")
        for name in kernels:
            found = self._bound_time(VideoPart.FRAME_ENCODER, feeds, name)
            videos = len(feeds["frames"]) / model.max_frames
            yield {"attention": name, "videos": videos, "fused": True} | found

    def errors(self) -> Iterator[Entry]:
        """Compare forms with FP32 on the CPU, in units of the outputs' mean length."""
        inputs: dict[AnyGraph, dict[str, AnyArray]] = {
            Graph.TEXT_ENCODER: {"token_ids": self._ids(8)},
            VideoPart.FRAME_ENCODER: {"frames": self._frames(4)},
        }
        for graph, feeds in inputs.items():
            path = self.bundle.graph_path(graph, Precision.FP32)
            library = import_onnxruntime()
            reference = library.InferenceSession(str(path), providers=[CPU_PROVIDER])
            expected = reference.run(None, feeds)[0].astype(np.float64)
            length = np.linalg.norm(expected, axis=-1).mean()
            for precision in (Precision.FP32,) if self.is_toy else (Precision.FP32, Precision.FP16):
                for name, model in _forms(self.bundle, graph, precision):
                    session = self._session(model, precision)
                    found = session.run(None, feeds)[0].astype(np.float64)
                    error = float(np.abs(found - expected).max() / length)
                    yield {
                        "graph": graph.value,
                        "precision": precision.value,
                        "fused": name,
                        "error": error,
                    }

    # -- helpers of the steps ----------------------------------------------------------------

    def _placement(self, precision: Precision = Precision.FP16) -> Placement:
        arithmetic = FP16 if precision is Precision.FP16 else FP32
        return Placement("onnxruntime", "cpu" if self.device == "cpu" else "cuda", arithmetic)

    def _session(
        self,
        path: Path,
        precision: Precision = Precision.FP16,
        provider_options: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401
        library = import_onnxruntime()
        options = library.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        given = {} if self.device == "cpu" else provider_options or {}
        providers = providers_of(self._placement(precision), given)
        session = library.InferenceSession(
            str(path), sess_options=options, providers=providers, enable_fallback=0
        )
        # The library runs on the CPU where its provider does not load: those times would lie.
        (wanted, _), *_ = providers
        if wanted not in session.get_providers():
            raise SessionError(f"ONNX Runtime cannot load {wanted}")
        return session

    def _raw(self, graph: AnyGraph, *, is_fused: bool, **provider_options: str) -> Any:  # noqa: ANN401
        path = self.bundle.graph_path(graph, Precision.FP16, is_fused=is_fused)
        return self._session(path, provider_options=provider_options)

    def _bound_time(
        self, graph: AnyGraph, feeds: dict[str, AnyArray], kernel: str, *, is_fused: bool = True
    ) -> Entry:
        """Time runs with inputs and outputs on the device, by a kernel of the attention."""
        rounds = self.rounds if graph is Graph.TEXT_ENCODER else max(3, self.rounds // 3)
        try:
            session = self._raw(graph, is_fused=is_fused, sdpa_kernel=KERNELS[kernel])
            value_of = import_onnxruntime().OrtValue.ortvalue_from_numpy
            values = {name: value_of(array, self.device, 0) for name, array in feeds.items()}
            binding = session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for output in session.get_outputs():
                binding.bind_output(output.name, self.device)

            def run() -> None:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()

            return {"device_bound": True} | timed(run, rounds)
        except Exception as error:  # noqa: BLE001 - a kernel that this GPU lacks is a finding
            return {"device_bound": True, "failed": str(error)[:300]}

    @contextmanager
    def _opened(self, graph: AnyGraph, changes: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        """Open a session as the runtime does."""
        if self.device == "cpu":
            changes = {}
        options = SessionOptions(
            device=self.device, precision="fp16", backend="onnxruntime", **changes
        )
        loader = place(options, self.bundle)
        if graph is Graph.VIDEO_ENCODER:
            session: Any = open_video_encoder(loader)
        elif isinstance(graph, VideoPart):
            session = loader.open_part(graph)
        else:
            session = loader.open(graph)
        try:
            yield session, loader
        finally:
            session.close()

    def _spent(
        self,
        what: str,
        session: Any,  # noqa: ANN401
        feeds: dict[str, AnyArray],
        spent: dict[str, list[float]],
    ) -> Entry:
        for _ in range(3):
            session.run(feeds)
        spent.clear()
        whole = timed(lambda: session.run(feeds), self.rounds)
        medians = {name: statistics.median(times) for name, times in spent.items()}
        return {"what": what, "whole_ms": whole["median_ms"], "medians_ms": medians}

    def _rate(self, session: Any, feeds: dict[str, AnyArray], callers: int) -> Entry:  # noqa: ANN401
        """Let callers run for a second, and count the videos of all."""
        seconds = 0.1 if self.is_toy else 1.0
        for _ in range(3):
            session.run(feeds)
        end_s = time.perf_counter() + seconds

        def call(_: int) -> int:
            runs = 0
            while time.perf_counter() < end_s:
                session.run(feeds)
                runs += 1
            return runs

        start_s = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            runs = sum(pool.map(call, range(callers)))
        videos = runs * len(feeds["frames"])
        return {"runs": runs, "videos_a_second": videos / (time.perf_counter() - start_s)}

    def _ids(self, count: int) -> AnyArray:
        model = self.bundle.manifest.model
        rng, last = np.random.default_rng(0), model.text.vocab_size - 1
        ids = rng.integers(1, last - 1, (count, model.max_words), dtype=np.int32)
        ids[:, 0], ids[:, -1] = last - 1, last
        return ids

    def _frames(self, count: int) -> AnyArray:
        side = self.bundle.manifest.model.vision.image_size
        shape = (count, side, side, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@contextmanager
def stopwatch() -> Iterator[dict[str, list[float]]]:
    """Time the parts of runs on the device, milliseconds by part."""
    spent: dict[str, list[float]] = defaultdict(list)
    kept = [
        (owner, name, getattr(owner, name))
        for owner, names in (
            (Lane, ("make_room", "stage", "upload", "download", "read")),
            (DeviceRuns, ("_enqueue", "_compute")),
            (Cuda, ("synchronize",)),
        )
        for name in names
    ]

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            start_s = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[name].append((time.perf_counter() - start_s) * 1e3)

        return call

    for owner, name, function in kept:
        setattr(owner, name, watched(name.lstrip("_"), function))
    try:
        yield spent
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def _forms(bundle: Bundle, graph: AnyGraph, precision: Precision) -> Iterator[tuple[str, Path]]:
    """Write forms with one fused operator each beside a graph, whose weights they read."""
    import onnx_ir

    from xclip_deploy.export.fused_graphs.rewriting import ALL, GELU, fuse

    plain = bundle.graph_path(graph, precision)
    yield "nothing", plain
    for only in (*([name] for name in ALL if name != GELU), ALL):
        path = plain.with_name("probe.onnx")
        model = onnx_ir.load(plain)
        made = fuse(model, only)
        if not made:
            continue
        try:
            onnx_ir.save(model, path)
            yield ", ".join(made), path
        finally:
            with suppress(OSError):
                path.unlink()


def tried(step: str, entries: Iterator[Entry]) -> Iterator[Entry]:
    """Return the entries of a step. What fails ends the step, and no other."""
    try:
        for entry in entries:
            yield {"step": step} | entry
    except Exception as error:  # noqa: BLE001 - the library raises classes of its own
        yield {"step": step, "failed": f"{type(error).__name__}: {error}"[:500]}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    found.add_argument("bundle", type=Path)
    found.add_argument("output", type=Path, help="folder of probe.json")
    found.add_argument("--only", choices=STEPS, action="append", help="run these steps alone")
    found.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    found.add_argument("--toy", action="store_true", help="few and small runs")
    return found


def main() -> None:
    """Run the steps, and write each result at once."""
    options = parser().parse_args()
    missing = None if options.device == "cpu" else why_no_provider(CUDA_PROVIDER)
    if missing is not None:
        raise SystemExit(f"nothing was measured: {missing}")
    probe = Probe(Bundle.open(options.bundle), options.device, is_toy=options.toy)
    options.output.mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    for step in options.only or STEPS:
        start_s = time.perf_counter()
        for entry in tried(step, getattr(probe, step)()):
            entries.append(entry)
            brief = {name: value for name, value in entry.items() if name != "samples_ms"}
            print(json.dumps(brief), flush=True)
            replace_text(options.output / "probe.json", json.dumps(entries, indent=1) + "\n")
        print(f"{step} took {time.perf_counter() - start_s:.1f} s", flush=True)


if __name__ == "__main__":
    main()
