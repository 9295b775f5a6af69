"""The sidecar of a set of TensorRT engines: what was built, from what, for what.

A TensorRT plan carries no metadata of its own, and which machine may load it is not written on
it. Everything needed to decide that stands here, beside the engines.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from xclip_deploy.errors import EngineError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.manifest import FileRecord, Graph, Precision, Sha256, TensorSpec
from xclip_deploy.runtime.model_config import FrozenModel

FILE_NAME = "engines.json"
DIRECTORY = "engines"
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


class EngineRecord(FrozenModel):
    """One engine."""

    file: FileRecord
    graph_sha256: Sha256
    """Of the ONNX graph that it was built from."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, ShapeRange], ...]
    build_s: float


class EngineSet(FrozenModel):
    """Contents of ``engines.json``: the three engines of one build."""

    format: Literal["xclip-engines"] = "xclip-engines"
    schema_version: Literal[1] = 1
    flavour: Flavour
    version: str
    """Of the TensorRT library; a plan loads in this version alone."""
    precision: Precision
    target: str
    """What it runs on: ``sm80`` and the like, or ``portable`` (TensorRT-RTX)."""
    created_utc: str
    engines: dict[Graph, EngineRecord]

    @property
    def directory_name(self) -> str:
        """Name of the set's folder in ``engines/``."""
        return f"{self.flavour.value}-{self.version}-{self.precision.value}-{self.target}"


def engine_file(graph: Graph) -> str:
    """Name of a graph's engine within the set's folder."""
    return f"{graph.value}.engine"


def engine_sets(bundle: Bundle) -> dict[Path, EngineSet]:
    """Sidecars of all engine sets of a bundle, by folder. Raises EngineError for a bad one."""
    found = {}
    for file in sorted((bundle.path / DIRECTORY).glob(f"*/{FILE_NAME}")):
        if file.parent.name.startswith("."):
            continue  # an unfinished build
        try:
            found[file.parent] = EngineSet.model_validate_json(file.read_bytes())
        except (ValidationError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise EngineError(
                f"{file}: not a description of engines ({reason}); "
                f"run: rm -r {file.parent} && xclip-deploy build-trt {bundle.path}"
            ) from error
    return found
