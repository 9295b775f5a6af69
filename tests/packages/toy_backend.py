"""A backend in a file of its own: the graphs of ONNX Runtime, one run at a time, counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, Precision, Tolerance
from xclip_deploy.runtime.sessions import (
    Arithmetic,
    Backend,
    GraphLoader,
    Placement,
    Session,
    SessionOptions,
)
from xclip_deploy.runtime.sessions.registry import Device

RUNS: list[Graph] = []
"""Graphs in the order in which this process ran them."""
SAYS = "TOY_SAYS"
"""Variable of the environment with a warning that a loader gives at its first run."""
logger = logging.getLogger(__name__)
_GATES = Tolerance(feature=1e-6, cosine=0.999999, score=1e-6)


class ToySession:
    """Runs a graph on a CPU, and notes that it did."""

    def __init__(self, graph: Graph, path: str, loader: GraphLoader) -> None:
        import onnxruntime

        self.graph, self._loader = graph, loader
        self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._types = {"tensor(int32)": "int32", "tensor(uint8)": "uint8"}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self._session is None:
            raise SessionError(f"the {self.graph.value} session is closed")
        RUNS.append(self.graph)
        said, placement = os.environ.get(SAYS), self._loader.placement
        if said is not None and said not in placement.reason:
            logger.warning("%s", said)
            self._loader.placement = replace(placement, reason=f"{placement.reason}; {said}")
        feeds = {
            node.name: np.ascontiguousarray(
                inputs[node.name], self._types.get(node.type, "float32")
            )
            for node in self._session.get_inputs()
        }
        names = [node.name for node in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            reason = " ".join(str(error).split())
            raise SessionError(f"{self.graph.value} failed on {shapes}: {reason}") from error

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        return dict(wanted)

    def close(self) -> None:
        self._session = None


class ToyLoader(GraphLoader):
    def open(self, graph: Graph) -> Session:
        path = self.bundle.graph_path(graph, self.placement.precision)
        return ToySession(graph, str(path), self)


class ToyBackend(Backend):
    name = "toy"
    summary = "a toy"
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]] = {
        "cpu": (Arithmetic("toy32", Precision.FP32, tolerance=_GATES),)
    }
    auto_rank: Mapping[Device, int] = {"cpu": 100}

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        del bundle, device
        return None

    def open(self, bundle: Bundle, options: SessionOptions, device: Device) -> GraphLoader:
        arithmetic = self.choose_arithmetic(bundle, options, device)
        return ToyLoader(bundle, Placement(self.name, device, arithmetic), "it is a toy")

    def import_library(self) -> None:
        import onnxruntime  # noqa: F401
