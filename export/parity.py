"""Compare the exported graphs with the PyTorch model, number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xclip_deploy.export.reference_inputs import ReferenceInputs
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.manifest import (
    AnyGraph,
    Graph,
    ParityMethod,
    ParityRecord,
    Precision,
    Tolerance,
    VideoPart,
)
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.training.model import XClip
from xclip_deploy.training.text_encoder import count_tokens
from xclip_deploy.training.video_encoder import combine_frames, mark_valid

Tensors = dict[tuple[AnyGraph, str], npt.NDArray[np.float32]]


TOLERANCES: dict[Precision, Tolerance] = {
    # FP32 differs in the order of summation alone. The temperature of 0.01 turns a difference
    # of 1e-6 in a similarity into 1e-4 of its weight.
    Precision.FP32: Tolerance(feature=2e-5, cosine=0.999999, score=1e-4),
    # Several times the largest errors measured: 3e-4, 0.9999995 and 7e-4, over a small trained
    # model, the golden one and a random ViT-B/32. A model that FP16 ruins is far further off.
    Precision.FP16: Tolerance(feature=5e-3, cosine=0.9999, score=5e-3),
    Precision.BF16: Tolerance(feature=2e-2, cosine=0.999, score=3e-2),
    Precision.INT8: Tolerance(
        feature=5e-2, cosine=0.995, score=0.1, recall_points=1.0, top1_agreement=0.95
    ),
    Precision.INT8_WEIGHTS: Tolerance(
        feature=2e-2, cosine=0.9995, score=5e-2, recall_points=1.0, top1_agreement=0.95
    ),
}


def run_pytorch(model: XClip, inputs: ReferenceInputs) -> Tensors:
    """Run the PyTorch model in its own precision and return every output of the graphs."""
    token_ids = torch.from_numpy(inputs.token_ids)
    frames = torch.from_numpy(inputs.frames)
    num_frames = torch.from_numpy(inputs.num_frames)
    with torch.inference_mode():
        text = model.text_encoder(token_ids)
        is_valid = mark_valid(frames.shape[1], num_frames)
        frame_raw = model.video_encoder.encode_frames(frames, is_valid)
        video = combine_frames(model.video_encoder.temporal, frame_raw, is_valid)
        scores = model.scorer(*text, *video, count_tokens(token_ids), num_frames)
    found = _by_output(text, video, scores)
    return found | _by_part(frame_raw[is_valid], video)


def run_bundle(
    bundle: Bundle,
    precision: Precision,
    inputs: ReferenceInputs,
    method: ParityMethod = ParityMethod.ONNX_RUNTIME,
) -> Tensors:
    """Run a bundle end to end on the CPU and return every output of its graphs.

    The scorer reads the outputs of the bundle's own encoders. The product's runtime does the work,
    in batches of two and an odd rest. Where the bundle has the halves of ``video_encoder``, they
    run as well as the whole. ``method``: ``ONNX_RUNTIME`` or ``OPENVINO``.
    """
    # The method has the name of the backend.
    options = SessionOptions(device="cpu", precision=precision.value, backend=method.value)
    # The comparison reports NaN and infinity, together with every other fault.
    whole = bundle.without_video_parts()
    with DeployedModel(whole, options, max_batch=2, check_finite=False) as model:
        text = model.encode_token_ids(inputs.token_ids)
        video = model.encode_frames(inputs.frames, inputs.num_frames)
        # The graph itself is compared, not what a CPU runs in its place.
        scores = model.score_by_graph(text, video)
    found = _by_output(text, video, scores)
    if precision not in bundle.manifest.video_parts:
        return found
    with DeployedModel(bundle, options, max_batch=2, check_finite=False) as model:
        video = model.encode_frames(inputs.frames, inputs.num_frames)
        valid = [row[:count] for row, count in zip(inputs.frames, inputs.num_frames, strict=True)]
        frame_raw = model.embed_frames(np.concatenate(valid))
    return found | _by_part(frame_raw, video)


def _by_output(text: Any, video: Any, scores: Any) -> Tensors:  # noqa: ANN401
    """Collect outputs by graph and name. PyTorch's outputs and the runtime's share field names."""
    tensors = {
        (Graph.TEXT_ENCODER, "sentence_features"): text.sentence_features,
        (Graph.TEXT_ENCODER, "word_features"): text.word_features,
        (Graph.VIDEO_ENCODER, "video_features"): video.video_features,
        (Graph.VIDEO_ENCODER, "frame_features"): video.frame_features,
        (Graph.SCORER, "logits"): scores.logits,
    }
    tensors |= {(Graph.SCORER, name): grain for name, grain in scores.grains.items()}
    return {key: np.asarray(tensor, dtype=np.float32) for key, tensor in tensors.items()}


def _by_part(frame_raw: Any, video: Any) -> Tensors:  # noqa: ANN401
    """Collect outputs of the video encoder's halves."""
    tensors = {
        (VideoPart.FRAME_ENCODER, "frame_raw"): frame_raw,
        (VideoPart.TEMPORAL_HEAD, "video_features"): video.video_features,
        (VideoPart.TEMPORAL_HEAD, "frame_features"): video.frame_features,
    }
    return {key: np.asarray(tensor, dtype=np.float32) for key, tensor in tensors.items()}


def compare(
    reference: Tensors,
    found: Tensors,
    precision: Precision,
    score_scale: float,
    method: ParityMethod = ParityMethod.ONNX_RUNTIME,
) -> list[ParityRecord]:
    """Compare every output with its reference, one record each.

    ``score_scale``: factor from similarities to logits. Errors of embeddings before normalisation
    are in units of the reference's mean length, so that the tolerance of unit vectors fits them.
    """
    tolerance = TOLERANCES[precision]
    records = []
    for (graph, name), expected in reference.items():
        actual = found[graph, name].astype(np.float64)
        if graph is VideoPart.FRAME_ENCODER:
            length = np.linalg.norm(expected.astype(np.float64), axis=-1).mean()
            expected, actual = expected / length, actual / length
        error = float(np.abs(actual - expected).max())
        rms = cosine = None
        # Comparisons with NaN are false, so that NaN fails.
        if graph is Graph.SCORER:
            most = tolerance.score * (score_scale if name == "logits" else 1.0)
            rms = float(np.sqrt(np.square(actual - expected).mean()))
            passed = rms <= most and error <= tolerance.outlier_factor * most
        else:
            most = tolerance.feature
            cosine = _least_cosine(actual, expected.astype(np.float64))
            passed = error <= most and cosine >= tolerance.cosine
        records.append(
            ParityRecord(
                precision=precision,
                graph=graph,
                tensor=name,
                min_cosine=cosine,
                max_abs_error=error,
                rms_error=rms,
                tolerance=most,
                passed=passed,
                method=method,
            )
        )
    return records


def _least_cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    dot = (a * b).sum(axis=-1)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float((dot / lengths).min())
