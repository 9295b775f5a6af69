"""The sidecar of a set of TensorRT engines: what was built, from what, for what.

A TensorRT plan carries no metadata of its own, and which machine may load it is not written on
it. Everything needed to decide that stands here, beside the engines.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from xclip_deploy.errors import EngineError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.manifest import FileRecord, Graph, Precision, Sha256, TensorSpec
from xclip_deploy.runtime.model_config import FrozenModel

SCHEMA_VERSION = 2
FORMAT = "xclip-engines"
SIDECAR_NAME = "engines.json"
ENGINES_DIRECTORY = "engines"
"""Within a bundle: ``engines/<flavour>-<version>-<precision>-<target>/``."""


class Flavour(str, Enum):
    """The two TensorRT libraries; also the names of the extras that install them."""

    TENSORRT = "tensorrt"
    """For data-centre GPUs; builds on the GPU that the engine is for."""
    RTX = "rtx"
    """TensorRT-RTX, for RTX GPUs; builds anywhere, and finishes on the GPU at load time."""

    @property
    def module_name(self) -> str:
        """Of the Python bindings."""
        return "tensorrt_rtx" if self is Flavour.RTX else "tensorrt"


class ShapeRange(FrozenModel):
    """Smallest, best and largest shape of one input in an optimisation profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class HardwareCompatibility(str, Enum):
    """Which other GPUs a ``tensorrt`` engine may run on, apart from the one it was built on."""

    NONE = "none"
    """None: the same compute capability alone is not enough for the library's promise."""
    AMPERE_PLUS = "ampere-plus"
    """Every GPU of compute capability 8.0 and above."""
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"
    """Every GPU of the same compute capability."""


class BuildOptions(FrozenModel):
    """What a build was asked for, beside graphs, precision and profiles.

    Everything here changes the engines; what only changes how fast they build (a timing
    cache) does not belong here.
    """

    workspace_bytes: Annotated[int, Field(gt=0)] | None = None
    """Most scratch memory a layer may use; None: the library's own limit."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    """``tensorrt`` alone: 0 builds fastest, 5 searches longest; None: the library's own, 3."""
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    """``tensorrt`` alone."""
    version_compatible: bool = False
    """``tensorrt`` alone: loads in later versions too. Such a plan holds code that runs when
    it is loaded (``Runtime.engine_host_code_allowed``), and may be slower."""
    compute_capabilities: tuple[str, ...] = ()
    """``rtx`` alone: ``sm86`` and the like, ordered; empty: the library's own, from 8.0 on."""


class EngineMemory(FrozenModel):
    """Device memory that an engine needs, bytes."""

    source: Literal["engine", "builder log", "plan size"]
    """Where ``weights_bytes`` and ``activation_bytes`` come from. ``engine``: read off the
    engine, on a GPU. ``builder log``: what the library reported while it built. ``plan size``:
    a lower bound, as the library told neither: the plan's size, and no activations."""
    weights_bytes: int
    activation_bytes: tuple[int, ...]
    """For each profile: what an execution context needs for scratch and activations."""
    tensor_bytes: tuple[int, ...]
    """For each profile: inputs and outputs at its largest shapes."""

    @property
    def needed_bytes(self) -> int:
        """For one execution context and one set of buffers, in the profile that needs most."""
        profiles = zip(self.activation_bytes, self.tensor_bytes, strict=True)
        return self.weights_bytes + max(sum(profile) for profile in profiles)


class FusedAttention(FrozenModel):
    """Whether the engine computes attention in one fused kernel a block."""

    blocks: int
    """Attention blocks of the graph in half precision: matrix product, softmax, matrix product."""
    expected: int
    """Those that TensorRT-RTX has been seen to fuse: all but those of a single head with a
    mask, which models of published sizes do not have."""
    fused: int | None
    """Those that the plan holds fused kernels for in every profile, counted by the kernels'
    names in its bytes; None for ``tensorrt``, whose plans have not been looked into."""


class EngineRecord(FrozenModel):
    """One engine."""

    file: FileRecord
    graph_sha256: Sha256
    """Of the ONNX graph that it was built from."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, ShapeRange], ...]
    """Optimisation profiles in the engine's own order: the range of every input, by name.
    Shapes may fall into several; the earliest that holds them is the one made for them."""
    build_s: float
    memory: EngineMemory
    attention: FusedAttention
    float32_islands: dict[str, int]
    """Sites of the graph that were found to compute in FP32, by kind: layer norms, L2 norms,
    the scorer's softmaxes, outputs. Empty for an FP32 engine, which is FP32 throughout."""


