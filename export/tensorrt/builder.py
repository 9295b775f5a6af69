"""Building a set of engines, strongly typed, from a bundle's graphs.

TensorRT reports failure by returning None, False or -1, and tells the reason to its logger
alone. Every such answer here becomes an error that carries what the logger heard.
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

from xclip_deploy.errors import EngineBuildError
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.export.tensorrt.profiles import EngineShapes
from xclip_deploy.runtime.atomic import replaced_directory
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import (
    DIRECTORY,
    FILE_NAME,
    EngineRecord,
    EngineSet,
    ShapeRange,
    engine_file,
)
from xclip_deploy.runtime.manifest import DType, FileRecord, Graph, Precision, TensorSpec

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called at the start of every engine with its number from 0, how many there are, and a label;
once more at the end with both numbers equal."""

_DTYPES = {
    "FLOAT": DType.FLOAT32,
    "HALF": DType.FLOAT16,
    "INT32": DType.INT32,
    "UINT8": DType.UINT8,
}


@dataclass(frozen=True)
class BuildResult:
    """What a build wrote."""

    path: Path
    """Folder of the engine set."""
    engine_set: EngineSet


def build_engines(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    *,
    precision: Precision = Precision.FP16,
    flavour: str = "auto",
    shapes: EngineShapes | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Build the three engines of a bundle.

    ``flavour``: ``auto``, ``tensorrt`` or ``rtx``. ``shapes``: batch ranges. The set
    takes its place in the bundle when all three are built; an older set of the same flavour,
    version, precision and target stands until then.

    Raises BundleError, EngineBuildError with TensorRT's own reason, or MissingExtraError.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    shapes = shapes or EngineShapes()
    library = load_tensorrt(flavour)
    graphs = list(Graph)
    engines: dict[Graph, EngineRecord] = {}
    plans: dict[Graph, bytes] = {}
    for number, graph in enumerate(graphs):
        if progress:
            progress(number, len(graphs), f"building {precision.value}/{graph.value}")
        engines[graph], plans[graph] = _build(library, bundle, graph, precision, shapes)
    engine_set = EngineSet(
        flavour=library.flavour,
        version=library.version,
        precision=precision,
        target=library.target,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        engines=engines,
    )
    path = bundle.path / DIRECTORY / engine_set.directory_name
    try:
        with replaced_directory(path) as directory:
            for graph, plan in plans.items():
                (directory / engine_file(graph)).write_bytes(plan)
            (directory / FILE_NAME).write_text(engine_set.model_dump_json(indent=1))
    except OSError as error:
        raise EngineBuildError(
            f"engines cannot be written to {path} ({error.strerror}); what was there stands"
        ) from error
    if progress:
        progress(len(graphs), len(graphs), "done")
    return BuildResult(path, engine_set)


def _build(
    library: TensorRT, bundle: Bundle, graph: Graph, precision: Precision, shapes: EngineShapes
) -> tuple[EngineRecord, bytes]:
    trt = library.module
    spec = bundle.manifest.graphs[precision][graph] if precision in bundle.precisions else None
    path = bundle.graph_path(graph, precision)  # raises where the bundle lacks the precision
    assert spec is not None
    start_s = time.monotonic()
    log = _log_of(library)
    log.messages.clear()
    builder = trt.Builder(log)
    # TensorRT 11 and RTX know no other networks; 10 needs to be told.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    if network is None:
        raise _failure(library, graph, "made no network", log)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(n) for n in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()}: {error.desc()}" for error in errors)
        raise _failure(library, graph, f"could not parse {path}: {reasons}", log)
    inputs = tuple(_tensor(network.get_input(n)) for n in range(network.num_inputs))
    outputs = tuple(_tensor(network.get_output(n)) for n in range(network.num_outputs))
    _check_boundary(library, graph, inputs + outputs, spec.inputs + spec.outputs)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    ranges = shapes.profile(graph, spec)
    for name, shape in ranges.items():
        _set_shape(library, graph, profile, name, shape)
    if config.add_optimization_profile(profile) < 0:
        raise _failure(library, graph, "refused the optimisation profile", log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(library, graph, "built no engine", log)
    content = bytes(plan)
    record = EngineRecord(
        file=FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)),
        graph_sha256=bundle.graph_sha256(graph, precision),
        inputs=spec.inputs,
        outputs=spec.outputs,
        profiles=(ranges,),
        build_s=round(time.monotonic() - start_s, 3),
    )
    return record, content


def _set_shape(
    library: TensorRT,
    graph: Graph,
    profile: Any,  # noqa: ANN401 - a class of TensorRT's
    name: str,
    shape: ShapeRange,
) -> None:
    # Some versions return a bool, others None for success and raise for failure.
    try:
        accepted = profile.set_shape(name, shape.min, shape.opt, shape.max)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EngineBuildError(
            f"{library.name} refuses {name} {shape} of {graph.value}: {error}"
        ) from error
    if accepted is False:
        raise EngineBuildError(f"{library.name} refuses {name} {shape} of {graph.value}")


def _tensor(tensor: Any) -> tuple[str, str, tuple[int, ...]]:  # noqa: ANN401 - TensorRT's
    return tensor.name, tensor.dtype.name, tuple(tensor.shape)


def _check_boundary(
    library: TensorRT,
    graph: Graph,
    found: tuple[tuple[str, str, tuple[int, ...]], ...],
    expected: tuple[TensorSpec, ...],
) -> None:
    """Catch a network whose inputs or outputs are not those of the graph.

    A strongly typed build can succeed and yield half-precision outputs where FP32 was
    declared; whoever reads the buffers would then read garbage.
    """
    have = [
        (name, _DTYPES[dtype].value if dtype in _DTYPES else dtype, shape)
        for name, dtype, shape in found
    ]
    want = [
        (
            spec.name,
            spec.dtype.value,
            tuple(-1 if isinstance(size, str) else size for size in spec.shape),
        )
        for spec in expected
    ]
    if have != want:
        raise EngineBuildError(
            f"{library.name} reads {graph.value} with tensors {have}, the bundle says {want}"
        )


def _failure(library: TensorRT, graph: Graph, what: str, log: Any) -> EngineBuildError:  # noqa: ANN401
    reasons = " | ".join(log.messages[-3:]) or "it gave no reason"
    return EngineBuildError(f"{library.name} {what} ({graph.value}): {reasons}")


_logs: dict[str, Any] = {}


def _log_of(library: TensorRT) -> Any:  # noqa: ANN401 - a class of TensorRT's
    """The process's one logger for a flavour: TensorRT keeps the first that it is given."""
    if library.flavour.value not in _logs:
        _logs[library.flavour.value] = _make_log(library.module)
    return _logs[library.flavour.value]


def _make_log(trt: Any) -> Any:  # noqa: ANN401 - a module without type hints
    class Log(trt.ILogger):  # type: ignore[misc]  # the base is not typed
        """Keeps errors for our messages and passes the rest to Python's logging."""

        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.messages.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                logger.info("TensorRT: %s", message)
            else:
                logger.debug("TensorRT: %s", message)

    return Log()
