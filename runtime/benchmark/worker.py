"""Measure one graph in one session, in a process of its own.

The process reads JSON requests from standard input, one a line, and answers each with one line.
Separate processes keep the memory of sessions apart, and one that dies leaves the others running.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, cast

import numpy as np

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import Graph, TensorSpec
from xclip_deploy.runtime.nvidia_driver import GpuMemoryGauge
from xclip_deploy.runtime.resources import forget_peak, peak_resident_bytes, resident_bytes
from xclip_deploy.runtime.sessions import (
    Backend,
    Placement,
    Session,
    SessionOptions,
    place,
    register,
)
from xclip_deploy.runtime.sessions.registry import load_backend
from xclip_deploy.runtime.valid_frames import open_video_encoder


def main() -> None:
    """Serve requests until standard input ends."""
    # Native libraries print to standard output, so answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for answer in _serve(sys.stdin):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Warnings(logging.Handler):
    """Warnings of the package, which nobody would read in this process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._messages.append(record.getMessage())

    def take(self) -> list[str]:
        """Return the messages since the last call."""
        taken, self._messages = self._messages, []
        return taken


def _serve(requests: IO[str]) -> Iterator[dict[str, Any]]:
    try:
        worker = _Worker(json.loads(requests.readline()))
        yield worker.opened
        for line in requests:
            yield worker.run(**json.loads(line))
    except XclipDeployError as error:
        yield {"error": str(error), "kind": type(error).__name__}


class _Worker:
    def __init__(self, request: Mapping[str, Any]) -> None:
        self._warnings = _Warnings()
        logging.getLogger().addHandler(self._warnings)
        for name, target in request["backends"].items():
            register(name, target)
        bundle = Bundle.open(request["bundle"])
        graph, options = Graph(request["graph"]), SessionOptions(**request["options"])
        # Import libraries and make inputs before memory is counted: a session does not own them.
        loader = self._loader = place(options, bundle)
        placement = loader.placement
        with suppress(ImportError):  # opening the session then says what is missing
            cast("Backend", load_backend(placement.backend)).import_library()
        # Inputs have the graph's own dtypes, as a gallery's features have: no cast is timed.
        self._specs = loader.inputs(graph)
        self._inputs = _inputs(self._specs, max(request["sizes"]), bundle)
        self._gauge = _memory_gauge(placement)
        forget_peak()
        self._resident_before = resident_bytes()
        start_s = time.perf_counter()
        # As the runtime opens it: halves of the video encoder where there are any.
        is_video = graph is Graph.VIDEO_ENCODER
        self._session: Session = open_video_encoder(loader) if is_video else loader.open(graph)
        self.opened = {
            "seconds": time.perf_counter() - start_s,
            "backend": placement.backend,
            "device": placement.device_name,
            "precision": placement.arithmetic.name,
            "memory_bytes": self._beyond(resident_bytes()),
            "device_memory_bytes": self._device_bytes(),
            **self._said(),
        }

    def run(self, size: int, seconds: float, warmup: int) -> dict[str, Any]:
        """Run at a size: ``warmup`` times untimed, then at least once and for ``seconds``.

        With ``seconds`` 0, it only warms up.
        """
        inputs = {
            tensor.name: self._inputs[tensor.name][: _length(tensor, size)]
            for tensor in self._specs
        }
        last_run_s = 0.0
        for _ in range(warmup):
            last_run_s = self._timed(inputs)
        latencies_s: list[float] = []
        while seconds > 0 and (not latencies_s or sum(latencies_s) < seconds):
            last_run_s = self._timed(inputs)
            latencies_s.append(last_run_s)
        return {
            "last_run_s": last_run_s,
            "latencies_s": latencies_s,
            "peak_memory_bytes": self._beyond(peak_resident_bytes()),
            "device_memory_bytes": self._device_bytes(),
            **self._said(),
        }

    def _said(self) -> dict[str, Any]:
        """Return the placement's reason, which runs may add to, and new warnings."""
        return {"reason": self._loader.placement.reason, "warnings": self._warnings.take()}

    def _timed(self, inputs: Mapping[str, AnyArray]) -> float:
        start_s = time.perf_counter()
        self._session.run(inputs)
        return time.perf_counter() - start_s

    def _beyond(self, found: int | None) -> int | None:
        return None if found is None else max(0, found - self._resident_before)

    def _device_bytes(self) -> int | None:
        return None if self._gauge is None else self._gauge.taken_bytes()


def _memory_gauge(placement: Placement) -> GpuMemoryGauge | None:
    if placement.device == "cpu":
        return None
    with suppress(OSError):
        return GpuMemoryGauge(placement.device_id)
    return None


def _length(tensor: TensorSpec, size: int) -> int:
    """Return the length of a tensor's first axis: 1 for the scorer's texts, else ``size``."""
    return 1 if tensor.shape[0] == "texts" else size


def _inputs(specs: Sequence[TensorSpec], size: int, bundle: Bundle) -> dict[str, AnyArray]:
    """Draw random inputs of a graph at its largest size. Speed depends on shapes alone."""
    rng = np.random.default_rng(0)
    model = bundle.manifest.model
    inputs: dict[str, AnyArray] = {}
    for tensor in specs:
        shape = (_length(tensor, size), *map(int, tensor.shape[1:]))
        if tensor.name == "frames":
            array: AnyArray = rng.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.name == "token_ids":
            array = rng.integers(1, model.text.vocab_size - 2, shape, dtype=np.int32)
            array[:, 0], array[:, -1] = model.text.vocab_size - 2, model.text.vocab_size - 1
        elif tensor.name == "num_frames":
            array = np.full(shape, model.max_frames, dtype=np.int32)
        elif tensor.name == "num_words":
            array = np.full(shape, model.max_words, dtype=np.int32)
        else:
            array = rng.standard_normal(shape, dtype=np.float32)
            array /= np.linalg.norm(array, axis=-1, keepdims=True)
            array = array.astype(tensor.dtype.value)
        inputs[tensor.name] = array
    return inputs


if __name__ == "__main__":
    main()
