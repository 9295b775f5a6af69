from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xclip_deploy import Bundle, benchmark_sessions
from xclip_deploy.errors import (
    BundleIntegrityError,
    InvalidArgumentError,
    MissingExtraError,
    SessionError,
)
from xclip_deploy.runtime.benchmark import (
    Benchmark,
    BenchmarkPlan,
    Measurement,
    draw_benchmark,
    measuring,
)
from xclip_deploy.runtime.benchmark.child import Child
from xclip_deploy.runtime.benchmark.machine import installed_versions, this_machine
from xclip_deploy.runtime.benchmark.results import readable
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.sessions import Refusal, SessionOptions, offers
from xclip_deploy.runtime.theme import PALETTES, Theme

FP32 = SessionOptions(device="cpu", precision="fp32", threads=1)
FP16 = SessionOptions(device="cpu", precision="fp16", threads=1)
CUDA = SessionOptions(device="cuda", backend="onnxruntime")
SHORT = BenchmarkPlan({Graph.SCORER: (3,)}, seconds=1e-9, rounds=1, warmup=0)
NAMES = ["onnxruntime cpu fp32 threads=1", "onnxruntime cpu fp16 threads=1"]


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> Benchmark:
    """Two graphs in two sessions. Nothing here says how fast they ran."""
    plan = BenchmarkPlan(
        {Graph.SCORER: (40,), Graph.TEXT_ENCODER: (9, 1, 9)}, seconds=0.03, rounds=3, warmup=1
    )
    steps: list[Progress] = []
    found = benchmark_sessions(bundle, [FP32, FP16], plan=plan, progress=steps.append)
    assert [step.done for step in steps] == list(range(len(steps)))
    assert {step.total for step in steps} == {len(steps) - 1}
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Which runs the workers are asked for: precision, size, whether it is timed."""
    found: list[tuple[str, int, bool]] = []

    class Recorded(Child):
        def run(self, size: int, *, seconds: float, warmup: int) -> dict[str, Any]:
            found.append((self.opened["precision"], size, seconds > 0))
            return super().run(size, seconds=seconds, warmup=warmup)

    monkeypatch.setattr(measuring, "Child", Recorded)
    return found


@pytest.fixture
def without_gpu() -> None:
    if why_no_gpu() is None:
        pytest.skip("this machine has a GPU")


# What is measured


def test_every_session_at_every_size(result: Benchmark) -> None:
    assert [session.name for session in result.sessions] == NAMES
    expected = [
        (name, graph, size)
        for graph, sizes in ((Graph.TEXT_ENCODER, (1, 9)), (Graph.SCORER, (40,)))
        for size in sizes
        for name in NAMES
    ]
    assert [(m.session, m.graph, m.size) for m in result.measurements] == expected
    for measurement in result.measurements:
        assert measurement.error is None
        assert len(measurement.latencies_s) >= 3, "one in every round"
        assert min(measurement.latencies_s) > 0
        assert sum(measurement.latencies_s) >= 0.03


def test_sessions_are_as_asked_for(result: Benchmark) -> None:
    fp32, fp16 = result.sessions
    assert (fp32.backend, fp32.device, fp32.precision) == ("onnxruntime", "cpu", "fp32")
    assert fp16.precision == "fp16"
    assert fp16.options == {"device": "cpu", "precision": "fp16", "threads": 1}


def test_memory_is_each_session_s_own(result: Benchmark, bundle: Bundle) -> None:
    loaded = {(each.session, each.graph): each for each in result.loadings}
    assert len(loaded) == 4
    for name, precision in zip(NAMES, (Precision.FP32, Precision.FP16), strict=True):
        loading = loaded[name, Graph.TEXT_ENCODER]
        file = bundle.graph_path(Graph.TEXT_ENCODER, precision)
        assert loading.memory_bytes is not None
        # Weights are held, and not those of the other graphs and libraries beside them.
        assert 0.5 * file.stat().st_size < loading.memory_bytes < 150e6
        assert loading.device_memory_bytes is None
        peaks = [
            each.peak_memory_bytes
            for each in result.measurements
            if (each.session, each.graph) == (name, Graph.TEXT_ENCODER)
        ]
        assert None not in peaks
        assert peaks == sorted(peaks)  # type: ignore[type-var]
        assert peaks[-1] >= loading.memory_bytes  # type: ignore[operator]


def test_what_ran_and_where(result: Benchmark, bundle: Bundle) -> None:
    assert result.fingerprint == bundle.manifest.fingerprint
    assert result.bundle == str(bundle.path)
    assert result.model.startswith("x-clip, vision 3 layers of 128")
    assert result.versions == installed_versions()
    assert {"python", "xclip-deploy", "numpy"} < set(result.versions)
    assert {"onnxruntime", "onnxruntime-gpu"} & set(result.versions)
    assert result.machine.cpu
    assert result.machine.system.startswith("Linux")


def test_this_machine() -> None:
    machine = this_machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes is not None
    assert 1e8 < machine.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (machine.gpus == ()) is (why_no_gpu() is not None)


def test_sessions_take_turns(bundle: Bundle, calls: list[tuple[str, int, bool]]) -> None:
    plan = BenchmarkPlan({Graph.SCORER: (2, 1)}, seconds=1e-9, rounds=3, warmup=1)
    benchmark_sessions(bundle, [FP32, FP16], plan=plan)
    order = ["fp32", "fp16"]
    for size in (1, 2):
        turns, calls[:] = calls[:8], calls[8:]
        assert {found for _, found, _ in turns} == {size}, "small sizes first, for their peaks"
        assert [is_timed for _, _, is_timed in turns] == [False] * 2 + [True] * 6
        # Another begins in each round.
        expected = order + order[::-1] + order + order[::-1]
        assert [precision for precision, _, _ in turns] == expected
    assert calls == []


# Numbers


def test_percentiles_and_throughput() -> None:
    measurement = Measurement(
        session="a",
        graph=Graph.SCORER,
        size=10,
        latencies_s=tuple(np.arange(1, 102) / 100),
        peak_memory_bytes=None,
        device_memory_bytes=None,
    )
    found = [measurement.percentile_s(percent) for percent in (0, 50, 90, 99, 100)]
    np.testing.assert_allclose(found, [0.01, 0.51, 0.91, 1.0, 1.01])
    # 1010 items in the sum of 0.01 to 1.01 seconds.
    assert measurement.items_per_s == pytest.approx(1010 / 51.51)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (54.54, "54.5"),
        (100, "100"),
        (117_812.0, "118,000"),
        (1949.7, "1,950"),
    ],
)
def test_numbers_for_people(number: float, expected: str) -> None:
    assert readable(number) == expected


def test_json(result: Benchmark) -> None:
    assert Benchmark.model_validate_json(result.model_dump_json()) == result
    content = json.loads(json.dumps(result.to_dict()))
    for entry, measurement in zip(content["measurements"], result.measurements, strict=True):
        assert entry["runs"] == len(entry["latencies_s"]) == len(measurement.latencies_s)
        assert entry["p50_ms"] <= entry["p90_ms"] <= entry["p99_ms"]
        assert entry["p50_ms"] == pytest.approx(np.median(entry["latencies_s"]) * 1e3)
        assert entry["items_per_s"] > 0


# What goes wrong


def test_offered_on_a_cpu(bundle: Bundle, without_gpu: None) -> None:
    found = offers(bundle)
    offered = [each for each in found if isinstance(each, SessionOptions)]
    assert [each.device for each in offered] == ["cpu"] * len(bundle.precisions)
    assert [each.precision for each in offered] == [each.value for each in bundle.precisions]
    refused = [each for each in found if isinstance(each, Refusal)]
    assert {each.options.device for each in refused} == {"cuda"}
    assert {each.options.backend for each in refused} == {"onnxruntime", "tensorrt-provider"}
    assert all(each.reason for each in refused)


def test_a_session_that_was_asked_for_must_open(bundle: Bundle, without_gpu: None) -> None:
    with pytest.raises(SessionError, match="device cuda was asked for, but "):
        benchmark_sessions(bundle, [FP32, CUDA], plan=SHORT)


def test_an_offered_session_that_does_not_open_is_left_out(
    bundle: Bundle, without_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "offers", lambda _: [CUDA, FP16])
    result = benchmark_sessions(bundle, plan=SHORT)
    assert [session.name for session in result.sessions] == [NAMES[1]]
    (skipped,) = result.skipped
    assert skipped.options == {"device": "cuda", "backend": "onnxruntime"}
    assert skipped.reason.startswith("device cuda was asked for, but ")
    monkeypatch.setattr(measuring, "offers", lambda _: [CUDA])
    with pytest.raises(SessionError, match="no session could be opened: device cuda"):
        benchmark_sessions(bundle, plan=SHORT)


def test_a_process_that_dies(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out at a large size: what was measured before stands."""

    class Mortal(Child):
        def run(self, size: int, *, seconds: float, warmup: int) -> dict[str, Any]:
            if size == 7 and self.opened["precision"] == "fp32":
                self._process.kill()
            return super().run(size, seconds=seconds, warmup=warmup)

    monkeypatch.setattr(measuring, "Child", Mortal)
    plan = BenchmarkPlan({Graph.SCORER: (1, 7, 9)}, seconds=1e-9, rounds=1)
    result = benchmark_sessions(bundle, [FP32, FP16], plan=plan)
    found = [(m.session, m.size, m.error is None) for m in result.measurements]
    assert found == [
        (NAMES[0], 1, True),
        (NAMES[1], 1, True),
        (NAMES[0], 7, False),
        (NAMES[1], 7, True),
        (NAMES[1], 9, True),
    ]
    failed = result.measurements[2]
    assert failed.error is not None
    assert "ended (SIGKILL, as when memory runs out)" in failed.error
    assert failed.latencies_s == ()
    assert "p50_ms" not in result.to_dict()["measurements"][2]


