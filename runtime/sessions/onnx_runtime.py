"""Sessions on ONNX Runtime, the default backend: on CPU, CUDA, or its own TensorRT 10."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from xclip_deploy.errors import (
    BackendUnavailableError,
    DeviceMemoryError,
    DriverError,
    MissingExtraError,
    SessionError,
)
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import (
    AnyGraph,
    DType,
    FileRecord,
    Graph,
    Precision,
    VideoPart,
)
from xclip_deploy.runtime.sessions.backend import (
    Backend,
    BlockScorer,
    GraphLoader,
    Placement,
    Refusal,
    Session,
)
from xclip_deploy.runtime.sessions.block_scorer import CpuBlockScorer
from xclip_deploy.runtime.sessions.device_lanes import DeviceLink
from xclip_deploy.runtime.sessions.fused_choice import FusedGraphs
from xclip_deploy.runtime.sessions.onnx_session import (
    CUDA_PROVIDER,
    FP16,
    FP32,
    INT8,
    TENSORRT_PROVIDER,
    TF32,
    BoundSession,
    OnnxRuntimeSession,
    import_onnxruntime,
    open_bytes,
)
from xclip_deploy.runtime.sessions.options import SessionOptions
from xclip_deploy.runtime.sessions.provider_libraries import missing_library
from xclip_deploy.runtime.sessions.registry import Arithmetic, Device

logger = logging.getLogger(__name__)

_FIELD_OF = {
    "device_id": "device_id",
    "use_tf32": "precision",
    "enable_cuda_graph": "cuda_graphs",
    "user_compute_stream": "streams",
    "trt_fp16_enable": "precision",
    "trt_bf16_enable": "precision",
    "trt_int8_enable": "precision",
}
"""Provider option that would change device, arithmetic or stream -> field that chooses it."""


def available_providers() -> list[str]:
    """List ONNX Runtime's execution providers. Raises MissingExtraError without the library."""
    providers: list[str] = import_onnxruntime().get_available_providers()
    return providers


