"""Find the device memory that an engine needs, by the library's own figures where possible."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.export.tensorrt.log import log_of
from xclip_deploy.runtime.engine_set import EngineMemory, Flavour, ShapeRange
from xclip_deploy.runtime.manifest import GraphSpec, TensorSpec

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


def engine_memory(
    library: TensorRT, plan: bytes, spec: GraphSpec, profiles: Sequence[dict[str, ShapeRange]]
) -> EngineMemory:
    """Return the memory that the engine built last needs.

    ``tensorrt`` builds on its GPU, so the engine itself tells. An RTX engine cannot be opened
    without a GPU, and would first be compiled on one. There the builder's log tells. The log is no
    stable interface: where it cannot be parsed, the plan's size stands for the weights.
    """
    tensors = tuple(_tensor_bytes(spec, profile) for profile in profiles)
    source: Literal["engine", "builder log", "plan size"]
    if library.flavour is Flavour.TENSORRT:
        found = _from_engine(library, plan, len(profiles))
        source = "engine"
    else:
        found = _from_log(log_of(library).memory, len(profiles))
        source = "builder log"
    if found is None:
        found = len(plan), (0,) * len(profiles)
        source = "plan size"
    return EngineMemory(
        source=source, weights_bytes=found[0], activation_bytes=found[1], tensor_bytes=tensors
    )


def _from_engine(
    library: TensorRT, plan: bytes, profiles: int
) -> tuple[int, tuple[int, ...]] | None:
    trt = library.module
    runtime = trt.Runtime(log_of(library))
    runtime.engine_host_code_allowed = True  # version-compatible plans need it; this one is ours
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    weights = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
    activations = (engine.get_device_memory_size_for_profile_v2(n) for n in range(profiles))
    return weights, tuple(int(size) for size in activations)


def _from_log(messages: Sequence[str], profiles: int) -> tuple[int, tuple[int, ...]] | None:
    activations = [int(found[1]) for line in messages if (found := _ACTIVATIONS.match(line))]
    weights = [int(found[1]) for line in messages if (found := _WEIGHTS.match(line))]
    # The log has one figure for each profile, in order, and one for the shared weights.
    if len(activations) != profiles or len(weights) != 1:
        return None
    return weights[0], tuple(activations)


def _tensor_bytes(spec: GraphSpec, profile: dict[str, ShapeRange]) -> int:
    """Return the bytes of inputs and outputs at the largest shapes of a profile."""
    sizes = {
        axis: size
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, profile[tensor.name].max, strict=True)
    }

    def nbytes(tensor: TensorSpec) -> int:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape]
        return math.prod(shape) * int(np.dtype(tensor.dtype.value).itemsize)

    return sum(nbytes(tensor) for tensor in (*spec.inputs, *spec.outputs))
