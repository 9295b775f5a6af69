"""Choose an engine set of a bundle for this machine, and read its plans.

The sidecar is checked before TensorRT is asked, whose refusals often lack a reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from xclip_deploy.errors import EngineError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.runtime_api import CudaDevice
from xclip_deploy.runtime.engine_set import (
    EngineRecord,
    EngineSet,
    Flavour,
    engine_file,
    engine_sets,
    read_engine_set,
    why_not_rtx,
)
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.manifest import Graph, Precision

_AUTO_PRECISIONS = (Precision.FP16, Precision.FP32)
"""Precisions of ``auto``, preferred first. BF16 must be asked for."""


@dataclass(frozen=True)
class ChosenEngines:
    """An engine set that fits the bundle and the machine."""

    bundle: Bundle
    folder: Path
    engine_set: EngineSet

    def record(self, graph: Graph) -> EngineRecord:
        """Return the sidecar's record of an engine. Raises EngineError where there is none."""
        record = self.engine_set.engines.get(graph)
        if record is None:
            raise self.refusal(f"has no engine for {graph.value}")
        return record

    def why_other_bundle(self) -> str | None:
        """Say why the set was built from another bundle; None where it was built from this one."""
        built, manifest = self.engine_set, self.bundle.manifest
        if built.fingerprint != manifest.fingerprint:
            return (
                f"was built for model {built.fingerprint[:12]}…, the bundle is model "
                f"{manifest.fingerprint[:12]}…"
            )
        if built.precision not in self.bundle.precisions:
            return (
                f"was built from {built.precision.value} graphs, the bundle has "
                f"{', '.join(present.value for present in self.bundle.precisions)}"
            )
        for graph, record in built.engines.items():
            expected = self.bundle.graph_sha256(graph, built.precision)
            if record.graph_sha256 != expected:
                return (
                    f"{engine_file(graph)} was built from graph {record.graph_sha256[:12]}…, the "
                    f"bundle has {expected[:12]}…"
                )
        return None

    def refusal(self, what: str) -> EngineError:
        """Return an error with the command that builds the set anew."""
        return _refusal(self.folder, what, self.engine_set, self.bundle)


def choose_engines(
    bundle: Bundle,
    flavour: Flavour,
    version: str,
    gpu: CudaDevice,
    precision: str = "auto",
    *,
    folder: Path | None = None,
    is_lean: bool = False,
) -> ChosenEngines:
    """Choose the best engine set for a GPU and a version of TensorRT.

    With precision ``auto``, FP16 precedes FP32. A set for this GPU precedes a portable one, and a
    newer set an older one. ``folder``: folder of the only set to consider, anywhere. ``is_lean``:
    whether the library is TensorRT's lean runtime, which loads version-compatible sets alone.
    Raises EngineError, which names both sides and the command that builds the missing set.
    """
    unsupported = why_not_rtx(*gpu.compute_capability) if flavour is Flavour.RTX else None
    if unsupported is not None:
        # No set of this flavour can fit, so building another one would not help.
        option = "" if precision == "auto" else f" --{precision}"
        raise EngineError(
            f"{unsupported}, and GPU {gpu.device_id} is {gpu}; "
            f"run: xclip-deploy build-trt {bundle.path}{option} --flavor tensorrt"
        )
    wanted: tuple[Precision, ...] = (
        (Precision(precision),) if precision != "auto" else _AUTO_PRECISIONS
    )
    if folder is None:
        sets = engine_sets(bundle)
    else:
        sets = {folder: read_engine_set(folder, bundle.path)}
        wanted = tuple(Precision) if precision == "auto" else wanted
    of_flavour = {path: found for path, found in sets.items() if found.flavour is flavour}
    candidates = [item for item in of_flavour.items() if item[1].precision in wanted]
    if not candidates:
        found = ", ".join(sorted({s.precision.value for s in of_flavour.values()})) or "none at all"
        option = wanted[0].value
        raise EngineError(
            f"bundle {bundle.path} has no {' or '.join(p.value for p in wanted)} engines of "
            f"flavour {flavour.value} ({found}); "
            f"run: xclip-deploy build-trt {bundle.path} --{option} --flavor {flavour.value}"
        )
    # Sorts are stable: each keeps the previous order among equals.
    candidates.sort(key=lambda item: item[1].created_utc, reverse=True)
    candidates.sort(key=lambda item: item[1].target == "portable")
    candidates.sort(key=lambda item: wanted.index(item[1].precision))
    refusals = []
    for folder, engine_set in candidates:
        refusal = _misfit(folder, engine_set, bundle, version, gpu, is_lean=is_lean)
        if refusal is None:
            return ChosenEngines(bundle, folder, engine_set)
        refusals.append(refusal)
    others = f" (and {len(refusals) - 1} other sets do not fit)" if len(refusals) > 1 else ""
    raise EngineError(f"{refusals[0]}{others}")