def why_no_provider(provider: str, providers: Sequence[str] | None = None) -> str | None:
    """Say why ONNX Runtime cannot run on a GPU here; None where it should."""
    if provider not in (available_providers() if providers is None else providers):
        return (
            f"this onnxruntime has no "
            f"{'CUDA' if provider == CUDA_PROVIDER else 'TensorRT'} provider; "
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
    own_options = frozenset(
        {"provider_options", "threads", "fused_graphs", "cuda_graphs", "streams"}
    )
    auto_rank: Mapping[Device, int] = {"cpu": 0, "cuda": 0}

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """See :meth:`Backend.why_not`."""
        del bundle
        return None if device == "cpu" else why_no_provider(CUDA_PROVIDER)

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
    own_options = frozenset({"provider_options", "threads"})
    auto_rank: Mapping[Device, int] = {}

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """See :meth:`Backend.why_not`."""
        del bundle, device
        return why_no_provider(TENSORRT_PROVIDER)


class OnnxRuntimeLoader(GraphLoader):
    """A bundle's graphs on ONNX Runtime."""

    def __init__(self, bundle: Bundle, placement: Placement, options: SessionOptions) -> None:
        super().__init__(bundle, placement)
        self._options = options
        self._fused: FusedGraphs | None = None
        if placement.device != "cpu":
            self.found = "a GPU is there"
            if placement.backend == OnnxRuntime.name and options.fused_graphs:
                self._fused = FusedGraphs(
                    bundle, placement, self._open_tested, options.provider_options
                )
                self.found += self._words_on_fused(self._fused)

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

    def artefacts(self) -> dict[str, FileRecord]:
        """See :meth:`GraphLoader.artefacts`. The first call on a GPU tests the fused graphs."""
        files = super().artefacts()
        manifest, precision = self.bundle.manifest, self.placement.precision
        for graph in () if self._fused is None else self._fused.graphs:
            plain = manifest.spec(graph, precision).file
            if plain in files and self._runs_fused(graph):
                del files[plain]
                names = manifest.files_of(graph, precision, is_fused=True)
                files |= {name: manifest.files[name] for name in names}
        return files

    def _open(self, graph: AnyGraph) -> Session:
        return self._open_form(graph, self._runs_fused(graph))

    def _runs_fused(self, graph: AnyGraph) -> bool:
        """Return whether a graph runs in its fused form, and keep the reason where it failed."""
        if self._fused is None:
            return False
        is_chosen = self._fused.is_chosen(graph)
        reason = self._fused.failures().get(graph)
        if reason is not None:
            self._add_reason(f"{graph.value} runs in its plain form: {reason}")
        return is_chosen

    def _add_reason(self, words: str) -> bool:
        """Add to the placement's reason; return False where it is there already."""
        if words in self.placement.reason:
            return False
        said = "; ".join(filter(None, (self.placement.reason, words)))
        self.placement = replace(self.placement, reason=said)
        return True

    def _report(self, words: str) -> None:
        """Say why the GPU is used less well than it could be: in the log and in the reason."""
        if self._add_reason(words):
            logger.warning("%s", words)

    def _open_tested(self, graph: AnyGraph, is_fused: bool) -> Session:
        """Open a form for the self-test. The plain one runs without buffers or streams of ours."""
        if is_fused:
            return self._open_form(graph, is_fused=True)
        options = self._options
        given = (self.bundle, graph, self.placement, options.threads, options.provider_options)
        return OnnxRuntimeSession(*given)

    def _open_form(self, graph: AnyGraph, is_fused: bool) -> Session:
        """Open a graph in its fused or its plain form."""
        options, placement = self._options, self.placement
        given = (self.bundle, graph, placement, options.threads, options.provider_options)
        is_bound = placement.device != "cpu" and placement.backend == OnnxRuntime.name
        if not is_bound or graph is Graph.SCORER:
            return OnnxRuntimeSession(*given)

        def report(words: str) -> None:
            self._report(f"{graph.value}: {words}")

        def bound(replays: bool) -> BoundSession:
            link = DeviceLink.open(placement.device_id)
            return BoundSession(
                *given,
                link=link,
                report=report,
                is_fused=is_fused,
                streams=options.streams,
                replays=replays,
            )

        try:
            # The plain text encoder searches for the end token on the CPU: no graph can hold it.
            if options.cuda_graphs and is_fused:
                try:
                    return bound(replays=True)
                except (BackendUnavailableError, DeviceMemoryError, DriverError):
                    raise
                except SessionError as error:
                    report(f"it runs without CUDA graphs: {error}")
            return bound(replays=False)
        except (MissingExtraError, DriverError) as error:
            self._report(f"encoders run without CUDA graphs or pinned memory: {error}")
            return OnnxRuntimeSession(*given, is_fused=is_fused)

    def _words_on_fused(self, fused: FusedGraphs) -> str:
        if not fused.graphs:
            return ", the bundle has no fused graphs for it"
        failures = fused.failures()
        said = [f"{graph.value} failed its self-test" for graph in failures]
        said += [f"{graph.value} has none" for graph in self._encoders() - set(fused.graphs)]
        return f", with fused graphs ({', '.join(sorted(said))})" if said else ", with fused graphs"

    def _encoders(self) -> set[AnyGraph]:
        """Return the encoders that run, without those that have nothing to fuse."""
        if not self.runs_video_parts:
            return {Graph.TEXT_ENCODER, Graph.VIDEO_ENCODER}
        has_head = bool(self.bundle.manifest.model.temporal_layers)
        head = {VideoPart.TEMPORAL_HEAD} if has_head else set()
        return {Graph.TEXT_ENCODER, VideoPart.FRAME_ENCODER, *head}

    def open_block_scorer(self) -> BlockScorer | None:
        """See :meth:`GraphLoader.open_block_scorer`. A CPU has one."""
        if self.placement.device != "cpu":
            return None
        wanted = {tensor.name: tensor.dtype for tensor in self.inputs(Graph.SCORER)}
        is_half = DType.FLOAT16 in wanted.values()
        config, weights = self.bundle.manifest.model, self.bundle.scorer_weights()
        threads = self._options.threads
        return CpuBlockScorer(config, weights, open_bytes, threads=threads, is_half=is_half)


def _check_provider_options(given: Mapping[str, str]) -> None:
    """Refuse provider options that would make a placement's device or arithmetic false."""
    for option, field in _FIELD_OF.items():
        if option in given:
            raise SessionError(
                f"provider_options has {option!r}; expected {field} of SessionOptions to choose it"
            )
