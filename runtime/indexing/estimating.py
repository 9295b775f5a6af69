"""Estimate what indexing would take, before anything is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.indexing.planning import KnownFiles, plan_files
from xclip_deploy.runtime.indexing.records import OnDuplicate
from xclip_deploy.runtime.indexing.reuse import Encode
from xclip_deploy.runtime.indexing.sources import Sources
from xclip_deploy.runtime.presentation import brief, time_text
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video import VideoFrames, VideoReading, read_blocks
from xclip_deploy.runtime.video.pyav_container import open_video
from xclip_deploy.runtime.video.segmentation import Segmentation

_SAMPLED_FILES = 3
_SAMPLE_S = 2.0
"""Longest time to decode of one file, seconds of the clock."""
_RECORD_BYTES = 400
"""Bytes of a row apart from its embeddings: measured with paths of 60 characters."""


@dataclass(frozen=True)
class IndexEstimate:
    """What an index run would read and write. Durations are those that the files announce."""

    num_videos: int
    """Videos that would be read."""
    num_unchanged: int
    """Videos that the gallery holds unchanged."""
    num_unreadable: int
    """Videos of which no duration can be told; they are not counted below."""
    duration_s: float
    """Sum of the videos' durations, seconds."""
    num_segments: int
    size_bytes: int
    """Bytes that the gallery would grow by, thumbnails apart."""
    decode_s: float
    """Time for decoding with all workers, from a sample of the files, seconds."""
    encode_s: float
    """Time for encoding, from one batch, seconds."""
    seconds: float
    """Expected time, seconds. On a CPU decoding and encoding share the cores; beside a GPU the
    slower one counts."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        return brief(self, num_segments=self.num_segments, seconds=self.seconds)

    def __str__(self) -> str:
        videos = "1 video" if self.num_videos == 1 else f"{self.num_videos:,} videos"
        gives = "gives" if self.num_videos == 1 else "give"
        segments = "1 segment" if self.num_segments == 1 else f"{self.num_segments:,} segments"
        lines = [
            f"{videos} of {time_text(self.duration_s)} {gives} {segments}, "
            f"{self.size_bytes / 1e6:.1f} MB in the gallery",
            f"about {time_text(self.seconds)} to index: decoding {time_text(self.decode_s)}, "
            f"encoding {time_text(self.encode_s)}",
        ]
        if self.num_unchanged:
            lines.append(f"{self.num_unchanged:,} are there unchanged")
        if self.num_unreadable:
            lines.append(f"{self.num_unreadable:,} cannot be opened and are not counted")
        return "\n".join(lines)


def estimate(
    gallery: Gallery,
    encode: Encode,
    reading: VideoReading,
    sources: Sources,
    segmentation: Segmentation,
    *,
    on_duplicate: OnDuplicate,
    max_batch: int,
    workers: int | None,
    shares_cores: bool,
    shares_frames: bool,
) -> IndexEstimate:
    """Estimate a run from the files' headers, a few seconds of decoding and one encoded batch.

    ``encode``: embeds videos, at most ``max_batch``. ``shares_cores``: whether the encoder runs on
    the cores that decode. ``shares_frames``: whether a frame of several windows is encoded once,
    and padding never. Raises GalleryError, SessionError.
    """
    known = KnownFiles(gallery.snapshot().listing(), sources, prune=False)
    plan = plan_files(sources, known, on_duplicate)
    sampling = reading.sampling
    durations: dict[str, float] = {}
    num_segments = unreadable = 0
    windows = 0.0
    """Windows' worth of frames to encode."""
    for task in plan.read:
        duration_s = announced_duration_s(Path(task.source.path))
        if duration_s is None:
            unreadable += 1
        else:
            durations[task.source.path] = duration_s
            own = len(segmentation.spans(duration_s))
            num_segments += own
            span_s = sampling.max_frames / sampling.frames_per_second
            windows += min(own, duration_s / span_s) if shares_frames else own
    total_s = sum(durations.values())
    model = gallery.model
    row_bytes = 2 * model.embed_dim * (1 + model.max_frames) + _RECORD_BYTES
    decode_s = encode_s = 0.0
    if durations:
        cores = usable_cores() if workers is None else workers
        decode_s = total_s * _decoding_cost(durations, reading, segmentation) / cores
        size = reading.image_size
        window = np.zeros((sampling.max_frames, size, size, 3), np.uint8)
        batch = [window] * min(max_batch, num_segments)
        encode(batch[:1])  # opens the session
        started_s = time.perf_counter()
        encode(batch)
        encode_s = (time.perf_counter() - started_s) / len(batch) * windows
    return IndexEstimate(
        num_videos=len(plan.read),
        num_unchanged=len(plan.unchanged) + len(plan.touched),
        num_unreadable=unreadable,
        duration_s=total_s,
        num_segments=num_segments,
        size_bytes=num_segments * row_bytes,
        decode_s=decode_s,
        encode_s=encode_s,
        seconds=decode_s + encode_s if shares_cores else max(decode_s, encode_s),
    )


def announced_duration_s(path: Path) -> float | None:
    """Return the duration that a file announces, seconds; None if it cannot be opened or told."""
    try:
        container, stream = open_video(path)
    except (VideoError, OSError):
        return None
    with container:
        if stream.duration is not None and stream.time_base:
            return float(stream.duration * stream.time_base)
        return None if container.duration is None else container.duration / 1_000_000


def _decoding_cost(
    durations: dict[str, float], reading: VideoReading, segmentation: Segmentation
) -> float:
    """Measure the seconds that one worker takes for a second of video, over a few files."""
    paths = list(durations)
    step = max(1, len(paths) // _SAMPLED_FILES)
    read_s = spent_s = 0.0
    for path in paths[::step][:_SAMPLED_FILES]:
        started_s, reached_s = time.perf_counter(), 0.0
        with suppress(VideoError):  # the run itself will report it
            for time_s in _read_until(Path(path), reading, segmentation, durations[path]):
                reached_s = time_s
                if time.perf_counter() - started_s > _SAMPLE_S:
                    break
        if reached_s:
            spent_s += time.perf_counter() - started_s
            read_s += reached_s
    return spent_s / read_s if read_s else 0.0


def _read_until(
    path: Path, reading: VideoReading, segmentation: Segmentation, duration_s: float
) -> Iterator[float]:
    """Read a video; yield the time that is read so far, seconds."""
    video = read_blocks(path, reading, segmentation)
    if isinstance(video, VideoFrames):
        yield duration_s
        return
    for block in video.blocks():
        yield float(block.times_s[-1])
