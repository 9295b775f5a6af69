"""Sessions on TensorRT engines of either flavour."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.cuda.memory import DeviceArray, DeviceBuffer, DeviceMemory
from xclip_deploy.runtime.cuda.uploading import Uploader
from xclip_deploy.runtime.engine_set import ShapeRange
from xclip_deploy.runtime.manifest import TensorSpec
from xclip_deploy.runtime.sessions.backend import close_all
from xclip_deploy.runtime.sessions.native.engine import Engine
from xclip_deploy.runtime.sessions.native.engine_choice import ChosenEngines
from xclip_deploy.runtime.sessions.native.lane import Lane

logger = logging.getLogger(__name__)


class NativeSession:
    """Session on one engine, and a context manager.

    Every run has a lane of its own: stream, buffers and a context for each profile. Lanes are made
    as they are needed, at most ``streams``, and reused. A run waits while all are busy.
    """

    def __init__(self, engine: Engine, engines: ChosenEngines, *, streams: int = 2) -> None:
        self.graph = engine.graph
        self._engine = engine
        self._engines = engines
        self._streams = streams
        self._condition = threading.Condition()
        self._idle: list[Lane] = []
        self._num_lanes = 0
        self._is_closed = False

    def run(self, inputs: Mapping[str, AnyArray | DeviceArray]) -> dict[str, AnyArray]:
        """See :meth:`Session.run`. Inputs may also be on the device, and are then not copied."""
        # Check the inputs before a lane is taken: a refusal must not cost the lane.
        profile, sizes = self._fit(inputs)
        with self._lane() as lane:
            return lane.run(profile, inputs, sizes)

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """See :meth:`Session.chunk`. The profile that needs the fewest runs decides."""
        best: tuple[int, dict[str, int]] | None = None
        for ranges in self._engine.record.profiles:
            largest = self._axis_sizes(ranges)
            sizes = {axis: min(size, largest.get(axis, size)) for axis, size in wanted.items()}
            runs = int(np.prod([-(-size // sizes[axis]) for axis, size in wanted.items()]))
            if best is None or runs < best[0]:
                best = runs, sizes
        assert best is not None
        return best[1]

    def to_device(self, name: str, array: AnyArray) -> DeviceArray:
        """Copy one input to device memory, cast to the engine's dtype. The caller closes it.

        Raises SessionError.
        """
        spec = self._input(name)
        buffer = DeviceBuffer(self._engine.memory, name)
        self._engine.cuda.select()
        buffer.hold(int(np.prod(array.shape)) * np.dtype(spec.dtype.value).itemsize)
        target = DeviceArray(buffer.address, array.shape, spec.dtype, buffer)
        try:
            self.upload(target, array)
        except BaseException:
            target.close()
            raise
        return target

    def upload(self, target: DeviceArray, array: AnyArray) -> None:
        """Copy an array into device memory of its shape, and wait. Raises SessionError."""
        with Uploader(self._engine.cuda) as uploader:
            uploader.put(target.address, array, target.dtype)
            uploader.finish()

    @property
    def memory(self) -> DeviceMemory:
        """Device memory of the model, in which the session is counted."""
        return self._engine.memory

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """Inputs of the engine, by name."""
        return {spec.name: spec for spec in self._engine.record.inputs}

    def close(self) -> None:
        """Wait for runs of other threads, then free everything. Raises SessionError."""
        with self._condition:
            if self._is_closed:
                return
            self._is_closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: len(self._idle) == self._num_lanes)
            lanes, self._idle, self._num_lanes = self._idle, [], 0
        try:
            self._engine.save_cache()
        finally:
            failure = close_all(lanes)
            lanes.clear()
            self._engine.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> NativeSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """Take a lane that no other run uses meanwhile."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._is_closed or self._idle or self._num_lanes < self._streams
            )
            if self._is_closed:
                raise self._closed()
            lane = self._idle.pop() if self._idle else None
            self._num_lanes += lane is None
        try:
            lane = lane or Lane(self._engine)
            yield lane
        except BaseException:
            with self._condition:
                self._num_lanes -= 1
                self._condition.notify_all()
            if lane is not None:
                self._discard(lane)
            raise
        with self._condition:
            self._idle.append(lane)
            self._condition.notify_all()

    def _closed(self) -> SessionError:
        return SessionError(f"the {self.graph.value} session is closed")

    def _discard(self, lane: Lane) -> None:
        """Free the lane of a failed run. Only log its own failure: the run's is raised."""
        try:
            lane.close()
        except SessionError as error:
            logger.warning("after a failed run of %s: %s", self.graph.value, str(error))

    def _fit(self, inputs: Mapping[str, AnyArray | DeviceArray]) -> tuple[int, dict[str, int]]:
        """Find a run's profile and the sizes of its dynamic axes. Raises SessionError."""
        if self._is_closed:
            raise self._closed()
        sizes: dict[str, int] = {}
        for spec in self._engine.record.inputs:
            if spec.name not in inputs:
                raise SessionError(f"{self.graph.value} lacks the input {spec.name}")
            array = inputs[spec.name]
            shape = tuple(array.shape)
            fits = len(shape) == len(spec.shape) and all(
                size == expected
                if isinstance(expected, int)
                else sizes.setdefault(expected, size) == size
                for size, expected in zip(shape, spec.shape, strict=True)
            )
            if not fits:
                raise SessionError(
                    f"{self.graph.value} failed on {spec.name} {list(shape)}: "
                    f"expected {_expected(spec, sizes)}"
                )
            if isinstance(array, DeviceArray) and array.dtype is not spec.dtype:
                raise SessionError(
                    f"{self.graph.value} failed on {spec.name}: it is {array.dtype.value} on "
                    f"the device, expected {spec.dtype.value}"
                )
        profiles = self._engine.record.profiles
        for number, ranges in enumerate(profiles):
            if all(_holds(ranges[name], tuple(inputs[name].shape)) for name in ranges):
                return number, sizes
        found = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        built = " or ".join(self._describe(ranges) for ranges in profiles)
        command = self._engines.engine_set.rebuild_command(self._engines.bundle.path)
        raise SessionError(
            f"{self.graph.value} failed on {found}: its engine was built for {built}; use a "
            f"smaller max_batch, or build for it: {command}"
        )

    def _axis_sizes(self, ranges: Mapping[str, ShapeRange]) -> dict[str, int]:
        """Return the largest size of every dynamic axis in a profile."""
        return {
            axis: ranges[spec.name].max[position]
            for spec in self._engine.record.inputs
            for position, axis in enumerate(spec.shape)
            if isinstance(axis, str)
        }

    def _describe(self, ranges: Mapping[str, ShapeRange]) -> str:
        spans = {
            axis: f"{axis} {ranges[spec.name].min[position]} to {ranges[spec.name].max[position]}"
            for spec in self._engine.record.inputs
            for position, axis in enumerate(spec.shape)
            if isinstance(axis, str)
        }
        return " and ".join(spans.values())

    def _input(self, name: str) -> TensorSpec:
        if name not in self.inputs:
            raise SessionError(
                f"{self.graph.value} has no input {name}, only {', '.join(self.inputs)}"
            )
        return self.inputs[name]


def _holds(range_: ShapeRange, shape: tuple[int, ...]) -> bool:
    return all(
        least <= size <= most
        for least, size, most in zip(range_.min, shape, range_.max, strict=True)
    )


def _expected(spec: TensorSpec, sizes: Mapping[str, int]) -> str:
    """Describe the expected shape, with names for dynamic axes."""
    return f"[{', '.join(str(size) for size in spec.shape)}]" + (
        f" with {', '.join(f'{axis} {size}' for axis, size in sizes.items())}" if sizes else ""
    )
