"""Decide whether a session runs the fused form of a graph, which tests itself on each machine.

The export checks fused graphs on a CPU, whose kernels are not the GPU's. So the first session on a
GPU runs both forms on the same inputs and compares them. The verdict stays beside the bundle. A
graph that fails runs in its plain form, with a warning.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import AnyGraph, Tolerance, VideoPart
from xclip_deploy.runtime.sessions.backend import Placement, Session
from xclip_deploy.runtime.sessions.machine_records import (
    has_records,
    machine_key,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)

_KIND = "fused"
_ITEMS = 3
"""Texts, videos or frames of the self-test."""


@dataclass(frozen=True)
class Verdict:
    """Result of a self-test."""

    passed: bool
    detail: str
    """Largest difference and its bound, or the reason of a failure."""
    is_lasting: bool = True
    """Whether it holds for later processes too. A run that breaks off says nothing about them."""


class FusedGraphs:
    """The fused graphs of a bundle on one placement. Safe to use from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        placement: Placement,
        open_session: Callable[[AnyGraph, bool], Session],
        provider_options: Mapping[str, str],
    ) -> None:
        """Keep the arguments.

        ``open_session``: opens a graph, in its fused form where the second argument is true.
        ``provider_options``: options of the sessions, which a verdict depends on.
        """
        self._provider_options = dict(provider_options)
        self._bundle, self._placement, self._open = bundle, placement, open_session
        self._lock = threading.Lock()
        self._verdicts: dict[AnyGraph, Verdict] = {}

    @property
    def graphs(self) -> tuple[AnyGraph, ...]:
        """Graphs that the bundle has in a fused form."""
        return tuple(self._bundle.manifest.fused_graphs.get(self._placement.precision, {}))

    def failures(self) -> dict[AnyGraph, str]:
        """Return the reasons of failures that are known by now, from this process or earlier."""
        with self._lock:
            for graph in self.graphs if has_records(self._bundle.path) else ():
                self._recorded(graph)
            verdicts = self._verdicts.items()
            return {graph: verdict.detail for graph, verdict in verdicts if not verdict.passed}

    def is_chosen(self, graph: AnyGraph) -> bool:
        """Return whether to run a graph in its fused form. The first call may test it.

        Raises SessionError where the plain form cannot be opened or run.
        """
        if graph not in self.graphs:
            return False
        with self._lock:
            verdict = self._recorded(graph)
            if verdict is None:
                verdict = self._verdicts[graph] = self._test(graph)
                self._keep(graph, verdict)
            return verdict.passed

    def _recorded(self, graph: AnyGraph) -> Verdict | None:
        if graph not in self._verdicts:
            found = read_record(self._bundle.path, f"{_KIND}-{graph.value}", self._key(graph))
            if found is not None and isinstance(found.get("passed"), bool):
                self._verdicts[graph] = Verdict(found["passed"], str(found.get("detail", "")))
        return self._verdicts.get(graph)

    def _keep(self, graph: AnyGraph, verdict: Verdict) -> None:
        if not verdict.passed:
            logger.warning(
                "%s runs in its plain form on %s: the fused one failed its self-test (%s)",
                graph.value,
                self._placement.device_name,
                verdict.detail,
            )
        if not verdict.is_lasting:
            return
        try:
            kind = f"{_KIND}-{graph.value}"
            finding = {"passed": verdict.passed, "detail": verdict.detail}
            write_record(self._bundle.path, kind, self._key(graph), finding)
        except OSError as error:
            logger.info("the self-test of %s cannot be kept (%s)", graph.value, error.strerror)

    def _key(self, graph: AnyGraph) -> dict[str, str]:
        manifest, placement = self._bundle.manifest, self._placement
        names = {
            *manifest.files_of(graph, placement.precision),
            *manifest.files_of(graph, placement.precision, is_fused=True),
        }
        hashes = {name: manifest.files[name].sha256 for name in names}
        key = machine_key(hashes, placement.device_id)
        key |= {"device": placement.device, "arithmetic": placement.arithmetic.name}
        return key | {f"option {name}": value for name, value in self._provider_options.items()}

    def _test(self, graph: AnyGraph) -> Verdict:
        """Run both forms, and compare them within the tolerance of the precision."""
        precision = self._placement.precision
        tolerance = self._bundle.manifest.tolerances.get(precision)
        if tolerance is None:
            return Verdict(False, f"the bundle has no tolerance for {precision.value}")
        inputs = _inputs(self._bundle, graph, self._placement)
        flipped = {name: np.ascontiguousarray(array[::-1]) for name, array in inputs.items()}
        # The second run of a shape is captured as a CUDA graph, and the third is the first replay.
        # Other inputs each time tell a replay that reads old ones.
        given = (inputs, flipped, inputs, flipped)
        plain = self._open(graph, False)
        try:
            expected = [plain.run(each) for each in given[:2]]
        finally:
            plain.close()
        try:
            fused = self._open(graph, True)
            try:
                found = [fused.run(each) for each in given]
            finally:
                fused.close()
        except DeviceMemoryError:
            raise  # a full GPU says nothing about the graph
        except SessionError as error:
            return Verdict(False, str(error), is_lasting=False)
        pairs = zip(expected * 2, found, strict=True)
        verdicts = [compare_forms(graph, *pair, tolerance) for pair in pairs]
        return next((each for each in verdicts if not each.passed), verdicts[0])


