"""Evaluate a bundle, in any session that runs it."""

from __future__ import annotations

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evaluation.evaluating import EvaluationOptions, evaluate_matcher
from xclip_deploy.runtime.evaluation.results import Evaluation, ModelIdentity
from xclip_deploy.runtime.sessions import SessionOptions


def evaluate_bundle(
    bundle: Bundle, split: Split, session: SessionOptions, options: EvaluationOptions
) -> Evaluation:
    """Open the sessions of a bundle, evaluate it on a split, and close them.

    Args:
        bundle: An opened bundle.
        split: Videos and captions.
        session: Backend, device and precision.
        options: Options of :func:`evaluate_matcher`. A ``frames_per_second`` must equal the
            bundle's own, which is also the default.

    Raises:
        SessionError, EngineError: The bundle cannot run as asked.
        DatasetError, InvalidArgumentError, MissingExtraError: As :func:`evaluate_matcher`.
    """
    with DeployedModel(bundle, session, options.get("max_batch", 16)) as model:
        return evaluate_deployed(model, split, options)


def evaluate_deployed(model: DeployedModel, split: Split, options: EvaluationOptions) -> Evaluation:
    """Evaluate the opened model of a bundle. Arguments and errors as :func:`evaluate_bundle`."""
    manifest = model.bundle.manifest
    asked = options.get("frames_per_second")
    if asked not in (None, manifest.frames_per_second):
        raise InvalidArgumentError(
            f"frames_per_second is {asked:g}; the bundle was exported for "
            f"{manifest.frames_per_second:g}; run: xclip-deploy export CHECKPOINT --fps {asked:g}"
        )
    identity = ModelIdentity(
        kind="bundle",
        path=str(model.bundle.path),
        identity=manifest.fingerprint,
        precision=model.placement.arithmetic.name,
        device=model.placement.device,
    )
    own_rate: EvaluationOptions = {**options, "frames_per_second": manifest.frames_per_second}
    return evaluate_matcher(
        model,
        split,
        identity=identity,
        square_pixels=manifest.preprocessing.square_pixels,
        **own_rate,
    )
