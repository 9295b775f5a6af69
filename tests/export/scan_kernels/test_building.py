"""Kernels are added to a bundle: whole or not at all, and once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle
from xclip_deploy.cli.program import cli
from xclip_deploy.errors import ExportError, InvalidArgumentError
from xclip_deploy.export.scan_kernels import BuildScanResult, build_scan, building
from xclip_deploy.export.scan_kernels.compiling import CompiledKernel
from xclip_deploy.runtime.manifest import FileRecord
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.resident.kernel_set import (
    SIDECAR_NAME,
    Kernel,
    kernels_folder,
    kernels_of,
    read_code,
    read_kernel_set,
)
from xclip_deploy.runtime.resident.self_test import SCAN_VERDICT
from xclip_deploy.runtime.resident.shape import ScanShape
from xclip_deploy.runtime.sessions.machine_records import write_record

pytest.importorskip("triton", reason="Triton is not installed (extra: scan)")


@pytest.fixture
def own_bundle(bundle_path: Path, tmp_path: Path) -> Bundle:
    """The bundle in a folder that may be changed."""
    shutil.copytree(bundle_path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Kernel, tuple[int, int], str]]:
    """Compile in no time: what is compiled is test_compiling's. Returns the calls."""
    calls: list[tuple[Kernel, tuple[int, int], str]] = []

    def compile_kernel(
        kernel: Kernel, shape: ScanShape, capability: tuple[int, int], kind: Any = "cubin"
    ) -> CompiledKernel:
        calls.append((kernel, capability, kind))
        image = f"{kernel.value} {capability} {kind}".encode()
        return CompiledKernel(kind, capability, capability >= (9, 0), image, 4, 16, 2048)

    monkeypatch.setattr(building, "compile_kernel", compile_kernel)
    return calls


def test_kernels_are_added_once(own_bundle: Bundle, compiler: list[Any]) -> None:
    notes: list[Progress] = []
    result = build_scan(own_bundle, compute_capabilities=[(9, 0), (8, 9)], progress=notes.append)
    assert result == BuildScanResult(kernels_folder(own_bundle), read_kernel_set(own_bundle), True)
    kernels = kernels_of(ScanShape.of(own_bundle.manifest.model))
    expected = [((8, 9), "cubin"), ((9, 0), "cubin"), ((8, 0), "ptx")]
    assert compiler == [(kernel, *each) for kernel in kernels for each in expected]
    assert result.kernel_set.targets == ("8.9", "9.0", "8.0+")
    for kernel, record in result.kernel_set.kernels.items():
        for code in record.codes:
            content = f"{kernel.value} {code.compute_capability} {code.kind}".encode()
            assert read_code(own_bundle, code) == content
            assert isinstance(code.record, FileRecord)
    assert [note.done for note in notes] == list(range(len(compiler) + 1))
    compiler.clear()
    again = build_scan(own_bundle.path, compute_capabilities=[(8, 9), (9, 0)])
    assert (again.is_new, compiler) == (False, [])
    assert build_scan(own_bundle, compute_capabilities=[(8, 9)]).is_new
    assert build_scan(own_bundle, compute_capabilities=[(8, 9)], force=True).is_new


def test_new_kernels_are_tested_again(own_bundle: Bundle, compiler: list[Any]) -> None:
    """The error of a failed self-test names this command. Equal code must not keep the verdict."""
    build_scan(own_bundle, compute_capabilities=[(8, 9)])
    verdict = write_record(own_bundle.path, SCAN_VERDICT, {"gpu": "one"}, {"passed": False})
    other = write_record(own_bundle.path, "encoders", {"gpu": "one"}, {})
    assert not build_scan(own_bundle, compute_capabilities=[(8, 9)]).is_new
    assert verdict.exists()
    assert build_scan(own_bundle, compute_capabilities=[(8, 9)], force=True).is_new
    assert (verdict.exists(), other.exists()) == (False, True)


def test_damaged_kernels_are_compiled_anew(own_bundle: Bundle, compiler: list[Any]) -> None:
    build_scan(own_bundle, compute_capabilities=[(8, 9)])
    (kernels_folder(own_bundle) / "digit_kernel-sm89.cubin").write_bytes(b"other")
    assert build_scan(own_bundle, compute_capabilities=[(8, 9)]).is_new
    assert not build_scan(own_bundle, compute_capabilities=[(8, 9)]).is_new


def test_a_failure_keeps_the_old_kernels(
    own_bundle: Bundle, compiler: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build_scan(own_bundle, compute_capabilities=[(8, 9)]).kernel_set

    def fail(*arguments: object) -> CompiledKernel:
        raise ExportError("Triton cannot compile this")

    monkeypatch.setattr(building, "compile_kernel", fail)
    with pytest.raises(ExportError, match="Triton cannot compile this"):
        build_scan(own_bundle, compute_capabilities=[(9, 0)])
    assert read_kernel_set(own_bundle) == old
    assert [p.name for p in kernels_folder(own_bundle).parent.iterdir()] == ["scan"]


def test_unknown_compute_capabilities(own_bundle: Bundle) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'8\.8' was asked for; expected some of 7\.5,"):
        build_scan(own_bundle, compute_capabilities=[(8, 8)])
    with pytest.raises(InvalidArgumentError, match="is empty; expected at least one"):
        build_scan(own_bundle, compute_capabilities=[])


def test_the_command(
    own_bundle: Bundle, compiler: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build-scan", str(own_bundle.path), "--compute-capability", "8.9"]
    assert cli.main(arguments, standalone_mode=False) is None
    out = capsys.readouterr().out
    assert "compute capability: 8.9, 8.0+ (+: and later GPUs)" in out
    assert f"wrote {kernels_folder(own_bundle)} (10 files, " in out
    cli.main(arguments, standalone_mode=False)
    assert "is up to date (compiled " in capsys.readouterr().out
    cli.main([*arguments, "--json"], standalone_mode=False)
    content = json.loads(capsys.readouterr().out)
    assert content["is_new"] is False
    stored = json.loads((kernels_folder(own_bundle) / SIDECAR_NAME).read_bytes())
    assert content["kernels"] == stored["kernels"]
