"""Find the files that a model repository copies: ONNX graphs or TensorRT engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from xclip_deploy.errors import EngineError, InvalidArgumentError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import (
    ENGINES_DIRECTORY,
    EngineSet,
    Flavour,
    engine_file,
    engine_sets,
    read_engine_set,
)
from xclip_deploy.runtime.manifest import Graph, Precision, TensorSpec
from xclip_deploy.runtime.sessions.native.engine_choice import ChosenEngines, read_plan


@dataclass(frozen=True)
class Source:
    """Files of the three networks, with their inputs, outputs and limits."""

    precision: Precision
    files: Mapping[Graph, tuple[Path, ...]]
    """Files of each network: the graph or engine first, then the files that it refers to."""
    inputs: Mapping[Graph, tuple[TensorSpec, ...]]
    outputs: Mapping[Graph, tuple[TensorSpec, ...]]
    profiles: Mapping[Graph, int]
    """Number of optimisation profiles; 0 for an ONNX graph."""
    max_batch: Mapping[Graph, int]
    """Largest batch of each encoder's engine; graphs without a limit are not in it."""
    server_arguments: tuple[str, ...] = ()
    """Arguments that the server needs."""
    tensorrt_version: str | None = None
    target: str | None = None


def onnx_sources(bundle: Bundle, precision: Precision | None, device: str) -> Source:
    """Find the ONNX graphs in a precision; None: FP16 on ``cuda`` and FP32 on ``cpu``.

    Raises InvalidArgumentError or BundleIntegrityError.
    """
    precision = precision or (Precision.FP16 if device == "cuda" else Precision.FP32)
    if precision is Precision.INT8_WEIGHTS:
        raise InvalidArgumentError(
            "precision int8-weights: for OpenVINO alone; expected fp32, fp16 or int8"
        )
    if precision is Precision.BF16:
        raise InvalidArgumentError("precision bf16: ONNX Runtime cannot run it; choose tensorrt")
    if precision is Precision.INT8 and device == "cuda":
        raise InvalidArgumentError("precision int8: for the CPU alone, device is cuda")
    files = {}
    for graph in Graph:
        path = bundle.graph_path(graph, precision)  # raises if the bundle lacks the precision
        beside = sorted(
            name
            for name in bundle.manifest.files
            if name.startswith(path.relative_to(bundle.path).as_posix())
        )
        files[graph] = (path, *(bundle.path / name for name in beside[1:]))
    specs = bundle.manifest.graphs[precision]
    return Source(
        precision,
        files,
        {graph: specs[graph].inputs for graph in Graph},
        {graph: specs[graph].outputs for graph in Graph},
        profiles=dict.fromkeys(Graph, 0),
        max_batch={},
    )


def engine_sources(
    bundle: Bundle, precision: Precision | None, engines: str | PathLike[str] | None
) -> Source:
    """Find the engines of a set of the ``tensorrt`` flavour.

    ``engines``: the set's folder, or its name within the bundle; None: the only set of
    ``precision``, or of any where that is None. Raises EngineError or InvalidArgumentError.
    """
    if engines is None:
        folder, engine_set = _only_set(bundle, precision)
    else:
        folder = Path(engines)
        if not folder.is_dir():
            folder = bundle.path / ENGINES_DIRECTORY / engines
        engine_set = read_engine_set(folder, bundle.path)
    name = folder.name
    if engine_set.flavour is not Flavour.TENSORRT:
        raise _not_for_triton(bundle, f"the engines {name} are TensorRT-RTX's")
    if precision is not None and engine_set.precision is not precision:
        raise InvalidArgumentError(
            f"precision {precision.value}: the engines {name} are {engine_set.precision.value}"
        )
    chosen = ChosenEngines(bundle, folder, engine_set)
    other = chosen.why_other_bundle()
    if other is not None:
        raise chosen.refusal(other)
    files = {}
    for graph in Graph:
        read_plan(chosen, graph)  # checks its content
        files[graph] = (folder / engine_file(graph),)
    records = engine_set.engines
    return Source(
        engine_set.precision,
        files,
        {graph: records[graph].inputs for graph in Graph},
        {graph: records[graph].outputs for graph in Graph},
        profiles={graph: len(records[graph].profiles) for graph in Graph},
        max_batch={
            graph: max(next(iter(profile.values())).max[0] for profile in records[graph].profiles)
            for graph in (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER)
        },
        server_arguments=(
            ("--backend-config=tensorrt,version-compatible=true",)
            if engine_set.options.version_compatible
            else ()
        ),
        tensorrt_version=engine_set.version,
        target=engine_set.target,
    )


def _only_set(bundle: Bundle, precision: Precision | None) -> tuple[Path, EngineSet]:
    sets = engine_sets(bundle)
    fitting = {
        folder: engine_set
        for folder, engine_set in sets.items()
        if engine_set.flavour is Flavour.TENSORRT
        and (precision is None or engine_set.precision is precision)
    }
    if len(fitting) > 1:
        names = ", ".join(folder.name for folder in fitting)
        raise InvalidArgumentError(
            f"{bundle.path} has several engine sets that fit ({names}); choose one with --engines"
        )
    if not fitting:
        names = ", ".join(folder.name for folder in sets) or "none"
        raise _not_for_triton(bundle, f"{bundle.path} has no engines that fit (found: {names})")
    return next(iter(fitting.items()))


def _not_for_triton(bundle: Bundle, what: str) -> EngineError:
    return EngineError(
        f"{what}; Triton's backend links TensorRT itself and loads engines of flavour tensorrt "
        "alone, in the version that they were built with; on the server's GPU, run: "
        f"xclip-deploy build-trt {bundle.path} --flavor tensorrt"
    )
