"""The backends for TensorRT engines, one for each flavour of the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from xclip_deploy.errors import DriverError, XclipDeployError
from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import Cuda, CudaDevice, open_cuda
from xclip_deploy.runtime.engine_set import (
    EngineSet,
    Flavour,
    engine_file,
    engine_sets,
    why_not_rtx,
)
from xclip_deploy.runtime.manifest import FileRecord, Graph, Precision, TensorSpec
from xclip_deploy.runtime.sessions.backend import (
    Backend,
    GalleryScorer,
    GraphLoader,
    Placement,
    Refusal,
    Session,
)
from xclip_deploy.runtime.sessions.native.engine import Engine
from xclip_deploy.runtime.sessions.native.engine_choice import ChosenEngines, choose_engines
from xclip_deploy.runtime.sessions.native.gallery import ResidentGallery
from xclip_deploy.runtime.sessions.native.library import Library, load_library
from xclip_deploy.runtime.sessions.native.runner import NativeSession
from xclip_deploy.runtime.sessions.options import SessionOptions
from xclip_deploy.runtime.sessions.registry import Arithmetic, Device

_ARITHMETICS = {
    Precision.FP16: Arithmetic("fp16", Precision.FP16),
    Precision.FP32: Arithmetic("fp32", Precision.FP32),
    Precision.BF16: Arithmetic("bf16", Precision.BF16, is_automatic=False),
}


class _Engines(Backend):
    """Backend for engines of one flavour, as ``xclip-deploy build-trt`` writes them."""

    flavour: Flavour
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]] = {"cuda": tuple(_ARITHMETICS.values())}
    own_options = frozenset({"engines", "device_memory_bytes", "streams", "cuda_graphs"})

    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """See :meth:`Backend.why_not`."""
        del device
        missing = nvidia_driver.why_no_gpu()
        if missing is not None:
            return missing
        try:
            built = {engine_set.flavour for engine_set in engine_sets(bundle).values()}
        except XclipDeployError as error:
            return f"its engines cannot be used: {error}"
        if not built:
            return "the bundle has no engines"
        if self.flavour not in built:
            return f"the bundle has no {self.name} engines"
        return self._why_no_gpu_fits()

    def open(self, bundle: Bundle, options: SessionOptions, device: Device) -> GraphLoader:
        """See :meth:`Backend.open`."""
        del device
        try:
            return EngineLoader(bundle, self.flavour, options)
        except DriverError as error:
            raise DriverError(f"backend {self.name}: {error}") from error

    def import_library(self) -> None:
        """See :meth:`Backend.import_library`."""
        load_library(self.flavour)

    def offers(self, bundle: Bundle) -> Iterator[SessionOptions | Refusal]:
        """See :meth:`Backend.offers`. It lists every engine set, not only the best that fits."""
        missing = nvidia_driver.why_no_gpu() or self._why_no_gpu_fits()
        for folder, engine_set in engine_sets(bundle).items():
            if engine_set.flavour is self.flavour:
                options = options_of(engine_set)
                options = SessionOptions(**{**vars(options), "engines": folder})
                yield options if missing is None else Refusal(options, missing)

    def _why_no_gpu_fits(self) -> str | None:
        """Say why the library supports no GPU of this machine; None where it should."""
        return None


class TensorRTEngines(_Engines):
    """Engines for data-centre GPUs."""

    name = "tensorrt"
    summary = "engines of build-trt for data-centre GPUs"
    flavour = Flavour.TENSORRT
    # Where both flavours fit, this one comes first: it was built on and for this GPU.
    auto_rank: Mapping[Device, int] = {"cuda": 20}


class RtxEngines(_Engines):
    """Engines for RTX GPUs."""

    name = "rtx"
    summary = "engines of build-trt for RTX GPUs"
    flavour = Flavour.RTX
    auto_rank: Mapping[Device, int] = {"cuda": 10}

    def _why_no_gpu_fits(self) -> str | None:
        reasons = [why_not_rtx(gpu.major, gpu.minor) for gpu in nvidia_driver.visible_gpus()]
        return reasons[0] if reasons and all(reasons) else None


def options_of(engine_set: EngineSet) -> SessionOptions:
    """Return options that ask for the flavour and precision of an engine set."""
    return SessionOptions(
        device="cuda", precision=engine_set.precision.value, backend=engine_set.flavour.value
    )


class EngineLoader(GraphLoader):
    """A GPU, a TensorRT library and an engine set that fit together.

    A model has one of them. Its sessions share the bound on memory.
    """

    keeps_gallery = True

    def __init__(
        self, bundle: Bundle, flavour: Flavour, options: SessionOptions | None = None
    ) -> None:
        """Find GPU, library and engines, without loading any engine.

        Raises MissingExtraError where a library is not installed, DriverError without a usable
        GPU, and EngineError where no engines fit.
        """
        self._options = options or SessionOptions()
        self.library: Library = load_library(flavour)
        self.cuda: Cuda = open_cuda(self._options.device_id, flavour.value)
        self.gpu: CudaDevice = self.cuda.gpu()
        self.engines: ChosenEngines = choose_engines(
            bundle,
            flavour,
            self.library.version,
            self.gpu,
            self._options.precision,
            folder=self._options.engines,
            is_lean=self.library.is_lean,
        )
        self.memory = DeviceMemory(self.cuda, self._options.device_memory_bytes)
        super().__init__(
            bundle,
            Placement(
                flavour.value,
                "cuda",
                _ARITHMETICS[self.engines.engine_set.precision],
                self._options.device_id,
            ),
            f"engines {self.engines.folder.name} fit {self.library.name} and {self.gpu}",
        )

    def open(self, graph: Graph) -> NativeSession:
        """Load one engine. Raises EngineError or SessionError."""
        self.cuda.select()
        engine = Engine(
            self.engines,
            graph,
            self.library,
            self.memory,
            self.gpu,
            cuda_graphs=self._options.cuda_graphs,
        )
        return NativeSession(engine, self.engines, streams=self._options.streams)

    def keep_gallery(self, scorer: Session) -> GalleryScorer:
        """See :meth:`GraphLoader.keep_gallery`."""
        return ResidentGallery(cast("NativeSession", scorer))

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """See :meth:`GraphLoader.inputs`."""
        return self.engines.record(graph).inputs

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """See :meth:`GraphLoader.outputs`."""
        return self.engines.record(graph).outputs

    def artefacts(self) -> dict[str, FileRecord]:
        """See :meth:`GraphLoader.artefacts`."""
        return {
            f"{self.engines.folder.name}/{engine_file(graph)}": self.engines.record(graph).file
            for graph in Graph
        }