class EngineSet(FrozenModel):
    """Contents of ``engines.json``: the three engines of one build."""

    format: Literal["xclip-engines"] = "xclip-engines"
    schema_version: Literal[2] = 2
    flavour: Flavour
    version: str
    """Of the TensorRT library; a plan loads in this version alone, or in a later one where
    ``options.version_compatible``."""
    precision: Precision
    target: str
    """What it runs on. ``tensorrt``: the compute capability it was built on, ``sm80`` and the
    like, followed by the hardware compatibility unless that is none (``sm80-ampere-plus``).
    ``rtx``: the compute capabilities it was built for, joined by ``-``, or ``portable``: 8.0
    and above."""
    gpu: str | None
    """Name of the GPU that it was built on; None where it was built without (``rtx``)."""
    fingerprint: Sha256
    """Of the bundle's model."""
    options: BuildOptions
    shape_options: dict[str, str]
    """Options of ``build-trt`` that set the profiles, where they were not its defaults: name
    to value, empty for a flag."""
    self_tested: bool
    """Whether these engines were run and held against the model before they took their place."""
    created_utc: str
    engines: dict[Graph, EngineRecord]

    @field_validator("engines")
    @classmethod
    def _engines_complete(cls, engines: dict[Graph, EngineRecord]) -> dict[Graph, EngineRecord]:
        missing = [graph.value for graph in Graph if graph not in engines]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        return engines

    @property
    def directory_name(self) -> str:
        """Name of the set's folder in ``engines/``."""
        return directory_name(self.flavour, self.version, self.precision, self.target)

    def rebuild_command(self, bundle: Path) -> str:
        """The command that builds this set anew, with the options it was built with."""
        words = ["xclip-deploy build-trt", str(bundle), f"--{self.precision.value}"]
        words += ["--flavor", self.flavour.value]
        options = self.options
        if options.workspace_bytes is not None:
            words += ["--workspace", str(options.workspace_bytes)]
        if options.optimization_level is not None:
            words += ["--optimization-level", str(options.optimization_level)]
        if options.hardware_compatibility is not HardwareCompatibility.NONE:
            words += ["--hardware-compatibility", options.hardware_compatibility.value]
        if options.version_compatible:
            words += ["--version-compatible"]
        for capability in options.compute_capabilities:
            words += ["--compute-capability", capability]
        for option, value in self.shape_options.items():
            words += [f"--{option}", value] if value else [f"--{option}"]
        return " ".join(words)

    def runs_on(self, major: int, minor: int) -> bool:
        """Whether a GPU of this compute capability may load the set, by its ``target``.

        ``tensorrt`` without hardware compatibility also wants the same GPU model for full
        speed; the library warns of another.
        """
        first, _, compatibility = self.target.partition("-")
        if self.flavour is Flavour.RTX:
            if self.target == "portable":
                return (major, minor) >= (8, 0)
            return f"sm{major}{minor}" in self.target.split("-")
        if compatibility == HardwareCompatibility.AMPERE_PLUS.value:
            return (major, minor) >= (8, 0)
        return first == f"sm{major}{minor}"


def directory_name(flavour: Flavour, version: str, precision: Precision, target: str) -> str:
    """Name of an engine set's folder in ``engines/``: one set for each of the four."""
    return f"{flavour.value}-{version}-{precision.value}-{target}"


def engine_file(graph: Graph) -> str:
    """Name of a graph's engine within the set's folder."""
    return f"{graph.value}.engine"


def engine_sets(bundle: Bundle) -> dict[Path, EngineSet]:
    """Sidecars of all engine sets of a bundle, by folder. Raises EngineError for a bad one."""
    found = {}
    for file in sorted((bundle.path / ENGINES_DIRECTORY).glob(f"*/{SIDECAR_NAME}")):
        if not file.parent.name.startswith("."):  # else an unfinished build
            found[file.parent] = read_engine_set(file.parent, bundle.path)
    return found


def read_engine_set(folder: Path, bundle: Path) -> EngineSet:
    """The sidecar of the engine set in ``folder``, of the bundle at ``bundle``.

    Raises EngineError where there is none, or none that this release can read.
    """
    file = folder / SIDECAR_NAME
    mend = f"run: rm -r {folder} && xclip-deploy build-trt {bundle}"
    try:
        require_regular_file(file, "a description of engines", EngineError)
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise EngineError(
                f"{file} has schema version {version!r}, this release reads {SCHEMA_VERSION}; "
                f"{mend}"
            )
        return EngineSet.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}"
        raise EngineError(f"{file}: not a description of engines ({reason}); {mend}") from error
    except (ValueError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(f"{file}: not a description of engines ({reason}); {mend}") from error
