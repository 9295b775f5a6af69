"""The exact scan of a gallery on the GPU, by kernels that were compiled ahead of time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TypeAlias

import numpy as np

from xclip_deploy.errors import (
    ClosedError,
    DeviceMemoryError,
    InvalidArgumentError,
    SessionError,
)
from xclip_deploy.runtime.arguments import as_whole_number
from xclip_deploy.runtime.arrays import BoolArray, Float32Array
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.driver_api import Driver, open_driver
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import Stream
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.resident.kernel_loading import (
    ScanKernel,
    load_kernels,
    unload_kernels,
)
from xclip_deploy.runtime.resident.kernel_set import (
    ARGUMENTS,
    Kernel,
    KernelCode,
    kernels_of,
    read_kernel_set,
)
from xclip_deploy.runtime.resident.scan import MAX_COUNT, TEXTS_A_PASS, Best, ScanArrays
from xclip_deploy.runtime.resident.scan_inputs import ScanMatrices, ScanTexts, factor_bytes
from xclip_deploy.runtime.resident.scratch import Results, Upload, check_array, check_slots, packed
from xclip_deploy.runtime.resident.selecting import Selection, require_numbers
from xclip_deploy.runtime.resident.shape import ScanShape
from xclip_deploy.runtime.scorer_weights import ScorerWeights

SCRATCH_BYTES = 1 << 30
"""Most memory for the scores of one pass. Fewer texts share a pass where it would be more."""

LAUNCH_OPERATIONS = 4 << 40
"""Most operations of one launch. A slow GPU takes a second for them.

