"""Export a checkpoint: load it, export every precision, compare with PyTorch, put in place."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from pathlib import Path

import torch

from xclip_deploy.errors import ExportError, InvalidArgumentError, ParityError
from xclip_deploy.export.bfloat16 import run_rounded
from xclip_deploy.export.fused_graphs.exporting import (
    FUSED_PRECISIONS,
    check_fused,
    write_fused,
)
from xclip_deploy.export.graphs import (
    export_graph,
    graph_specs,
    part_specs,
    shared_weights,
    weights_beside,
)
from xclip_deploy.export.parity import TOLERANCES, Tensors, compare, run_bundle, run_pytorch
from xclip_deploy.export.quantization import quantize_graph
from xclip_deploy.export.reference_inputs import ReferenceInputs, reference_inputs
from xclip_deploy.export.scan_kernels.building import build_scan
from xclip_deploy.export.scan_kernels.compiling import require_triton
from xclip_deploy.export.weight_compression import compress_graph, require_weight_compression
from xclip_deploy.export.weights_file import WeightsFile
from xclip_deploy.runtime.arguments import as_callback, as_instance, as_number, as_path, as_truth
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.manifest import (
    MANIFEST_NAME,
    AnyGraph,
    FusedSpec,
    Graph,
    GraphSpec,
    Manifest,
    ParityMethod,
    ParityRecord,
    Precision,
    Preprocessing,
    Provenance,
    VideoPart,
    file_records,
)
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.runtime.scorer_weights import SCORER_WEIGHTS_NAME, ScorerWeights
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video.preprocessing import CLIP_MEAN, CLIP_STD
from xclip_deploy.training.checkpoints import Checkpoint, CheckpointOptions, load_checkpoint
from xclip_deploy.training.checkpoints.parameters import model_fingerprint
from xclip_deploy.training.precision import halve, narrow

_TOKENIZER = "tokenizer.json"
_ALWAYS = (Precision.FP32, Precision.FP16)
_REWRITERS = {Precision.INT8: quantize_graph, Precision.INT8_WEIGHTS: compress_graph}
"""Functions that make a precision's encoders from the FP32 graphs."""
_METHODS = {
    Precision.BF16: ParityMethod.ROUNDED,
    Precision.INT8_WEIGHTS: ParityMethod.OPENVINO,
}
"""Ways of comparing a precision with PyTorch; ONNX Runtime runs the others."""


@dataclass(frozen=True)
class ExportResult:
    """Result of an export."""

    bundle: Bundle
    parity: tuple[ParityRecord, ...]
    notes: tuple[str, ...]
    """Assumptions about what the weights do not tell."""


