"""The commands of the README, one after the other, and their result against PyTorch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from xclip_deploy import FrameSampling, load_checkpoint, read_video
from xclip_deploy.runtime.tokenizer import Tokenizer

QUERY = "a woman plays with a dog"


def xclip_deploy(folder: Path, *arguments: object) -> str:
    command = [str(Path(sys.executable).with_name("xclip-deploy")), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(once_per_run: Callable[..., Path], bundle_path: Path, clips: Path) -> Path:
    """An exported bundle with engines, and a gallery."""

    def follow_readme(folder: Path) -> None:
        # Where the first command, export, has put it: see the fixture.
        assert "FAILED" not in (bundle_path.parent / "export.txt").read_text()
        shutil.copytree(bundle_path, folder / "xclip-bundle")
        if importlib.util.find_spec("tensorrt_rtx"):
            xclip_deploy(folder, "build-trt", "--fp16", "--flavor", "rtx")
        xclip_deploy(folder, "index", clips / "sam2_dog.mp4", clips / "edge_cases")

    return once_per_run("readme", follow_readme)


def test_a_score_from_mp4_to_terminal_is_pytorchs(
    folder: Path, checkpoint_path: Path, clips: Path
) -> None:
    model = load_checkpoint(checkpoint_path).build()
    clip = read_video(clips / "sam2_dog.mp4", FrameSampling(max_frames=12), 64)
    frames = np.zeros((1, 12, 64, 64, 3), np.uint8)
    frames[0, : len(clip.frames)] = clip.frames
    token_ids = Tokenizer.default().encode([QUERY], 32)
    with torch.inference_mode():
        scores = model(
            torch.from_numpy(token_ids),
            torch.from_numpy(frames),
            torch.tensor([len(clip.frames)]),
        )
    ((entry),) = json.loads(xclip_deploy(folder, "search", QUERY, "--json"))
    found = {Path(result["path"]).name: result for result in entry["results"]}["sam2_dog.mp4"]
    # The gallery holds FP16; the logit scale is 100.
    assert found["score"] == pytest.approx(float(scores.logits), abs=3e-2)
    for name, grain in scores.grains.items():
        assert found["grains"][name] == pytest.approx(float(grain), abs=1e-3)


def test_every_edge_case_is_found(folder: Path, clips: Path) -> None:
    (entry,) = json.loads(xclip_deploy(folder, "search", QUERY, "-k", 100, "--json"))
    names = {Path(result["path"]).name for result in entry["results"]}
    assert names == {"sam2_dog.mp4", *(path.name for path in (clips / "edge_cases").iterdir())}
    assert [result["rank"] for result in entry["results"]] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"),
    reason="TensorRT-RTX is not installed on this platform",
)
def test_inspect_shows_the_engines(folder: Path) -> None:
    (engine_set,) = json.loads(xclip_deploy(folder, "inspect", "--json"))["engine_sets"].values()
    assert (engine_set["flavour"], engine_set["precision"]) == ("rtx", "fp16")
    assert set(engine_set["engines"]) == {"video_encoder", "text_encoder", "scorer"}
    assert "portable" in xclip_deploy(folder, "inspect", "--verify")
