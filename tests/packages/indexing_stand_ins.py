"""An encoder without a model, for tests of indexing in this process and in others."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.decoding import DecoderPool
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.indexing import (
    IndexReport,
    IndexRun,
    IndexSettings,
    Sources,
    Task,
    find_sources,
)
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.progress import ignore_progress
from xclip_deploy.runtime.video import FrameSampling, Segmentation, VideoReading

DIM, FRAMES, SIZE = 12, 3, 16
SAMPLING = FrameSampling(max_frames=FRAMES)
READING = VideoReading(SAMPLING, SIZE)


def manifest() -> Any:
    """A manifest with what a gallery looks at, and nothing else."""
    return Manifest.model_construct(
        fingerprint="0" * 64,
        model=ModelConfig.model_construct(max_frames=FRAMES, embed_dim=DIM),
    )


def encode(videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
    """Embed each frame as the means of its quarters, and each video as the mean of its frames."""
    frames = np.zeros((len(videos), FRAMES, DIM), np.float32)
    for row, video in zip(frames, videos, strict=True):
        quarters = video.reshape(len(video), 2, SIZE // 2, 2, SIZE // 2, 3).mean((2, 4))
        row[: len(video)] = quarters.reshape(len(video), DIM)
    counts = np.array([len(video) for video in videos], np.int32)
    frames /= np.maximum(np.linalg.norm(frames, axis=-1, keepdims=True), 1e-6)
    sums = frames.sum(1)
    return VideoFeatures(sums / np.linalg.norm(sums, axis=-1, keepdims=True), frames, counts)


def index_files(
    gallery: Gallery,
    *paths: Path | str,
    sources: Sources | None = None,
    encode: Any = encode,
    workers: int = 2,
    settings: dict[str, Any] | None = None,
    pool: dict[str, Any] | None = None,
    segmentation: Segmentation | None = None,
    **options: Any,
) -> IndexReport:
    """Index paths, or sources, with a pool of decoders. ``pool``: its options."""
    with DecoderPool[Task](READING, workers=workers, **(pool or {})) as decoders:
        run = IndexRun(
            sources or find_sources(paths),
            gallery,
            encode,
            decoders,
            segmentation=segmentation,
            settings=IndexSettings(**(settings or {})),
            progress=options.pop("progress", ignore_progress),
        )
        return run.run(**options)


def contents(gallery: Gallery) -> dict[str, tuple[list[str], bytes]]:
    """All that a gallery holds, by content: paths and embeddings. Checks each video's shape."""
    snapshot = gallery.snapshot()
    videos = list(snapshot.listing())
    rows = snapshot.find([video.id for video in videos])
    found: dict[str, tuple[list[str], bytes]] = {}
    for video in videos:
        features = snapshot.features(np.array([rows[video.id]], np.int64))
        paths = [file.path for file in video.files]
        assert video.path == paths[0]
        assert len(set(paths)) == len(paths)
        assert len(video.frame_times_s) == features.num_frames[0]
        assert video.content_sha256 is not None
        assert video.content_sha256 not in found, "one content twice"
        numbers = features.video_features.tobytes() + features.frame_features.tobytes()
        found[video.content_sha256] = (sorted(paths), numbers)
    listed = [path for paths, _ in found.values() for path in paths]
    assert len(set(listed)) == len(listed), "one file in two videos"
    return found


def videos_of(gallery: Gallery) -> dict[str, GalleryVideo]:
    snapshot = gallery.snapshot()
    listed = list(snapshot.listing())
    rows = snapshot.find([video.id for video in listed])
    return {video.id: video for video in snapshot.videos(np.array(sorted(rows.values())))}


def paths_of(gallery: Gallery) -> dict[str, list[str]]:
    return {name: [f.path for f in video.files] for name, video in videos_of(gallery).items()}


def make_some(make: Any, number: int) -> Path:
    """Make so many videos; returns their folder."""
    paths: list[Path] = [make(f"{n}.mp4", n) for n in range(number)]
    return paths[0].parent


def only(report: IndexReport, **expected: Any) -> None:
    """Check every part of a report; what is not named is to be empty."""
    found = report.to_dict()
    del found["seconds"], found["warnings"]
    found["failed"] = [entry["path"] for entry in found["failed"]]
    assert {name: part for name, part in found.items() if part} == expected


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(gallery: str, delay_s: str, *paths: str) -> None:
    """Index in a process of its own: prints ``ready``, then what was committed, a line each."""
    opened = Gallery.open(gallery, manifest(), create=True)
    settings = {
        "max_batch": 3,
        "commit_videos": 4,
        "on_commit": lambda committed: say(json.dumps(list(committed))),
    }

    def slowly(videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        time.sleep(float(delay_s))
        return encode(videos)

    say("ready")
    report = index_files(opened, *paths, encode=slowly, workers=1, settings=settings, prune=True)
    assert not report.failed, report
    say("done")


# As in many scripts, nothing here asks whether this is the main module: decoders do not mind.
if sys.argv[0] == __file__:
    main(*sys.argv[1:])
