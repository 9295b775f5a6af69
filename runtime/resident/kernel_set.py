"""The scan kernels of a bundle: their sidecar, their files, and the code that fits a GPU.

Kernels are compiled when a bundle is exported, or later by ``xclip-deploy build-scan``. Like
engines they lie beside the manifest, in ``kernels/scan/``. Their sidecar has the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from xclip_deploy.errors import BundleIntegrityError, SessionError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.driver_api import ArgumentType
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.grains import TEMPERATURE, Grain
from xclip_deploy.runtime.manifest import FileRecord, checksum
from xclip_deploy.runtime.model_config import FrozenModel
from xclip_deploy.runtime.resident.shape import ScanShape

FORMAT = "xclip-scan-kernels"
SCHEMA_VERSION = 2
SIDECAR_NAME = "kernels.json"
KERNELS_DIRECTORY = "kernels/scan"
"""Folder within a bundle."""
_BUILD = "xclip-deploy build-scan {path}"
_SELECTED_AT_ONCE = 1024
_SELECTION_STEPS = 2  # in turn; more would leave most of a GPU idle in small galleries
_QUERY_SPAN, _QUERY_DEPTH = 64, 32


class Kernel(str, Enum):
    """The kernels of a scan, by their functions' names."""

    QUERY = "query_kernel"
    FRAMES = "frames_kernel"
    VIDEO = "video_kernel"
    DIGIT = "digit_kernel"
    COLLECT = "collect_kernel"


ARGUMENTS: Mapping[Kernel, Mapping[str, ArgumentType]] = {
    Kernel.QUERY: {
        "word_features": "*fp32",
        "sentence_features": "*fp32",
        "query_matrices": "*fp32",
        "ups": "*fp32",
        "frame_words": "*fp16",
        "frame_sentences": "*fp16",
        "video_words": "*fp16",
        "video_sentences": "*fp16",
    },
    Kernel.FRAMES: {
        "frames": "*fp16",
        "num_frames": "*i32",
        "allowed": "*i32",
        "frame_words": "*fp16",
        "frame_sentences": "*fp16",
        "num_words": "*i32",
        "scales": "*fp32",
        "matrices": "*fp16",
        "matrix_scales": "*fp32",
        "planes": "*fp32",
        "S": "i32",
        "T": "i32",
        "mask_length": "i32",
        "first_program": "i32",
    },
    Kernel.VIDEO: {
        "videos": "*fp16",
        "allowed": "*i32",
        "video_words": "*fp16",
        "video_sentences": "*fp16",
        "num_words": "*i32",
        "scales": "*fp32",
        "matrices": "*fp16",
        "matrix_scales": "*fp32",
        "planes": "*fp32",
        "scores": "*fp32",
        "S": "i32",
        "T": "i32",
        "mask_length": "i32",
        "first_program": "i32",
        "score_scale": "fp32",
    },
    Kernel.DIGIT: {
        "scores": "*fp32",
        "ranks": "*i32",
        "counts": "*i32",
        "S": "i32",
        "num_ranks": "i32",
        "count": "i32",
        "place": "i32",
    },
    Kernel.COLLECT: {
        "scores": "*fp32",
        "ranks": "*i32",
        "planes": "*fp32",
        "counts": "*i32",
        "taken": "*i32",
        "best_slots": "*i32",
        "best_keys": "*i64",
        "best_values": "*fp32",
        "S": "i32",
        "T": "i32",
        "num_ranks": "i32",
        "count": "i32",
        "places": "i32",
        "room": "i32",
    },
}
"""Arguments of each kernel, in order. The kernels are compiled for these, and called with them."""