def read_plan(chosen: ChosenEngines, graph: Graph) -> bytes:
    """Read the plan of one engine, and check its size and SHA-256.

    Raises EngineError where the file is missing, cut, or not the one that was built.
    """
    file = chosen.folder / engine_file(graph)
    expected = chosen.record(graph).file
    try:
        require_regular_file(file, "an engine", EngineError)
        content = file.read_bytes()
    except OSError as error:
        raise chosen.refusal(f"{file.name} cannot be read ({error.strerror})") from error
    if not content:
        raise chosen.refusal(f"{file.name} is empty, {expected.size_bytes:,} bytes were built")
    if len(content) != expected.size_bytes:
        raise chosen.refusal(
            f"{file.name} has {len(content):,} bytes, {expected.size_bytes:,} were built"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise chosen.refusal(
            f"{file.name} was altered: its SHA-256 is {found[:12]}…, {expected.sha256[:12]}… "
            "was built"
        )
    return content


def _misfit(
    folder: Path,
    engine_set: EngineSet,
    bundle: Bundle,
    version: str,
    gpu: CudaDevice,
    *,
    is_lean: bool,
) -> EngineError | None:
    """Return the reason why a set cannot be used here, or None."""
    module = engine_set.flavour.module_name
    other = ChosenEngines(bundle, folder, engine_set).why_other_bundle()
    if other is not None:
        return _refusal(folder, other, engine_set, bundle)
    if is_lean and not engine_set.options.version_compatible:
        options = engine_set.options.model_copy(update={"version_compatible": True})
        return _refusal(
            folder,
            "is not version-compatible, and this machine has TensorRT's lean runtime alone; "
            "install the extra tensorrt, or build it anew on a machine that has that",
            engine_set.model_copy(update={"options": options}),
            bundle,
        )
    if not _loads_in(engine_set, version):
        return _refusal(
            folder,
            f"was built with {module} {engine_set.version}, this machine has {module} {version}",
            engine_set,
            bundle,
        )
    if not engine_set.runs_on(*gpu.compute_capability):
        # Leave out the targets, which would tie the set to other GPUs again. Portable engines
        # of TensorRT-RTX run from 8.0 on; an older GPU needs engines of its own.
        is_old = engine_set.flavour is Flavour.RTX and gpu.compute_capability < (8, 0)
        targets = (gpu.target,) if is_old else ()
        free = engine_set.options.model_copy(update={"compute_capabilities": targets})
        return _refusal(
            folder,
            f"was built for {engine_set.target}, this machine has {gpu}",
            engine_set.model_copy(update={"options": free}),
            bundle,
        )
    return None


def _loads_in(engine_set: EngineSet, version: str) -> bool:
    if engine_set.version == version:
        return True
    if not engine_set.options.version_compatible:
        return False
    built, here = _numbers(engine_set.version), _numbers(version)
    # TensorRT promises compatibility with later versions of the same major version.
    return built[:1] == here[:1] and built <= here


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _refusal(folder: Path, what: str, engine_set: EngineSet, bundle: Bundle) -> EngineError:
    return EngineError(f"engines {folder}: {what}; run: {engine_set.rebuild_command(bundle.path)}")