def test_errors_keep_their_kind(bundle_copy: Path) -> None:
    file = bundle_copy / "fp32" / "scorer.onnx"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        benchmark_sessions(bundle_copy, [FP32], plan=SHORT)


def test_no_process_is_left(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Interrupted(Child):
        def run(self, size: int, *, seconds: float, warmup: int) -> dict[str, Any]:
            del size, seconds, warmup
            started.append(self._process)
            raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "Child", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark_sessions(bundle, [FP32], plan=SHORT)
    (process,) = started
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"sizes": {}}, "at least one graph"),
        ({"sizes": {Graph.SCORER: ()}}, "at least one graph with one size"),
        ({"sizes": {Graph.SCORER: (1, 0)}}, "size of scorer is 0 .*at least 1"),
        ({"seconds": 0}, "seconds is 0; expected more than 0"),
        ({"seconds": float("nan")}, "seconds is nan .*finite number from 0"),
        ({"rounds": 0}, "rounds is 0 .*at least 1"),
        ({"warmup": -1}, "warmup is -1 .*at least 0"),
    ],
)
def test_wrong_plans(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        BenchmarkPlan(**wrong)


def test_no_sessions(bundle: Bundle) -> None:
    with pytest.raises(InvalidArgumentError, match="sessions: expected at least one"):
        benchmark_sessions(bundle, [], plan=SHORT)


# The picture


@pytest.mark.parametrize("theme", PALETTES)
def test_the_picture(result: Benchmark, tmp_path: Path, theme: Theme) -> None:
    draw_benchmark(result, tmp_path / "bench.png", theme)
    with Image.open(tmp_path / "bench.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    # Bars of both sessions, in the first two colours of the theme.
    for color in PALETTES[theme].series[:2]:
        assert (pixels == list(bytes.fromhex(color[1:]))).all(axis=1).sum() > 1000


def test_a_picture_of_a_session_that_failed(result: Benchmark, tmp_path: Path) -> None:
    first, *rest = result.measurements
    failed = first.model_copy(update={"latencies_s": (), "error": "out of memory"})
    changed = result.model_copy(update={"measurements": (failed, *rest)})
    draw_benchmark(changed, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_a_picture_of_a_bundle_with_an_odd_name(result: Benchmark, tmp_path: Path) -> None:
    """Matplotlib reads ``$…$`` as a formula, and has no picture of control characters."""
    changed = result.model_copy(update={"bundle": "\x1b[31ma$_^{$\n" + "long" * 500})
    draw_benchmark(changed, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.size[0] == 1300


def test_no_picture_without_matplotlib(
    result: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xclip-deploy\[plot\]'"):
        draw_benchmark(result, tmp_path / "bench.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written(result: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        draw_benchmark(result, tmp_path / "none" / "bench.png")


# The command