def constants(kernel: Kernel, shape: ScanShape, tiling: Tiling) -> dict[str, int | float | bool]:
    """Return the constants that a kernel is compiled for, by name."""
    frames, words = shape.padded_frames, shape.padded_words
    selection: dict[str, int | float | bool] = {
        "BLOCK": _SELECTED_AT_ONCE,
        "STEPS": _SELECTION_STEPS,
    }
    if kernel is Kernel.DIGIT:
        return selection
    if kernel is Kernel.COLLECT:
        return {"GRAINS": len(shape.grains), **selection}
    sizes: dict[str, int | float | bool] = {
        "W": shape.max_words,
        "D": shape.embed_dim,
        "WP": words,
        "BK": tiling.depth,
    }
    if kernel is Kernel.QUERY:
        needed = {grain.name: grain in shape.grains for grain in Grain}
        return {**sizes, **needed, "BD": tiling.span}
    both = {
        **sizes,
        "FP": frames,
        "MASKED": shape.mask_padding,
        "TEMPERATURE": TEMPERATURE,
        "SLOTS": tiling.span,
    }
    if kernel is Kernel.FRAMES:
        planes = {
            "SENTENCE": shape.plane(Grain.FRAME_SENTENCE),
            "WORD": shape.plane(Grain.FRAME_WORD),
        }
        return {"F": shape.max_frames, **both, **planes}
    planes = {
        "SENTENCE": shape.plane(Grain.VIDEO_SENTENCE),
        "WORD": shape.plane(Grain.VIDEO_WORD),
    }
    return {**both, **planes, "GRAINS": len(shape.grains)}


