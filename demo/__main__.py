"""Train a small model on generated videos, export, build engines, verify, index, search.

The demo runs the ``xclip-deploy`` commands that a user would type.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo.picture import draw_results

OUTPUT = Path("demo-output")
# The demo trains on fewer videos and for fewer steps than the preset, so that it takes a few
# minutes. Validation chooses nothing.
BUDGET = {
    "data.generated.train": 1920,
    "data.generated.val": 2,
    "data.validation_split": "null",
    "optimization.epochs": 34,
}
QUERIES = (
    "a red square moves right, then a blue triangle grows",
    "a blue triangle grows, then a red square moves right",
    "a red square moves right while a green square flashes",
    "a green triangle shrinks",
)


def main() -> None:
    """Run the demo in ``demo-output/`` below the current directory."""
    started_s = time.monotonic()
    training, bundle, gallery = OUTPUT / "run", OUTPUT / "xclip-bundle", OUTPUT / "xclip-gallery"
    if training.exists():
        sys.exit(f"{training} is left from an earlier demo; run: rm -r {OUTPUT}")
    OUTPUT.mkdir(exist_ok=True)
    videos, test_videos = training / "videos", training / "videos" / "test"

    heading("Training a small X-CLIP from random weights, on generated videos")
    settings = [word for name, value in BUDGET.items() for word in ("--set", f"{name}={value}")]
    run("train", "--preset", "demo", *settings, "-o", training)

    heading("Exporting the checkpoint to a bundle")
    run("export", training / "last.pt", "-o", bundle)

    heading("Building FP16 TensorRT engines")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        print("skipped: tensorrt-rtx is not installed here (it has no wheels for this platform)")
    else:
        run("build-trt", "--fp16", bundle)

    heading("Comparing every precision with PyTorch, on 200 videos that the model has not seen")
    captions = ("--videos", videos, "--captions", videos / "captions.csv")
    run("verify", bundle, "--checkpoint", training / "last.pt", *captions)

    heading("Measuring how often a caption finds its own video among them")
    dataset = ("--dataset", "folder", "--annotations", videos, "--videos", videos)
    run("evaluate", bundle, *dataset)

    heading("Indexing these videos, and a file that is broken on purpose")
    broken = OUTPUT / "broken.mp4"
    broken.write_bytes(next(test_videos.glob("*.mp4")).read_bytes()[:500])
    run("index", test_videos, broken, "--bundle", bundle, "--gallery", gallery)

    heading("Searching by text")
    run("search", *QUERIES, "-k", 3, "--bundle", bundle, "--gallery", gallery)
    show(search(QUERIES, bundle, gallery), videos)
    print(f"\nThe demo took {time.monotonic() - started_s:.0f} s.")


def heading(text: str) -> None:
    """Print the heading of the next part."""
    print(f"\n== {text}", flush=True)


def run(*arguments: object) -> None:
    """Print and run an xclip-deploy command."""
    words = [str(argument) for argument in arguments]
    print(f"$ xclip-deploy {shlex.join(words)}", flush=True)
    status = subprocess.run([program(), *words], check=False).returncode
    if status != 0:
        sys.exit(f"xclip-deploy {words[0]} failed with status {status}")


def search(queries: Sequence[str], bundle: Path, gallery: Path) -> dict[str, list[Path]]:
    """Return the three best videos of each query."""
    command = [program(), "search", *queries, "-k", "3", "--json"]
    command += ["--bundle", str(bundle), "--gallery", str(gallery)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {entry["query"]: [Path(hit["path"]) for hit in entry["results"]] for entry in found}


def show(found: dict[str, list[Path]], videos: Path) -> None:
    """Print the captions of the videos found, and draw their frames."""
    with (videos / "captions.csv").open(encoding="utf-8") as file:
        test = [row for row in csv.DictReader(file) if row["split"] == "test"]
    captions = {Path(row["file"]).stem: row["caption"] for row in test}
    print("\nThe videos really show:")
    for query, paths in found.items():
        print(f"  {query}")
        for rank, path in enumerate(paths, 1):
            caption = captions[path.stem]
            print(f"    {rank}. {caption}{'  <- the one' if caption == query else ''}")
    picture = OUTPUT / "results.png"
    draw_results(
        {query: [(path, captions[path.stem]) for path in paths] for query, paths in found.items()},
        picture,
    )
    print(f"Drawn in {picture}")


def program() -> str:
    """Return the path of this environment's xclip-deploy."""
    return str(Path(sys.executable).parent / "xclip-deploy")


if __name__ == "__main__":
    main()
