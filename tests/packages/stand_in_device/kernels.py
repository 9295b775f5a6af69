"""Scan kernels for the stand-in: images that name a kernel, where a GPU's hold machine code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from xclip_deploy import Bundle
from xclip_deploy.runtime.grains import TEMPERATURE
from xclip_deploy.runtime.manifest import FileRecord
from xclip_deploy.runtime.resident.kernel_set import (
    ARGUMENTS,
    SIDECAR_NAME,
    Kernel,
    KernelCode,
    KernelRecord,
    KernelSet,
    Tiling,
    constants,
    kernels_folder,
    kernels_of,
)
from xclip_deploy.runtime.resident.shape import ScanShape

MAGIC = b"stand-in kernel\n"
ROWS, DEPTH = 64, 64
"""Rows of a program's product, and numbers of an embedding in one step."""


def tiling(kernel: Kernel, shape: ScanShape) -> Tiling:
    """The work of a program of a kernel on the stand-in."""
    return Tiling.of(kernel, shape, ROWS, DEPTH)


def kernel_image(
    kernel: Kernel,
    shape: ScanShape,
    compute_capability: tuple[int, int],
    *,
    kind: str = "cubin",
    is_exact: bool = False,
    num_warps: int = 4,
    shared_bytes: int = 64 << 10,
    temperature: float = TEMPERATURE,
) -> bytes:
    """An image of one kernel, which the stand-in alone can load.

    Another ``temperature`` than the model's makes a kernel whose grains are wrong.
    """
    fixed = constants(kernel, shape, tiling(kernel, shape))
    if "TEMPERATURE" in fixed:
        fixed["TEMPERATURE"] = temperature
    header = {
        "kernel": kernel.value,
        "constants": fixed,
        "arguments": ARGUMENTS[kernel],
        "compute_capability": compute_capability,
        "kind": kind,
        "is_exact": is_exact,
        "num_warps": num_warps,
        "shared_bytes": shared_bytes,
    }
    return MAGIC + json.dumps(header).encode()


def read_image(image: bytes) -> dict[str, Any] | None:
    """What an image says; None for other bytes."""
    if not image.startswith(MAGIC):
        return None
    header: dict[str, Any] = json.loads(image[len(MAGIC) : -1])
    header["compute_capability"] = tuple(header["compute_capability"])
    return header


def write_kernels(
    bundle: Bundle,
    targets: Sequence[tuple[int, int]] = ((8, 9),),
    *,
    ptx: tuple[int, int] | None = None,
    **changes: Any,
) -> KernelSet:
    """Put scan kernels for the stand-in into a bundle: machine code, and PTX of ``ptx``."""
    folder = kernels_folder(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    shape = ScanShape.of(bundle.manifest.model)
    wanted = [(target, changes) for target in targets]
    if ptx is not None:
        wanted.append((ptx, {**changes, "kind": "ptx"}))
    records = {}
    for kernel in kernels_of(shape):
        codes = []
        for target, made in wanted:
            image = kernel_image(kernel, shape, target, **made)
            header = read_image(image + b"\0")
            assert header is not None
            name = f"{kernel.value}-sm{target[0]}{target[1]}.{header['kind']}"
            (folder / name).write_bytes(image)
            codes.append(
                KernelCode(
                    kind=header["kind"],
                    compute_capability=target,
                    is_exact=header["is_exact"],
                    file=name,
                    record=FileRecord(
                        sha256=hashlib.sha256(image).hexdigest(), size_bytes=len(image)
                    ),
                    num_warps=header["num_warps"],
                    span=tiling(kernel, shape).span,
                    shared_bytes=header["shared_bytes"],
                )
            )
        records[kernel] = KernelRecord(arguments=dict(ARGUMENTS[kernel]), codes=tuple(codes))
    kernel_set = KernelSet(
        shape=shape,
        source_sha256="0" * 64,
        versions={"triton": "stand-in"},
        created_utc="2026-11-26T00:00:00+00:00",
        kernels=records,
    )
    (folder / SIDECAR_NAME).write_bytes(kernel_set.to_json())
    return kernel_set
