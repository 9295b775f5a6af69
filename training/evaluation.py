"""Evaluating a checkpoint or a bundle on a split of a dataset, by one name.

Importing this needs no PyTorch, and evaluating a bundle neither: only a checkpoint does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xclip_deploy.errors import InvalidArgumentError, MissingExtraError, SessionError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evaluation import (
    Evaluation,
    FramesOrError,
    Matcher,
    ModelIdentity,
    evaluate_matcher,
)
from xclip_deploy.runtime.manifest import FILE_NAME
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.protocol import DeviceName, PrecisionName
from xclip_deploy.runtime.video import VideoReader
from xclip_deploy.training.datasets.split import Split

if TYPE_CHECKING:
    from xclip_deploy.training.checkpoints import CheckpointOptions


def evaluate(
    model: str | PathLike[str] | Bundle | Matcher,
    split: Split,
    *,
    dual_softmax: bool = False,
    dual_softmax_temperature: float = 1.0,
    max_unreadable_share: float = 0.1,
    device: DeviceName | None = None,
    precision: PrecisionName | None = None,
    threads: int | None = None,
    reader: VideoReader = "pyav",
    max_batch: int = 16,
    options: CheckpointOptions | None = None,
    frames_per_second: float | None = None,
    frames: Iterable[FramesOrError] | None = None,
    progress: ProgressFunction | None = None,
    session: SessionOptions | None = None,
) -> Evaluation:
    """Measure how well a model finds the videos of a split by their captions, and the reverse.

    The metrics are those of :func:`~xclip_deploy.runtime.metrics.retrieval_metrics`. What is
    in memory: see :func:`~xclip_deploy.runtime.evaluation.evaluate_matcher`.

    Args:
        model: A bundle (a directory with ``manifest.json``), or a checkpoint of any kind that
            ``load_checkpoint`` reads; or an opened ``Bundle``, ``DeployedModel`` (any session)
            or ``TorchMatcher`` (a model in PyTorch).
        split: Videos and captions, from ``open_dataset``.
        dual_softmax: Also report the metrics after re-scoring with the whole set of queries.
        dual_softmax_temperature: Of that, in units of the logits.
        max_unreadable_share: Share of the videos with a file, 0 to 1, that may be unreadable.
        device: ``auto`` (as None), ``cpu`` or ``cuda``. Only for paths and bundles.
        precision: ``auto`` (as None), ``fp32`` or ``fp16``; a checkpoint runs in FP32. Only for
            paths and bundles.
        threads: CPU threads for inference and for decoding; None: one per core.
        reader: Library that decodes video.
        max_batch: Most texts or videos in one run of an encoder.
        options: What the weights of a checkpoint do not tell. Only for paths of checkpoints.
        frames_per_second: Frames sampled per second of video; None: a bundle's own, else 1. A
            bundle takes no other.
        frames: Taken in place of those of the files: see ``evaluate_matcher``.
        progress: Called after every video, and every few captions.
        session: All options of a bundle's sessions, in place of device and precision.

    Raises:
        BundleError, CheckpointError, SessionError, EngineError: the model cannot be used.
        DatasetError: more videos than allowed are unreadable, or all.
        InvalidArgumentError: an argument is out of range or not for this kind of model.
        MissingExtraError: what the model or reader needs is not installed.
    """
    common: dict[str, Any] = {
        "dual_softmax_temperature": dual_softmax_temperature if dual_softmax else None,
        "max_unreadable_share": max_unreadable_share,
        "max_batch": max_batch,
        "reader": reader,
        "num_threads": threads,
        "frames": frames,
        "progress": progress,
    }
    if session is not None and (device is not None or precision is not None):
        raise InvalidArgumentError(
            "device and precision were given beside session; expected them in it alone"
        )
    if isinstance(model, (str, PathLike)):
        path = Path(model)
        if session is not None and not (path / FILE_NAME).is_file():
            raise InvalidArgumentError(f"session is for a bundle; {path} is none")
        if not (path / FILE_NAME).is_file():
            run = _checkpoint(path, options, device, precision, threads, max_batch)
            with run as (matcher, identity):
                return evaluate_matcher(
                    matcher,
                    split,
                    frames_per_second=_or_one(frames_per_second),
                    identity=identity,
                    **common,
                )
        model = Bundle.open(path)
    if options is not None:
        raise InvalidArgumentError(
            "options say what a checkpoint's weights do not tell; expected none for a bundle or "
            "a model in memory"
        )
    if isinstance(model, Bundle):
        session = session or SessionOptions(device or "auto", precision or "auto", threads)
        with DeployedModel(model, session, max_batch) as deployed:
            return _evaluate_deployed(deployed, split, frames_per_second, common)
    if device is not None or precision is not None or session is not None:
        raise InvalidArgumentError(
            "device, precision and session are for a path or a bundle; an opened model has its own"
        )
    if isinstance(model, DeployedModel):
        return _evaluate_deployed(model, split, frames_per_second, common)
    return evaluate_matcher(model, split, frames_per_second=_or_one(frames_per_second), **common)


def _evaluate_deployed(
    model: DeployedModel, split: Split, frames_per_second: float | None, common: dict[str, Any]
) -> Evaluation:
    manifest = model.bundle.manifest
    if frames_per_second not in (None, manifest.frames_per_second):
        raise InvalidArgumentError(
            f"frames_per_second is {frames_per_second:g}; the bundle was exported for "
            f"{manifest.frames_per_second:g}; run: xclip-deploy export CHECKPOINT "
            f"--fps {frames_per_second:g}"
        )
    identity = ModelIdentity(
        kind="bundle",
        path=str(model.bundle.path),
        identity=manifest.fingerprint,
        precision=model.placement.precision.value,
        device=model.placement.device,
    )
    return evaluate_matcher(
        model,
        split,
        frames_per_second=manifest.frames_per_second,
        identity=identity,
        **common,
    )


@contextmanager
def _checkpoint(
    path: Path,
    options: CheckpointOptions | None,
    device: DeviceName | None,
    precision: PrecisionName | None,
    threads: int | None,
    max_batch: int,
) -> Iterator[tuple[Matcher, ModelIdentity]]:
    """The checkpoint at ``path``, in PyTorch; with its number of threads as long as it runs."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "train", "evaluating a checkpoint") from error
    from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
    from xclip_deploy.training.torch_matcher import TorchMatcher

    if precision not in (None, "auto", "fp32"):
        raise InvalidArgumentError(
            f"precision {precision!r}: a checkpoint is evaluated in fp32; for fp16 run: "
            f"xclip-deploy export {path}, and evaluate the bundle"
        )
    # Checks device and threads as for a bundle.
    session = SessionOptions(device or "auto", "fp32", threads)
    chosen = session.device
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda" and not torch.cuda.is_available():
        raise SessionError("device cuda was asked for, but this PyTorch sees no GPU")
    checkpoint = load_checkpoint(path, options or CheckpointOptions())
    identity = ModelIdentity("checkpoint", str(path), checkpoint.source_sha256, "fp32", chosen)
    matcher = TorchMatcher(checkpoint.build().to(chosen), max_batch=max_batch)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield matcher, identity
    finally:
        torch.set_num_threads(before)


def _or_one(frames_per_second: float | None) -> float:
    """As the published models sample, unless told."""
    return 1.0 if frames_per_second is None else frames_per_second
