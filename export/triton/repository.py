"""Export a bundle as a Triton repository: choose graphs or engines, write models, put in place."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata, resources
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from xclip_deploy.errors import ExportError, InvalidArgumentError
from xclip_deploy.export.triton.description import (
    DESCRIPTION_NAME,
    TritonBackend,
    TritonRepository,
    foreign_files,
)
from xclip_deploy.export.triton.model_config import (
    MODEL_FILES,
    TEXT_QUERY,
    TEXT_TOKENIZER,
    Enumerator,
    graph_config,
    query_config,
    tokenizer_config,
)
from xclip_deploy.export.triton.sources import Source, engine_sources, onnx_sources
from xclip_deploy.runtime.arguments import as_choice, as_member, as_path, as_whole_number
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.manifest import Graph, Precision, file_records
from xclip_deploy.runtime.sessions.registry import Device

_MOST = (1 << 31) - 1  # largest number in Triton's configuration
_MAX_BATCH = {Graph.VIDEO_ENCODER: 16, Graph.TEXT_ENCODER: 64}
_SERVER_SIDE = "xclip_deploy.export.triton.server_side"


@dataclass(frozen=True)
class TritonExport:
    """Result of an export to Triton."""

    path: Path
    description: TritonRepository


def export_triton(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    output: str | PathLike[str] = "xclip-triton",
    *,
    backend: TritonBackend
    | Literal["onnxruntime", "tensorrt", "python"] = TritonBackend.ONNXRUNTIME,
    device: Device | None = None,
    precision: Precision | None = None,
    engines: str | PathLike[str] | None = None,
    max_videos: int | None = None,
    max_texts: int | None = None,
    queue_delay_us: int = 500,
    instances: int = 1,
    threads: int | None = None,
    model_version: int = 1,
) -> TritonExport:
    """Write a model repository for Triton Inference Server.

    A repository that an earlier export wrote is replaced in one step.

    Args:
        bundle: Path of a bundle, or an opened one.
        output: Folder of the repository.
        backend: Triton backend of the three networks.
        device: Device of the networks; None: ``cuda`` for ``tensorrt``, else ``cpu``.
        precision: Precision of the networks; None: that of the engines, else FP16 on ``cuda`` and
            FP32 on ``cpu``.
        engines: Folder of an engine set, or its name within the bundle. Needed where several fit.
        max_videos: Most videos in one run; None: the engine's largest, else 16.
        max_texts: Most texts in one run; None: the engine's largest, else 64.
        queue_delay_us: Longest time that a request waits for others to batch with, microseconds.
        instances: Instances of each network.
        threads: CPU threads of an instance; None: one per core.
        model_version: Version of the models, 1 or more.

    Raises:
        BundleError: the bundle cannot be used.
        EngineError: no engines fit.
        InvalidArgumentError: an argument is out of range.
        ExportError: the folder cannot be written.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    backend = as_member("backend", backend, TritonBackend)
    if device is None:
        device = "cuda" if backend is TritonBackend.TENSORRT else "cpu"
    if precision is not None:
        precision = as_member("precision", precision, Precision)
    if engines is not None:
        engines = as_path("engines", engines)
    target = as_path("output", output)
    counts = {
        "instances": instances,
        "model_version": model_version,
        "threads": threads,
        "max_videos": max_videos,
        "max_texts": max_texts,
    }
    for name, count in counts.items():
        if count is not None or name in ("instances", "model_version"):
            as_whole_number(name, count, 1, _MOST)
    as_whole_number("queue_delay_us", queue_delay_us, 0, _MOST)
    _check_options(backend, device, threads, engines)
    _check_target(target)
    if backend is TritonBackend.TENSORRT:
        source = engine_sources(bundle, precision, engines)
    else:
        source = onnx_sources(bundle, precision, device)
    batches = {
        Graph.VIDEO_ENCODER: _max_batch(source, Graph.VIDEO_ENCODER, "max_videos", max_videos),
        Graph.TEXT_ENCODER: _max_batch(source, Graph.TEXT_ENCODER, "max_texts", max_texts),
        Graph.SCORER: 0,  # texts and videos are two axes; neither is a batch
    }
    try:
        with replaced_directory(target) as folder:
            for graph in Graph:
                config = graph_config(
                    graph,
                    source.inputs[graph],
                    source.outputs[graph],
                    backend=backend,
                    max_batch=batches[graph],
                    queue_delay_us=queue_delay_us,
                    instance_group=_instance_group(device, instances, source.profiles[graph]),
                    threads=threads,
                )
                place = _model_folder(folder, graph.value, config, model_version)
                for number, path in enumerate(source.files[graph]):
                    # The graph refers to the weights beside it by name.
                    name = MODEL_FILES[backend] if number == 0 else path.name
                    shutil.copyfile(path, place / name)
                if backend is TritonBackend.PYTHON:
                    _write_code(place, "onnx_graph.py")
            _write_text_models(folder, bundle, source, batches[Graph.TEXT_ENCODER], model_version)
            description = TritonRepository(
                backend=backend,
                device=device,
                precision=source.precision,
                tensorrt_version=source.tensorrt_version,
                target=source.target,
                server_arguments=source.server_arguments,
                fingerprint=bundle.manifest.fingerprint,
                model_version=model_version,
                models=(*(graph.value for graph in Graph), TEXT_TOKENIZER, TEXT_QUERY),
                files=file_records(folder),
                created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                versions={"xclip-deploy": metadata.version("xclip-deploy")},
            )
            (folder / DESCRIPTION_NAME).write_text(description.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise ExportError(
            f"model repository {target} cannot be written ({error.strerror}); what was there stands"
        ) from error
    return TritonExport(target, description)


def _write_text_models(
    folder: Path, bundle: Bundle, source: Source, most_texts: int, version: int
) -> None:
    """Write ``text_tokenizer`` and the ensemble ``text_query``."""
    config = tokenizer_config(bundle.manifest.model, most_texts)
    place = _model_folder(folder, TEXT_TOKENIZER, config, version)
    _write_code(place, "text_tokenizer.py")
    bundle.tokenizer().save(place / "tokenizer.json")
    config = query_config(source.outputs[Graph.TEXT_ENCODER], most_texts)
    place = _model_folder(folder, TEXT_QUERY, config, version)
    # Triton needs a folder for every version, and object stores keep no empty folders.
    (place / ".keep").touch()


def _check_options(
    backend: TritonBackend,
    device: str,
    threads: int | None,
    engines: object,
) -> None:
    as_choice("device", device, Device)
    if backend is TritonBackend.TENSORRT and device == "cpu":
        raise InvalidArgumentError("device cpu: backend tensorrt runs on cuda alone")
    if backend is TritonBackend.TENSORRT and threads is not None:
        raise InvalidArgumentError("threads: backend tensorrt runs on a GPU and takes none")
    if backend is TritonBackend.PYTHON and device == "cuda":
        raise InvalidArgumentError(
            "device cuda: backend python runs on the CPU alone; choose backend onnxruntime"
        )
    if backend is not TritonBackend.TENSORRT and engines is not None:
        raise InvalidArgumentError(f"engines: backend {backend.value} runs ONNX graphs, no engines")


def _check_target(target: Path) -> None:
    """Refuse to replace a folder that holds more than a repository of ours."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InvalidArgumentError(f"{target} is no folder; choose another path with -o")
    foreign = foreign_files(target)
    if foreign:
        raise InvalidArgumentError(
            f"{target} holds what no export to Triton wrote ({foreign[0]}"
            f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}); choose another "
            "path with -o, or remove it"
        )


def _max_batch(source: Source, graph: Graph, name: str, asked: int | None) -> int:
    largest = source.max_batch.get(graph)
    if asked is None:
        return largest or _MAX_BATCH[graph]
    if largest is not None and asked > largest:
        raise InvalidArgumentError(
            f"{name} {asked}: the engine of {graph.value} was built for at most {largest}"
        )
    return asked


def _instance_group(device: str, instances: int, profiles: int) -> dict[str, Any]:
    kind = "KIND_GPU" if device == "cuda" else "KIND_CPU"
    group: dict[str, Any] = {"kind": Enumerator(kind), "count": instances}
    if profiles > 1:
        # By default Triton uses the first profile alone. Of the named ones it takes one that fits.
        group["profile"] = [str(number) for number in range(profiles)]
    return group


def _model_folder(folder: Path, name: str, config: str, version: int) -> Path:
    """Write a model's configuration and return the folder of its version."""
    place = folder / name / str(version)
    place.mkdir(parents=True)
    (place.parent / "config.pbtxt").write_text(config)
    return place


def _write_code(place: Path, name: str) -> None:
    code = resources.files(_SERVER_SIDE).joinpath(name).read_text(encoding="utf-8")
    (place / "model.py").write_text(code, encoding="utf-8")
