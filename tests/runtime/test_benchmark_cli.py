"""The command that measures a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xclip_deploy import Bundle
from xclip_deploy.cli import main

NAMES = ["onnxruntime cpu fp32 threads=1", "onnxruntime cpu fp16 threads=1"]


@pytest.fixture
def short() -> list[str]:
    return [
        "--graph=scorer",
        "--scored-videos=3",
        "--seconds=0.001",
        "--rounds=1",
        "--session=device=cpu,precision=fp32,threads=1",
    ]


def test_the_command(
    bundle: Bundle, short: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(bundle.path), *short, f"--plot={tmp_path / 'bench.png'}"])
    assert caught.value.code == 0
    printed = capfd.readouterr().out
    for part in (NAMES[0], "pairs/s", "p99 ms", "numpy", "cores", "load before", "bench.png"):
        assert part in printed
    assert (tmp_path / "bench.png").is_file()


def test_the_command_for_programs(
    bundle: Bundle, short: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(bundle.path), *short, "--json"])
    assert caught.value.code == 0
    content = json.loads(capfd.readouterr().out)
    assert [entry["graph"] for entry in content["measurements"]] == ["scorer"]
    assert content["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--session=devise=cpu", "found 'devise=cpu', expected KEY=VALUE with a key of device"),
        ("--session=cpu", "found 'cpu'"),
        ("--session=threads=many", "threads is a whole number"),
        ("--session=threads=1,threads=2", "threads is given twice"),
        ("--session=cuda_graphs=1", "cuda_graphs is true or false"),
        ("--session=device=tpu", "expected auto, cpu or cuda"),
        ("--text-batches=1,x", "expected sizes of at least 1"),
        ("--text-batches=0", "expected sizes of at least 1"),
        ("--plot=/nowhere/at/all.png", "expected a file in a folder that is there"),
    ],
)
def test_the_command_refuses(
    bundle: Bundle, option: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(bundle.path), option])
    assert caught.value.code == 2
    printed = capfd.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_nothing_is_drawn_with_until_it_is_needed() -> None:
    code = (
        "import sys; from xclip_deploy import benchmark_sessions; "
        "import xclip_deploy.runtime.benchmark.picture; "
        "assert not {'matplotlib', 'torch', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
