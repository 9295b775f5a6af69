"""Make videos, train a small model, export it, build engines, index, search.

Everything after training goes through the ``xclip-deploy`` commands that a user would type.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from demo.scenes import ALL_SCENES, DURATION_S, FRAME_RATE, write_video
from demo.train import STEPS, train
from xclip_deploy.training.checkpoints import save_checkpoint

OUTPUT = Path("demo-output")
QUERIES = ("a red circle moves left", "a yellow triangle moves right", "a blue square moves left")


def main() -> None:
    """Run the demo in ``demo-output/`` below the current directory."""
    started_s = time.monotonic()
    checkpoint, videos = OUTPUT / "checkpoint.pt", OUTPUT / "videos"
    bundle, gallery = OUTPUT / "xclip-bundle", OUTPUT / "xclip-gallery"
    OUTPUT.mkdir(exist_ok=True)

    heading(f"Training a small X-CLIP on {len(ALL_SCENES)} scenes, from random weights")
    model = train(show_loss)
    save_checkpoint(checkpoint, model.config, model.state_dict())
    print(f"wrote {checkpoint}")

    heading("Making videos that it has not seen: the same scenes, drawn anew, as mp4 files")
    make_videos(videos)

    heading("From checkpoint to bundle")
    run("export", checkpoint, "-o", bundle)

    heading("FP16 TensorRT engines")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        print("skipped: tensorrt-rtx is not installed here (it has no wheels for this platform)")
    else:
        run("build-trt", "--fp16", bundle)

    heading("Indexing (one of the files is broken on purpose)")
    run("index", videos, "--bundle", bundle, "--gallery", gallery, "--on-duplicate", "replace")

    heading("Searching by text")
    places = ("--bundle", bundle, "--gallery", gallery)
    run("search", *QUERIES, "-k", 3, *places)

    heading("Searching by video")
    run("search", "--video", videos / "green-square-right.mp4", "-k", 3, *places)

    right = count_right(bundle, gallery)
    print(
        f"\nOf {len(ALL_SCENES)} captions, {right} found their own video first. "
        f"The demo took {time.monotonic() - started_s:.0f} s; see {OUTPUT}/."
    )


def heading(text: str) -> None:
    """Print what comes next."""
    print(f"\n== {text}", flush=True)


def show_loss(step: int, loss: float) -> None:
    """Print the loss now and then."""
    if step % 50 == 0 or step == STEPS - 1:
        print(f"step {step:3d}/{STEPS}  loss {loss:.3f}", flush=True)


def make_videos(directory: Path) -> None:
    """Write one mp4 for each scene, and a broken one."""
    directory.mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    times = np.arange(DURATION_S * FRAME_RATE) / (DURATION_S * FRAME_RATE)
    for scene in ALL_SCENES:
        path = directory / f"{scene.colour}-{scene.shape}-{scene.direction}.mp4"
        write_video(path, scene.render(times, 128, random))
    (directory / "broken.mp4").write_bytes(path.read_bytes()[:500])
    print(f"wrote {len(ALL_SCENES)} videos and a broken one to {directory}/")


def run(*arguments: object) -> None:
    """Show and run an xclip-deploy command."""
    words = [str(argument) for argument in arguments]
    print(f"$ xclip-deploy {shlex.join(words)}", flush=True)
    status = subprocess.run([program(), *words], check=False).returncode
    if status != 0:
        sys.exit(f"xclip-deploy {words[0]} failed with status {status}")


def count_right(bundle: Path, gallery: Path) -> int:
    """How many captions find their own video first."""
    captions = {scene.caption: scene for scene in ALL_SCENES}
    command = [program(), "search", *captions, "-k", "1", "--json"]
    command += ["--bundle", str(bundle), "--gallery", str(gallery)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return sum(
        Path(entry["results"][0]["id"]).stem == f"{scene.colour}-{scene.shape}-{scene.direction}"
        for entry in found
        for scene in [captions[entry["query"]]]
    )


def program() -> str:
    """The xclip-deploy of this environment."""
    return str(Path(sys.executable).parent / "xclip-deploy")


if __name__ == "__main__":
    main()
