"""Check build options against the library's flavour, and set them.

An option that the library would ignore is refused. TensorRT-RTX accepts most of them silently and
builds the same engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from xclip_deploy.errors import EngineBuildError, InvalidArgumentError
from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.runtime.engine_set import BuildOptions, Flavour, HardwareCompatibility

_LEVELS = {
    HardwareCompatibility.AMPERE_PLUS: "AMPERE_PLUS",
    HardwareCompatibility.SAME_COMPUTE_CAPABILITY: "SAME_COMPUTE_CAPABILITY",
}
_NOT_TARGETS = ("NONE", "CURRENT")


def parse_compute_capabilities(names: Iterable[str]) -> tuple[str, ...]:
    """Read compute capabilities, each as ``sm86``, ``86`` or ``8.6``; return them ascending.

    Duplicates are dropped. Raises InvalidArgumentError for other names.
    """
    found: set[int] = set()
    for name in names:
        match = re.fullmatch(r"(?:sm_?)?(\d+)(?:\.(\d))?", name.strip().lower())
        if match is None or (match[2] is None and len(match[1]) == 1):
            raise InvalidArgumentError(
                f"compute capability {name!r}: expected one like 8.6 or sm86"
            )
        found.add(int(match[1] + (match[2] or "")))
    return tuple(f"sm{number}" for number in sorted(found))


def check_options(library: TensorRT, options: BuildOptions, *, timing_cache: bool) -> None:
    """Refuse options that ``library`` does not have.

    ``timing_cache``: whether one was asked for. Raises InvalidArgumentError with the reason.
    """
    if library.flavour is Flavour.RTX:
        _check_rtx(library, options, timing_cache=timing_cache)
    else:
        _check_tensorrt(library, options)


def _check_rtx(library: TensorRT, options: BuildOptions, *, timing_cache: bool) -> None:
    reasons = {
        "--optimization-level": (
            options.optimization_level is not None,
            "it builds the same engine at every level and chooses kernels when it loads it",
        ),
        "--timing-cache": (
            timing_cache,
            "it times nothing while it builds; its runtime cache is kept when engines run",
        ),
        "--hardware-compatibility": (
            options.hardware_compatibility is not HardwareCompatibility.NONE,
            "its engines run on every GPU from Ampere on, or on those of --compute-capability",
        ),
        "--version-compatible": (
            options.version_compatible,
            "it has no lean runtime to put into an engine",
        ),
    }
    for option, (is_asked, reason) in reasons.items():
        if is_asked:
            raise InvalidArgumentError(
                f"{option} is for --flavor tensorrt; {library.name} does not have it: {reason}"
            )
    if options.compute_capabilities:
        known = compute_capability_targets(library)
        for name in options.compute_capabilities:
            if name not in known:
                raise InvalidArgumentError(
                    f"compute capability {name}: {library.name} builds for "
                    f"{', '.join(known) or 'no particular one'}"
                )


def _check_tensorrt(library: TensorRT, options: BuildOptions) -> None:
    if options.compute_capabilities:
        raise InvalidArgumentError(
            f"--compute-capability is for --flavor rtx; {library.name} builds for the GPU that "
            "it runs on, and beyond it with --hardware-compatibility"
        )
    level = _LEVELS.get(options.hardware_compatibility)
    if level is not None and not hasattr(library.module.HardwareCompatibilityLevel, level):
        raise InvalidArgumentError(
            f"--hardware-compatibility {options.hardware_compatibility.value}: {library.name} "
            "does not have it; upgrade TensorRT"
        )


def compute_capability_targets(library: TensorRT) -> tuple[str, ...]:
    """List the targets that ``compute_capabilities`` may name, ascending; empty without any."""
    trt = library.module
    if not hasattr(trt, "ComputeCapability"):
        return ()
    members = trt.ComputeCapability.__members__
    numbers = sorted(int(value) for name, value in members.items() if name not in _NOT_TARGETS)
    return tuple(f"sm{number}" for number in numbers)


def configure(library: TensorRT, config: Any, options: BuildOptions) -> None:  # noqa: ANN401
    """Set the options of a builder configuration, once :func:`check_options` has passed.

    Raises EngineBuildError where TensorRT does not take one.
    """
    trt = library.module
    # TF32 is on by default. It rounds the factors of FP32 products to 11 bits, as FP16 has.
    # The scorer and the projections are in FP32 because they need more.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_bytes)
        if config.get_memory_pool_limit(pool) != options.workspace_bytes:
            raise EngineBuildError(
                f"{library.name} does not take a workspace of {options.workspace_bytes:,} bytes; "
                f"its limit stays at {config.get_memory_pool_limit(pool):,}"
            )
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    level = _LEVELS.get(options.hardware_compatibility)
    if level is not None:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, name in enumerate(options.compute_capabilities):
            target = getattr(trt.ComputeCapability, name.upper())
            if not config.set_compute_capability(target, index):
                raise EngineBuildError(f"{library.name} does not take {name} as a target")
