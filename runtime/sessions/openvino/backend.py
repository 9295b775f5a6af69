"""The backend for OpenVINO, which multiplies in BF16 on CPUs that can."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from xclip_deploy.errors import BackendUnavailableError, MissingExtraError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, Tolerance, VideoPart
from xclip_deploy.runtime.sessions.backend import (
    Backend,
    BlockScorer,
    GraphLoader,
    Placement,
    Session,
)
from xclip_deploy.runtime.sessions.onnx_runtime import OnnxRuntimeLoader
from xclip_deploy.runtime.sessions.onnx_session import FP32
from xclip_deploy.runtime.sessions.openvino.compiled import CompiledCache
from xclip_deploy.runtime.sessions.openvino.session import OpenVinoSession
from xclip_deploy.runtime.sessions.options import SessionOptions
from xclip_deploy.runtime.sessions.registry import Arithmetic, Device

logger = logging.getLogger(__name__)

MIXED_BF16 = Arithmetic(
    "mixed-bf16",
    Precision.FP32,
    # Cosines on real clips are above 0.9998; products take 8 bits of mantissa. Of 800 texts of two
    # trained models, 1.1 and 1.5 % have another video first; R@1 moves by 0.13 points.
    tolerance=Tolerance(feature=1e-2, cosine=0.9998, score=5e-2, top1_agreement=0.97),
)
"""Arithmetic of FP32 graphs whose encoders multiply in BF16 and whose scorer computes in FP32."""

INT8_WEIGHTS = Arithmetic("int8-weights", Precision.INT8_WEIGHTS, is_automatic=False)
"""Arithmetic of encoders with INT8 weights. Their products with a weight take activations in INT8,
the rest computes as in mixed BF16, and the scorer in FP32."""

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_LEAST_WIDTH = 256
"""Least width of an image tower for which BF16 pays. It encodes 1.1 times as fast as FP32 at 96,
and 2.4 times at 768."""


class OpenVino(Backend):
    """Backend for OpenVINO on a CPU.

    The encoders compute in BF16, or their products in INT8 where INT8 weights are asked for. The
    scorer computes in FP32 on ONNX Runtime: in BF16 it ranks other videos first (3 % of top hits
    on synthetic data).
    """

    name = "openvino"
    summary = "OpenVINO, in BF16 on CPUs that have it"
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]] = {"cpu": (MIXED_BF16, INT8_WEIGHTS)}
    own_options = frozenset({"threads"})
    auto_rank: Mapping[Device, int] = {"cpu": 10}

    def may_gain(self, bundle: Bundle, device: Device) -> bool:
        """See :meth:`Backend.may_gain`."""
        del device
        return why_no_bf16() is None and bundle.manifest.model.vision.width >= _LEAST_WIDTH

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """See :meth:`Backend.why_not`."""
        del bundle, device
        return why_no_bf16() or why_no_openvino()

    def open(self, bundle: Bundle, options: SessionOptions, device: Device) -> GraphLoader:
        """See :meth:`Backend.open`."""
        import_openvino()
        missing = why_no_bf16()
        if missing is not None:
            raise BackendUnavailableError(f"backend {self.name} was asked for, but {missing}")
        arithmetic = self.choose_arithmetic(bundle, options, device)
        return OpenVinoLoader(bundle, Placement(self.name, device, arithmetic), options)

    def import_library(self) -> None:
        """See :meth:`Backend.import_library`."""
        import_openvino()


class OpenVinoLoader(GraphLoader):
    """A bundle's encoders on OpenVINO, and its scorer on ONNX Runtime."""

    def __init__(self, bundle: Bundle, placement: Placement, options: SessionOptions) -> None:
        super().__init__(bundle, placement, "the CPU has BF16")
        self._threads = options.threads
        self._cache = CompiledCache.of_user()
        wide = Placement("onnxruntime", "cpu", FP32)
        self._scorers = OnnxRuntimeLoader(bundle, wide, SessionOptions(threads=options.threads))

    def open(self, graph: Graph) -> Session:
        """See :meth:`GraphLoader.open`."""
        if graph is Graph.SCORER:
            return self._scorers.open(graph)
        return self._compile(graph)

    @property
    def runs_video_parts(self) -> bool:
        """See :meth:`GraphLoader.runs_video_parts`."""
        return self.placement.precision in self.bundle.manifest.video_parts

    def open_part(self, part: VideoPart) -> Session:
        """See :meth:`GraphLoader.open_part`."""
        return self._compile(part)

    def _compile(self, graph: AnyGraph) -> Session:
        return OpenVinoSession(
            self.bundle, graph, self.placement.precision, self._threads, self._cache
        )

    def open_block_scorer(self) -> BlockScorer | None:
        """See :meth:`GraphLoader.open_block_scorer`."""
        return self._scorers.open_block_scorer()


def import_openvino() -> Any:  # noqa: ANN401 - checked as it is used
    """Import ``openvino``. Raises MissingExtraError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "The backend openvino") from error
    return openvino


@cache
def why_no_openvino() -> str | None:
    """Say that OpenVINO is not installed; None where it is. Imports nothing."""
    from importlib.util import find_spec

    if find_spec("openvino") is not None:
        return None
    return "OpenVINO is not installed; run: pip install 'xclip-deploy[openvino]'"


@cache
def why_no_bf16(cpu_info: Path = Path("/proc/cpuinfo")) -> str | None:
    """Say that this CPU lacks BF16 products; None where it has AVX512-BF16 or AMX-BF16."""
    try:
        with cpu_info.open(encoding="utf-8", errors="replace") as lines:
            flags = next((line.split(":")[1] for line in lines if line.startswith("flags")), "")
    except OSError:
        flags = ""
    if _BF16_FLAGS & set(flags.split()):
        return None
    return "this CPU has no BF16 products (AVX512-BF16 or AMX-BF16), so OpenVINO gains nothing"
