"""The scan tests itself against the scorer, before it answers for the first time on a machine.

Kernels are compiled where there is no GPU, so nothing else shows that they are right on this one.
The verdict stays beside the bundle, until kernels, driver, GPU or versions change.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import AnyArray, Float32Array
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.memory import DeviceArray, DeviceMemory
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_set import KERNELS_DIRECTORY
from xclip_deploy.runtime.resident.scan import MAX_COUNT, Best, GalleryScan, ScanArrays
from xclip_deploy.runtime.resident.scratch import Upload
from xclip_deploy.runtime.resident.shape import ScanShape
from xclip_deploy.runtime.sessions.block_scorer import CpuBlockScorer
from xclip_deploy.runtime.sessions.machine_records import machine_key, read_record, write_record
from xclip_deploy.runtime.sessions.onnx_session import open_bytes

logger = logging.getLogger(__name__)

ALLOWED_SHARE = 3e-4
"""Largest error of a grain against the FP32 scorer on the same FP16 features, of its range."""
_LEAST_RANGE = 0.1
"""Range that is assumed where the inputs are too few to have one."""
SCAN_VERDICT = "scan"
"""Kind of the record that keeps the verdict on a bundle's kernels."""
_TEXTS, _VIDEOS = 3, 300
"""Size of the self-test: several programs of every kernel."""
_LEAST_VIDEOS = 3

Grains = dict[str, Float32Array]


def open_tested_scan(bundle: Bundle, memory: DeviceMemory) -> GpuScan:
    """Load a bundle's kernels, and test them if no verdict about them is known.

    Raises as :meth:`GpuScan.open`, and SessionError where the kernels fail the test.
    """
    scan = GpuScan.open(bundle, memory)
    try:
        _require_right(bundle, memory, scan)
    except BaseException:
        scan.close()
        raise
    return scan


def scan_features(
    scan: GalleryScan, memory: DeviceMemory, texts: TextFeatures, videos: VideoFeatures
) -> tuple[Grains, list[Best]]:
    """Scan features from host memory: return all scores and grains [T, V], and the best videos.

    Features are rounded to FP16. Raises SessionError.
    """
    cuda = memory.cuda
    cuda.select()
    sent: dict[str, AnyArray] = {
        "video_features": videos.video_features.astype(np.float16),
        "frame_features": videos.frame_features.astype(np.float16),
        "num_frames": videos.num_frames.astype(np.int32),
    }
    upload, stream = Upload(memory, "the videos to verify"), cuda.create_stream()
    try:
        addresses = upload.send(sent, stream)
        cuda.synchronize(stream)
        arrays = {
            name: DeviceArray(addresses[name], array.shape, DType(str(array.dtype)))
            for name, array in sent.items()
        }
        gallery, count = ScanArrays(**arrays, ranks=None), min(MAX_COUNT, len(videos))
        best = scan.best(texts, gallery, count, None)
        return scan.all(texts, gallery, None), best
    finally:
        try:
            cuda.synchronize(stream)
        finally:
            upload.close()
            cuda.destroy_stream(stream)


def why_wrong(found: Grains, best: list[Best], expected: Grains) -> str | None:
    """Compare a scan with the scorer: return what is wrong, or None.

    ``found``: logits and grains of the scan. ``expected``: grains of the FP32 scorer.
    """
    for row, hits in zip(found["logits"], best, strict=True):
        order = np.argsort(-row, kind="stable")[: len(hits)]
        if hits.slots.tolist() != order.tolist() or (hits.scores != row[order]).any():
            return "the scan's best videos are not those of its highest scores"
    for name, wanted in expected.items():
        worst = float(np.abs(found[name] - wanted).max())
        allowed = ALLOWED_SHARE * max(float(np.ptp(wanted)), _LEAST_RANGE)
        if not worst <= allowed:  # NaN too
            return (
                f"the scan's {name} is off by {worst:.2g} from the FP32 scorer's; expected at most "
                f"{allowed:.2g}"
            )
    return None


def _require_right(bundle: Bundle, memory: DeviceMemory, scan: GpuScan) -> None:
    """Raise SessionError for kernels that are known to be wrong here, or found to be."""
    hashes = {f"{KERNELS_DIRECTORY}/{code.file}": code.record.sha256 for code in scan.codes}
    key = machine_key(hashes, memory.cuda.device_id)
    record = read_record(bundle.path, SCAN_VERDICT, key)
    if record is None or not isinstance(record.get("passed"), bool):
        reason = _test(bundle, memory, scan)
        record = {"passed": reason is None, "detail": reason or ""}
        try:
            write_record(bundle.path, SCAN_VERDICT, key, record)
        except OSError as error:
            logger.info("the self-test of the scan cannot be kept (%s)", error.strerror)
    if not record["passed"]:
        raise SessionError(
            f"the scan kernels of {bundle.path} failed their self-test on this GPU: "
            f"{record.get('detail', '')}; run: xclip-deploy build-scan {bundle.path} --force"
        )


def _test(bundle: Bundle, memory: DeviceMemory, scan: GpuScan) -> str | None:
    """Scan random features; return what is wrong. Raises SessionError where nothing was found out.

    A full GPU says nothing about the kernels, nor does a scorer that cannot be opened.
    """
    texts, videos = _features(scan.shape)
    reference = CpuBlockScorer(bundle.manifest.model, bundle.scorer_weights(), open_bytes)
    try:
        expected, is_exact = reference.score(texts, videos)
    finally:
        reference.close()
    expected.pop("logits")
    # A model's matrices may spread similarities so far that the reference underflows.
    rows = np.flatnonzero(is_exact)
    if len(rows) < _LEAST_VIDEOS:
        return f"the scorer's FP32 holds the scores of {len(rows)} of {len(videos)} random videos"
    expected = {name: array[:, rows] for name, array in expected.items()}
    try:
        found, best = scan_features(scan, memory, texts, videos[rows])
    except DeviceMemoryError:
        raise
    except SessionError as error:
        return str(error)
    return why_wrong(found, best, expected)


def _features(shape: ScanShape) -> tuple[TextFeatures, VideoFeatures]:
    """Draw the same texts and videos every time, of every length."""
    rng = np.random.default_rng(18)
    dim = shape.embed_dim
    sentences = _unit(rng.standard_normal((_TEXTS, dim)))
    noise = rng.standard_normal((_TEXTS, shape.max_words, dim)) / np.sqrt(dim)
    near = sentences[rng.integers(_TEXTS, size=_VIDEOS)][:, None]
    topics = _unit(rng.standard_normal((_VIDEOS, 1, dim)) / np.sqrt(dim) + 0.5 * near)
    frames = _unit(
        topics + rng.standard_normal((_VIDEOS, shape.max_frames, dim)) / (3 * np.sqrt(dim))
    )
    # The scorer reads the same FP16 features, as FP32.
    videos = VideoFeatures(
        _unit(frames.mean(1)).astype(np.float16).astype(np.float32),
        frames.astype(np.float16).astype(np.float32),
        rng.integers(1, shape.max_frames + 1, _VIDEOS).astype(np.int32),
    )
    return TextFeatures(
        sentences.astype(np.float32),
        _unit(sentences[:, None] + noise).astype(np.float32),
        rng.integers(1, shape.max_words + 1, _TEXTS).astype(np.int32),
    ), videos


def _unit(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return found
