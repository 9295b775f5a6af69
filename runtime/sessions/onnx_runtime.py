"""Sessions on ONNX Runtime, the default backend: on CPU, CUDA, or its own TensorRT 10."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from xclip_deploy.errors import (
    BackendUnavailableError,
    BundleIntegrityError,
    MissingExtraError,
    SessionError,
)
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import (
    AnyGraph,
    DType,
    Graph,
    Precision,
    TensorSpec,
    Tolerance,
    VideoPart,
)
from xclip_deploy.runtime.presentation import cut
from xclip_deploy.runtime.sessions.backend import (
    Backend,
    BlockScorer,
    GraphLoader,
    Placement,
    Refusal,
    Session,
)
from xclip_deploy.runtime.sessions.block_scorer import CpuBlockScorer
from xclip_deploy.runtime.sessions.options import SessionOptions
from xclip_deploy.runtime.sessions.provider_libraries import missing_library
from xclip_deploy.runtime.sessions.registry import Arithmetic, Device

FP32 = Arithmetic("fp32", Precision.FP32)
FP16 = Arithmetic("fp16", Precision.FP16)
INT8 = Arithmetic("int8", Precision.INT8, is_automatic=False)
TF32 = Arithmetic(
    "tf32",
    Precision.FP32,
    is_automatic=False,
    # Several times the largest error measured on an H100, 4e-4 in a feature.
    tolerance=Tolerance(feature=2e-3, cosine=0.9999, score=5e-3),
)
"""Arithmetic of FP32 graphs whose matrix products round their factors to 10 bits of mantissa."""

_CPU, _CUDA, _TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
_FIELD_OF = {
    "device_id": "device_id",
    "use_tf32": "precision",
    "trt_fp16_enable": "precision",
    "trt_bf16_enable": "precision",
    "trt_int8_enable": "precision",
}
"""Provider option that would change the device or the arithmetic -> field that chooses it."""
_MAX_REASON = 350
"""Most characters of a library's reason in a message."""
_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


def import_onnxruntime() -> Any:  # noqa: ANN401 - the library ships without type hints
    """Import ``onnxruntime``. Raises MissingExtraError where neither build is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle") from error
    return onnxruntime


def available_providers() -> list[str]:
    """List ONNX Runtime's execution providers. Raises MissingExtraError without the library."""
    providers: list[str] = import_onnxruntime().get_available_providers()
    return providers


def why_no_provider(provider: str, providers: Sequence[str] | None = None) -> str | None:
    """Say why ONNX Runtime cannot run on a GPU here; None where it should."""
    if provider not in (available_providers() if providers is None else providers):
        return (
            f"this onnxruntime has no {'CUDA' if provider == _CUDA else 'TensorRT'} provider; "
            "run: pip uninstall -y onnxruntime && pip install 'xclip-deploy[gpu]'"
        )
    return nvidia_driver.why_no_gpu() or missing_library(provider)


class OnnxRuntime(Backend):
    """Backend for ONNX Runtime on a CPU, or on a GPU by its CUDA provider."""

    name = "onnxruntime"
    summary = "ONNX Runtime"
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]] = {
        "cpu": (FP32, FP16, INT8),
        "cuda": (FP16, FP32, TF32),
    }
    own_options = frozenset({"provider_options", "threads"})
    auto_rank: Mapping[Device, int] = {"cpu": 0, "cuda": 0}

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """See :meth:`Backend.why_not`."""
        del bundle
        return None if device == "cpu" else why_no_provider(_CUDA)

    def open(self, bundle: Bundle, options: SessionOptions, device: Device) -> GraphLoader:
        """See :meth:`Backend.open`."""
        import_onnxruntime()
        _check_provider_options(options.provider_options)
        missing = self.why_not(bundle, device)
        if missing is not None:
            asked = "device cuda" if device in self.auto_rank else f"backend {self.name}"
            raise BackendUnavailableError(f"{asked} was asked for, but {missing}")
        arithmetic = self.choose_arithmetic(bundle, options, device)
        device_id = 0 if device == "cpu" else options.device_id
        placement = Placement(self.name, device, arithmetic, device_id)
        return OnnxRuntimeLoader(bundle, placement, options)

    def import_library(self) -> None:
        """See :meth:`Backend.import_library`."""
        import_onnxruntime()

    def offers(self, bundle: Bundle) -> Iterator[SessionOptions | Refusal]:
        """See :meth:`Backend.offers`. It lists nothing where the library is not installed."""
        with suppress(MissingExtraError):
            import_onnxruntime()
            yield from super().offers(bundle)
            if "cpu" in self.arithmetics and Precision.BF16 in bundle.precisions:
                yield Refusal(
                    SessionOptions("cpu", "bf16", backend=self.name),
                    "ONNX Runtime has no BF16 kernels; engines built from them can be verified",
                )


