"""The interface of a backend: it says what runs on this machine, and opens sessions for graphs.

A new backend is a module with one subclass of :class:`Backend`, and one registration
(``registry.register``). CONTRIBUTING describes the steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray, BoolArray
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import (
    AnyGraph,
    FileRecord,
    Graph,
    Precision,
    TensorSpec,
    VideoPart,
)
from xclip_deploy.runtime.sessions.options import SessionOptions
from xclip_deploy.runtime.sessions.registry import Arithmetic, Device


class Session(Protocol):
    """One graph, loaded and ready to run. ``run`` may be called from several threads."""

    @property
    def graph(self) -> AnyGraph:
        """The graph that runs."""
        ...

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Run once and return the outputs by name.

        ``inputs``: arrays by name, in the shapes of the manifest. They are cast to the graph's
        dtypes; other names are ignored. Raises SessionError.
        """
        ...

    def chunk(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes of one run that do a job in the fewest runs.

        ``wanted``: size of every dynamic axis of the job by name, each at least 1. The sizes
        returned are no larger, and fit one run.
        """
        ...

    def close(self) -> None:
        """Free the memory. Running afterwards raises SessionError."""
        ...


@runtime_checkable
class TakesRows(Protocol):
    """A session that copies its inputs once more anyway, from wherever they are."""

    def run_rows(self, inputs: Mapping[str, Sequence[AnyArray]]) -> dict[str, AnyArray]:
        """Run as :meth:`Session.run` on inputs that several arrays [n, ...] make up, in order."""
        ...


class GalleryScorer(Protocol):
    """A scorer that keeps a gallery's features where it computes."""

    def score(
        self, texts: TextFeatures, videos: VideoFeatures
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return every output of the scorer, [T, V] each, for T > 0 texts and V > 0 videos.

        ``videos``: copied to the device unless the same object was scored last. Raises
        DeviceMemoryError where it does not fit, and SessionError.
        """
        ...

    def close(self) -> None:
        """Free the memory. Raises SessionError."""
        ...


class BlockScorer(Protocol):
    """A scorer of features in this machine's memory that is faster than the exported graph."""

    def score(
        self, texts: TextFeatures, videos: VideoFeatures
    ) -> tuple[dict[str, npt.NDArray[np.float32]], BoolArray]:
        """Return every output of the scorer, [T, V] each, for T > 0 texts and V > 0 videos.

        The second value, [V], marks the videos whose scores are right. The others must be scored
        by the exported graph. Raises SessionError.
        """
        ...

    def close(self) -> None:
        """Free the memory. Scoring afterwards raises SessionError."""
        ...


@dataclass(frozen=True)
class Placement:
    """Backend, device and arithmetic that a bundle runs with."""

    backend: str
    device: Device
    arithmetic: Arithmetic
    device_id: int = 0
    """Number of the GPU."""
    reason: str = ""
    """Reason for people, in one line: the request and the findings."""

    @property
    def precision(self) -> Precision:
        """Precision of the graphs that run."""
        return self.arithmetic.graphs

    @property
    def device_name(self) -> str:
        """Device for people: ``cpu``, ``cuda:0``."""
        return "cpu" if self.device == "cpu" else f"{self.device}:{self.device_id}"

    @property
    def summary(self) -> str:
        """Arithmetic, backend and device, for people: ``fp32 by onnxruntime on cpu``."""
        return f"{self.arithmetic.name} by {self.backend} on {self.device_name}"


class GraphLoader(ABC):
    """A bundle on a backend and a device that fit. It loads graphs on request."""

    def __init__(self, bundle: Bundle, placement: Placement, found: str = "") -> None:
        """Keep the arguments. ``found``: finding for the placement's reason: ``a GPU is there``."""
        self.bundle = bundle
        self.placement = placement
        self.found = found

    @abstractmethod
    def open(self, graph: Graph) -> Session:
        """Load one graph. Raises SessionError, EngineError or BundleIntegrityError."""

    def open_block_scorer(self) -> BlockScorer | None:
        """Load a scorer that is faster than that of :meth:`open`.

        Returns None where there is none. Raises as :meth:`open`.
        """
        return None

    @property
    def runs_video_parts(self) -> bool:
        """Whether :meth:`open_part` opens the halves of ``video_encoder``, to be run instead."""
        return False

    def open_part(self, part: VideoPart) -> Session:
        """Load a half of ``video_encoder``. Its runs take any number of frames or videos.

        Raises SessionError or BundleIntegrityError.
        """
        raise NotImplementedError(f"{self.placement.backend} runs no {part.value}")

    keeps_gallery = False
    """Whether :meth:`keep_gallery` can be called."""

    def keep_gallery(self, scorer: Session) -> GalleryScorer:
        """Keep a gallery beside an opened scorer, which must stay open longer."""
        raise NotImplementedError(f"{self.placement.backend} keeps no gallery ({scorer.graph})")

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return a graph's inputs: those of the manifest, unless the backend has others."""
        return self.bundle.manifest.graphs[self.placement.precision][graph].inputs

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return a graph's outputs: those of the manifest, unless the backend has others."""
        return self.bundle.manifest.graphs[self.placement.precision][graph].outputs

    def artefacts(self) -> dict[str, FileRecord]:
        """Return the files that run, by name: graphs of the bundle, or others of the backend."""
        manifest, precision = self.bundle.manifest, self.placement.precision
        graphs: list[AnyGraph] = list(manifest.graphs[precision])
        if self.runs_video_parts:
            graphs = [graph for graph in graphs if graph is not Graph.VIDEO_ENCODER]
            graphs += manifest.video_parts[precision]
        names = [name for graph in graphs for name in manifest.files_of(graph, precision)]
        return {name: manifest.files[name] for name in names}


@dataclass(frozen=True)
class Refusal:
    """A way of running a bundle that this machine does not offer."""

    options: SessionOptions
    reason: str


class Backend(ABC):
    """A library that runs a bundle's graphs."""

    name: str
    summary: str
    arithmetics: Mapping[Device, tuple[Arithmetic, ...]]
    own_options: frozenset[str] = frozenset()
    auto_rank: Mapping[Device, int] = {}
    """Rank on every device on which ``auto`` may choose the backend. The highest is tried first.
    The package's own backends have ranks from 0 (ONNX Runtime) to 20."""

    @abstractmethod
    def why_not(self, bundle: Bundle, device: Device) -> str | None:
        """Say in one short line why a device of this machine cannot run a bundle.

        Returns None where it should run. Opens nothing to find out.
        """

    def may_gain(self, bundle: Bundle, device: Device) -> bool:
        """Return whether the backend is considered for a bundle on a device without being named.

        Where nothing could be gained, ``auto`` and ``bench`` pass over it without a word, apart
        from arithmetics that are never automatic.
        """
        del bundle, device
        return True

    @abstractmethod
    def open(self, bundle: Bundle, options: SessionOptions, device: Device) -> GraphLoader:
        """Find everything that a bundle needs on a device, without loading graphs.

        Raises SessionError (DriverError, EngineError) where something is missing, and
        MissingExtraError where a library is not installed.
        """

    @abstractmethod
    def import_library(self) -> None:
        """Import the library, so that measurements do not count it. Raises ImportError."""

    def offers(self, bundle: Bundle) -> Iterator[SessionOptions | Refusal]:
        """List every way of running a bundle, or the reason why this machine lacks it."""
        for device, arithmetics in self.arithmetics.items():
            may_gain = self.may_gain(bundle, device)
            reason = self.why_not(bundle, device)
            for arithmetic in arithmetics:
                # Graphs that were exported for an arithmetic count, whatever it gains.
                is_wanted = may_gain or not arithmetic.is_automatic
                if is_wanted and arithmetic.graphs in bundle.precisions:
                    options = SessionOptions(device, arithmetic.name, backend=self.name)
                    yield options if reason is None else Refusal(options, reason)

    def choose_arithmetic(
        self, bundle: Bundle, options: SessionOptions, device: Device
    ) -> Arithmetic:
        """Choose the arithmetic of a session. Raises SessionError where none fits."""
        available = bundle.precisions
        names = ", ".join(precision.value for precision in available)
        arithmetics = self.arithmetics[device]
        if options.precision == "auto":
            for arithmetic in arithmetics:
                if arithmetic.is_automatic and arithmetic.graphs in available:
                    return arithmetic
            fitting = [each.name for each in arithmetics if each.graphs in available]
            if not fitting:
                runs = ", ".join(dict.fromkeys(each.graphs.value for each in arithmetics))
                raise SessionError(
                    f"the bundle has {names} graphs alone; {self.name} on {device} runs "
                    f"{runs}: add them with xclip-deploy export, or pass another backend"
                )
            raise SessionError(
                f"the bundle has {names} graphs alone, which are taken only where they are asked "
                f"for; pass precision={fitting[0]!r}"
            )
        for arithmetic in arithmetics:
            if arithmetic.name == options.precision:
                if arithmetic.graphs in available:
                    return arithmetic
                raise SessionError(
                    f"precision {options.precision} was asked for; the bundle has {names}"
                )
        raise SessionError(
            f"precision {options.precision} was asked for, which {self.name} does not run on "
            f"{device}"
        )


class Closable(Protocol):
    """An object that holds resources."""

    def close(self) -> None:
        """Free the resources."""
        ...


def close_all(parts: Iterable[Closable]) -> SessionError | None:
    """Close every part, whatever happens. Return the first failure, to be raised or logged."""
    failures = [error for error in map(_close, parts) if error is not None]
    return failures[0] if failures else None


def _close(part: Closable) -> SessionError | None:
    try:
        part.close()
    except SessionError as error:
        return error
    return None
