"""Compile scan kernels for GPUs that are not here, by Triton's own compiler."""

from __future__ import annotations

import hashlib
import importlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xclip_deploy.errors import ExportError, MissingExtraError
from xclip_deploy.runtime.resident.kernel_set import ARGUMENTS, Kernel, Tiling, constants
from xclip_deploy.runtime.resident.shape import ScanShape

_EXTRA = "scan"
_PURPOSE = "Compiling scan kernels"
ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities that get machine code."""
PTX_ARCHITECTURE = (8, 0)
"""Compute capability of the PTX, which runs on all later ones. PTX of 9.0, 10.0 and 12.0 uses
instructions of that architecture alone, and does not."""
_PTX_VERSION = 80
"""Version of the PTX: that of CUDA 12.0. Older drivers refuse a newer one."""
_SHARED_BYTES = {
    (7, 5): 64 << 10,
    (8, 0): 163 << 10,
    (8, 6): 99 << 10,
    (8, 9): 99 << 10,
    (9, 0): 227 << 10,
    (10, 0): 227 << 10,
    (12, 0): 99 << 10,
}
"""Most shared memory of a kernel (CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability")."""
_PTX_SHARED_BYTES = min(limit for cc, limit in _SHARED_BYTES.items() if cc >= PTX_ARCHITECTURE)
_SOURCES = {
    Kernel.QUERY: "query_source",
    Kernel.FRAMES: "grain_source",
    Kernel.VIDEO: "grain_source",
    Kernel.DIGIT: "selection_source",
    Kernel.COLLECT: "selection_source",
}
"""Module of each kernel."""


@dataclass(frozen=True)
class Tuning:
    """One way to compile a kernel. It changes the speed, and not the results."""

    rows: int
    """Rows of a program's product: frames or whole videos."""
    depth: int
    """Numbers of an embedding in one step of a product."""
    stages: int
    """Steps whose loads are under way at a time."""
    num_warps: int = 4
    registers: int | None = None
    """Most registers of a thread, so that more programs share a processor."""


_TUNINGS = (Tuning(64, 64, 3), Tuning(64, 64, 2), Tuning(64, 32, 2), Tuning(64, 32, 1))
"""The fastest first. The first whose buffers fit into the shared memory is taken."""
_WIDE_TUNINGS = (Tuning(128, 128, 2, num_warps=8, registers=128), *_TUNINGS)
"""Tunings for two programs of 128 rows a processor. Each factor of a text is read for twice as many
videos; the cache that gives it is the bound of the others."""
_WIDE_SHARED_BYTES, _WIDE_WORDS, _WIDE_FRAMES = 200 << 10, 32, 32
"""Least shared memory for these tunings, and most words and frames: more need more registers."""
_LEAST_TRITON = (3, 6)
"""Oldest version that was tried: all kernels compile with it."""
_REGISTERS = {"i32": "u32", "fp32": "f32"}
"""PTX type of an argument. Addresses are ``u64``."""
_SCRATCH_AREAS = 2
_TARGET = re.compile(r"^\.target sm_(\d+)([a-z]?)", re.MULTILINE)


@dataclass(frozen=True)
class CompiledKernel:
    """Code of one kernel."""

    kind: Literal["cubin", "ptx"]
    compute_capability: tuple[int, int]
    is_exact: bool
    """Whether it runs on that compute capability alone."""
    image: bytes
    num_warps: int
    span: int
    """Slots that a program covers; see ``Tiling``."""
    shared_bytes: int


def compile_kernel(
    kernel: Kernel,
    shape: ScanShape,
    compute_capability: tuple[int, int],
    kind: Literal["cubin", "ptx"] = "cubin",
    tunings: Sequence[Tuning] | None = None,
) -> CompiledKernel:
    """Compile a kernel for a model's shape and a GPU, which need not be here.

    Takes seconds. Triton keeps results in its own cache. ``tunings``: those to try in turn; None
    for the best that are known. Raises MissingExtraError without Triton,
    and ExportError with the compiler's reason, or where the kernel needs too much shared memory.
    """
    triton = _triton()
    function = _compilable(kernel)
    backends = importlib.import_module("triton.backends.compiler")
    compiler = importlib.import_module("triton.compiler")
    major, minor = compute_capability
    target = backends.GPUTarget("cuda", 10 * major + minor, 32)
    limit = _shared_bytes(compute_capability, kind)
    found = 0
    if tunings is None:
        tunings = best_tunings(kernel, shape, compute_capability, kind)
    for tuning in tunings:
        options: dict[str, Any] = {
            "num_warps": tuning.num_warps,
            "num_stages": tuning.stages,
            "maxnreg": tuning.registers,
            "enable_fp_fusion": True,
        }
        tiling = Tiling.of(kernel, shape, max(tuning.rows, shape.padded_frames), tuning.depth)
        if kind == "ptx":
            options["ptx_version"] = _PTX_VERSION
        request = _request(compiler, function, kernel, constants(kernel, shape, tiling))
        try:
            with warnings.catch_warnings():
                # Triton announces changes of its later versions.
                warnings.simplefilter("ignore")
                compiled = triton.compile(request, target=target, options=options)
        except Exception as error:  # the compiler raises classes of every kind
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ExportError(
                f"Triton {triton.__version__} cannot compile {kernel.value} for compute "
                f"capability {major}.{minor}: {reason}"
            ) from error
        _check_parameters(triton.__version__, kernel, compiled.asm["ptx"])
        metadata = compiled.metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise ExportError(
                f"Triton {triton.__version__} compiled {kernel.value} with scratch memory, which "
                "the runtime does not provide; run: pip install 'triton==3.9.0'"
            )
        found = int(metadata.shared)
        if found <= limit:
            is_exact = _is_exact(compiled.asm["ptx"])
            image = compiled.asm["ptx"].encode() if kind == "ptx" else compiled.asm["cubin"]
            return CompiledKernel(
                kind,
                compute_capability,
                is_exact,
                bytes(image),
                metadata.num_warps,
                tiling.span,
                found,
            )
    raise ExportError(
        f"{kernel.value} needs {found:,} bytes of shared memory for this model, a GPU of compute "
        f"capability {major}.{minor} has {limit:,}"
    )


def best_tunings(
    kernel: Kernel,
    shape: ScanShape,
    compute_capability: tuple[int, int],
    kind: Literal["cubin", "ptx"] = "cubin",
) -> Sequence[Tuning]:
    """Return the tunings of a kernel for a GPU, the best first."""
    is_product = kernel in (Kernel.FRAMES, Kernel.VIDEO)
    has_room = _shared_bytes(compute_capability, kind) >= _WIDE_SHARED_BYTES
    is_small = shape.padded_words <= _WIDE_WORDS and shape.padded_frames <= _WIDE_FRAMES
    return _WIDE_TUNINGS if is_product and has_room and is_small else _TUNINGS


def require_triton() -> str:
    """Return Triton's version. Raises MissingExtraError where it is not installed."""
    return str(_triton().__version__)


def source_sha256() -> str:
    """Return the SHA-256 of the kernels' sources."""
    found = hashlib.sha256()
    for name in sorted({*_SOURCES.values()}):
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return found.hexdigest()


def _shared_bytes(compute_capability: tuple[int, int], kind: str) -> int:
    """Return the most shared memory of a kernel."""
    return _PTX_SHARED_BYTES if kind == "ptx" else _SHARED_BYTES[compute_capability]


def _triton() -> Any:  # noqa: ANN401 - an untyped library
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        raise MissingExtraError("triton", _EXTRA, _PURPOSE) from error
    found = tuple(map(int, re.findall(r"\d+", triton.__version__)[:2]))
    if found < _LEAST_TRITON:
        raise ExportError(
            f"Triton {triton.__version__} is installed; scan kernels need "
            f"{'.'.join(map(str, _LEAST_TRITON))} or newer; run: pip install 'xclip-deploy[scan]'"
        )
    return triton


def _check_parameters(version: str, kernel: Kernel, ptx: str) -> None:
    """Refuse code that takes other arguments than the runtime passes. Raises ExportError.

    The kernel's own come first, then up to two addresses of scratch memory.
    """
    head = ptx.split(".visible .entry", 1)[-1].split(")", 1)[0]
    registers = [_REGISTERS.get(kind, "u64") for kind in ARGUMENTS[kernel].values()]
    expected = [*registers, *["u64"] * _SCRATCH_AREAS]
    found = re.findall(r"\.param \.(\w+)", head)
    if len(found) < len(registers) or found != expected[: len(found)]:
        raise ExportError(
            f"Triton {version} compiled {kernel.value} with arguments {', '.join(found)}, the "
            f"runtime passes {', '.join(expected)}; run: pip install 'triton==3.9.0'"
        )


def triton_function(kernel: Kernel) -> Any:  # noqa: ANN401
    """Import a kernel's Triton function. Raises ImportError without Triton."""
    name = f"xclip_deploy.export.scan_kernels.{_SOURCES[kernel]}"
    return getattr(importlib.import_module(name), kernel.value)


def _compilable(kernel: Kernel) -> Any:  # noqa: ANN401
    function = triton_function(kernel)
    if not hasattr(function, "cache_key"):
        raise ExportError(
            "Triton's interpreter is on, which compiles nothing; run: unset TRITON_INTERPRET"
        )
    return function


def _request(
    compiler: Any,  # noqa: ANN401
    function: Any,  # noqa: ANN401
    kernel: Kernel,
    fixed: dict[str, int | float | bool],
) -> Any:  # noqa: ANN401
    """Describe a kernel with its argument types and constants."""
    types = ARGUMENTS[kernel]
    names = list(function.arg_names)
    assert names == [*types, *(name for name in names if name in fixed)]
    signature = {name: types.get(name, "constexpr") for name in names}
    # The runtime's arrays are aligned, so that the compiler may read 16 bytes at a time.
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind.startswith("*")
    }
    return compiler.ASTSource(function, signature, fixed, aligned)


def _is_exact(ptx: str) -> bool:
    """Return whether code uses instructions of one architecture alone, such as ``sm_90a``."""
    target = _TARGET.search(ptx)
    return target is None or bool(target[2])
