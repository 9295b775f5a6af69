"""``evaluate``, one function for models of every kind.

Evaluating a bundle needs ``runtime`` alone. A checkpoint imports ``training``, and with it
PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING

from xclip_deploy.errors import InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.arguments import (
    MAX_THREADS,
    as_callback,
    as_instance,
    as_number,
    as_path,
    as_truth,
    as_whole_number,
    shown,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evaluation import (
    Evaluation,
    EvaluationOptions,
    FramesOrError,
    Matcher,
    evaluate_bundle,
    evaluate_deployed,
    evaluate_matcher,
)
from xclip_deploy.runtime.manifest import MANIFEST_NAME
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.video import VideoReader

if TYPE_CHECKING:
    from xclip_deploy.training.checkpoints import CheckpointOptions


def evaluate(
    model: str | PathLike[str] | Bundle | Matcher,
    split: Split,
    *,
    dual_softmax: bool = False,
    dual_softmax_temperature: float = 1.0,
    max_unreadable_share: float = 0.1,
    device: DeviceName = "auto",
    precision: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    reader: VideoReader = "pyav",
    max_batch: int = 16,
    options: CheckpointOptions | None = None,
    frames_per_second: float | None = None,
    frames: Iterable[FramesOrError] | None = None,
    progress: ProgressFunction | None = None,
    session: SessionOptions | None = None,
) -> Evaluation:
    """Measure retrieval of videos by caption, and of captions by video, on a split.

    :func:`~xclip_deploy.runtime.metrics.retrieval_metrics` defines the metrics.
    :func:`~xclip_deploy.runtime.evaluation.evaluate_matcher` says how much memory this takes.

    Args:
        model: Path of a bundle (a directory with ``manifest.json``) or of a checkpoint that
            ``load_checkpoint`` reads; or an opened ``Bundle``, ``DeployedModel`` (any session)
            or ``TorchMatcher`` (a model in PyTorch).
        split: Videos and captions, from ``open_dataset``.
        dual_softmax: Also report the metrics after a dual softmax over all queries.
        dual_softmax_temperature: Temperature of the dual softmax, in logits.
        max_unreadable_share: Largest share of unreadable videos, 0 to 1, among those with a file.
        device: ``auto``, ``cpu`` or ``cuda``. Only for paths and bundles.
        precision: ``auto``, or a precision of ``SessionOptions``; a checkpoint runs in FP32.
            Only for paths and bundles.
        threads: CPU threads for inference; None means one per core. Only for paths and bundles.
        workers: Videos decoded at the same time; None means one per core.
        reader: Library that decodes video.
        max_batch: Largest number of texts or videos in one run of an encoder.
        options: Settings that cannot be read from a checkpoint's weights. Only for paths of
            checkpoints.
        frames_per_second: Frames sampled per second of video. None means the bundle's rate, or
            1 for a checkpoint. A bundle accepts no other rate than its own.
        frames: Frames to use instead of the files', as ``evaluate_matcher`` takes them.
        progress: Callback, called after each video and every few captions.
        session: All options of inference, instead of device, precision and threads. Only for
            paths and bundles; a checkpoint accepts these three options alone.

    Raises:
        BundleError, CheckpointError, SessionError, EngineError: The model cannot be used.
        DatasetError: Too many videos are unreadable, or all of them.
        InvalidArgumentError: An argument is out of range, or not for this kind of model.
        MissingExtraError: A package that the model or reader needs is not installed.
    """
    as_instance("split", split, Split, "a Split, as open_dataset gives")
    as_truth("dual_softmax", dual_softmax)
    if workers is not None:
        workers = as_whole_number("workers", workers, 1, MAX_THREADS)
    as_callback("progress", progress)
    common = EvaluationOptions(
        frames=frames,
        dual_softmax_temperature=dual_softmax_temperature if dual_softmax else None,
        max_unreadable_share=max_unreadable_share,
        max_batch=max_batch,
        reader=reader,
        num_threads=workers,
        progress=progress,
    )
    if frames_per_second is not None:
        as_number("frames_per_second", frames_per_second)
        common["frames_per_second"] = frames_per_second
    wanted = SessionOptions.of(device, precision, threads, session)
    if isinstance(model, (str, PathLike)):
        path = as_path("model", model)
        if not (path / MANIFEST_NAME).is_file():
            unread = sorted(wanted.changed().keys() - {"device", "precision", "threads"})
            if unread:
                raise InvalidArgumentError(
                    f"{path} is no bundle, so PyTorch runs it: found {', '.join(unread)} among the "
                    "session's options, expected device, precision and threads alone; for the "
                    f"others run: xclip-deploy export {path}, and evaluate the bundle"
                )
            try:
                import torch  # noqa: F401 - the line that says what to install
            except ModuleNotFoundError as error:
                raise MissingExtraError("torch", "train", "evaluating a checkpoint") from error
            from xclip_deploy.training.evaluation import evaluate_checkpoint

            return evaluate_checkpoint(
                path,
                split,
                common,
                checkpoint_options=options,
                session=wanted,
            )
        model = Bundle.open(path)
    if options is not None:
        raise InvalidArgumentError(
            "options complete a checkpoint's weights; expected none for a bundle or a model in "
            "memory"
        )
    if isinstance(model, Bundle):
        return evaluate_bundle(model, split, wanted, common)
    if wanted.changed() or session is not None:
        raise InvalidArgumentError(
            "device, precision, threads and session are for a path or a bundle; an opened model "
            "has its own"
        )
    if not isinstance(getattr(model, "config", None), ModelConfig):
        raise InvalidArgumentError(
            f"model is {shown(model)}; expected a path, a Bundle, a DeployedModel or a TorchMatcher"
        )
    if isinstance(model, DeployedModel):
        return evaluate_deployed(model, split, common)
    return evaluate_matcher(model, split, **common)