class TensorRTProvider(OnnxRuntime):
    """Backend for ONNX Runtime's TensorRT provider, which builds engines as it loads graphs."""

    name = "tensorrt-provider"
    summary = "ONNX Runtime's own TensorRT"
    # TensorRT multiplies FP32 in TF32, and the provider has no option against it
    # (https://github.com/microsoft/onnxruntime/issues/26029). So it offers no FP32.
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]] = {"cuda": (FP16, TF32)}
    auto_rank: Mapping[Device, int] = {}

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """See :meth:`Backend.why_not`."""
        del bundle, device
        return why_no_provider(_TENSORRT)


class OnnxRuntimeLoader(GraphLoader):
    """A bundle's graphs on ONNX Runtime."""

    def __init__(self, bundle: Bundle, placement: Placement, options: SessionOptions) -> None:
        found = "" if placement.device == "cpu" else "a GPU is there"
        super().__init__(bundle, placement, found)
        self._options = options

    def open(self, graph: Graph) -> Session:
        """See :meth:`GraphLoader.open`."""
        return self._open(graph)

    @property
    def runs_video_parts(self) -> bool:
        """See :meth:`GraphLoader.runs_video_parts`.

        ONNX Runtime's TensorRT provider builds an engine as a graph first runs, and another for
        sizes beyond those seen, so that it keeps to one size of videos.
        """
        has_parts = self.placement.precision in self.bundle.manifest.video_parts
        return has_parts and self.placement.backend == OnnxRuntime.name

    def open_part(self, part: VideoPart) -> Session:
        """See :meth:`GraphLoader.open_part`."""
        return self._open(part)

    def _open(self, graph: AnyGraph) -> Session:
        options = self._options
        return OnnxRuntimeSession(
            self.bundle, graph, self.placement, options.threads, options.provider_options
        )

    def open_block_scorer(self) -> BlockScorer | None:
        """See :meth:`GraphLoader.open_block_scorer`. A CPU has one."""
        if self.placement.device != "cpu":
            return None
        wanted = {tensor.name: tensor.dtype for tensor in self.inputs(Graph.SCORER)}
        is_half = DType.FLOAT16 in wanted.values()
        config, weights = self.bundle.manifest.model, self.bundle.scorer_weights()
        threads = self._options.threads
        return CpuBlockScorer(config, weights, open_bytes, threads=threads, is_half=is_half)