Between launches the host waits, so that an interrupt ends a scan. A GPU that drives a display has
a time limit for each launch too.
"""

Addresses: TypeAlias = dict[str, int]


class GpuScan:
    """An exact scan by the kernels of one bundle, on one GPU. See ``GalleryScan``.

    Scans of several threads run one after another.
    """

    def __init__(
        self,
        shape: ScanShape,
        weights: ScorerWeights,
        memory: DeviceMemory,
        driver: Driver,
        functions: dict[Kernel, ScanKernel],
        *,
        scratch_bytes: int = SCRATCH_BYTES,
    ) -> None:
        """Take loaded kernels, which :meth:`close` unloads. :meth:`open` loads them.

        Without the kernel of the frames, the grains that read frames are 0.
        """
        self.shape = shape
        self.codes: tuple[KernelCode, ...] = ()
        """Code of each kernel that :meth:`open` loaded."""
        self._weights = weights
        self._cuda = memory.cuda
        self._driver = driver
        self._functions = functions
        self._reads_frames = Kernel.FRAMES in functions
        self._scratch_bytes = scratch_bytes
        self._lock = threading.Lock()
        self._is_closed = False
        self._cuda.select()
        self._stream: Stream = self._cuda.create_stream()
        self._fixed = Upload(memory, "the scorer's matrices")
        self._queries = Upload(memory, "the queries of a search")
        self._mask = Upload(memory, "the filter of a search")
        self._work = Results(memory, "the scores of a search")
        self._factors = Results(memory, "the factors of a search")
        self._selection = Selection(shape, memory)
        self._matrices = ScanMatrices.of(shape, weights)
        try:
            self._addresses = self._fixed.send(self._matrices.arrays(), self._stream)
            self._cuda.synchronize(self._stream)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls, bundle: Bundle, memory: DeviceMemory, *, scratch_bytes: int = SCRATCH_BYTES
    ) -> GpuScan:
        """Load a bundle's kernels on the GPU of ``memory``.

        Raises MissingExtraError without ``cuda-bindings``, SessionError where the bundle has no
        kernels or none for this GPU, BundleIntegrityError for damaged ones, DriverError where the
        driver cannot run them, and DeviceMemoryError.
        """
        return cls._load(bundle, memory, kernels_of, bundle.scorer_weights(), scratch_bytes)

    @classmethod
    def open_products(
        cls, bundle: Bundle, memory: DeviceMemory, *, scratch_bytes: int = SCRATCH_BYTES
    ) -> GpuScan:
        """Load a scan whose score is the inner product of sentence and video alone.

        Its texts must have words of zeros, so that every other grain is 0. It reads no frames.
        Raises as :meth:`open`, and SessionError for a model without the grain video–sentence.
        """
        grains = bundle.manifest.model.grains
        if Grain.VIDEO_SENTENCE not in grains:
            raise SessionError(f"the model of {bundle.path} compares no sentences with videos")
        # The score is exp(logit_scale) times the mean of the grains.
        weights = ScorerWeights(float(np.log(len(grains))), {})

        def without_frames(shape: ScanShape) -> tuple[Kernel, ...]:
            return tuple(each for each in kernels_of(shape) if each is not Kernel.FRAMES)

        return cls._load(bundle, memory, without_frames, weights, scratch_bytes)

    @classmethod
    def _load(
        cls,
        bundle: Bundle,
        memory: DeviceMemory,
        wanted: Callable[[ScanShape], tuple[Kernel, ...]],
        weights: ScorerWeights,
        scratch_bytes: int,
    ) -> GpuScan:
        kernel_set = read_kernel_set(bundle)
        driver = open_driver()
        memory.cuda.select()
        kernels = wanted(kernel_set.shape)
        functions, codes = load_kernels(bundle, kernel_set, kernels, driver, memory.cuda.gpu())
        try:
            scan = cls(
                kernel_set.shape, weights, memory, driver, functions, scratch_bytes=scratch_bytes
            )
        except BaseException:
            # The constructor empties the dictionary where it fails.
            unload_kernels(functions, driver)
            raise
        scan.codes = codes
        return scan

    def best(
        self, texts: TextFeatures, arrays: ScanArrays, count: int, allowed: BoolArray | None
    ) -> list[Best]:
        """See :meth:`GalleryScan.best`."""
        as_whole_number("count", count, 1, MAX_COUNT)
        self._check(arrays, allowed)
        slots = arrays.num_slots
        count = min(count, slots)
        if slots == 0 or not len(texts):
            return [self._nothing() for _ in range(len(texts))]
        found: list[Best] = []

        def select(rows: slice, addresses: Addresses) -> None:
            found.extend(self._select(rows.stop - rows.start, slots, count, arrays, addresses))

        self._each_pass(texts, arrays, allowed, select)
        return found

    def all(
        self, texts: TextFeatures, arrays: ScanArrays, allowed: BoolArray | None
    ) -> dict[str, Float32Array]:
        """See :meth:`GalleryScan.all`."""
        self._check(arrays, allowed)
        slots = arrays.num_slots
        names = [grain.value for grain in self.shape.grains]
        found = {name: np.empty((len(texts), slots), np.float32) for name in ("logits", *names)}
        if slots == 0 or not len(texts):
            return found

        def fetch(rows: slice, addresses: Addresses) -> None:
            plane_bytes = 4 * (rows.stop - rows.start) * slots
            wanted = [(addresses["scores"], found["logits"][rows])]
            wanted += [
                (addresses["planes"] + number * plane_bytes, found[name][rows])
                for number, name in enumerate(names)
            ]
            self._work.fetch(wanted, self._stream)

        self._each_pass(texts, arrays, allowed, fetch)
        require_numbers(found["logits"])
        if allowed is not None:
            for array in found.values():
                array[:, ~allowed] = -np.inf
        return found

    def close(self) -> None:
        """See :meth:`GalleryScan.close`."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._cuda.select()
            # The stack frees everything, even if a part fails, and raises the last failure.
            with ExitStack() as stack:
                stack.callback(self._cuda.destroy_stream, self._stream)
                for kernel in self._functions.values():
                    stack.callback(self._driver.unload, kernel.function)
                self._functions.clear()
                for owner in (self._fixed, self._queries, self._mask, self._factors, self._work):
                    stack.callback(owner.close)
                stack.callback(self._selection.close)

    def __enter__(self) -> GpuScan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, arrays: ScanArrays, allowed: BoolArray | None) -> None:
        """Refuse arrays that the kernels would misread."""
        shape, slots = self.shape, arrays.num_slots
        dim, frames = shape.embed_dim, shape.max_frames
        check_slots(slots)
        check_array("video_features", arrays.video_features, (slots, dim), DType.FLOAT16)
        if self._reads_frames:
            check_array(
                "frame_features", arrays.frame_features, (slots, frames, dim), DType.FLOAT16
            )
            if shape.mask_padding:
                check_array("num_frames", arrays.num_frames, (slots,), DType.INT32)
        if arrays.ranks is not None:
            check_array("ranks", arrays.ranks, (slots,), DType.INT32)
        if allowed is not None and (allowed.shape != (slots,) or allowed.dtype != np.bool_):
            raise InvalidArgumentError(
                f"allowed is {allowed.dtype} {list(allowed.shape)}; expected bool [{slots}]"
            )

    def _each_pass(
        self,
        texts: TextFeatures,
        arrays: ScanArrays,
        allowed: BoolArray | None,
        use: Callable[[slice, Addresses], None],
    ) -> None:
        """Score the texts, as many at once as fit. ``use`` takes each part and its addresses.

        Raises DeviceMemoryError where the scores of not even one text fit.
        """
        slots, grains = arrays.num_slots, len(self.shape.grains)
        at_once = min(TEXTS_A_PASS, max(1, self._scratch_bytes // (4 * slots * (grains + 1))))
        with self._lock:
            if self._is_closed:
                raise ClosedError("the scan is closed; open another")
            self._cuda.select()
            try:
                mask = packed(allowed) if allowed is not None else np.zeros(4, np.uint8)
                masks = self._mask.send({"allowed": mask}, self._stream)
                start = 0
                while start < len(texts):
                    rows = slice(start, min(start + at_once, len(texts)))
                    part = texts[rows]
                    plane_bytes = 4 * len(part) * slots
                    sizes = {"planes": grains * plane_bytes, "scores": plane_bytes}
                    try:
                        room = self._work.hold(sizes)
                    except DeviceMemoryError:
                        if len(part) == 1:
                            raise
                        at_once = len(part) // 2  # other programs may have taken the memory
                        continue
                    queries = ScanTexts.of(part, self.shape, self._matrices).arrays()
                    sent = self._queries.send(queries, self._stream)
                    factors = self._factors.hold(factor_bytes(self.shape, len(part)))
                    addresses = {**self._addresses, **masks, **sent, **factors, **room}
                    self._score(len(part), arrays, allowed is not None, addresses)
                    use(rows, addresses)
                    start = rows.stop
            except BaseException:
                self._settle()
                raise

    def _settle(self) -> None:
        """Wait for enqueued work after a failure, so that memory may be used again."""
        try:
            self._cuda.synchronize(self._stream)
        except SessionError:
            return  # the failure that is being raised tells more

    def _score(self, texts: int, arrays: ScanArrays, is_masked: bool, addresses: Addresses) -> None:
        """Enqueue the kernels that write the planes and the scores."""
        slots = arrays.num_slots
        # The kernels do not read num_frames where the model counts padding.
        num_frames = arrays.num_frames or arrays.video_features
        values: dict[str, int | float] = {
            **addresses,
            "videos": arrays.video_features.address,
            "num_frames": num_frames.address,
            "S": slots,
            "T": texts,
            "mask_length": slots if is_masked else 0,
            "score_scale": self._weights.score_scale / len(self.shape.grains),
        }
        self._launch(Kernel.QUERY, self.shape.embed_dim, texts, values)
        if not self._reads_frames:
            for number, grain in enumerate(self.shape.grains):
                if GRAINS[grain].reads_frames:
                    start = addresses["planes"] + number * 4 * texts * slots
                    self._cuda.clear(start, 4 * texts * slots, self._stream)
        elif arrays.frame_features is not None:
            values["frames"] = arrays.frame_features.address
            self._launch_parts(Kernel.FRAMES, slots, texts, values)
        self._launch_parts(Kernel.VIDEO, slots, texts, values)

    def _select(
        self, texts: int, slots: int, count: int, arrays: ScanArrays, addresses: Addresses
    ) -> list[Best]:
        """Choose the best on the device, fetch them, and put them in order."""
        ranks = arrays.ranks

        def launch(kernel: Kernel, values: Mapping[str, int | float]) -> None:
            self._launch(kernel, slots, texts, values)

        values = {
            **addresses,
            "ranks": addresses["scores"] if ranks is None else ranks.address,
            "num_ranks": 0 if ranks is None else slots,
            "S": slots,
            "T": texts,
        }
        return self._selection.best(texts, count, launch, values, self._stream)

    def _launch_parts(
        self, kernel: Kernel, slots: int, texts: int, values: Mapping[str, int | float]
    ) -> None:
        """Run a kernel for all slots, in launches of at most :data:`LAUNCH_OPERATIONS`."""
        span = self._functions[kernel].span
        most = max(1, LAUNCH_OPERATIONS // (texts * span * self.shape.pair_operations))
        for first in range(0, -(-slots // span), most):
            if first:
                self._cuda.synchronize(self._stream)
            length = min(most * span, slots - first * span)
            self._launch(kernel, length, 1, {**values, "first_program": first})

    def _launch(
        self, kernel: Kernel, length: int, rows: int, values: Mapping[str, int | float]
    ) -> None:
        """Enqueue a kernel whose programs cover ``length`` slots, or numbers of an embedding."""
        loaded = self._functions[kernel]
        programs = -(-length // loaded.span)
        arguments = [values[name] for name in ARGUMENTS[kernel]]
        self._driver.launch(loaded.function, (programs, rows), arguments, self._stream)

    def _nothing(self) -> Best:
        empty = np.zeros(0, np.float32)
        return Best(np.zeros(0, np.int64), empty, {g.value: empty for g in self.shape.grains})
