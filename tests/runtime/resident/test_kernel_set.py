"""Kernels beside a bundle: found, checked, and the code that fits a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest

from stand_in_device import Device
from stand_in_device.kernels import write_kernels
from xclip_deploy import Bundle
from xclip_deploy.errors import (
    BundleIntegrityError,
    DriverError,
    InvalidArgumentError,
    SessionError,
    XclipDeployError,
)
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.manifest import FileRecord, checksum
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_set import (
    SIDECAR_NAME,
    KernelCode,
    KernelRecord,
    has_kernels,
    kernels_folder,
    read_code,
    read_kernel_set,
)
from xclip_deploy.runtime.resident.shape import ScanShape, why_no_scan


@pytest.fixture
def own_bundle(bundle_path: Path, tmp_path: Path) -> Bundle:
    """The bundle in a folder that may be changed."""
    shutil.copytree(bundle_path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def memory(device: Device) -> DeviceMemory:
    return DeviceMemory(open_cuda())


def code(
    kind: Literal["cubin", "ptx"], capability: tuple[int, int], is_exact: bool = False
) -> KernelCode:
    return KernelCode(
        kind=kind,
        compute_capability=capability,
        is_exact=is_exact,
        file=f"{kind}-{capability}",
        record=FileRecord(sha256="0" * 64, size_bytes=1),
        num_warps=4,
        span=4,
        shared_bytes=0,
    )


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ((7, 5), ["cubin 7.5"]),
        ((8, 0), ["cubin 8.0", "ptx 8.0"]),
        ((8, 7), ["cubin 8.6", "cubin 8.0", "ptx 8.0"]),  # same major number, lower minor
        ((8, 9), ["cubin 8.6", "cubin 8.0", "ptx 8.0"]),
        ((9, 0), ["cubin 9.0", "ptx 8.0"]),
        ((10, 0), ["ptx 8.0"]),
        ((12, 0), ["cubin 12.0", "ptx 8.0"]),
        ((12, 1), ["ptx 8.0"]),  # code for 12.0 alone does not run there
        ((7, 0), []),
        ((6, 1), []),
    ],
)
def test_the_codes_that_fit_a_gpu(gpu: tuple[int, int], expected: list[str]) -> None:
    record = KernelRecord(
        arguments={},
        codes=(
            code("ptx", (8, 0)),
            code("cubin", (7, 5)),
            code("cubin", (8, 0)),
            code("cubin", (8, 6)),
            code("cubin", (9, 0), is_exact=True),
            code("cubin", (12, 0), is_exact=True),
        ),
    )
    names = [f"{c.kind} {'.'.join(map(str, c.compute_capability))}" for c in record.codes_for(gpu)]
    assert names == expected


def test_a_bundle_with_kernels_opens_a_scan(own_bundle: Bundle, memory: DeviceMemory) -> None:
    assert not has_kernels(own_bundle)
    with pytest.raises(SessionError, match=r"has no scan kernels for GPUs; run: xclip-deploy bui"):
        GpuScan.open(own_bundle, memory)
    written = write_kernels(own_bundle)
    assert has_kernels(own_bundle)
    assert read_kernel_set(own_bundle) == written
    assert written.targets == ("8.9",)
    Bundle.open(own_bundle.path).verify()
    with GpuScan.open(own_bundle, memory) as scan:
        assert scan.shape == ScanShape.of(own_bundle.manifest.model)


def test_a_gpu_that_no_code_fits(own_bundle: Bundle, device: Device, memory: DeviceMemory) -> None:
    write_kernels(own_bundle, [(9, 0), (12, 0)])
    expected = (
        r"are for compute capability 9.0, 12.0, stand-in device \(no GPU\) has 8.9; search on"
    )
    with pytest.raises(SessionError, match=expected):
        GpuScan.open(own_bundle, memory)


def test_a_kernel_that_the_driver_refuses(
    own_bundle: Bundle, device: Device, memory: DeviceMemory
) -> None:
    write_kernels(own_bundle)
    device.fail("cuModuleLoadData", "CUDA_ERROR_INVALID_PTX", after=1)
    with pytest.raises(DriverError, match=r"cannot run the kernel frames_kernel \(CUDA_ERROR_INVA"):
        GpuScan.open(own_bundle, memory)


def test_ptx_stands_in_for_machine_code(
    own_bundle: Bundle, device: Device, memory: DeviceMemory, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver of CUDA 12 may refuse what the assembler of CUDA 13 wrote."""
    write_kernels(own_bundle, ptx=(8, 0))
    kernels = len(read_kernel_set(own_bundle).kernels)
    for number in range(kernels):
        device.fail("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE", after=0 if number == 0 else 1)
    with caplog.at_level("WARNING"), GpuScan.open(own_bundle, memory) as scan:
        found = {k.function.module.header["kind"] for k in scan._functions.values()}
    assert found == {"ptx"}
    assert len(caplog.messages) == kernels
    assert caplog.messages[0].startswith(
        "update the driver: query_kernel runs by PTX of compute capability 8.0, since better code "
        "was refused (cuModuleLoadData failed with CUDA_ERROR_INVALID_IMAGE"
    )
    for after in (1, 0):  # the second kernel's machine code, and its PTX
        device.fail("cuModuleLoadData", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", after=after)
    with pytest.raises(DriverError, match=r"cannot run the kernel frames_kernel \(CUDA_ERROR_UNSU"):
        GpuScan.open(own_bundle, memory)
    device.check_nothing_left()


def test_altered_files_are_refused(own_bundle: Bundle, memory: DeviceMemory) -> None:
    write_kernels(own_bundle)
    file = kernels_folder(own_bundle) / "video_kernel-sm89.cubin"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b" ")
    mend = rf"run: xclip-deploy build-scan {own_bundle.path}$"
    with pytest.raises(BundleIntegrityError, match=rf"it was altered: its SHA-256 is .*; {mend}"):
        GpuScan.open(own_bundle, memory)
    file.unlink()
    with pytest.raises(BundleIntegrityError, match=rf"cannot be read \(No such file.*; {mend}"):
        GpuScan.open(own_bundle, memory)


