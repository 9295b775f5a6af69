"""A session of one graph on OpenVINO."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import BundleIntegrityError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import AnyGraph, Graph, Precision, VideoPart
from xclip_deploy.runtime.presentation import cut
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.sessions.openvino.compiled import CompiledCache
from xclip_deploy.runtime.sessions.openvino.wide_nodes import narrow_norms, read_marked

logger = logging.getLogger(__name__)

_MAX_REASON = 350
_MOST_CHANNELS, _GROUP_STEP = 256, 32
"""Bounds of the group of channels that shares a scale."""


class OpenVinoSession:
    """One graph, compiled for this CPU.

    A run takes all threads, which is the fastest for one query and as fast for batches. Calls
    from several threads wait for each other: on the same cores, they would not end earlier.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: AnyGraph,
        precision: Precision,
        threads: int | None,
        cache: CompiledCache,
    ) -> None:
        """Load and compile a graph.

        A compiled graph of the cache is taken for the file, which is then not read. Raises
        SessionError where OpenVINO cannot load the file, and BundleIntegrityError where the file
        differs from the manifest.
        """
        import openvino

        self.graph = graph
        self._spec = bundle.manifest.spec(graph, precision)
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores() if threads is None else threads,
            # Pinned threads would share their cores with the processes that decode.
            "ENABLE_CPU_PINNING": False,
        }
        if precision is Precision.INT8_WEIGHTS:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _group_size(bundle, graph)
        core = openvino.Core()
        machine = f"{openvino.get_version()} {core.get_property('CPU', 'FULL_DEVICE_NAME')}"
        # A graph compiled without marks is another one.
        key = {**properties, "wide nodes": 1}
        name = cache.name_of(bundle.graph_sha256(graph, precision), machine, key)
        self._content = cache.find(name)
        """Content of a cached graph, in which OpenVINO may read as long as it runs."""
        compiled = _import(core, self._content, properties)
        if compiled is None:
            self._content = None
            path = bundle.graph_path(graph, precision)
            try:
                with read_marked(core, path) as model:
                    compiled = core.compile_model(model, "CPU", properties)
                    exported = compiled.export_model()
            except Exception as error:
                raise SessionError(f"OpenVINO cannot load {path}: {_line(error)}") from error
            narrow = narrow_norms(compiled)
            if narrow:
                raise SessionError(
                    f"OpenVINO computes {narrow} layer norms of {graph.value} below FP32, expected "
                    "none; run: pip install --upgrade 'xclip-deploy[openvino]'"
                )
            cache.put(name, exported.getbuffer())
        found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if found != "bf16":
            raise SessionError(f"OpenVINO computes {graph.value} in {found}, not in bf16")
        self._check_boundary(bundle, compiled)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(compiled.create_infer_request())

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See :meth:`Session.run`."""
        feeds = {
            spec.name: np.ascontiguousarray(inputs[spec.name], dtype=spec.dtype.value)
            for spec in self._spec.inputs
        }
        with self._request() as request:
            try:
                request.infer(feeds, share_inputs=True)
                # Copies, since the next run overwrites the request's own tensors.
                return {
                    spec.name: np.array(request.get_tensor(spec.name).data)
                    for spec in self._spec.outputs
                }
            except Exception as error:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
                raise SessionError(
                    f"{self.graph.value} failed on {shapes}: {_line(error)}"
                ) from error

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """See :meth:`Session.chunk`. Graphs take any size."""
        return dict(wanted)

    def close(self) -> None:
        """See :meth:`Session.close`."""
        self._requests.get()
        self._requests.put(None)

    @contextmanager
    def _request(self) -> Iterator[Any]:
        request = self._requests.get()
        try:
            if request is None:
                raise SessionError(f"the {self.graph.value} session is closed")
            yield request
        finally:
            self._requests.put(request)

    def _check_boundary(self, bundle: Bundle, compiled: Any) -> None:  # noqa: ANN401
        """Compare a compiled graph's inputs and outputs with the manifest."""
        for nodes, specs in (
            (compiled.inputs, self._spec.inputs),
            (compiled.outputs, self._spec.outputs),
        ):
            have = {(node.any_name, node.element_type.to_dtype().name) for node in nodes}
            want = {(spec.name, spec.dtype.value) for spec in specs}
            if have != want:
                raise BundleIntegrityError(
                    f"bundle {bundle.path}: a graph has tensors "
                    f"{cut(str(sorted(have)), _MAX_REASON)}, the manifest says "
                    f"{cut(str(sorted(want)), _MAX_REASON)}; "
                    f"run: xclip-deploy export CHECKPOINT -o {bundle.path}"
                )


def _group_size(bundle: Bundle, graph: AnyGraph) -> int:
    """Return the number of channels of an activation that share a scale.

    It divides a tower's width, and so the inner size of all its products, as OpenVINO expects. With
    256 of 768 channels, an encoder is as fast as with one scale a row. With 64, it is 14 % slower.
    """
    model = bundle.manifest.model
    if graph is VideoPart.TEMPORAL_HEAD:
        width = model.embed_dim
    else:
        width = model.text.width if graph is Graph.TEXT_ENCODER else model.vision.width
    sizes = range(_GROUP_STEP, min(_MOST_CHANNELS, width // 2) + 1, _GROUP_STEP)
    return max((size for size in sizes if width % size == 0), default=width)


def _import(
    core: Any,  # noqa: ANN401 - OpenVINO has no useful types
    content: npt.NDArray[np.uint8] | None,
    properties: Mapping[str, Any],
) -> Any:  # noqa: ANN401
    """Load a compiled graph. Return None where there is none, or OpenVINO refuses it."""
    import openvino

    if content is None:
        return None
    try:
        return core.import_model(openvino.Tensor(content, shared_memory=True), "CPU", properties)
    except RuntimeError as error:
        logger.warning("a cached graph cannot be loaded, so it is made anew: %s", _line(error))
        return None


def _line(error: Exception) -> str:
    return cut(" ".join(str(error).split()), _MAX_REASON)
