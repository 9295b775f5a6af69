"""The sidecar of a set of TensorRT engines: its graphs, options, versions and target GPUs.

A TensorRT plan carries no metadata, and does not tell which machine may load it. The sidecar
beside the engines does.
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
"""Folder within a bundle: ``engines/<flavour>-<version>-<precision>-<target>/``."""

RTX_COMPUTE_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""Compute capabilities that TensorRT-RTX supports; 7.5 only where an engine is built for it alone.

These are the members of ``ComputeCapability`` in tensorrt-rtx 1.7.1. NVIDIA's support matrix lists
the same without 8.0 (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/).
On an H100 (9.0), the library calls every engine ``EngineValidity.INVALID``."""


class Flavour(str, Enum):
    """The two TensorRT libraries, by the names of the extras that install them."""

    TENSORRT = "tensorrt"
    """TensorRT for data-centre GPUs. It builds on the GPU that the engine is for."""
    RTX = "rtx"
    """TensorRT-RTX for RTX GPUs. It builds anywhere, and finishes on the GPU at load time."""

    @property
    def module_name(self) -> str:
        """Name of the Python bindings' module."""
        return "tensorrt_rtx" if self is Flavour.RTX else "tensorrt"


class ShapeRange(FrozenModel):
    """Smallest, best and largest shape of one input in an optimisation profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class HardwareCompatibility(str, Enum):
    """GPUs that a ``tensorrt`` engine may run on, beside the one it was built on."""

    NONE = "none"
    """No others: the library promises nothing for another GPU of the same compute capability."""
    AMPERE_PLUS = "ampere-plus"
    """GPUs of compute capability 8.0 and above."""
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"
    """GPUs of the same compute capability."""


class BuildOptions(FrozenModel):
    """Options of a build, beside graphs, precision and profiles.

    All of them change the engines. A timing cache only changes how fast they build, and is none of
    them.
    """

    workspace_bytes: Annotated[int, Field(gt=0)] | None = None
    """Most scratch memory a layer may use; None: the library's own limit."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    """Effort of ``tensorrt``: 0 builds fastest, 5 searches longest; None: the library's own, 3."""
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    """Other GPUs that an engine of ``tensorrt`` runs on."""
    version_compatible: bool = False
    """Whether an engine of ``tensorrt`` loads in later versions too. Such a plan holds code that
    runs when it is loaded (``Runtime.engine_host_code_allowed``), and may be slower."""
    compute_capabilities: tuple[str, ...] = ()
    """Targets of ``rtx`` such as ``sm86``, ascending; empty: the library's own, from 8.0 on."""


class EngineMemory(FrozenModel):
    """Device memory that an engine needs, bytes."""

    source: Literal["engine", "builder log", "plan size"]
    """Source of ``weights_bytes`` and ``activation_bytes``. ``engine``: the engine itself, on a
    GPU. ``builder log``: the library's report while it built. ``plan size``: a lower bound where
    the library told neither: the plan's size, without activations."""
    weights_bytes: int
    activation_bytes: tuple[int, ...]
    """Scratch and activations of an execution context, for each profile."""
    tensor_bytes: tuple[int, ...]
    """Inputs and outputs at the largest shapes, for each profile."""

    @property
    def needed_bytes(self) -> int:
        """Memory of one execution context and its buffers, in the profile that needs most."""
        profiles = zip(self.activation_bytes, self.tensor_bytes, strict=True)
        return self.weights_bytes + max(sum(profile) for profile in profiles)


class FusedAttention(FrozenModel):
    """Count of the attention blocks that the engine computes in one fused kernel each."""

    blocks: int
    """Attention blocks of the graph in half precision: matrix product, softmax, matrix product."""
    expected: int
    """Blocks that TensorRT-RTX is known to fuse: all but those of a single head with a mask, which
    models of published sizes do not have."""
    fused: int | None
    """Blocks that are fused in every profile, counted by the kernels' names in the plan's bytes;
    None for ``tensorrt``, whose plans have not been examined."""


