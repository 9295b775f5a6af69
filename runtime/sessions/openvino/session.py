"""A session of one graph on OpenVINO."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from xclip_deploy.errors import BundleIntegrityError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import AnyGraph, Precision
from xclip_deploy.runtime.presentation import cut
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.sessions.openvino.compiled import CompiledCache

_MAX_REASON = 350


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

        Raises SessionError where OpenVINO cannot load it, and BundleIntegrityError where the file
        differs from the manifest.
        """
        import openvino

        self.graph = graph
        self._spec = bundle.manifest.spec(graph, precision)
        path = bundle.graph_path(graph, precision)
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores() if threads is None else threads,
            # Pinned threads would share their cores with the processes that decode.
            "ENABLE_CPU_PINNING": False,
        }
        sha256 = bundle.graph_sha256(graph, precision)
        try:
            with cache.folder(sha256, openvino.get_version(), properties) as folder:
                cached = {} if folder is None else {"CACHE_DIR": str(folder)}
                core = openvino.Core()
                compiled: Any = core.compile_model(str(path), "CPU", {**properties, **cached})
            found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except Exception as error:
            raise SessionError(f"OpenVINO cannot load {path}: {_line(error)}") from error
        if found != "bf16":
            raise SessionError(f"OpenVINO computes {path} in {found}, not in bf16")
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


def _line(error: Exception) -> str:
    return cut(" ".join(str(error).split()), _MAX_REASON)
