"""Compile the kernels that scan a gallery on a GPU, ahead of time and without a GPU.

``query_source``, ``grain_source`` and ``selection_source`` have the kernels in Triton.
``compiling`` turns one into code for each architecture. ``building`` adds the kernels of a model to
its bundle. All of it needs the extra ``scan``.
"""

from xclip_deploy.export.scan_kernels.building import (
    BuildScanResult,
    build_scan,
    parse_capabilities,
)
from xclip_deploy.export.scan_kernels.compiling import ARCHITECTURES

__all__ = ["ARCHITECTURES", "BuildScanResult", "build_scan", "parse_capabilities"]
