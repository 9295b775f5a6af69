"""``xclip-deploy build-trt``."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from xclip_deploy.cli.program import main
from xclip_deploy.export.tensorrt import BuildResult
from xclip_deploy.runtime.manifest import Graph

pytestmark = pytest.mark.usefixtures("trt")
SIZES = ("--video-batch", "1:2:4", "--text-batch", "1:2:4", "--scored-texts", "1:2:4")
SMALL = (*SIZES, "--scored-videos", "1:4:8", "--flavor", "rtx")
PROGRAM = """
import signal, sys
# As in a terminal: what a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from xclip_deploy.cli.program import main
main(sys.argv[1:])
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["build-trt", *(str(argument) for argument in arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other end is closed
        return b""


def test_a_build_and_another(trivial_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (trivial_bundle, "--fp32", *SMALL)
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "[1/3] video_encoder",
        "[2/3] text_encoder",
        "[3/3] scorer",
    ]
    lines = out.splitlines()
    assert lines[0].split() == ["engine", "size", "profile", "GPU", "memory"]
    assert "batch 1:2:4" in out
    assert "texts 1, videos 1:4:8" in out
    assert "texts 1:2:4, videos 1:4:8" in out
    assert lines[-1].startswith(f"wrote {trivial_bundle / 'engines'}")
    assert "not run, as there is no GPU for them" in lines[-1] or "run on this GPU" in lines[-1]
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert "is up to date" in out.splitlines()[-1]
    assert err == ""
    status, out, _ = run(capsys, *arguments, "--json")
    content = json.loads(out)
    assert (status, content["is_new"]) == (0, False)
    assert content["engines"]["scorer"]["memory"]["source"] == "builder log"


def test_up_to_date_with_the_same_options(
    built: BuildResult, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command line makes of its options is what the fixture asked for."""
    status, out, _ = run(capsys, built.path.parent.parent, *SMALL)
    assert status == 0
    assert "is up to date" in out
    assert "3 of 7" in out


def test_a_dry_run(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, bundle_path, "--dry-run", "--flavor", "rtx")
    assert status == 0
    assert out.count("takes all of it") == 3
    assert "nothing was built" in out


def test_a_dry_run_that_finds_something(
    bundle_copy: Path, put_graph: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(str(bundle_copy / "fp16" / "scorer.onnx"))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Odd"
    put_graph(bundle_copy, Graph.SCORER, model)
    arguments = (bundle_copy, "--dry-run", "--flavor", "rtx")
    status, out, _ = run(capsys, *arguments)
    assert status == 7
    (row,) = [line for line in out.splitlines() if line.startswith("scorer")]
    assert row.split()[:3] == ["scorer", softmax.name, "Odd"]
    assert "refuses 1 operators; nothing was built" in out
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 7
    (refused,) = json.loads(out)["graphs"]["scorer"]["unsupported"]
    assert (refused["node"], refused["operator"]) == (softmax.name, "Odd")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--video-batch", "4:2:8"], 2, "expected 1 <= min <= opt <= max"),
        (["--text-batch", "many"], 2, "expected MIN:OPT:MAX"),
        (["--workspace", "lots"], 2, "expected bytes, or a number with K, M or G"),
        (["--workspace", "0"], 2, "expected bytes"),
        (["--optimization-level", "3"], 2, "is for --flavor tensorrt"),
        (["--timing-cache", "file"], 2, "is for --flavor tensorrt"),
        (["--hardware-compatibility", "ampere-plus"], 2, "is for --flavor tensorrt"),
        (["--version-compatible"], 2, "is for --flavor tensorrt"),
        (["--compute-capability", "9.0"], 2, "builds for sm75"),
        (["--bf16"], 2, "--bf16"),
        (["--workspace", "1K"], 7, "within a workspace of 1,024 bytes"),
    ],
)
def test_bad_input_is_one_line(
    built: BuildResult,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    bundle = built.path.parent.parent
    found, out, err = run(capsys, bundle, "--flavor", "rtx", *SMALL, *arguments)
    assert (found, out) == (status, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c(built_copy: Path, presses: int) -> None:
    """In a terminal, with its bars."""
    (folder,) = (built_copy / "engines").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "build-trt", built_copy, "--force"],
        stderr=its_end,
        stdout=its_end,
    )
    os.close(its_end)
    shown = b""
    deadline_s = time.monotonic() + 120
    # Its first bar is drawn: it is in the middle of things.
    while b"video_encoder" not in shown and time.monotonic() < deadline_s:
        shown += read(terminal)
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    while part := read(terminal):
        shown += part
    # The second can come when it is on its way out already.
    assert process.wait(60) in (130, *([-signal.SIGINT] if presses > 1 else []))
    os.close(terminal)
    assert shown.rstrip().endswith(b"interrupted")
    assert not {word for word in (b"Traceback", b"FATAL") if word in shown}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
