"""The classes of ``tensorrt`` and ``tensorrt_rtx`` that the runner uses, on the stand-in.

Like the real ones they answer None or False where they refuse, and tell the logger why.
"""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from functools import cache
from typing import Any

from stand_in_device.device import Device
from stand_in_device.execution import ExecutionContext

MAGIC = b"stand-in plan\n"


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class EngineValidity(Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


Logger = ILogger
"""The class ``ILogger``, whose name an attribute of the module hides."""


class TensorRTModule:
    """Stands in for one of the two modules."""

    DataType = DataType
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    ILogger = ILogger

    def __init__(self, device: Device, version: str, *, is_rtx: bool) -> None:
        self.device = device
        self.__version__ = version
        self.is_rtx = is_rtx
        self.validity = EngineValidity.VALID
        """What the next validity checks shall answer, and why."""
        self.diagnostics = 0
        self.refuses_graphs = False
        """Whether runs cannot be captured."""
        if is_rtx:
            self.CudaGraphStrategy = CudaGraphStrategy
            self.EngineValidity = EngineValidity
            self.EngineInvalidityDiagnostics = EngineInvalidityDiagnostics

    def Runtime(self, logger: Logger) -> Runtime:
        if not isinstance(logger, ILogger):
            raise TypeError("a runtime wants an ILogger")
        return RtxRuntime(self, logger) if self.is_rtx else Runtime(self, logger)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, module: TensorRTModule, logger: ILogger) -> None:
        self._module = module
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        self._module.device.check_selected("deserialize_cuda_engine")
        header = read_header(serialized_engine)
        if header is None or header["module_version"] != self._module.__version__:
            self._logger.log(Severity.ERROR, "the plan is not of this\nversion, or no plan")
            return None
        if header["version_compatible"] and not self.engine_host_code_allowed:
            self._logger.log(Severity.ERROR, "the plan holds host code, which is not allowed")
            return None
        weights = self._module.device.allocate(header["weights_bytes"])
        if weights is None:
            self._logger.log(Severity.ERROR, "Cuda Runtime (out of memory)")
            return None
        kind = RtxEngine if self._module.is_rtx else Engine
        return kind(self._module, self._logger, header, weights)


class RtxRuntime(Runtime):
    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        if read_header(buffer) is None:
            return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        return self._module.validity, self._module.diagnostics


class Engine:
    """Deserialised: an ONNX graph, loaded by ONNX Runtime."""

    def __init__(
        self, module: TensorRTModule, logger: ILogger, header: dict[str, Any], weights: int
    ) -> None:
        self.module = module
        self.device = module.device
        self.logger = logger
        self.header = header
        self.session = _load(header["graph"])
        self.tensors: dict[str, Any] = {t["name"]: t for t in header["inputs"] + header["outputs"]}
        self.input_names = [tensor["name"] for tensor in header["inputs"]]
        self.output_names = [tensor["name"] for tensor in header["outputs"]]
        self._weights = weights
        self.device.objects += 1

    def __del__(self) -> None:
        self.device.objects -= 1
        self.device.free(self._weights)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.header["profiles"])

    @property
    def device_memory_size_v2(self) -> int:
        return int(self.header["scratch_bytes"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        names = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "uint8": "UINT8"}
        return DataType[names[self.tensors[name]["dtype"]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(s, str) else s for s in self.tensors[name]["shape"])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.header["profiles"][profile_index][name]]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> ExecutionContext | None:
        assert isinstance(strategy, ExecutionContextAllocationStrategy)
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise self.device.violation("scratch memory that nobody counts")
        self.device.check_selected("create_execution_context")
        return ExecutionContext(self, own_scratch=None)


class RtxEngine(Engine):
    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)

    def create_execution_context(  # type: ignore[override]
        self, runtime_config: RuntimeConfig
    ) -> ExecutionContext | None:
        assert isinstance(runtime_config, RuntimeConfig)
        self.device.check_selected("create_execution_context")
        scratch = self.device.allocate(self.device_memory_size_v2)
        if scratch is None:
            self.logger.log(Severity.ERROR, "Requested amount of GPU memory could not be allocated")
            return None
        if runtime_config.cache is not None:
            runtime_config.cache.kernels.add(self.header["name"])
        return ExecutionContext(self, own_scratch=scratch)


class RuntimeConfig:
    def __init__(self, engine: RtxEngine) -> None:
        self._engine = engine
        self._strategy = CudaGraphStrategy.DISABLED
        self.cache: RuntimeCache | None = None

    @property
    def cuda_graph_strategy(self) -> CudaGraphStrategy:
        return self._strategy

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: CudaGraphStrategy) -> None:
        if not isinstance(strategy, CudaGraphStrategy):
            raise TypeError("expected a CudaGraphStrategy")
        self._strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self._engine)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Kernels that were compiled here, by the engines' names."""

    def __init__(self, engine: RtxEngine) -> None:
        major, minor = engine.device.compute_capability
        self._environment = f"{engine.module.__version__} sm{major}{minor}"
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([self._environment, sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            environment, kernels = json.loads(blob)
        except ValueError:
            return False
        if environment != self._environment:
            return False
        self.kernels = set(kernels)
        return True


@cache
def _load(graph: str) -> Any:
    """An ONNX graph in ONNX Runtime, once for all tests."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        graph, sess_options=options, providers=["CPUExecutionProvider"]
    )


def read_header(plan: bytes) -> dict[str, Any] | None:
    """What a plan of the stand-in says; None for other bytes."""
    if not plan.startswith(MAGIC):
        return None
    try:
        header: dict[str, Any] = json.loads(plan[len(MAGIC) :])
    except ValueError:
        return None
    return header
