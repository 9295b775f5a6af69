"""Which flavour has which option, and what TensorRT is told.

The flavour ``tensorrt`` needs a GPU. Where its options are set, TensorRT-RTX's module stands in
for it here: it has the same calls and ignores them, which is why we refuse them for it.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.errors import EngineBuildError, InvalidArgumentError
from xclip_deploy.export.tensorrt import TensorRT
from xclip_deploy.export.tensorrt.log import log_of
from xclip_deploy.export.tensorrt.options import (
    check_options,
    compute_capability_targets,
    configure,
    parse_compute_capabilities,
)
from xclip_deploy.export.tensorrt.timing_cache import TimingCacheFile
from xclip_deploy.runtime.engine_set import (
    RTX_COMPUTE_CAPABILITIES,
    BuildOptions,
    Flavour,
    HardwareCompatibility,
)
from xclip_deploy.runtime.nvidia_driver import VisibleGpu


@pytest.fixture
def data_centre(trt: Any) -> TensorRT:
    """TensorRT-RTX's module under the other flavour's name."""
    return TensorRT(Flavour.TENSORRT, trt, "11.4.0", VisibleGpu("a GPU", 8, 0))


@pytest.fixture
def config(rtx: TensorRT) -> Any:
    builder = rtx.module.Builder(log_of(rtx))
    yield builder.create_builder_config()
    del builder


@pytest.mark.parametrize(
    ("option", "options", "timing_cache"),
    [
        ("--optimization-level", BuildOptions(optimization_level=0), False),
        ("--timing-cache", BuildOptions(), True),
        (
            "--hardware-compatibility",
            BuildOptions(hardware_compatibility=HardwareCompatibility.AMPERE_PLUS),
            False,
        ),
        ("--version-compatible", BuildOptions(version_compatible=True), False),
    ],
)
def test_rtx_refuses_with_a_reason(
    rtx: TensorRT, option: str, options: BuildOptions, timing_cache: bool
) -> None:
    with pytest.raises(InvalidArgumentError, match="does not have it: it") as caught:
        check_options(rtx, options, timing_cache=timing_cache)
    assert str(caught.value).startswith(f"{option} is for --flavor tensorrt")


def test_tensorrt_refuses_targets(data_centre: TensorRT) -> None:
    with pytest.raises(InvalidArgumentError, match="--compute-capability is for --flavor rtx"):
        check_options(data_centre, BuildOptions(compute_capabilities=("sm86",)), timing_cache=False)


def test_tensorrt_takes_the_rest(data_centre: TensorRT) -> None:
    options = BuildOptions(
        optimization_level=5,
        hardware_compatibility=HardwareCompatibility.SAME_COMPUTE_CAPABILITY,
        version_compatible=True,
        workspace_bytes=1 << 30,
    )
    check_options(data_centre, options, timing_cache=True)


def test_a_level_that_a_version_lacks() -> None:
    """TensorRT before 10.9 has no same-compute-capability."""

    class Older:
        class HardwareCompatibilityLevel:
            AMPERE_PLUS = 1

    library = TensorRT(Flavour.TENSORRT, Older, "10.8.0", VisibleGpu("a GPU", 8, 0))
    level = HardwareCompatibility.SAME_COMPUTE_CAPABILITY
    with pytest.raises(InvalidArgumentError, match=r"10\.8\.0 does not have it; upgrade"):
        check_options(library, BuildOptions(hardware_compatibility=level), timing_cache=False)


def test_unknown_targets(rtx: TensorRT) -> None:
    assert {"sm80", "sm86", "sm89", "sm120"} <= {*compute_capability_targets(rtx)}
    with pytest.raises(InvalidArgumentError, match=r"sm90: tensorrt_rtx .* builds for sm75, sm80"):
        check_options(rtx, BuildOptions(compute_capabilities=("sm90",)), timing_cache=False)


def test_the_supported_compute_capabilities_are_those_of_the_library(rtx: TensorRT) -> None:
    ours = tuple(f"sm{major}{minor}" for major, minor in RTX_COMPUTE_CAPABILITIES)
    assert compute_capability_targets(rtx) == ours


def test_targets_are_read_in_every_spelling() -> None:
    names = ("12.0", "sm86", "8.9", "SM_80", "86")
    assert parse_compute_capabilities(names) == ("sm80", "sm86", "sm89", "sm120")


@pytest.mark.parametrize("name", ["", "8", "sm", "ampere", "8.66", "sm86;"])
def test_what_is_no_compute_capability(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected one like 8\.6 or sm86"):
        parse_compute_capabilities([name])


def test_what_rtx_is_told(rtx: TensorRT, config: Any, trt: Any) -> None:
    assert config.get_flag(trt.BuilderFlag.TF32)
    options = BuildOptions(workspace_bytes=123_456_789, compute_capabilities=("sm86", "sm120"))
    configure(rtx, config, options)
    # Or FP32 products would have FP16's precision.
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 123_456_789
    targets = [config.get_compute_capability(n) for n in range(config.num_compute_capabilities)]
    assert targets == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]


def test_what_tensorrt_is_told(data_centre: TensorRT, trt: Any) -> None:
    told: dict[str, Any] = {}

    class Config:
        """Takes down what RTX's would ignore."""

        def __setattr__(self, name: str, value: Any) -> None:
            told[name] = value

        def set_flag(self, flag: Any) -> None:
            told["flag"] = flag

        def clear_flag(self, flag: Any) -> None:
            told["cleared"] = flag

    options = BuildOptions(
        optimization_level=5,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
    )
    configure(data_centre, Config(), options)
    assert told == {
        "cleared": trt.BuilderFlag.TF32,
        "builder_optimization_level": 5,
        "hardware_compatibility_level": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        "flag": trt.BuilderFlag.VERSION_COMPATIBLE,
    }


def test_a_workspace_that_is_not_taken(rtx: TensorRT) -> None:
    class Config:
        def clear_flag(self, flag: Any) -> None:
            pass

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            """Does nothing and tells the error recorder alone, as TensorRT documents."""

        def get_memory_pool_limit(self, pool: Any) -> int:  # noqa: ARG002
            return 1000

    with pytest.raises(EngineBuildError, match=r"workspace of 5 bytes; its limit stays at 1,000"):
        configure(rtx, Config(), BuildOptions(workspace_bytes=5))


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize("content", [None, b"", b"no timing cache"])
def test_a_timing_cache_is_kept(
    data_centre: TensorRT, config: Any, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "caches" / "timing.cache"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    cache = TimingCacheFile(path)
    cache.attach(data_centre, config)
    cache.keep(config)
    cache.write()
    kept = path.read_bytes()
    assert kept not in (b"", content)
    again = TimingCacheFile(path)
    again.attach(data_centre, config)
    again.write()
    assert path.read_bytes() == kept


def test_a_timing_cache_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(EngineBuildError, match=f"but {kind}; expected a timing cache"):
            TimingCacheFile(path)


def test_a_timing_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TimingCacheFile(tmp_path / "other")
    cache.path = tmp_path / "file" / "timing.cache"
    with warnings.catch_warnings(), pytest.raises(EngineBuildError, match="cannot be written"):
        cache.write()
