"""What needs a GPU: building with ``tensorrt``, and running new engines before they count.

Written against the real interfaces; no GPU was at hand to run it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from xclip_deploy import build_engines
from xclip_deploy.export.tensorrt import EngineShapes
from xclip_deploy.runtime.engine_set import BuildOptions, HardwareCompatibility
from xclip_deploy.runtime.nvidia_driver import first_gpu

GPU = first_gpu()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU is None, reason="there is no NVIDIA GPU, or no driver for it"),
]


def test_tensorrt_engines(bundle_copy: Path, small_shapes: EngineShapes, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    assert GPU is not None
    cache = tmp_path / "timing.cache"
    options = BuildOptions(
        optimization_level=1,
        workspace_bytes=1 << 30,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
    )
    built = build_engines(
        bundle_copy, flavour="tensorrt", shapes=small_shapes, options=options, timing_cache=cache
    )
    assert built.engine_set.gpu == GPU.name
    assert built.engine_set.target == f"sm{GPU.major}{GPU.minor}-ampere-plus"
    assert built.engine_set.self_tested
    assert cache.stat().st_size > 0
    for engine in built.engine_set.engines.values():
        assert engine.memory.source == "engine"
        assert engine.memory.weights_bytes > 0
        assert engine.attention.fused is None
    again = build_engines(
        bundle_copy, flavour="tensorrt", shapes=small_shapes, options=options, timing_cache=cache
    )
    assert not again.is_new


def test_version_compatible_engines(bundle_copy: Path, small_shapes: EngineShapes) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    options = BuildOptions(version_compatible=True, optimization_level=0)
    built = build_engines(bundle_copy, flavour="tensorrt", shapes=small_shapes, options=options)
    assert built.engine_set.self_tested


def test_rtx_engines_are_run_where_they_can_be(
    bundle_copy: Path, small_shapes: EngineShapes
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert GPU is not None
    built = build_engines(bundle_copy, flavour="rtx", shapes=small_shapes)
    assert built.engine_set.self_tested == built.engine_set.runs_on(GPU.major, GPU.minor)
