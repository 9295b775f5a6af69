"""The reference and the runs: every way of computing a bundle's model on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from xclip_deploy.errors import MissingExtraError, VerificationError
from xclip_deploy.export.verification.certificate import RunIdentity, SkippedRun
from xclip_deploy.runtime.benchmark.offers import offered_sessions
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.engine_set import EngineSet, engine_file, engine_sets
from xclip_deploy.runtime.evaluation import Matcher
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.sessions import SessionOptions, device

_NATIVE = ("tensorrt", "rtx")


@dataclass(frozen=True)
class Run:
    """One way of computing the model, opened."""

    identity: RunIdentity
    matcher: Matcher = field(repr=False)


@contextmanager
def open_reference(
    bundle: Bundle, checkpoint: str | PathLike[str] | None, max_batch: int, threads: int | None
) -> Iterator[Run]:
    """PyTorch where the checkpoint is given, else the FP32 graphs on the CPU.

    Raises VerificationError for a bundle without FP32 graphs or a checkpoint of another model,
    and what loading a checkpoint or bundle raises.
    """
    if checkpoint is not None:
        yield _pytorch(bundle, Path(checkpoint), max_batch)
        return
    if Precision.FP32 not in bundle.precisions:
        raise VerificationError(
            f"bundle {bundle.path} has no FP32 graphs to compare with, only "
            f"{', '.join(p.value for p in bundle.precisions)}; give the model as --checkpoint, "
            f"or run: xclip-deploy export CHECKPOINT -o {bundle.path}"
        )
    with open_run(bundle, _fp32_on_cpu(threads), max_batch) as run:
        yield run


@contextmanager
def open_run(bundle: Bundle, options: SessionOptions, max_batch: int) -> Iterator[Run]:
    """A session of a bundle. Raises SessionError, EngineError or MissingExtraError."""
    with DeployedModel(bundle, options, max_batch) as model:
        yield as_run(model)


def as_run(model: DeployedModel) -> Run:
    """An opened model, and what it runs."""
    placement, bundle = model.placement, model.bundle
    if placement.native is None:
        files = [spec.file for spec in bundle.manifest.graphs[placement.precision].values()]
        records = {file: bundle.manifest.files[file] for file in files}
    else:
        engines = placement.native.engines
        records = {
            f"{engines.folder.name}/{engine_file(graph)}": engines.record(graph).file
            for graph in Graph
        }
    identity = RunIdentity(
        backend=placement.backend,
        precision=placement.precision,
        device=placement.device_name,
        artefacts={name: record.sha256 for name, record in records.items()},
        size_bytes=sum(record.size_bytes for record in records.values()),
    )
    return Run(identity, model)


def find_sessions(
    bundle: Bundle, *, is_fp32_the_reference: bool, threads: int | None
) -> tuple[list[SessionOptions], list[SkippedRun]]:
    """What there is to compare on this machine, and what there is not, with the reason."""
    found = [
        replace(options, threads=threads)
        for options in offered_sessions(bundle)
        if options.backend not in _NATIVE
        and not (is_fp32_the_reference and (options.device, options.precision) == ("cpu", "fp32"))
    ]
    skipped = []
    if Precision.BF16 in bundle.precisions:
        reason = "ONNX Runtime has no BF16 kernels; engines built from them can be verified"
        skipped.append(SkippedRun(what="bf16 graphs", reason=reason))
    no_gpu = device.why_no_gpu()
    if no_gpu is not None:
        skipped.append(SkippedRun(what="graphs on cuda", reason=no_gpu))
    for folder, engine_set in engine_sets(bundle).items():
        # Every set, and not the one alone that a session would choose.
        if no_gpu is None:
            found.append(engine_options(folder, engine_set))
        else:
            skipped.append(SkippedRun(what=f"engines {folder.name}", reason=no_gpu))
    return found, skipped


def engine_options(folder: Path, engine_set: EngineSet) -> SessionOptions:
    """For the engines in ``folder``, wherever that lies."""
    return SessionOptions(
        device="cuda",
        precision=engine_set.precision.value,
        backend=engine_set.flavour.value,
        engines=folder,
    )


def _fp32_on_cpu(threads: int | None) -> SessionOptions:
    return SessionOptions(device="cpu", precision="fp32", threads=threads, backend="onnxruntime")


def _pytorch(bundle: Bundle, path: Path, max_batch: int) -> Run:
    try:
        import torch  # noqa: F401 - to say what is missing
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "export", "comparing with a checkpoint") from error
    from xclip_deploy.export.fingerprint import model_fingerprint
    from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
    from xclip_deploy.training.torch_matcher import TorchMatcher

    manifest = bundle.manifest
    model = manifest.model
    # What the weights do not tell was said at export, and stands in the manifest.
    options = CheckpointOptions(
        max_words=model.max_words,
        max_frames=model.max_frames,
        activation=model.activation,
        vision_heads=model.vision.heads,
        text_heads=model.text.heads,
        mask_padding=model.mask_padding,
    )
    source = manifest.provenance
    expected = f"bundle {bundle.path} was exported from {source.checkpoint}"
    try:
        checkpoint = load_checkpoint(path, options)
    except ValueError as error:  # InvalidArgumentError: an option contradicts the weights
        raise VerificationError(f"{path} is another model: {error}; {expected}") from error
    found = model_fingerprint(
        checkpoint.state_dict,
        checkpoint.config,
        manifest.frames_per_second,
        manifest.preprocessing,
    )
    if found != manifest.fingerprint:
        raise VerificationError(
            f"{path} is another model: its fingerprint is {found[:12]}…, the bundle's is "
            f"{manifest.fingerprint[:12]}…; {expected} (SHA-256 {source.checkpoint_sha256[:12]}…)"
        )
    identity = RunIdentity(
        backend="pytorch",
        precision=Precision.FP32,
        device="cpu",
        artefacts={path.name: checkpoint.source_sha256},
        size_bytes=sum(tensor.nbytes for tensor in checkpoint.state_dict.values()),
    )
    return Run(identity, TorchMatcher(checkpoint.build(), max_batch=max_batch))
