"""Which sessions this machine offers for a bundle, and opening them."""

from __future__ import annotations

from contextlib import suppress

from xclip_deploy.errors import MissingExtraError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import engine_sets
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.sessions import (
    OnnxRuntimeSession,
    Session,
    SessionOptions,
    import_onnxruntime,
    place,
)
from xclip_deploy.runtime.sessions.device import why_no_gpu

_ON_CUDA = (Precision.FP32, Precision.FP16)


def offered_sessions(bundle: Bundle) -> list[SessionOptions]:
    """Every way of running a bundle that this machine should have, CPU first.

    ONNX Runtime on the CPU in every precision of the bundle that it can run; with a GPU also
    on CUDA, with its own TensorRT where it has one, and the bundle's engines. Whether each can
    be opened is seen on opening.
    """
    providers: list[str] = []
    with suppress(MissingExtraError):
        providers = import_onnxruntime().get_available_providers()
    offered = []
    if "CPUExecutionProvider" in providers:
        offered += [
            SessionOptions(device="cpu", precision=precision.value, backend="onnxruntime")
            for precision in bundle.precisions
            if precision is not Precision.BF16
        ]
    if why_no_gpu() is not None:
        return offered
    on_cuda = [precision for precision in bundle.precisions if precision in _ON_CUDA]
    if "CUDAExecutionProvider" in providers:
        offered += [
            SessionOptions(device="cuda", precision=precision.value, backend="onnxruntime")
            for precision in on_cuda
        ]
    if "TensorrtExecutionProvider" in providers:
        offered += [
            SessionOptions(device="cuda", precision=precision.value, backend="tensorrt-provider")
            for precision in on_cuda
        ]
    built = {(found.flavour, found.precision) for found in engine_sets(bundle).values()}
    offered += [
        SessionOptions(device="cuda", precision=precision.value, backend=flavour.value)
        for flavour, precision in sorted(built)
    ]
    return offered


def open_session(bundle: Bundle, graph: Graph, options: SessionOptions) -> Session:
    """Open one graph as :class:`DeployedModel` does. Raises SessionError and its kin."""
    placement = place(options, bundle)
    if placement.native is not None:
        return placement.native.open(graph)
    return OnnxRuntimeSession(bundle, graph, placement, options.threads, options.provider_options)
