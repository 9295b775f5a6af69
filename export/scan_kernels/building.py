"""Add the scan kernels of a model to its bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from pathlib import Path

from xclip_deploy.errors import BundleError, ExportError, InvalidArgumentError, SessionError
from xclip_deploy.export.scan_kernels.compiling import (
    ARCHITECTURES,
    PTX_ARCHITECTURE,
    CompiledKernel,
    compile_kernel,
    require_triton,
    source_sha256,
)
from xclip_deploy.runtime.arguments import as_callback, as_truth
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.manifest import FileRecord
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.runtime.resident.kernel_set import (
    ARGUMENTS,
    SIDECAR_NAME,
    Kernel,
    KernelCode,
    KernelRecord,
    KernelSet,
    kernels_folder,
    kernels_of,
    read_code,
    read_kernel_set,
)
from xclip_deploy.runtime.resident.self_test import SCAN_VERDICT
from xclip_deploy.runtime.resident.shape import ScanShape
from xclip_deploy.runtime.sessions.machine_records import forget_records


@dataclass(frozen=True)
class BuildScanResult:
    """Result of building scan kernels."""

    path: Path
    """Folder of the kernels."""
    kernel_set: KernelSet
    is_new: bool
    """False where the kernels already were what the call asked for."""


def build_scan(
    bundle: str | PathLike[str] | Bundle = "xclip-bundle",
    *,
    compute_capabilities: Sequence[tuple[int, int]] = ARCHITECTURES,
    force: bool = False,
    progress: ProgressFunction | None = None,
) -> BuildScanResult:
    """Compile the scan kernels of a bundle. No GPU is needed.

    The kernels take their place once all are compiled. Until then older ones stay. Machines test
    new kernels again when they first load them.

    Args:
        bundle: Path of a bundle, or an opened one.
        compute_capabilities: GPUs that get machine code, such as ``(8, 9)``. PTX for later ones
            is always written.
        force: Whether to compile even where nothing that matters has changed.
        progress: Called before each kernel.

    Raises:
        BundleError: the bundle cannot be used.
        ExportError: a kernel cannot be compiled or written.
        InvalidArgumentError: the model's shape has no kernels, or a compute capability is unknown.
        MissingExtraError: Triton is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    as_truth("force", force)
    as_callback("progress", progress)
    targets = _targets(compute_capabilities)
    shape = ScanShape.of(bundle.manifest.model)
    versions = {
        "triton": require_triton(),
        "xclip-deploy": metadata.version("xclip-deploy"),
    }
    folder = kernels_folder(bundle)
    if not force and (present := _present(bundle, versions, targets)) is not None:
        return BuildScanResult(folder, present, is_new=False)
    jobs = [(kernel, target) for kernel in kernels_of(shape) for target in (*targets, None)]
    codes: dict[Kernel, list[KernelCode]] = {kernel: [] for kernel in kernels_of(shape)}
    try:
        folder.parent.mkdir(exist_ok=True)
        with replaced_directory(folder) as directory:
            for number, (kernel, target) in enumerate(jobs):
                named = "later GPUs" if target is None else f"{target[0]}.{target[1]}"
                if progress:
                    note = f"{kernel.value} for {named}"
                    progress(Progress("compiling", number, len(jobs), note=note))
                if target is None:
                    compiled = compile_kernel(kernel, shape, PTX_ARCHITECTURE, "ptx")
                else:
                    compiled = compile_kernel(kernel, shape, target)
                codes[kernel].append(_write(directory, kernel, compiled))
            kernel_set = KernelSet(
                shape=shape,
                source_sha256=source_sha256(),
                versions=versions,
                created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                kernels={
                    kernel: KernelRecord(arguments=dict(ARGUMENTS[kernel]), codes=tuple(found))
                    for kernel, found in codes.items()
                },
            )
            (directory / SIDECAR_NAME).write_bytes(kernel_set.to_json())
        # Equal code would keep an old verdict, and a failure may have been the GPU's.
        forget_records(bundle.path, SCAN_VERDICT)
    except OSError as error:
        raise ExportError(
            f"scan kernels cannot be written to {folder} ({error.strerror}); what was there stands"
        ) from error
    if progress:
        progress(Progress("compiling", len(jobs), len(jobs), note="done"))
    return BuildScanResult(folder, kernel_set, is_new=True)


def parse_capabilities(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Read compute capabilities such as ``8.9``. Raises InvalidArgumentError for unknown ones."""
    known = {f"{major}.{minor}": (major, minor) for major, minor in ARCHITECTURES}
    for text in texts:
        if text not in known:
            raise InvalidArgumentError(
                f"compute capability {text!r} was asked for; expected some of {', '.join(known)}"
            )
    return tuple(known[text] for text in texts)


def _targets(compute_capabilities: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if not compute_capabilities:
        raise InvalidArgumentError("compute_capabilities is empty; expected at least one")
    return tuple(sorted({*parse_capabilities([f"{a}.{b}" for a, b in compute_capabilities])}))


def _present(
    bundle: Bundle, versions: dict[str, str], targets: tuple[tuple[int, int], ...]
) -> KernelSet | None:
    """Return the bundle's kernels if they are whole and what was asked for, else None."""
    try:
        present = read_kernel_set(bundle)
        codes = [code for record in present.kernels.values() for code in record.codes]
        for code in codes:
            read_code(bundle, code)
    except (BundleError, SessionError):
        return None
    found = {code.compute_capability for code in codes if code.kind == "cubin"}
    is_same = present.versions == versions and present.source_sha256 == source_sha256()
    return present if is_same and found == {*targets} else None


def _write(directory: Path, kernel: Kernel, compiled: CompiledKernel) -> KernelCode:
    major, minor = compiled.compute_capability
    name = f"{kernel.value}-sm{major}{minor}.{compiled.kind}"
    (directory / name).write_bytes(compiled.image)
    sha256 = hashlib.sha256(compiled.image).hexdigest()
    return KernelCode(
        kind=compiled.kind,
        compute_capability=compiled.compute_capability,
        is_exact=compiled.is_exact,
        file=name,
        record=FileRecord(sha256=sha256, size_bytes=len(compiled.image)),
        num_warps=compiled.num_warps,
        span=compiled.span,
        shared_bytes=compiled.shared_bytes,
    )