def compare_forms(
    graph: AnyGraph,
    expected: dict[str, AnyArray],
    found: dict[str, AnyArray],
    tolerance: Tolerance,
) -> Verdict:
    """Compare the outputs of both forms of a graph. NaN and infinity fail."""
    worst = 0.0
    for name, reference in expected.items():
        wide, other = reference.astype(np.float64), found[name].astype(np.float64)
        if not np.isfinite(other).all():
            return Verdict(False, f"{name} has NaN or infinity")
        if graph is VideoPart.FRAME_ENCODER:
            # Embeddings before normalisation: their mean length is the unit.
            length = np.linalg.norm(wide, axis=-1).mean()
            wide, other = wide / length, other / length
        error = float(np.abs(other - wide).max())
        lengths = np.linalg.norm(wide, axis=-1) * np.linalg.norm(other, axis=-1)
        cosine = float(((wide * other).sum(axis=-1) / lengths).min())
        if not (error <= tolerance.feature and cosine >= tolerance.cosine):
            return Verdict(
                False,
                f"{name} differs from the plain form by {error:.2g} with cosine {cosine:.6f}, "
                f"allowed {tolerance.feature:.2g} and {tolerance.cosine}",
            )
        worst = max(worst, error)
    return Verdict(True, f"largest difference {worst:.2g}, allowed {tolerance.feature:.2g}")


def _inputs(bundle: Bundle, graph: AnyGraph, placement: Placement) -> dict[str, AnyArray]:
    """Draw the same inputs of a graph every time."""
    rng = np.random.default_rng(18)
    model = bundle.manifest.model
    inputs: dict[str, AnyArray] = {}
    for tensor in bundle.manifest.spec(graph, placement.precision).inputs:
        shape = (_ITEMS, *map(int, tensor.shape[1:]))
        if tensor.name == "frames":
            array: Any = rng.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.name == "num_frames":
            array = np.linspace(1, model.max_frames, _ITEMS).astype(np.int32)
        elif tensor.name == "token_ids":
            array = np.zeros(shape, dtype=np.int32)
            for row, length in zip(
                array, np.linspace(3, shape[1], _ITEMS).astype(int), strict=True
            ):
                row[:length] = rng.integers(1, model.text.vocab_size - 2, length)
                row[0], row[length - 1] = model.text.vocab_size - 2, model.text.vocab_size - 1
        else:
            array = rng.standard_normal(shape, dtype=np.float32)
        inputs[tensor.name] = array
    return inputs
