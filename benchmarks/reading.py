"""Measure how fast videos are read: files to the frames that the model takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.interleaving import measure
from benchmarks.measured import Part
from benchmarks.setting import Setting
from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video import VideoReading, read_videos

READING = "reading"


def measure_reading(setting: Setting) -> Part:
    """Measure videos a second with one thread, and with one for each core.

    Files that cannot be read are counted and left out.
    """
    reading = setting.bundle.manifest.video_reading()
    paths, frames, failures = [], 0, 0
    for path, found in read_videos(setting.videos(), reading):
        if isinstance(found, VideoError):
            failures += 1
        else:
            paths.append(path)
            frames += len(found.frames)
    if not paths:
        raise SystemExit("no video can be read; pass another folder by --clips")
    cores = usable_cores()
    contenders = {
        f"{threads} {'thread' if threads == 1 else 'threads'}": partial(
            read_all, paths, reading, threads
        )
        for threads in sorted({1, cores})
    }
    series = measure(
        READING,
        len(paths),
        contenders,
        setting.turns(5),
        work=len(paths),
        item="videos",
    )
    facts: dict[str, float | str] = {
        "videos read": len(paths),
        "files that cannot be read": failures,
        "valid frames a video": frames / len(paths),
        "share of the model's frames that is valid": frames
        / (len(paths) * setting.config.max_frames),
    }
    return Part("reading", tuple(series), facts)


def read_all(paths: list[Path], reading: VideoReading, threads: int) -> None:
    """Read every video. Raises the VideoError of one that cannot be read."""
    for _, found in read_videos(paths, reading, num_threads=threads):
        if isinstance(found, VideoError):
            raise found