def export_bundle(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str] = "xclip-bundle",
    *,
    options: CheckpointOptions | None = None,
    frames_per_second: float = 1.0,
    square_pixels: bool | None = None,
    bf16: bool = False,
    int8: bool = False,
    int8_weights: bool = False,
    scan_kernels: bool = False,
    progress: ProgressFunction | None = None,
) -> ExportResult:
    """Export a checkpoint to a bundle with FP32 and FP16 graphs.

    An existing bundle at ``output`` is replaced once the new one is whole and agrees with PyTorch.

    Args:
        checkpoint: File or folder of weights, or ``org/name`` of the Hugging Face hub.
        output: Folder of the bundle.
        options: Facts that the weights do not tell.
        frames_per_second: Sampling rate of video; the published models use 1.
        square_pixels: Whether anamorphic video is shown in its true proportions. None does as
            the training did; the published models were trained on stored pixels.
        bf16: Whether to add BF16 graphs, for TensorRT.
        int8: Whether to add INT8 encoders, for the CPU.
        int8_weights: Whether to add encoders with INT8 weights, for OpenVINO. They are compared
            with PyTorch on OpenVINO, so that this needs a CPU with BF16.
        scan_kernels: Whether to compile the kernels that search galleries on a GPU, as
            ``build_scan`` does. This takes half a minute to minutes.
        progress: Called at the start of every step, which ``note`` names, and at the end.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: a graph cannot be exported or written. ParityError: a graph does not
            reproduce PyTorch.
        InvalidArgumentError: an argument is out of range, INT8 weights cannot be compared here, or
            no scan kernels fit the model.
        MissingExtraError: NNCF or OpenVINO is not installed, for INT8 weights, or Triton, for scan
            kernels.
    """
    source, target = as_path("checkpoint", checkpoint), as_path("output", output)
    if as_number("frames_per_second", frames_per_second, 0, 1000) == 0:
        raise InvalidArgumentError("frames_per_second is 0; expected more, 1000 at most")
    if square_pixels is not None:
        as_truth("square_pixels", square_pixels)
    as_truth("bf16", bf16)
    as_truth("int8", int8)
    as_truth("int8_weights", int8_weights)
    as_truth("scan_kernels", scan_kernels)
    as_callback("progress", progress)
    if options is not None:
        as_instance("options", options, CheckpointOptions, "CheckpointOptions or None")
    if target.exists() and not _may_replace(target):
        raise InvalidArgumentError(
            f"{target} exists and is no bundle; choose another path with -o, or remove it"
        )
    if int8_weights:
        require_weight_compression()
    if scan_kernels:
        require_triton()
    extra = (
        (Precision.BF16, bf16),
        (Precision.INT8, int8),
        (Precision.INT8_WEIGHTS, int8_weights),
    )
    precisions = (*_ALWAYS, *(precision for precision, is_wanted in extra if is_wanted))
    steps = _Steps(progress, precisions, scan_kernels)
    steps.next("reading the checkpoint")
    loaded = load_checkpoint(source, options or CheckpointOptions())
    try:
        with replaced_directory(target) as directory:
            preprocessing = Preprocessing(
                image_size=loaded.config.vision.image_size,
                mean=CLIP_MEAN,
                std=CLIP_STD,
                square_pixels=loaded.square_pixels if square_pixels is None else square_pixels,
            )
            manifest = _write(
                loaded, source, directory, frames_per_second, preprocessing, precisions, steps
            )
            if scan_kernels:
                steps.next("compiling scan kernels")
                build_scan(Bundle.open(directory))
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
    preprocessing: Preprocessing,
    precisions: tuple[Precision, ...],
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
    fingerprint = model_fingerprint(loaded.state_dict, config, frames_per_second, preprocessing)
    steps.next("running PyTorch for reference")
    model = loaded.build()
    matrices = {name: tensor.detach().numpy() for name, tensor in model.scorer.named_parameters()}
    ScorerWeights.from_arrays(matrices, config).save(directory / SCORER_WEIGHTS_NAME)
    inputs = reference_inputs(config, tokenizer)
    reference = run_pytorch(model, inputs)
    score_scale = float(model.scorer.logit_scale.detach().exp())
    graphs = {precision: graph_specs(config, precision) for precision in precisions}
    parts = {precision: part_specs(config, precision) for precision in precisions}
    fused: dict[Precision, dict[AnyGraph, FusedSpec]] = {}
    unfused: list[str] = []
    for precision in precisions:
        is_fused = precision in FUSED_PRECISIONS
        if precision is Precision.FP16:
            halve(model)
        elif precision is Precision.BF16:
            # Build the model anew: FP16 has already rounded these weights.
            model = loaded.build()
            narrow(model, torch.bfloat16)
        # The halves come right after the whole, whose step and weights they share.
        whole, *rest = graphs[precision].items()
        assert whole[0] is Graph.VIDEO_ENCODER
        specs: list[tuple[AnyGraph, GraphSpec]] = [whole, *parts[precision].items(), *rest]
        with ExitStack() as stack:
            shared: WeightsFile | None = None
            if parts[precision] or is_fused:
                shared = stack.enter_context(WeightsFile(directory / shared_weights(precision)))
            for graph, spec in specs:
                if (directory / spec.file).exists():
                    continue  # two precisions share a scorer
                if isinstance(graph, Graph):
                    steps.next(f"exporting {precision.value}/{graph.value}")
                weights = None if graph in (Graph.TEXT_ENCODER, Graph.SCORER) else shared
                if graph is Graph.TEXT_ENCODER and is_fused:
                    own = WeightsFile(directory / weights_beside(spec.file))
                    weights = stack.enter_context(own)
                if precision in _REWRITERS:
                    wide = directory / f"{Precision.FP32.value}/{graph.value}.onnx"
                    _REWRITERS[precision](wide, graph, spec, directory, weights)
                else:
                    export_graph(model, graph, spec, directory, weights)
                if is_fused and weights is not None:
                    made = write_fused(graph, precision, spec, config, directory, weights)
                    if isinstance(made, FusedSpec):
                        fused.setdefault(precision, {})[graph] = made
                    elif graph is not VideoPart.TEMPORAL_HEAD or config.temporal_layers:
                        # A head without a transformer is not expected to have anything to fuse.
                        unfused.append(f"{spec.file} has no fused form: {made}")
    del model
    manifest = Manifest(
        fingerprint=fingerprint,
        model=config,
        frames_per_second=frames_per_second,
        preprocessing=preprocessing,
        tokenizer=_TOKENIZER,
        scorer_weights=SCORER_WEIGHTS_NAME,
        graphs=graphs,
        video_parts={precision: specs for precision, specs in parts.items() if specs},
        fused_graphs=fused,
        files=file_records(directory),
        # Record all tolerances: engines may come in precisions without graphs in the bundle.
        tolerances=TOLERANCES,
        parity=(),
        provenance=Provenance(
            checkpoint=source.name,
            checkpoint_sha256=loaded.source_sha256,
            layout=loaded.layout,
            notes=(*loaded.notes, *unfused),
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=_versions(),
        ),
    )
    manifest, records = _check_parity(manifest, directory, inputs, reference, score_scale, steps)
    manifest = manifest.model_copy(update={"parity": tuple(records)})
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


