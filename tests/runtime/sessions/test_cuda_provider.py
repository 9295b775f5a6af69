"""ONNX Runtime's real CUDA provider, on libraries that compute nothing: what a run calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in_libraries

from xclip_deploy import Bundle
from xclip_deploy.runtime.manifest import AnyGraph, Graph, VideoPart

pytestmark = pytest.mark.skipif(
    stand_in_libraries.why_not() is not None, reason=stand_in_libraries.why_not() or ""
)
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("libraries")
    stand_in_libraries.build(folder)
    packages = Path(stand_in_libraries.__file__).parents[1]

    def start(graph: AnyGraph, form: str, nbytes: int = 1 << 40) -> dict[str, Any]:
        log = folder / f"{graph.value}-{form}.log"
        words = (str(bundle.path), graph.value, form, str(log))
        done = subprocess.run(
            [sys.executable, "-m", "stand_in_libraries.child", *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(folder),
                "PYTHONPATH": os.pathsep.join([str(packages), *filter(None, sys.path)]),
                "STAND_IN_LOG": str(log),
                "STAND_IN_BYTES": str(nbytes),
                # cuDNN's own attention is more than a stand-in can be.
                "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0",
            },
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = done.stdout.splitlines()  # the library prints nothing of its own
        found: dict[str, Any] = json.loads(line)
        assert "error" not in found or form == "plain" or nbytes < 1 << 40, (
            found,
            done.stderr[-2000:],
        )
        return found

    return start


@pytest.mark.parametrize("graph", [Graph.TEXT_ENCODER, *VideoPart])
def test_a_fused_encoder_is_replayed(bundle: Bundle, run: Run, graph: AnyGraph) -> None:
    """A replay is copies up, one graph, copies down and one wait. No node runs on the CPU."""
    found = run(graph, "fused")
    assert found["reports"] == []
    first, second, *replays, large = found["runs"]
    spec = bundle.manifest.spec(graph, next(iter(bundle.manifest.graphs)))
    up, down = ["copy up"] * len(spec.inputs), ["copy down"] * len(spec.outputs)
    assert replays == [[*up, "graph", *down, "wait"]] * 2
    assert second.count("capture") == 1
    for plain in (first, large) if graph is Graph.TEXT_ENCODER else (first,):
        assert plain.count("kernel") > 10
        copies = [call for call in plain if call in ("copy up", "copy down")]
        assert copies == [*up, *down], "nothing travels in mid-graph"
        assert plain[-1] == "wait"
        assert plain.count("wait") <= 2, "one for the upload and one for the run"
        assert not {"capture", "graph"} & set(plain)


def test_the_plain_text_encoder_cannot_be_replayed(run: Run) -> None:
    """It searches for the end token on the CPU, which ONNX Runtime refuses to capture."""
    assert "cannot use the graph capture feature" in run(Graph.TEXT_ENCODER, "plain")["error"]


@pytest.mark.parametrize("nbytes", [1_000_000, 10_000_000])
def test_a_gpu_without_room_is_an_error_of_its_own(run: Run, nbytes: int) -> None:
    """As the graph is loaded, and as a batch needs more than is left."""
    found = run(Graph.TEXT_ENCODER, "fused", nbytes)
    assert found["kind"] == "DeviceMemoryError"
    assert "emory" in found["error"].split(":")[-1]
