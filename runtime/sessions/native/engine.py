"""Load one plan, check it against its sidecar, and make execution contexts."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import Cuda, CudaDevice, Stream
from xclip_deploy.runtime.engine_set import EngineRecord, Flavour
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.manifest import Graph, TensorSpec
from xclip_deploy.runtime.presentation import cut
from xclip_deploy.runtime.sessions.native.engine_choice import ChosenEngines, read_plan
from xclip_deploy.runtime.sessions.native.library import TENSOR_DTYPES, Library

logger = logging.getLogger(__name__)


class Engine:
    """A deserialised plan and, with RTX, its runtime cache.

    RTX compiles kernels when a context is made. The cache keeps them in a file beside the plan, so
    that the next process starts faster. Each GPU architecture has a file of its own.
    """

    def __init__(
        self,
        chosen: ChosenEngines,
        graph: Graph,
        library: Library,
        memory: DeviceMemory,
        gpu: CudaDevice,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        """Load one engine of a set.

        Raises EngineError where the plan is damaged or TensorRT refuses it, and DeviceMemoryError
        where it does not fit.
        """
        self.graph = graph
        self.record: EngineRecord = chosen.record(graph)
        self.library = library
        self.memory = memory
        self.cuda: Cuda = memory.cuda
        self.captures_graphs = cuda_graphs and library.flavour is Flavour.TENSORRT
        """Whether lanes capture runs as CUDA graphs. RTX does that by itself."""
        self._chosen = chosen
        self._lock = threading.Lock()
        self._reserved_bytes = 0
        self._trt: Any = library.module
        self._runtime_config: Any = None
        self._cache: Any = None
        self._cache_file = chosen.folder / f"{graph.value}.{gpu.target}.runtime-cache"
        self._cached: bytes | None = None
        self._runtime: Any = None
        self._engine: Any = None
        plan = read_plan(chosen, graph)
        try:
            self._deserialize(plan)
            self._check_boundary()
            if library.flavour is Flavour.RTX:
                self._configure_rtx(cuda_graphs)
        except BaseException:
            self.close()
            raise

    @property
    def scratch_bytes(self) -> int:
        """Device memory of an execution context for scratch and activations."""
        return max(0, int(self._engine.device_memory_size_v2))

    @property
    def owns_scratch(self) -> bool:
        """Whether a context allocates its scratch memory itself."""
        return self.library.flavour is Flavour.RTX

    def create_context(self, profile: int, scratch: int, stream: Stream) -> Any:  # noqa: ANN401
        """Create an execution context for one profile.

        ``scratch``: address of ``scratch_bytes`` of device memory, unused where ``owns_scratch``.
        Contexts that never run at the same time may share it. Raises SessionError.
        """
        with self._lock:
            self.library.forget_reasons()
            if self.owns_scratch:
                context = self._engine.create_execution_context(runtime_config=self._runtime_config)
            else:
                strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
                context = self._engine.create_execution_context(strategy)
            if context is None:
                raise self._no_context()
            if not self.owns_scratch and self.scratch_bytes:
                context.set_device_memory(scratch, self.scratch_bytes)
            if not context.set_optimization_profile_async(profile, int(stream)):
                raise self.failure(f"refused profile {profile}")
            return context

    def save_cache(self) -> None:
        """Write the runtime cache beside the plan, where it has changed.

        A folder that cannot be written to is no error: the next start only takes longer.
        """
        if self._cache is None:
            return
        blob = self._cache.serialize()
        content = b"" if blob is None else bytes(blob)
        if not content or content == self._cached:
            return
        try:
            with replaced_file(self._cache_file) as partial:
                partial.write_bytes(content)
            self._cached = content
        except OSError as error:
            logger.info("%s cannot be written (%s)", self._cache_file, error.strerror)

    def failure(self, what: str) -> SessionError:
        """Return the error of a run, with TensorRT's own reasons."""
        return SessionError(f"{self.library.name} {what} ({self.graph.value}): {self._reasons()}")

    def close(self) -> None:
        """Free everything. All contexts must be gone by then."""
        with suppress(SessionError):
            self.cuda.select()
        # The order matters: TensorRT needs objects gone before their makers.
        self._cache = None
        self._runtime_config = None
        self._engine = None
        self._runtime = None
        self.memory.release(self._reserved_bytes)
        self._reserved_bytes = 0

    def _deserialize(self, plan: bytes) -> None:
        self.library.forget_reasons()
        weights = self.record.memory.weights_bytes
        self.memory.reserve(weights, f"the engine of {self.graph.value}")
        self._reserved_bytes = weights
        runtime: Any = self._trt.Runtime(self.library.log)
        self._runtime = runtime
        if self._chosen.engine_set.options.version_compatible:
            # Such a plan holds host code. The sidecar's hash proves that it is the built plan.
            runtime.engine_host_code_allowed = True
        if self.library.flavour is Flavour.RTX:
            self._check_validity(plan)
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            if self._memory_is_short(weights):
                raise self.memory.no_room(weights, f"the engine of {self.graph.value}")
            raise self._chosen.refusal(
                f"{self.library.name} cannot load {self._file}: {self._reasons()}"
            )

    def _check_validity(self, plan: bytes) -> None:
        validities: Any = self._trt.EngineValidity
        diagnostics: Any = self._trt.EngineInvalidityDiagnostics
        validity, found = self._runtime.get_engine_validity(plan)
        names = [
            name for name, member in diagnostics.__members__.items() if int(found) & int(member)
        ]
        if validity == validities.INVALID:
            if names == [diagnostics.INSUFFICIENT_GPU_MEMORY.name]:
                raise self.memory.no_room(
                    self.record.memory.needed_bytes, f"the engine of {self.graph.value}"
                )
            raise self._chosen.refusal(
                f"{self.library.name} says that {self._file} cannot run here: "
                f"{', '.join(names) or self._reasons()}"
            )
        if validity == validities.SUBOPTIMAL:
            logger.warning("%s: %s will not run at full speed here", self.library.name, self._file)

    def _check_boundary(self) -> None:
        """Compare the engine's inputs, outputs and profiles with its sidecar."""
        engine: Any = self._engine
        modes: Any = self._trt.TensorIOMode
        found: dict[str, tuple[str, str, tuple[int, ...]]] = {}
        for number in range(engine.num_io_tensors):
            name = engine.get_tensor_name(number)
            mode = "input" if engine.get_tensor_mode(name) == modes.INPUT else "output"
            dtype = engine.get_tensor_dtype(name).name
            found[name] = (
                mode,
                TENSOR_DTYPES[dtype].value if dtype in TENSOR_DTYPES else dtype,
                tuple(engine.get_tensor_shape(name)),
            )
        expected = {spec.name: ("input", *_boundary(spec)) for spec in self.record.inputs}
        expected |= {spec.name: ("output", *_boundary(spec)) for spec in self.record.outputs}
        if found != expected:
            odd = {name: each for name, each in found.items() if expected.get(name) != each}
            lacks = {name: each for name, each in expected.items() if found.get(name) != each}
            raise self._chosen.refusal(
                f"{self._file} has tensors {cut(str(odd), 350)}, expected {cut(str(lacks), 350)}"
            )
        profiles = int(engine.num_optimization_profiles)
        if profiles != len(self.record.profiles):
            raise self._chosen.refusal(
                f"{self._file} has {profiles} profiles, expected {len(self.record.profiles)}"
            )
        for number, ranges in enumerate(self.record.profiles):
            for name, range_ in ranges.items():
                shapes = [tuple(s) for s in engine.get_tensor_profile_shape(name, number)]
                if shapes != [range_.min, range_.opt, range_.max]:
                    raise self._chosen.refusal(
                        f"{self._file} takes {name} in shapes {shapes} in profile {number}, "
                        f"expected {[range_.min, range_.opt, range_.max]}"
                    )

    def _configure_rtx(self, cuda_graphs: bool) -> None:
        engine: Any = self._engine
        runtime_config: Any = engine.create_runtime_config()
        strategies: Any = self._trt.CudaGraphStrategy
        runtime_config.cuda_graph_strategy = (
            strategies.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategies.DISABLED
        )
        cache: Any = runtime_config.create_runtime_cache()
        content = _read(self._cache_file)
        # A cache of another version, driver or GPU is refused, and made anew.
        if content is not None and cache.deserialize(content):
            self._cached = content
        if not runtime_config.set_runtime_cache(cache):
            raise self.failure("refused its runtime cache")
        self._runtime_config, self._cache = runtime_config, cache

    def _no_context(self) -> SessionError:
        needed = self.scratch_bytes
        if self._memory_is_short(needed):
            return self.memory.no_room(needed, f"running {self.graph.value}")
        return self.failure("made no execution context")

    def _memory_is_short(self, nbytes: int) -> bool:
        """Return whether TensorRT may lack memory, by its log or by the GPU's free memory."""
        if "out of memory" in self._reasons().lower():
            return True
        free, _ = self.cuda.memory()
        return free < nbytes

    def _reasons(self) -> str:
        return self.library.reasons()

    @property
    def _file(self) -> Path:
        return Path(f"{self.graph.value}.engine")


def _boundary(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    shape = tuple(-1 if isinstance(size, str) else size for size in spec.shape)
    return spec.dtype.value, shape


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