class EngineRecord(FrozenModel):
    """Record of one engine."""

    file: FileRecord
    graph_sha256: Sha256
    """SHA-256 of the ONNX graph that it was built from."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, ShapeRange], ...]
    """Optimisation profiles in the engine's own order: the range of every input, by name.
    Shapes may fit several profiles; the first of these is made for them."""
    build_s: float
    memory: EngineMemory
    attention: FusedAttention
    float32_islands: dict[str, int]
    """Number of the graph's sites that compute in FP32, by kind: layer norms, L2 norms, the
    scorer's softmaxes, outputs. Empty for an FP32 engine, which is FP32 throughout."""


class EngineSet(FrozenModel):
    """Contents of ``engines.json``: the three engines of one build."""

    format: Literal["xclip-engines"] = "xclip-engines"
    schema_version: Literal[2] = 2
    flavour: Flavour
    version: str
    """Version of the TensorRT library. A plan loads in this version alone, or also in later ones
    where ``options.version_compatible``."""
    precision: Precision
    target: str
    """GPUs that the set runs on. ``tensorrt``: the compute capability it was built on, such as
    ``sm80``, followed by the hardware compatibility unless that is none (``sm80-ampere-plus``).
    ``rtx``: the compute capabilities it was built for, joined by ``-``, or ``portable``: 8.0
    and above."""
    gpu: str | None
    """Name of the GPU that it was built on; None where it was built without one (``rtx``)."""
    fingerprint: Sha256
    """Fingerprint of the bundle's model."""
    options: BuildOptions
    shape_options: dict[str, str]
    """Options of ``build-trt`` that changed the profiles from its defaults: name to value, empty
    for a flag."""
    self_tested: bool
    """Whether these engines ran and were compared with the model before they took their place."""
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
        """Return the command that builds this set anew, with the same options."""
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
        """Return whether a GPU of this compute capability may load the set, by its ``target``.

        Without hardware compatibility, ``tensorrt`` reaches full speed on the same GPU model
        alone; the library warns on another one.
        """
        first, _, compatibility = self.target.partition("-")
        if self.flavour is Flavour.RTX:
            if (major, minor) not in RTX_COMPUTE_CAPABILITIES:
                return False
            if self.target == "portable":
                return (major, minor) >= (8, 0)
            return f"sm{major}{minor}" in self.target.split("-")
        if compatibility == HardwareCompatibility.AMPERE_PLUS.value:
            return (major, minor) >= (8, 0)
        return first == f"sm{major}{minor}"


def why_not_rtx(major: int, minor: int) -> str | None:
    """Say why TensorRT-RTX cannot run on GPUs of a compute capability; None where it can."""
    if (major, minor) in RTX_COMPUTE_CAPABILITIES:
        return None
    names = [f"{first}.{second}" for first, second in RTX_COMPUTE_CAPABILITIES]
    supported = f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"TensorRT-RTX does not support compute capability {major}.{minor} (it supports "
        f"{supported})"
    )


def directory_name(flavour: Flavour, version: str, precision: Precision, target: str) -> str:
    """Return the name of an engine set's folder in ``engines/``, one for each combination."""
    return f"{flavour.value}-{version}-{precision.value}-{target}"


def engine_file(graph: Graph) -> str:
    """Return the name of a graph's engine within the set's folder."""
    return f"{graph.value}.engine"


def engine_sets(bundle: Bundle) -> dict[Path, EngineSet]:
    """Read all engine sets of a bundle, by folder. Raises EngineError for a damaged sidecar."""
    found = {}
    for file in sorted((bundle.path / ENGINES_DIRECTORY).glob(f"*/{SIDECAR_NAME}")):
        if not file.parent.name.startswith("."):  # unfinished builds begin with a dot
            found[file.parent] = read_engine_set(file.parent, bundle.path)
    return found


def read_engine_set(folder: Path, bundle: Path) -> EngineSet:
    """Read the sidecar of the engine set in ``folder``, of the bundle at ``bundle``.

    Raises EngineError where there is none that this release can read.
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
