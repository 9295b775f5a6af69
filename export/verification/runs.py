"""Open the reference and the runs: every way of computing a bundle's model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from xclip_deploy.errors import MissingExtraError, VerificationError
from xclip_deploy.export.verification.certificate import RunIdentity, SkippedRun
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evaluation import Matcher
from xclip_deploy.runtime.manifest import Precision, Tolerance
from xclip_deploy.runtime.sessions import Refusal, SessionOptions, offers


@dataclass(frozen=True)
class Run:
    """One way of computing the model, opened."""

    identity: RunIdentity
    matcher: Matcher = field(repr=False)
    load: Callable[[], None] = field(repr=False, default=lambda: None)
    """Function that opens every graph before the first call does."""
    tolerance: Tolerance | None = None
    """Tolerance of the run; None: that of the bundle's manifest for its graphs."""


@contextmanager
def open_reference(
    bundle: Bundle,
    checkpoint: str | PathLike[str] | None,
    max_batch: int,
    threads: int | None,
    weights: str | None = None,
) -> Iterator[Run]:
    """Open the reference: PyTorch where the checkpoint is given, else the FP32 graphs on the CPU.

    Raises VerificationError for a bundle without FP32 graphs or a checkpoint of another model, and
    the errors of loading a checkpoint or bundle.
    """
    if checkpoint is not None:
        yield _pytorch(bundle, Path(checkpoint), max_batch, weights)
        return
    if Precision.FP32 not in bundle.precisions:
        raise VerificationError(
            f"bundle {bundle.path} has no FP32 graphs to compare with, only "
            f"{', '.join(p.value for p in bundle.precisions)}; give the model as --checkpoint, "
            f"or run: xclip-deploy export CHECKPOINT -o {bundle.path}"
        )
    with open_run(bundle, fp32_on_cpu(threads), max_batch) as run:
        yield run


@contextmanager
def open_run(bundle: Bundle, options: SessionOptions, max_batch: int) -> Iterator[Run]:
    """Open a bundle with given options. Raises SessionError, EngineError or MissingExtraError."""
    with DeployedModel(bundle, options, max_batch) as model:
        yield as_run(model)


def as_run(model: DeployedModel) -> Run:
    """Describe an opened model as a run."""
    placement, records = model.placement, model.artefacts()
    name = placement.arithmetic.name
    identity = RunIdentity(
        backend=placement.backend,
        precision=placement.precision,
        arithmetic=None if name == placement.precision.value else name,
        device=placement.device_name,
        artefacts={name: record.sha256 for name, record in records.items()},
        size_bytes=sum(record.size_bytes for record in records.values()),
    )
    return Run(identity, model, model.load, placement.arithmetic.tolerance)


def find_sessions(
    bundle: Bundle, *, is_fp32_the_reference: bool, threads: int | None
) -> tuple[list[SessionOptions], list[SkippedRun]]:
    """Find the sessions to compare on this machine, and those it cannot run, with the reason."""
    found, skipped = [], []
    for offer in offers(bundle, threads):
        if isinstance(offer, Refusal):
            skipped.append(SkippedRun(what=describe(offer.options), reason=offer.reason))
        elif not (is_fp32_the_reference and offer == fp32_on_cpu(threads)):
            found.append(offer)
    return found, skipped


def describe(options: SessionOptions) -> str:
    """Name a session for people: ``fp16 onnxruntime cuda``, ``engines rtx-…``."""
    if options.engines is not None:
        return f"engines {options.engines.name}"
    return f"{options.precision} {options.backend} {options.device}"


def fp32_on_cpu(threads: int | None) -> SessionOptions:
    """Return options for the FP32 graphs on the CPU."""
    return SessionOptions(device="cpu", precision="fp32", threads=threads, backend="onnxruntime")


def _pytorch(bundle: Bundle, path: Path, max_batch: int, weights: str | None) -> Run:
    try:
        import torch  # noqa: F401 - to say what is missing
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "export", "comparing with a checkpoint") from error
    from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
    from xclip_deploy.training.checkpoints.parameters import model_fingerprint
    from xclip_deploy.training.torch_matcher import TorchMatcher

    manifest = bundle.manifest
    model = manifest.model
    # The manifest records the options of the export, which the weights do not tell.
    options = CheckpointOptions(
        max_words=model.max_words,
        max_frames=model.max_frames,
        activation=model.activation,
        vision_heads=model.vision.heads,
        text_heads=model.text.heads,
        mask_padding=model.mask_padding,
        weights=weights,
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
            + "".join(f"; {note}" for note in checkpoint.notes if "--weights" in note)
        )
    identity = RunIdentity(
        backend="pytorch",
        precision=Precision.FP32,
        device="cpu",
        artefacts={path.name: checkpoint.source_sha256},
        size_bytes=sum(tensor.nbytes for tensor in checkpoint.state_dict.values()),
    )
    return Run(identity, TorchMatcher(checkpoint.build(), max_batch=max_batch))