def edited(bundle: Bundle, *, seals: bool, **changes: object) -> None:
    """Change the sidecar, with or without a checksum that fits."""
    file = kernels_folder(bundle) / SIDECAR_NAME
    content = json.loads(file.read_bytes()) | changes
    if seals:
        content["checksum"] = checksum(content)
    file.write_text(json.dumps(content))


def test_altered_sidecars_are_refused(own_bundle: Bundle) -> None:
    written = write_kernels(own_bundle)
    file = kernels_folder(own_bundle) / SIDECAR_NAME
    kernels = json.loads(file.read_bytes())["kernels"]
    other = {**written.shape.model_dump(mode="json"), "max_words": 9}
    arguments = {**kernels["digit_kernel"]["arguments"], "more": "i32"}
    outside = json.loads(json.dumps(kernels))
    outside["digit_kernel"]["codes"][0]["file"] = "../manifest.json"
    cases: list[tuple[bool, dict[str, object], str]] = [
        (False, {"created_utc": "now"}, "it was altered: its checksum does not fit"),
        (True, {"format": "another"}, "its format is not xclip-scan-kernels"),
        (True, {"schema_version": 1}, "it has schema version 1, this release reads 2"),
        (True, {"shape": other}, "it is of a model of another shape"),
        (
            True,
            {"kernels": {}},
            "it lacks query_kernel, frames_kernel, video_kernel, digit_kernel, coll",
        ),
        (
            True,
            {"kernels": {**kernels, "digit_kernel": {"arguments": arguments, "codes": []}}},
            "digit_kernel takes arguments that this release does not pass",
        ),
        (True, {"kernels": outside}, "digit_kernel names a file outside the folder"),
    ]
    for seals, changes, expected in cases:
        write_kernels(own_bundle)
        edited(own_bundle, seals=seals, **changes)
        with pytest.raises(BundleIntegrityError, match=expected):
            read_kernel_set(own_bundle)
    for text in ("{", "[]", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(BundleIntegrityError, match="run: xclip-deploy build-scan"):
            read_kernel_set(own_bundle)


def test_a_folder_in_the_place_of_a_file(own_bundle: Bundle) -> None:
    written = write_kernels(own_bundle)
    record = next(iter(written.kernels.values()))
    file = kernels_folder(own_bundle) / record.codes[0].file
    file.unlink()
    file.mkdir()
    with pytest.raises(BundleIntegrityError, match="a folder"):
        read_code(own_bundle, record.codes[0])


def test_models_without_kernels(bundle: Bundle) -> None:
    model = bundle.manifest.model
    assert why_no_scan(model) is None
    for changes, expected in (
        ({"embed_dim": 96}, "multiple of 64 up to 1024, this model has 96; search on the CPU"),
        ({"embed_dim": 1088}, "this model has 1088"),
        ({"max_frames": 65}, "up to 64 frames and 77 words, this model has 65 and"),
        ({"max_words": 78}, "and 78; search on the CPU"),
    ):
        with pytest.raises(InvalidArgumentError, match=expected):
            ScanShape.of(model.model_copy(update=changes))


def test_every_failure_is_one_of_ours(own_bundle: Bundle, memory: DeviceMemory) -> None:
    """Bytes cut at any place of a sidecar never raise another kind of error."""
    write_kernels(own_bundle)
    file = kernels_folder(own_bundle) / SIDECAR_NAME
    content = file.read_bytes()
    for length in range(0, len(content) - 2, 97):
        file.write_bytes(content[:length])
        with pytest.raises(XclipDeployError):
            read_kernel_set(own_bundle)
