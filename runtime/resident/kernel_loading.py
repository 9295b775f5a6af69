"""Load a bundle's scan kernels on a GPU: its machine code or, where a driver refuses that, PTX.

Machine code is as new as the assembler that wrote it. Triton's assembler for compute capability 9.0
and later is that of CUDA 13, so that a driver of CUDA 12 may refuse the code of an H100. Such a
driver compiles the PTX instead, which is of CUDA 12.0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from xclip_deploy.errors import DriverError, SessionError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.driver_api import Driver, KernelFunction
from xclip_deploy.runtime.cuda.runtime_api import CudaDevice
from xclip_deploy.runtime.resident.kernel_set import Kernel, KernelCode, KernelSet, read_code

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanKernel:
    """A loaded kernel of a scan."""

    function: KernelFunction
    span: int
    """Slots of the gallery that a program covers; see ``Tiling``."""


def load_kernels(
    bundle: Bundle, kernel_set: KernelSet, wanted: Iterable[Kernel], driver: Driver, gpu: CudaDevice
) -> tuple[dict[Kernel, ScanKernel], tuple[KernelCode, ...]]:
    """Load kernels on the GPU that the thread has selected; return them and the code of each.

    Code that the driver refuses is left out, and a warning names it. Raises SessionError where the
    bundle has no code for this GPU, BundleIntegrityError for a damaged file, and DriverError where
    the driver refuses every code. Nothing stays loaded then.
    """
    functions: dict[Kernel, ScanKernel] = {}
    codes: list[KernelCode] = []
    try:
        for kernel in wanted:
            functions[kernel], code = _load(bundle, kernel_set, kernel, driver, gpu)
            codes.append(code)
    except BaseException:
        unload_kernels(functions, driver)
        raise
    return functions, tuple(codes)


def unload_kernels(functions: dict[Kernel, ScanKernel], driver: Driver) -> None:
    """Unload kernels that no running work uses, and forget them. Raises SessionError."""
    while functions:
        driver.unload(functions.popitem()[1].function)


def _load(
    bundle: Bundle, kernel_set: KernelSet, kernel: Kernel, driver: Driver, gpu: CudaDevice
) -> tuple[ScanKernel, KernelCode]:
    record = kernel_set.kernels[kernel]
    codes = record.codes_for(gpu.compute_capability)
    if not codes:
        raise SessionError(
            f"the scan kernels of {bundle.path} are for compute capability "
            f"{', '.join(kernel_set.targets)}, {gpu.name} has "
            f"{'.'.join(map(str, gpu.compute_capability))}; search on the CPU"
        )
    types = tuple(record.arguments.values())
    last: DriverError | None = None
    for code in codes:
        image = read_code(bundle, code)
        try:
            function = driver.load(image, kernel.value, types, code.num_warps, code.shared_bytes)
        except DriverError as error:
            last = error
            continue
        if last is not None:
            _LOG.warning(
                "update the driver: %s runs by %s, since better code was refused (%s)",
                kernel.value,
                _name(code),
                last.__cause__,
            )
        return ScanKernel(function, code.span), code
    assert last is not None
    raise last


def _name(code: KernelCode) -> str:
    kind = "PTX" if code.kind == "ptx" else "machine code"
    return f"{kind} of compute capability {'.'.join(map(str, code.compute_capability))}"
