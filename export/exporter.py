"""checkpoint → bundle: load, export both precisions, compare with PyTorch, put in place."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from xclip_deploy.errors import ExportError, InvalidArgumentError, ParityError
from xclip_deploy.export.graphs import export_graph, graph_specs
from xclip_deploy.export.parity import Tensors, compare, run_bundle, run_pytorch
from xclip_deploy.export.reference_inputs import ReferenceInputs, reference_inputs
from xclip_deploy.runtime.atomic import replaced_directory
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.hashing import sha256_of
from xclip_deploy.runtime.manifest import (
    FILE_NAME,
    FileRecord,
    Graph,
    GraphSpec,
    Manifest,
    ParityRecord,
    Precision,
    Preprocessing,
    Provenance,
)
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video.preprocessing import CLIP_MEAN, CLIP_STD
from xclip_deploy.training.checkpoints import Checkpoint, CheckpointOptions, load_checkpoint
from xclip_deploy.training.precision import halve

Progress = Callable[[int, int, str], None]
"""Called at the start of every step with its number from 0, how many there are, and a label;
once more at the end with both numbers equal."""

_TOKENIZER = "tokenizer.json"
_PRECISIONS = (Precision.FP32, Precision.FP16)


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    bundle: Bundle
    parity: tuple[ParityRecord, ...]
    notes: tuple[str, ...]
    """What was assumed where the weights did not tell."""


def export_bundle(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str] = "xclip-bundle",
    *,
    options: CheckpointOptions | None = None,
    frames_per_second: float = 1.0,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a checkpoint to a bundle with FP32 and FP16 graphs.

    ``options``: what the weights do not tell. ``frames_per_second``: how densely video is
    sampled; the published models use 1. An existing bundle at ``output`` is replaced, and only
    once the new one is whole and agrees with PyTorch.

    Raises CheckpointError, ExportError (ParityError where a graph does not reproduce
    PyTorch) or InvalidArgumentError.
    """
    target = Path(output)
    if not 0 < frames_per_second <= 1000:
        raise InvalidArgumentError(f"frames_per_second {frames_per_second}: expected 0 to 1000")
    if target.exists() and not _may_replace(target):
        raise InvalidArgumentError(
            f"{target} exists and is no bundle; choose another path with -o, or remove it"
        )
    steps = _Steps(progress)
    steps.next("reading the checkpoint")
    loaded = load_checkpoint(Path(checkpoint), options or CheckpointOptions())
    try:
        with replaced_directory(target) as directory:
            manifest = _write(loaded, Path(checkpoint), directory, frames_per_second, steps)
    except OSError as error:
        raise ExportError(
            f"bundle {target} cannot be written ({error.strerror}); what was there stands"
        ) from error
    steps.finish()
    return ExportResult(Bundle.open(target), manifest.parity, manifest.provenance.notes)


def _write(
    loaded: Checkpoint,
    source: Path,
    directory: Path,
    frames_per_second: float,
    steps: _Steps,
) -> Manifest:
    """Fill ``directory`` with the bundle."""
    config = loaded.config
    tokenizer = Tokenizer.default()
    if config.text.vocab_size != tokenizer.vocab_size:
        raise ExportError(
            f"{source} has {config.text.vocab_size} token embeddings, CLIP's tokenizer has "
            f"{tokenizer.vocab_size} ids; a model with a tokenizer of its own cannot be exported"
        )
    tokenizer.save(directory / _TOKENIZER)
    preprocessing = Preprocessing(image_size=config.vision.image_size, mean=CLIP_MEAN, std=CLIP_STD)
    settings = {
        "model": config.model_dump(mode="json"),
        "frames_per_second": frames_per_second,
        "preprocessing": preprocessing.model_dump(mode="json"),
    }
    fingerprint = _fingerprint(loaded.state_dict, settings)
    steps.next("running PyTorch for reference")
    model = loaded.build()
    inputs = reference_inputs(config, tokenizer)
    reference = run_pytorch(model, inputs)
    logit_scale = float(model.scorer.logit_scale.detach().exp())
    graphs: dict[Precision, dict[Graph, GraphSpec]] = {}
    for precision in _PRECISIONS:
        if precision is Precision.FP16:
            halve(model)
        graphs[precision] = graph_specs(config, precision)
        for graph, spec in graphs[precision].items():
            steps.next(f"exporting {precision.value}/{graph.value}")
            export_graph(model, graph, spec, directory)
    del model
    manifest = Manifest(
        fingerprint=fingerprint,
        model=config,
        frames_per_second=frames_per_second,
        preprocessing=preprocessing,
        tokenizer=_TOKENIZER,
        graphs=graphs,
        files=_file_records(directory),
        parity=(),
        provenance=Provenance(
            checkpoint=source.name,
            checkpoint_sha256=loaded.source_sha256,
            layout=loaded.layout,
            notes=loaded.notes,
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=_versions(),
        ),
    )
    records = _check_parity(manifest, directory, inputs, reference, logit_scale, steps)
    manifest = manifest.model_copy(update={"parity": tuple(records)})
    (directory / FILE_NAME).write_bytes(manifest.to_json())
    return manifest


def _check_parity(
    manifest: Manifest,
    directory: Path,
    inputs: ReferenceInputs,
    reference: Tensors,
    logit_scale: float,
    steps: _Steps,
) -> list[ParityRecord]:
    """Run the unfinished bundle as production will, and hold it against PyTorch."""
    (directory / FILE_NAME).write_bytes(manifest.to_json())
    bundle = Bundle.open(directory)
    records: list[ParityRecord] = []
    for precision in manifest.graphs:
        steps.next(f"comparing {precision.value} with PyTorch")
        found = run_bundle(bundle, precision, inputs)
        records += compare(reference, found, precision, logit_scale)
    failed = [record for record in records if not record.passed]
    if failed:
        worst = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(records)} outputs differ from PyTorch by more than they may; "
            f"first {worst.precision.value}/{worst.graph.value} {worst.tensor}: error "
            f"{worst.max_abs_error:.2g}, allowed {worst.tolerance:.2g}; no bundle was written",
            records,
        )
    return records


class _Steps:
    """Counts the steps of an export for whoever shows the progress."""

    _total = 2 + 3 * len(_PRECISIONS) + len(_PRECISIONS)

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0

    def next(self, label: str) -> None:
        if self._progress:
            self._progress(self._done, self._total, label)
        self._done += 1

    def finish(self) -> None:
        assert self._done == self._total
        if self._progress:
            self._progress(self._total, self._total, "done")


def _may_replace(target: Path) -> bool:
    return target.is_dir() and ((target / FILE_NAME).is_file() or not any(target.iterdir()))


def _file_records(directory: Path) -> dict[str, FileRecord]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): FileRecord(
            sha256=sha256_of(path), size_bytes=path.stat().st_size
        )
        for path in paths
    }


def _fingerprint(state_dict: Mapping[str, Tensor], settings: Mapping[str, object]) -> str:
    """SHA-256 over all that the features depend on, whatever file the weights came in."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().to(torch.float32).contiguous()
        digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).numpy().data.cast("B"))
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("xclip-deploy", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
