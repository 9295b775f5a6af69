"""Sessions on ONNX Runtime: the default backend, on CPU, CUDA, or its own TensorRT 10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xclip_deploy.errors import BundleIntegrityError, MissingExtraError, SessionError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, Precision, TensorSpec
from xclip_deploy.runtime.sessions.device import Placement
from xclip_deploy.runtime.sessions.protocol import Array, Backend

_CPU, _CUDA, _TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


def import_onnxruntime() -> Any:  # noqa: ANN401 - the library ships without type hints
    """The ``onnxruntime`` module. Raises MissingExtraError where neither build is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle") from error
    return onnxruntime


class OnnxRuntimeSession:
    """One graph of a bundle on ONNX Runtime. See :class:`Session`."""

    def __init__(
        self,
        bundle: Bundle,
        graph: Graph,
        placement: Placement,
        threads: int | None = None,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        """Load a graph.

        ``provider_options``: for the execution provider, by ONNX Runtime's names.

        Raises SessionError where the device cannot be used, BundleIntegrityError where the
        file is not what the manifest says.
        """
        onnxruntime = import_onnxruntime()
        self.graph = graph
        self.precision = placement.precision
        self.backend: Backend = placement.backend
        self.device: str = placement.device_name
        self._spec = bundle.manifest.graphs[self.precision][graph]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
        if self.precision is Precision.INT8:
            # Without VNNI, x86's product of U8 and S8 saturates at 16 bits and is silently wrong.
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = _providers(placement, provider_options or {})
        path = bundle.graph_path(graph, self.precision)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=providers
            )
        except Exception as error:
            raise SessionError(f"ONNX Runtime cannot load {path}: {_line(error)}") from error
        # ONNX Runtime falls back to the CPU by itself; that would be a silent surprise.
        loaded = self._session.get_providers()
        missing = [name for name, _ in providers if name not in loaded]
        if missing:
            libraries = "TensorRT 10" if missing[0] == _TENSORRT else "CUDA and cuDNN"
            raise SessionError(
                f"device {placement.device} was chosen, but ONNX Runtime could not load "
                f"{missing[0]} and offers {', '.join(loaded)}; its {libraries} libraries may be "
                "missing (see its log above); use device='cpu' or install them"
            )
        _check_boundary(bundle, self._session.get_inputs(), self._spec.inputs)
        _check_boundary(bundle, self._session.get_outputs(), self._spec.outputs)
        self._output_names = [spec.name for spec in self._spec.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
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
        """See :meth:`Session.chunk`: graphs take any size."""
        return dict(wanted)

    def close(self) -> None:
        """See :meth:`Session.close`."""
        self._session = None


def _providers(
    placement: Placement, provider_options: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Providers in the order of preference, with their options."""
    if placement.device == "cpu":
        return [(_CPU, dict(provider_options))]
    device = {"device_id": str(placement.device_id)}
    if placement.backend == "tensorrt-provider":
        # What TensorRT leaves out runs on CUDA.
        return [(_TENSORRT, {**device, **provider_options}), (_CUDA, device)]
    return [(_CUDA, {**device, **provider_options})]


def _check_boundary(bundle: Bundle, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
    """Hold a loaded graph's inputs or outputs against the manifest."""
    have = [(node.name, _ONNX_TYPES.get(node.type, node.type)) for node in found]
    want = [(spec.name, spec.dtype.value) for spec in expected]
    if have != want:
        raise BundleIntegrityError(
            f"bundle {bundle.path}: a graph has tensors {have}, the manifest says {want}; "
            f"run: xclip-deploy export CHECKPOINT -o {bundle.path}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
