"""Build a set of strongly typed engines from a bundle's graphs.

Each engine is checked before it is written: its graph parses, its inputs and outputs are those of
the manifest, and its FP32 islands compute in FP32. Where a GPU is there, the set runs too. Only
then does the set take its place.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from xclip_deploy.errors import EngineBuildError, EngineError
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.export.tensorrt.graph_audit import GraphAudit, audit_graph, count_fused_attention
from xclip_deploy.export.tensorrt.memory import engine_memory
from xclip_deploy.export.tensorrt.network import check_network, graph_sources, parse_graph
from xclip_deploy.export.tensorrt.options import check_options
from xclip_deploy.export.tensorrt.plan import build_plan
from xclip_deploy.export.tensorrt.profiles import EngineShapes
from xclip_deploy.export.tensorrt.timing_cache import TimingCacheFile
from xclip_deploy.runtime.arguments import (
    as_callback,
    as_instance,
    as_member,
    as_path,
    as_text,
    as_truth,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import (
    ENGINES_DIRECTORY,
    SIDECAR_NAME,
    BuildOptions,
    EngineRecord,
    EngineSet,
    Flavour,
    ShapeRange,
    directory_name,
    engine_file,
    read_engine_set,
    why_not_rtx,
)
from xclip_deploy.runtime.files import replaced_directory, sha256_of
from xclip_deploy.runtime.manifest import FileRecord, Graph, GraphSpec, Precision
from xclip_deploy.runtime.nvidia_driver import first_gpu
from xclip_deploy.runtime.presentation import listed
from xclip_deploy.runtime.progress import Progress, ProgressFunction

logger = logging.getLogger(__name__)

_TEST_BATCH = 16

SelfTest = Callable[[Bundle, Path, EngineSet], bool]
"""Function that runs a finished set, given its bundle, folder and description. It returns whether
the engines can run here. It raises where their results differ from the model's."""


@dataclass(frozen=True)
class BuildResult:
    """Result of a build."""

    path: Path
    """Folder of the engine set."""
    engine_set: EngineSet
    is_new: bool
    """True if the set was built; False if the existing set already fits the request."""
    notes: tuple[str, ...] = ()
    """Remarks on the engines, such as attention that was not fused."""


def verify_on_gpu(bundle: Bundle, folder: Path, engine_set: EngineSet) -> bool:
    """Compare the engines in ``folder`` with the bundle's FP32 graphs, on this machine's GPU.

    Returns False where no GPU can run these engines. Raises VerificationError, SessionError or
    EngineError. This function has not run on a GPU yet.
    """
    gpu = first_gpu()
    if gpu is None or not engine_set.runs_on(gpu.major, gpu.minor):
        return False
    from xclip_deploy.export.verification import verify_engines

    verify_engines(bundle, folder, max_batch=_largest_batch(engine_set))
    return True


def _largest_batch(engine_set: EngineSet) -> int:
    """Return the largest batch that both encoders take, at most 16 so that it fits every GPU."""
    video = engine_set.engines[Graph.VIDEO_ENCODER].profiles[-1]["num_frames"]
    text = engine_set.engines[Graph.TEXT_ENCODER].profiles[-1]["token_ids"]
    return min(_TEST_BATCH, video.max[0], text.max[0])


def build_engines(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    *,
    precision: Precision = Precision.FP16,
    flavour: str = "auto",
    shapes: EngineShapes | None = None,
    options: BuildOptions | None = None,
    timing_cache: str | PathLike[str] | None = None,
    force: bool = False,
    self_test: SelfTest | None = verify_on_gpu,
    progress: ProgressFunction | None = None,
) -> BuildResult:
    """Build the three engines of a bundle.

    The set takes its place in the bundle once all three are built and tested. Until then an older
    set of the same flavour, version, precision and target stays. It stays for good where it
    already is what the call asks for.

    Args:
        bundle: Path of a bundle, or an opened one.
        precision: Precision of the graphs to build from; FP32, FP16 or BF16.
        flavour: ``auto``, ``tensorrt`` or ``rtx``.
        shapes: Batch ranges, which make the optimisation profiles.
        options: Build options; one that the flavour does not have is refused.
        timing_cache: File for the measurements of ``tensorrt``, created where it is missing.
        force: Whether to build even where nothing that matters has changed.
        self_test: Function that runs the finished set before it takes its place. If it raises,
            the old engines stay. The default runs where a GPU can run the set; None: no test.
        progress: Called from a thread of the builder as each engine proceeds.

    Raises:
        BundleError: the bundle cannot be used.
        EngineBuildError: TensorRT built no engine, an engine is not as expected, or the set
            cannot be written.
        InvalidArgumentError: the flavour has no such option, or the bundle no such graphs.
        MissingExtraError: TensorRT is not installed.
        KeyboardInterrupt: on Ctrl-C, once TensorRT has stopped.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    precision = as_member("precision", precision, Precision)
    as_text("flavour", flavour)
    shapes = EngineShapes() if shapes is None else shapes
    as_instance("shapes", shapes, EngineShapes, "EngineShapes or None")
    options = BuildOptions() if options is None else options
    as_instance("options", options, BuildOptions, "BuildOptions or None")
    if timing_cache is not None:
        timing_cache = as_path("timing_cache", timing_cache)
    as_truth("force", force)
    as_callback("self_test", self_test)
    as_callback("progress", progress)
    library = load_tensorrt(flavour)
    check_options(library, options, timing_cache=timing_cache is not None)
    if library.flavour is Flavour.RTX:
        _warn_of_unsupported_gpu()
    sources = graph_sources(bundle, precision)
    asked: dict[str, Any] = {
        "flavour": library.flavour,
        "version": library.version,
        "precision": precision,
        "target": library.target(options),
        "gpu": None if library.gpu is None else library.gpu.name,
        "fingerprint": bundle.manifest.fingerprint,
        "options": options,
        "shape_options": shapes.options(),
    }
    name = directory_name(library.flavour, library.version, precision, asked["target"])
    path = bundle.path / ENGINES_DIRECTORY / name
    wanted = {graph: shapes.profiles(graph, spec) for graph, (_, spec) in sources.items()}
    present = None if force else _present(path, bundle, asked, wanted)
    if present is not None:
        return BuildResult(path, present, is_new=False)
    cache = None if timing_cache is None else TimingCacheFile(Path(timing_cache))
    engines: dict[Graph, EngineRecord] = {}
    try:
        with replaced_directory(path) as directory:
            for number, (graph, (source, spec)) in enumerate(sources.items()):
                job = _Job(library, bundle, precision, graph, source, spec, wanted[graph], options)
                report = _reporter(progress, graph, number, len(sources))
                engines[graph], plan = job.run(cache, report)
                (directory / engine_file(graph)).write_bytes(plan)
                report(1.0, "done")
            engine_set = EngineSet(**asked, self_tested=False, created_utc=_now(), engines=engines)
            _write_sidecar(directory, engine_set)
            if self_test is not None and progress is not None and first_gpu() is not None:
                progress(Progress.waiting("building", "running the new engines"))
            if self_test is not None and self_test(bundle, directory, engine_set):
                engine_set = engine_set.model_copy(update={"self_tested": True})
                _write_sidecar(directory, engine_set)
    except OSError as error:
        raise EngineBuildError(
            f"engines cannot be written to {path} ({error.strerror}); what was there stands"
        ) from error
    if cache is not None:
        cache.write()
    return BuildResult(path, engine_set, is_new=True, notes=tuple(_notes(engine_set)))


def _warn_of_unsupported_gpu() -> None:
    """Warn where this machine's GPU cannot run the engines. Building for others is legitimate."""
    gpu = first_gpu()
    reason = None if gpu is None else why_not_rtx(gpu.major, gpu.minor)
    if gpu is not None and reason is not None:
        logger.warning(
            "%s: the engines run on other GPUs, not on this machine's %s, and are not tested here; "
            "for this GPU use --flavor tensorrt",
            reason,
            gpu.name,
        )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write_sidecar(directory: Path, engine_set: EngineSet) -> None:
    (directory / SIDECAR_NAME).write_text(engine_set.model_dump_json(indent=1))


