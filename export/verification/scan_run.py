"""The exact scan of a gallery on the GPU as a run of verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import SessionError
from xclip_deploy.export.verification.certificate import RunIdentity
from xclip_deploy.export.verification.runs import Run, fp32_on_cpu
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_set import KERNELS_DIRECTORY
from xclip_deploy.runtime.resident.self_test import scan_features, why_wrong


class ScanMatcher:
    """FP32 encoders on the CPU, galleries in FP16, and the scan as scorer.

    Every score is compared with the FP32 scorer's on the same features.
    """

    def __init__(self, model: DeployedModel, scan: GpuScan, memory: DeviceMemory) -> None:
        self.config = model.config
        self.tokenizer = model.tokenizer
        self._model, self._scan, self._memory = model, scan, memory

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """See :meth:`Matcher.encode_texts`."""
        return self._model.encode_texts(texts)

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """See :meth:`Matcher.encode_videos`. Features are rounded to FP16, as galleries do."""
        found = self._model.encode_videos(videos)
        return VideoFeatures(
            found.video_features.astype(np.float16).astype(np.float32),
            found.frame_features.astype(np.float16).astype(np.float32),
            found.num_frames,
        )

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """See :meth:`Matcher.score`. Raises SessionError where a grain is off by too much."""
        found, best = scan_features(self._scan, self._memory, texts, videos)
        reason = why_wrong(found, best, self._model.score(texts, videos).grains)
        if reason is not None:
            raise SessionError(
                f"{reason}; run: xclip-deploy build-scan {self._model.bundle.path} --force"
            )
        return Scores(found.pop("logits"), found)


@contextmanager
def open_scan_run(bundle: Bundle, max_batch: int, threads: int | None) -> Iterator[Run]:
    """Open the scan kernels of a bundle on GPU 0.

    Raises MissingExtraError, DriverError, SessionError or BundleIntegrityError where they cannot
    run here.
    """
    memory = DeviceMemory(open_cuda(extra="resident"))
    with (
        GpuScan.open(bundle, memory) as scan,
        DeployedModel(bundle, fp32_on_cpu(threads), max_batch) as model,
    ):
        codes = scan.codes  # those of other GPUs do not run here
        identity = RunIdentity(
            backend="scan",
            precision=Precision.FP16,
            device=f"cuda:{memory.cuda.device_id}",
            artefacts={f"{KERNELS_DIRECTORY}/{code.file}": code.record.sha256 for code in codes},
            size_bytes=sum(code.record.size_bytes for code in codes),
        )
        yield Run(identity, ScanMatcher(model, scan, memory), model.load)
