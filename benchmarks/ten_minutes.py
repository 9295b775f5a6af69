"""A ten-minute video of 100 events, searched whole and by windows.

    python -m benchmarks.ten_minutes --checkpoint demo-output/run/last.pt

The video is the first 100 scenes of a generated test split, six seconds each, one after the other.
Every caption is searched twice: in a gallery that holds the video whole, and in one that holds its
windows. An answer is right if its best frame lies in the event. One question is shown in full, and
a picture shows the moments that answer it. ``--toy`` runs all of it on a minute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from xclip_deploy.export.exporter import export_bundle
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.training.datasets.generated import Scene, SplitSizes, make_splits
from xclip_deploy.training.datasets.generated.encoding import video_writer
from xclip_deploy.training.datasets.generated.rendering import DURATION_S, render

POLICIES: dict[str, tuple[str, str | None]] = {
    "whole": ("whole", None),
    "windows": ("6s", "1.5s"),
}
"""Segment and stride of each gallery."""
ASKED = 12
"""Number of the event that is asked for in full; it begins at 72 s."""
SEED = 0


def main() -> None:
    """Make the video, ask, and write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--toy", action="store_true", help="a minute")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("ten-minutes-work"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    events, asked = (10, 4) if options.toy else (100, ASKED)
    scenes = make_splits(SplitSizes(train=0, val=0, test=events), SEED)["test"]
    scenes = [scenes[n] for n in np.random.default_rng(SEED).permutation(len(scenes))]
    video = options.work / "ten-minutes.mp4"
    if not video.exists():
        write_video(scenes, video)
    bundle = options.work / "bundle"
    if not bundle.is_dir():
        export_bundle(options.checkpoint, bundle)
    answers = {}
    for name, (segment, stride) in POLICIES.items():
        gallery = options.work / name
        shutil.rmtree(gallery, ignore_errors=True)
        with Retriever(Bundle.open(bundle), gallery, create=True) as retriever:
            retriever.add([video], segment=segment, stride=stride)
            answers[name] = [answer(retriever, scene, n) for n, scene in enumerate(scenes)]
    question = scenes[asked].caption
    draw(question, bundle, options.work, options.output / "ten_minutes.png")
    result = {"events": events, "event_s": DURATION_S, "asked": asked, "question": question}
    result["answers"] = answers
    replace_text(options.output / "ten_minutes.json", json.dumps(result, indent=1) + "\n")
    replace_text(options.output / "ten_minutes.md", table(result))
    print(table(result))


def write_video(scenes: list[Scene], path: Path) -> None:
    """Draw the scenes one after the other."""
    with video_writer(path) as write:
        for number, scene in enumerate(scenes):
            for picture in render(scene, np.random.default_rng((SEED, number))):
                write(picture)


def answer(retriever: Retriever, scene: Scene, number: int) -> dict[str, Any]:
    """Ask for an event; return the first hit, and whether its best frame lies in the event."""
    [hit] = retriever.search(scene.caption, k=1, group="moment")
    start_s, end_s = number * DURATION_S, (number + 1) * DURATION_S
    shown = _shown(hit)
    return {
        "best_frame_s": hit.best_frame_time_s,
        "shown_s": shown,
        "is_right": start_s <= hit.best_frame_time_s < end_s,
    }


def _shown(hit: SearchResult) -> tuple[float, float | None]:
    if hit.range is not None:
        return hit.range.start_s, hit.range.end_s
    return hit.start_s, hit.end_s


def draw(question: str, bundle: Path, work: Path, path: Path) -> None:
    """Draw the first hits as ``xclip-deploy search`` does, with file names relative to ``work``."""
    program = Path(sys.executable).parent / "xclip-deploy"
    command = [str(program), "search", question, "-k", "5", "--group", "moment"]
    command += ["--bundle", str(bundle.resolve()), "--gallery", "windows"]
    for theme, file in (("light", path), ("dark", path.with_stem(f"{path.stem}-dark"))):
        drawing = ["--picture", str(file.resolve()), "--theme", theme]
        subprocess.run([*command, *drawing], cwd=work, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each gallery."""
    asked, event_s = result["asked"], result["event_s"]
    start, end = (time_text(event_s * n) for n in (asked, asked + 1))
    lines = [
        f"A video of {result['events']} events, {event_s} s each; every caption is searched once. "
        "An answer is right if its best frame lies in the event. "
        f'The question is "{result["question"]}", which happens from {start} to {end}. '
        "Written by `python -m benchmarks.ten_minutes`.",
        "",
        "| gallery | best frame of the answer | shown | right answers |",
        "|---|---|---|---|",
    ]
    for name, answers in result["answers"].items():
        given = answers[asked]
        shown = " to ".join(time_text(time_s, 1) for time_s in given["shown_s"])
        segment, stride = POLICIES[name]
        option = f"`--segment {segment}" + (f" --stride {stride}`" if stride else "`")
        right = sum(one["is_right"] for one in answers)
        cells = (option, time_text(given["best_frame_s"]), shown, f"{right} of {len(answers)}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
