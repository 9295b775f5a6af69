"""Kernels are compiled here, without a GPU, for GPUs of every architecture."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from itertools import product

import pytest

from xclip_deploy.errors import ExportError, MissingExtraError
from xclip_deploy.export.scan_kernels import ARCHITECTURES, compiling
from xclip_deploy.export.scan_kernels.compiling import PTX_ARCHITECTURE, compile_kernel
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.resident.kernel_set import ARGUMENTS, Kernel, kernels_of
from xclip_deploy.runtime.resident.shape import ScanShape

pytest.importorskip("triton", reason="Triton is not installed (extra: scan)")

SMALL = ScanShape(
    embed_dim=64, max_frames=2, max_words=3, grains=(Grain.FRAME_SENTENCE,), mask_padding=True
)
PUBLISHED = ScanShape(
    embed_dim=512, max_frames=12, max_words=32, grains=PUBLISHED_GRAINS, mask_padding=False
)
LARGEST = ScanShape(
    embed_dim=1024, max_frames=64, max_words=77, grains=PUBLISHED_GRAINS, mask_padding=True
)
ONE_GRAIN = ScanShape(
    embed_dim=512, max_frames=12, max_words=77, grains=CLIP_GRAINS, mask_padding=False
)


def parameters(ptx: str) -> list[str]:
    """Types of a kernel's parameters, as the compiler wrote them."""
    head = ptx.split(".visible .entry", 1)[1].split(")", 1)[0]
    return re.findall(r"\.param \.(\w+)", head)


@pytest.mark.parametrize("kernel", [Kernel.FRAMES, Kernel.DIGIT])
def test_ptx_takes_what_the_runtime_passes(kernel: Kernel) -> None:
    compiled = compile_kernel(kernel, SMALL, PTX_ARCHITECTURE, "ptx")
    text = compiled.image.decode()
    registers = {"i32": "u32", "fp32": "f32"}
    expected = [registers.get(kind, "u64") for kind in ARGUMENTS[kernel].values()]
    assert parameters(text) == [*expected, "u64", "u64"]  # and two scratch areas
    assert re.search(rf"^\.visible \.entry {kernel.value}\(", text, re.M)
    # It runs on later GPUs, and on drivers since CUDA 12.0.
    assert not compiled.is_exact
    assert re.search(r"^\.target sm_80$", text, re.M)
    assert re.search(r"^\.version 8\.0$", text, re.M)


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_machine_code(capability: tuple[int, int]) -> None:
    """The tensor cores of each architecture take a second; those of 7.5 half a minute."""
    kernel = Kernel.DIGIT if capability < (8, 0) else Kernel.FRAMES
    compiled = compile_kernel(kernel, SMALL, capability)
    assert compiled.image.startswith(b"\x7fELF")
    assert kernel.value.encode() in compiled.image
    assert compiled.is_exact == (capability >= (9, 0))
    assert compiled.compute_capability == capability
    if kernel is Kernel.FRAMES:
        # 16 rows a slot: four or eight slots, as the shared memory allows.
        is_wide = capability in ((9, 0), (10, 0))
        assert (compiled.num_warps, compiled.span) == ((8, 8) if is_wide else (4, 4))


def test_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiling._SHARED_BYTES, (7, 5), 512)
    with pytest.raises(ExportError, match=r"digit_kernel needs 1,024 bytes .* 7\.5 has 512"):
        compile_kernel(Kernel.DIGIT, SMALL, (7, 5))


@pytest.mark.parametrize("version", ["3.5.1", "2.3.0+git1234"])
def test_an_old_triton(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.import_module("triton"), "__version__", version)
    expected = rf"Triton {re.escape(version)} is installed; scan kernels need 3\.6 or newer; run: "
    with pytest.raises(ExportError, match=expected):
        compile_kernel(Kernel.DIGIT, SMALL, (8, 9))


def test_a_triton_that_passes_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels would read scratch addresses that nobody passes."""
    monkeypatch.setattr(compiling, "_SCRATCH_AREAS", 1)
    expected = r"compiled digit_kernel with arguments u64, .*, u64, u64, the runtime passes u64, "
    with pytest.raises(ExportError, match=expected):
        compile_kernel(Kernel.DIGIT, SMALL, (8, 9))


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    expected = r"Compiling scan kernels needs triton.*run: pip install 'xclip-deploy\[scan\]'"
    with pytest.raises(MissingExtraError, match=expected):
        compile_kernel(Kernel.DIGIT, SMALL, (8, 9))


def test_neither_compiling_nor_searching_imports_pytorch() -> None:
    code = """
import sys
import xclip_deploy.runtime.resident.gpu_scan
assert not {"torch", "triton", "cuda"} & set(sys.modules), "searching"
from xclip_deploy.export.scan_kernels import compiling
compiling.triton_function(compiling.Kernel.DIGIT)
assert "triton" in sys.modules
assert "torch" not in sys.modules, "compiling"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_interpreter_compiles_nothing() -> None:
    code = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from xclip_deploy.export.scan_kernels import compiling
try:
    compiling._compilable(compiling.Kernel.DIGIT)
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("run: unset TRITON_INTERPRET"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        pytest.param(PUBLISHED, ARCHITECTURES, id="x-clip"),
        pytest.param(ONE_GRAIN, ARCHITECTURES, id="clip"),
        # The least shared memory of each kind of tensor core. This takes minutes.
        pytest.param(LARGEST, ((7, 5), (8, 6), (9, 0)), id="most"),
    ],
)
def test_every_kernel_compiles_for_every_architecture(
    shape: ScanShape, targets: tuple[tuple[int, int], ...]
) -> None:
    for kernel, capability in product(kernels_of(shape), targets):
        compiled = compile_kernel(kernel, shape, capability)
        assert compiled.image.startswith(b"\x7fELF")
        assert compiled.is_exact == (capability >= (9, 0))
    for kernel in kernels_of(shape):
        assert not compile_kernel(kernel, shape, PTX_ARCHITECTURE, "ptx").is_exact
