"""The kernels on a real GPU: compiled for it, and the same as the scorer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xclip_deploy.runtime.cuda.driver_api import Driver
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.resident.kernel_loading import ScanKernel
from xclip_deploy.runtime.resident.kernel_set import ARGUMENTS, Kernel
from xclip_deploy.runtime.resident.shape import ScanShape

pytestmark = pytest.mark.gpu

ALLOWED = 3e-4
"""Largest error of a grain, as a share of its range."""
LoadKernel = Callable[[Driver, Kernel, ScanShape], ScanKernel]


@pytest.fixture(params=["cubin", "ptx"])
def load_kernel(request: pytest.FixtureRequest) -> LoadKernel:
    """Compile a kernel for this GPU, or to the PTX of all, and load it."""
    if (missing := why_no_gpu()) is not None:
        pytest.skip(f"needs an NVIDIA GPU: {missing}")
    pytest.importorskip("triton", reason="Triton is not installed (extra: scan)")
    pytest.importorskip("cuda.bindings.driver")
    from xclip_deploy.export.scan_kernels.compiling import PTX_ARCHITECTURE, compile_kernel

    target = open_cuda().gpu().compute_capability

    def load(driver: Driver, kernel: Kernel, shape: ScanShape) -> ScanKernel:
        if request.param == "ptx":
            code = compile_kernel(kernel, shape, PTX_ARCHITECTURE, "ptx")
        else:
            code = compile_kernel(kernel, shape, target)
        types = tuple(ARGUMENTS[kernel].values())
        function = driver.load(code.image, kernel.value, types, code.num_warps, code.shared_bytes)
        return ScanKernel(function, code.span)

    return load


CASES: dict[str, dict[str, Any]] = {
    "published": {"frames": 12, "words": 32, "dim": 512},
    "masked": {"frames": 12, "words": 32, "dim": 512, "mask_padding": True, "texts": 33},
    "long": {"frames": 64, "words": 77, "dim": 1024, "videos": 300, "mask_padding": True},
    "clip": {"frames": 12, "words": 77, "dim": 768, "grains": CLIP_GRAINS},
    "words": {"frames": 12, "words": 20, "dim": 192, "grains": (Grain.FRAME_WORD,)},
    "copies": {"frames": 8, "words": 32, "dim": 128, "videos": 5000, "repeats": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_scorer(
    make_case: Any, open_scan: Any, load_kernel: LoadKernel, name: str
) -> None:
    case = make_case(**{"videos": 1000, "texts": 2, "grains": PUBLISHED_GRAINS, **CASES[name]})
    slots = case.videos * case.repeats
    allowed = np.arange(slots) % 5 != 2
    ranks = np.random.default_rng(1).permutation(slots)
    count = min(1000, slots // 2)
    with open_scan(case, ranks, load_kernel=load_kernel) as on:
        best = on.scan.best(case.queries, on.arrays, count, allowed)
        scores = on.scan.all(case.queries, on.arrays, allowed)
    expected = case.expected()
    for grain in case.grains:
        found, wanted = scores[grain.value][:, allowed], expected[grain.value][:, allowed]
        span = float(wanted.max() - wanted.min())
        worst = float(np.abs(found - wanted).max())
        assert worst <= ALLOWED * span, f"{grain.value} is off by {worst:.2g} of {span:.2g}"
    for text, hits in enumerate(best):
        logits = scores["logits"][text]
        order = np.lexsort((ranks, -logits))[:count]
        assert hits.slots.tolist() == order.tolist()
        np.testing.assert_array_equal(hits.scores, logits[order])
        for grain in case.grains:
            row = scores[grain.value][text, order]
            np.testing.assert_array_equal(hits.grains[grain.value], row)


def test_searches_repeat_exactly(make_case: Any, open_scan: Any, load_kernel: LoadKernel) -> None:
    case = make_case(frames=12, words=32, dim=512, videos=2000)
    with open_scan(case, load_kernel=load_kernel) as on:
        first = on.scan.best(case.queries, on.arrays, 100, None)[0]
        for _ in range(20):
            again = on.scan.best(case.queries, on.arrays, 100, None)[0]
            assert again.slots.tolist() == first.slots.tolist()
            np.testing.assert_array_equal(again.scores, first.scores)