@dataclass(frozen=True)
class Tiling:
    """The part of the work that one program of a kernel does."""

    span: int
    """Slots of the gallery; for the kernel of the queries, numbers of an embedding."""
    depth: int = 64
    """Numbers of an embedding in one step of a product."""

    @classmethod
    def of(cls, kernel: Kernel, shape: ScanShape, rows: int, depth: int) -> Tiling:
        """Return the tiling with ``rows`` rows of a product, frames or videos, in a program."""
        if kernel is Kernel.QUERY:
            return cls(_QUERY_SPAN, _QUERY_DEPTH)
        if kernel is Kernel.FRAMES:
            return cls(rows // shape.padded_frames, depth)
        return cls(rows if kernel is Kernel.VIDEO else _SELECTED_AT_ONCE * _SELECTION_STEPS, depth)


def kernels_of(shape: ScanShape) -> tuple[Kernel, ...]:
    """Return the kernels that a model's scan launches."""
    return tuple(k for k in Kernel if k is not Kernel.FRAMES or shape.reads_frames)


class KernelCode(FrozenModel):
    """Code of one kernel for some GPUs."""

    kind: Literal["cubin", "ptx"]
    """``cubin``: machine code. ``ptx``: a text that the driver compiles for newer GPUs."""
    compute_capability: tuple[int, int]
    """Compute capability that it was compiled for."""
    is_exact: bool
    """Whether it runs on that compute capability alone, not on others of its major number."""
    file: str
    """Name within the folder."""
    record: FileRecord
    num_warps: Annotated[int, Field(gt=0)]
    span: Annotated[int, Field(gt=0)]
    """Slots of the gallery that a program covers; see :class:`Tiling`."""
    shared_bytes: Annotated[int, Field(ge=0)]

    def fits(self, compute_capability: tuple[int, int]) -> bool:
        """Return whether a GPU of a compute capability can run the code."""
        if self.kind == "ptx" and not self.is_exact:
            return compute_capability >= self.compute_capability
        if self.is_exact:
            return compute_capability == self.compute_capability
        same_major = compute_capability[0] == self.compute_capability[0]
        return same_major and compute_capability >= self.compute_capability


class KernelRecord(FrozenModel):
    """One kernel in all its codes."""

    arguments: dict[str, ArgumentType]
    """Arguments in order."""
    codes: tuple[KernelCode, ...]

    def codes_for(self, compute_capability: tuple[int, int]) -> list[KernelCode]:
        """Return the codes that fit a GPU, the best first.

        Machine code comes before PTX. Of each, the nearest lower compute capability is best.
        """
        fitting = [code for code in self.codes if code.fits(compute_capability)]
        return sorted(
            fitting,
            key=lambda code: (code.kind == "cubin", code.compute_capability),
            reverse=True,
        )


class KernelSet(FrozenModel):
    """Contents of ``kernels.json``."""

    format: Literal["xclip-scan-kernels"] = "xclip-scan-kernels"
    schema_version: Literal[2] = 2
    shape: ScanShape
    """Constants that the kernels were compiled for."""
    source_sha256: str
    """SHA-256 of the kernels' source."""
    versions: dict[str, str]
    """Versions of the tools that compiled them."""
    created_utc: str
    kernels: dict[Kernel, KernelRecord]

    @field_validator("kernels")
    @classmethod
    def _arguments_fit(cls, kernels: dict[Kernel, KernelRecord]) -> dict[Kernel, KernelRecord]:
        for kernel, record in kernels.items():
            if list(record.arguments.items()) != list(ARGUMENTS[kernel].items()):
                raise ValueError(f"{kernel.value} takes arguments that this release does not pass")
            names = [code.file for code in record.codes]
            if any(Path(name).name != name or name.startswith(".") for name in names):
                raise ValueError(f"{kernel.value} names a file outside the folder")
        return kernels

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities with machine code, such as ``8.9``, then PTX's, ``8.0+``."""
        codes = [code for record in self.kernels.values() for code in record.codes]
        found = {(c.kind == "ptx", c.compute_capability) for c in codes}
        return tuple(f"{cc[0]}.{cc[1]}{'+' if ptx else ''}" for ptx, cc in sorted(found))

    def to_json(self) -> bytes:
        """Serialise, with a checksum over the content that reveals edits."""
        content = self.model_dump(mode="json")
        content["checksum"] = checksum(content)
        return json.dumps(content, indent=1).encode() + b"\n"


def kernels_folder(bundle: Bundle) -> Path:
    """Return the folder of a bundle's scan kernels, whether it exists or not."""
    return bundle.path / KERNELS_DIRECTORY


def has_kernels(bundle: Bundle) -> bool:
    """Return whether a bundle has scan kernels, of whatever state."""
    return (kernels_folder(bundle) / SIDECAR_NAME).is_file()


def read_kernel_set(bundle: Bundle) -> KernelSet:
    """Read the sidecar of a bundle's kernels.

    Raises SessionError where the bundle has none, and BundleIntegrityError where the sidecar is
    damaged, or is of another model's shape.
    """
    file = kernels_folder(bundle) / SIDECAR_NAME
    command = _BUILD.format(path=bundle.path)
    try:
        require_regular_file(file, "a description of scan kernels", BundleIntegrityError)
        content: Any = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise SessionError(
            f"bundle {bundle.path} has no scan kernels for GPUs; run: {command}"
        ) from error
    except (ValueError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise _damaged(file, f"it cannot be read ({reason})", command) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(file, f"its format is not {FORMAT}", command)
    if content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version")
        raise _damaged(
            file, f"it has schema version {found!r}, this release reads {SCHEMA_VERSION}", command
        )
    if content.pop("checksum", None) != checksum(content):
        raise _damaged(file, "it was altered: its checksum does not fit", command)
    try:
        kernel_set = KernelSet.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(file, f"{where}: {first['msg']}", command) from error
    shape = ScanShape.of(bundle.manifest.model)
    if kernel_set.shape != shape:
        raise _damaged(file, "it is of a model of another shape", command)
    missing = [kernel.value for kernel in kernels_of(shape) if kernel not in kernel_set.kernels]
    if missing:
        raise _damaged(file, f"it lacks {', '.join(missing)}", command)
    return kernel_set


def read_code(bundle: Bundle, code: KernelCode) -> bytes:
    """Read the code of a kernel. Raises BundleIntegrityError unless it has its SHA-256."""
    file = kernels_folder(bundle) / code.file
    command = _BUILD.format(path=bundle.path)
    try:
        require_regular_file(file, "a kernel", BundleIntegrityError)
        content = file.read_bytes()
    except OSError as error:
        raise _damaged(file, f"it cannot be read ({error.strerror})", command) from error
    found = hashlib.sha256(content).hexdigest()
    if found == code.record.sha256:
        return content
    raise _damaged(
        file,
        f"it was altered: its SHA-256 is {found[:12]}…, the build wrote {code.record.sha256[:12]}…",
        command,
    )


def _damaged(file: Path, what: str, command: str) -> BundleIntegrityError:
    return BundleIntegrityError(f"scan kernels {file}: {what}; run: {command}")
