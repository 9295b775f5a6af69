"""Describe the machine that a benchmark runs on, and the software installed on it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata

from xclip_deploy.runtime.benchmark.results import Machine
from xclip_deploy.runtime.nvidia_driver import driver_cuda_version, visible_gpus
from xclip_deploy.runtime.resources import cpu_model, usable_cores, usable_memory_bytes

_PACKAGES = (
    "xclip-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-lean-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
)


def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    return Machine(
        cpu=cpu_model(),
        cores=usable_cores(),
        memory_bytes=usable_memory_bytes(),
        gpus=tuple(gpu.name for gpu in visible_gpus()),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        load_average=round(os.getloadavg()[0], 2),
    )


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide how fast a bundle runs."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cuda_version = driver_cuda_version()
    if cuda_version is not None:
        versions["CUDA driver"] = cuda_version
    return versions