def _present(
    path: Path,
    bundle: Bundle,
    asked: dict[str, Any],
    profiles: dict[Graph, tuple[dict[str, ShapeRange], ...]],
) -> EngineSet | None:
    """Return the set at ``path`` if it is whole and matches what was asked for, else None."""
    try:
        present = read_engine_set(path, bundle.path)
    except EngineError:
        return None
    if any(getattr(present, field) != value for field, value in asked.items()):
        return None
    for graph in Graph:
        record = present.engines[graph]
        if record.graph_sha256 != bundle.graph_sha256(graph, present.precision):
            return None
        if record.profiles != profiles[graph]:
            return None
        try:
            if sha256_of(path / engine_file(graph)) != record.file.sha256:
                return None
        except OSError:
            return None
    return present


def _notes(engine_set: EngineSet) -> list[str]:
    notes = []
    for graph, engine in engine_set.engines.items():
        attention = engine.attention
        if attention.fused is not None and attention.fused < attention.expected:
            notes.append(
                f"{graph.value}: {attention.fused} of {attention.blocks} attention blocks have "
                f"fused kernels, {attention.expected} were expected; the engine is correct, but "
                "slower than it could be"
            )
    return notes


def _reporter(
    progress: ProgressFunction | None, graph: Graph, number: int, total: int
) -> Callable[[float, str], None]:
    def report(fraction: float, phase: str) -> None:
        if progress:
            progress(
                Progress("building", number, total, step=graph.value, fraction=fraction, note=phase)
            )

    return report


@dataclass(frozen=True)
class _Job:
    """An engine to build."""

    library: TensorRT
    bundle: Bundle
    precision: Precision
    graph: Graph
    source: Path
    spec: GraphSpec
    profiles: tuple[dict[str, ShapeRange], ...]
    options: BuildOptions

    def run(
        self, cache: TimingCacheFile | None, report: Callable[[float, str], None]
    ) -> tuple[EngineRecord, bytes]:
        """Build the engine and return its record and its plan."""
        start_s = time.monotonic()
        report(0.0, "Checking and parsing the graph")
        audit = GraphAudit({}, ())
        if self.precision is not Precision.FP32:
            audit = audit_graph(self.source, self.graph, self.bundle.manifest.model)
        parsed = parse_graph(self.library, self.graph, self.source)
        if isinstance(parsed, list):
            reasons = listed([str(operator) for operator in parsed])
            raise EngineBuildError(
                f"{self.library.name} could not parse {self.source}: {reasons}; for all of them "
                f"run: xclip-deploy build-trt {self.bundle.path} --dry-run"
            )
        check_network(self.library, self.graph, parsed.network, self.spec)
        plan = build_plan(
            self.library,
            self.graph,
            parsed,
            self.profiles,
            self.options,
            cache=cache,
            report=report,
        )
        record = EngineRecord(
            file=FileRecord(sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan)),
            graph_sha256=self.bundle.graph_sha256(self.graph, self.precision),
            inputs=self.spec.inputs,
            outputs=self.spec.outputs,
            profiles=self.profiles,
            build_s=round(time.monotonic() - start_s, 3),
            memory=engine_memory(self.library, plan, self.spec, self.profiles),
            attention=count_fused_attention(self.library, plan, len(self.profiles), audit),
            float32_islands=audit.float32_islands,
        )
        return record, plan