def _check_parity(
    manifest: Manifest,
    directory: Path,
    inputs: ReferenceInputs,
    reference: Tensors,
    score_scale: float,
    steps: _Steps,
) -> tuple[Manifest, list[ParityRecord]]:
    """Run the unfinished bundle as production does, and compare it with PyTorch.

    Returns the records, and the manifest without the fused graphs that are out of tolerance.
    """
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    bundle = Bundle.open(directory)
    records: list[ParityRecord] = []
    for precision in manifest.graphs:
        steps.next(f"comparing {precision.value} with PyTorch")
        method = _METHODS.get(precision, ParityMethod.ONNX_RUNTIME)
        if method is ParityMethod.ROUNDED:
            found = run_rounded(bundle, inputs)
        else:
            found = run_bundle(bundle, precision, inputs, method)
        graphs = {*manifest.graphs[precision], *manifest.video_parts.get(precision, {})}
        expected = {key: array for key, array in reference.items() if key[0] in graphs}
        records += compare(expected, found, precision, score_scale, method)
    failed = [record for record in records if not record.passed]
    if failed:
        raise ParityError(_explain(failed, len(records)), records)
    manifest, fused, notes = check_fused(bundle, inputs, reference)
    provenance = manifest.provenance
    provenance = provenance.model_copy(update={"notes": (*provenance.notes, *notes)})
    return manifest.model_copy(update={"provenance": provenance}), [*records, *fused]


def _explain(failed: list[ParityRecord], total: int) -> str:
    """Describe the outputs that are out of tolerance in one line."""
    first = failed[0]
    found = f"error {first.max_abs_error:.2g}, allowed {first.tolerance:.2g}"
    if first.rms_error is not None and not first.rms_error <= first.tolerance:
        found = f"RMS error {first.rms_error:.2g}, allowed {first.tolerance:.2g}"
    elif first.min_cosine is not None and first.max_abs_error <= first.tolerance:
        # A vector's direction can be too far off although no element is.
        cosine = TOLERANCES[first.precision].cosine
        found = f"cosine {first.min_cosine:.6f}, at least {cosine} is expected"
    at_fault = list(dict.fromkeys(record.precision for record in failed))
    remedy = ""
    if not set(at_fault) & set(_ALWAYS):
        options = " ".join(f"--{precision.value}" for precision in at_fault)
        remedy = f"; without {options} the export passes"
    return (
        f"{len(failed)} of {total} outputs differ from PyTorch by more than they may; first "
        f"{first.precision.value}/{first.graph.value} {first.tensor}: {found}; no bundle was "
        f"written{remedy}"
    )


class _Steps:
    """Counter of an export's steps, which reports the progress."""

    def __init__(
        self,
        progress: ProgressFunction | None,
        precisions: tuple[Precision, ...],
        scan_kernels: bool,
    ) -> None:
        # Steps: the checkpoint, PyTorch, one comparison a precision, and its graphs.
        # FP32 and FP16 have three graphs. The extra precisions have two and share a scorer.
        # The halves of a video encoder belong to its step: only the checkpoint tells of them.
        extra = len(precisions) - len(_ALWAYS)
        self._total = 2 + len(precisions) + 3 * len(_ALWAYS) + 2 * extra + scan_kernels
        self._progress = progress
        self._done = 0

    def next(self, label: str) -> None:
        if self._progress:
            self._progress(Progress("exporting", self._done, self._total, note=label))
        self._done += 1

    def finish(self) -> None:
        assert self._done == self._total
        if self._progress:
            self._progress(Progress("exporting", self._total, self._total, note="done"))


def _may_replace(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST_NAME).is_file() or not any(target.iterdir()))


def _versions() -> dict[str, str]:
    names = ("xclip-deploy", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