def open_bytes(graph: bytes) -> Any:  # noqa: ANN401 - a session of ONNX Runtime
    """Load a graph on the CPU, to run in the thread that calls. Raises SessionError."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(graph, sess_options=options, providers=[_CPU])
    except Exception as error:
        raise SessionError(f"ONNX Runtime cannot load its scorer: {_line(error)}") from error


class OnnxRuntimeSession:
    """Session of one graph on ONNX Runtime."""

    def __init__(
        self,
        bundle: Bundle,
        graph: AnyGraph,
        placement: Placement,
        threads: int | None = None,
        provider_options: Mapping[str, str] | None = None,
        *,
        is_fused: bool = False,
    ) -> None:
        """Load a graph.

        ``provider_options``: options of the execution provider, by ONNX Runtime's names.
        ``is_fused``: whether to load the graph of fused operators, which the bundle has. Raises
        SessionError where the device cannot be used, and BundleIntegrityError where the file
        differs from the manifest.
        """
        onnxruntime = import_onnxruntime()
        self.graph = graph
        precision = placement.precision
        self._spec = bundle.manifest.spec(graph, precision, is_fused=is_fused)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone, which are raised too
        if threads is not None:
            options.intra_op_num_threads = threads
        if placement.device == "cpu":
            # A thread that spins for its next work takes the core from the other sessions, from
            # the scorer's threads and from processes that decode.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if precision is Precision.INT8:
            # Without VNNI, x86's product of U8 and S8 saturates silently at 16 bits.
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = _providers(placement, provider_options or {})
        path = bundle.graph_path(graph, precision, is_fused=is_fused)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=providers
            )
        except Exception as error:
            raise SessionError(f"ONNX Runtime cannot load {path}: {_line(error)}") from error
        # ONNX Runtime falls back to the CPU silently; refuse that.
        loaded = self._session.get_providers()
        missing = [name for name, _ in providers if name not in loaded]
        if missing:
            libraries = "TensorRT 10" if missing[0] == _TENSORRT else "CUDA and cuDNN"
            raise BackendUnavailableError(
                f"device {placement.device} was chosen, but ONNX Runtime could not load "
                f"{missing[0]} and offers {', '.join(loaded)}; its {libraries} libraries may be "
                "missing (see its log above); use device='cpu' or install them"
            )
        _check_boundary(bundle, self._session.get_inputs(), self._spec.inputs)
        _check_boundary(bundle, self._session.get_outputs(), self._spec.outputs)
        self._output_names = [spec.name for spec in self._spec.outputs]

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See :meth:`Session.run`."""
        if self._session is None:
            raise SessionError(f"the {self.graph.value} session is closed")
        feeds = {
            spec.name: np.ascontiguousarray(inputs[spec.name], dtype=spec.dtype.value)
            for spec in self._spec.inputs
        }
        try:
            outputs = self._session.run(self._output_names, feeds)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise SessionError(f"{self.graph.value} failed on {shapes}: {_line(error)}") from error
        return dict(zip(self._output_names, outputs, strict=True))

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """See :meth:`Session.chunk`. Graphs take any size."""
        return dict(wanted)

    def close(self) -> None:
        """See :meth:`Session.close`."""
        self._session = None


def _check_provider_options(given: Mapping[str, str]) -> None:
    """Refuse provider options that would make a placement's device or arithmetic false."""
    for option, field in _FIELD_OF.items():
        if option in given:
            raise SessionError(
                f"provider_options has {option!r}; expected {field} of SessionOptions to choose it"
            )


def _providers(
    placement: Placement, provider_options: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers with their options, preferred first."""
    if placement.device == "cpu":
        return [(_CPU, dict(provider_options))]
    # The CUDA provider multiplies FP32 in TF32 by default. FP32 means FP32 here.
    use_tf32 = "1" if placement.arithmetic is TF32 else "0"
    device = {"device_id": str(placement.device_id)}
    cuda = {**device, "use_tf32": use_tf32}
    if placement.backend == "tensorrt-provider":
        # Nodes that TensorRT refuses run on CUDA.
        return [(_TENSORRT, {**device, **provider_options}), (_CUDA, cuda)]
    return [(_CUDA, {**cuda, **provider_options})]


def _check_boundary(bundle: Bundle, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
    """Compare a loaded graph's inputs or outputs with the manifest."""
    have = [(node.name, _ONNX_TYPES.get(node.type, node.type)) for node in found]
    want = [(spec.name, spec.dtype.value) for spec in expected]
    if have != want:
        raise BundleIntegrityError(
            f"bundle {bundle.path}: a graph has tensors {cut(str(have), _MAX_REASON)}, the "
            f"manifest says {cut(str(want), _MAX_REASON)}; "
            f"run: xclip-deploy export CHECKPOINT -o {bundle.path}"
        )


def _line(error: Exception) -> str:
    return cut(" ".join(str(error).split()), _MAX_REASON)
