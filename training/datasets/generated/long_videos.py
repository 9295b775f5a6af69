"""Long generated videos of many captioned events, and each event as a clip of its own.

The events of all videos are different scenes, so that a caption names one moment of the whole
set. No caption is also shown across the boundary of two events. They follow each other directly,
except that flickering noise surrounds some of them.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DatasetError, InvalidArgumentError
from xclip_deploy.runtime.arguments import as_whole_number
from xclip_deploy.runtime.datasets.folder import CSV_NAME
from xclip_deploy.runtime.datasets.moments.lines import MOMENTS_NAME
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.training.datasets.generated.encoding import (
    check_recipe,
    video_writer,
    write_recipe,
)
from xclip_deploy.training.datasets.generated.rendering import (
    FRAME_RATE,
    LEAST_EVENT_S,
    MOST_EVENT_S,
    render,
    render_noise,
)
from xclip_deploy.training.datasets.generated.scenes import Scene
from xclip_deploy.training.datasets.generated.splits import SplitSizes, make_splits

VIDEOS = "videos"
"""Folder of the long videos."""
CLIPS = "clips"
"""Folder of the events as single files, a dataset ``folder``."""

_VERSION = 2
"""Version of the dataset; it rises when a seed gives other scenes, times or drawings."""
_NOISE_SHARE = 0.08
"""Share of a video that is noise."""
_EVENTS_IN_NOISE = 1 / 16
"""Share of the events with noise on both sides."""
_MAX_EVENTS = 5000
"""Most events of all videos; there are 5,976 scenes, and some stay out for their partners."""


@dataclass(frozen=True)
class LongVideoSizes:
    """Numbers of the long videos. Raises InvalidArgumentError for ones that cannot be made."""

    videos: int = 20
    events: int = 100
    """Events of each video."""
    duration_s: int = 600
    """Length of each video, seconds."""

    def __post_init__(self) -> None:
        for field in fields(self):
            as_whole_number(field.name, getattr(self, field.name), 1, 100_000)
        mean_s = self.duration_s / self.events
        if self.videos * self.events > _MAX_EVENTS or not 5 <= mean_s <= 60:
            raise InvalidArgumentError(
                f"{self.videos} videos of {self.events} events in {self.duration_s} s; expected "
                f"{_MAX_EVENTS} events at most, of 5 to 60 s each with the noise between them"
            )


TOY = LongVideoSizes(videos=2, events=10, duration_s=60)
"""Sizes for tests."""


@dataclass(frozen=True)
class PlacedEvent:
    """One event of a long video."""

    scene: Scene
    start: int
    """First frame."""
    end: int
    """Frame after the last one."""

    @property
    def span_s(self) -> tuple[float, float]:
        """Start and end in seconds."""
        return self.start / FRAME_RATE, self.end / FRAME_RATE


def make_long_videos(
    directory: Path,
    sizes: LongVideoSizes | None = None,
    seed: int = 0,
    *,
    num_workers: int = 0,
    on_progress: ProgressFunction | None = None,
) -> Path:
    """Make the dataset in ``directory``, unless it is there; return its file of moments.

    ``moments.jsonl`` has an object a line: ``file`` (``videos/00.mp4`` and so on), ``caption``,
    ``start_s``, ``end_s``, and ``clip``, the event's own file (``clips/00/000.mp4``).
    ``open_moments("folder", ...)`` reads it. ``clips`` is a dataset ``folder`` with
    ``captions.csv``: the same events, each drawn with the same pixels, as the reference. All of
    it is a function of ``sizes`` and ``seed`` alone. The directory takes its place when it is
    whole.

    Args:
        directory: Folder of the dataset; other content is not touched.
        sizes: Numbers of videos and events.
        seed: Seed of scenes, times and drawings.
        num_workers: Processes that draw and encode; 0 draws in this one.
        on_progress: Called after every long video.

    Raises:
        DatasetError: The directory holds something else, another seed or other sizes, or
            cannot be written.
    """
    sizes = sizes or LongVideoSizes()
    recipe = {"long_videos": _VERSION, "seed": seed, **vars(sizes)}
    moments = directory / MOMENTS_NAME
    if directory.exists() and any(directory.iterdir()):
        check_recipe(directory, recipe)
        return moments
    timelines = place_events(sizes, seed)
    try:
        with replaced_directory(directory) as partial_directory:
            frames = sizes.duration_s * FRAME_RATE
            _write(partial_directory, timelines, frames, seed, num_workers, on_progress)
            write_recipe(partial_directory, recipe)
    except OSError as error:
        raise DatasetError(
            f"{directory}: videos cannot be written ({error.strerror or error}); "
            "make room or choose another folder"
        ) from error
    return moments


def place_events(sizes: LongVideoSizes, seed: int) -> list[list[PlacedEvent]]:
    """Choose the events of each video and their times; no caption occurs twice.

    The scenes are those of a test split of this size: a sequence comes with its reverse, a flash
    with another during the same motion. They are spread over all videos. In a random order, 366
    of 2,000 captions would also be shown by two events: "A, then B" by the end of one and the
    start of the next. Events are placed so that none is, as far as there is room.
    """
    total = sizes.videos * sizes.events
    scenes = make_splits(SplitSizes(train=0, val=0, test=total), seed)["test"]
    if len({scene.caption for scene in scenes}) < total:
        raise InvalidArgumentError(
            f"found {len(scenes)} scenes for {total} events; expected fewer events"
        )
    random = np.random.default_rng((seed, total))
    order = random.permutation(len(scenes))[:total].reshape(sizes.videos, sizes.events)
    captions = frozenset(scene.caption for scene in scenes)
    rows = [_without_echoes([scenes[n] for n in row], captions) for row in order]
    return [_timeline(row, sizes.duration_s, random) for row in rows]


def _without_echoes(scenes: list[Scene], captions: frozenset[str]) -> list[Scene]:
    """Reorder scenes so that the end of one and the start of the next show no other caption."""
    placed: list[Scene] = []
    waiting, tries = deque(scenes), 2 * len(scenes)
    while waiting:
        scene, tries = waiting.popleft(), tries - 1
        places = (
            n
            for n in range(len(placed), -1, -1)
            if not _is_echo(placed[n - 1 : n], [scene], captions)
            and not _is_echo([scene], placed[n : n + 1], captions)
        )
        place = next(places, None)
        if place is None and tries > 0:
            waiting.append(scene)  # for which there is room when more are placed
        else:
            placed.insert(len(placed) if place is None else place, scene)
    return placed


def _is_echo(before: list[Scene], after: list[Scene], captions: frozenset[str]) -> bool:
    """Return whether the boundary shows a caption; a list is empty at an end of the video."""
    return any(
        Scene("sequence", end.last, start.first).caption in captions
        for end, start in zip(before, after, strict=False)
    )


def _timeline(
    scenes: list[Scene], duration_s: int, random: np.random.Generator
) -> list[PlacedEvent]:
    count, total = len(scenes), duration_s * FRAME_RATE
    noise = _noise_before(count, round(total * _NOISE_SHARE), random)
    wanted = random.uniform(LEAST_EVENT_S, MOST_EVENT_S, count)
    ends = np.round(np.cumsum(wanted) / wanted.sum() * (total - noise.sum())).astype(int)
    lengths = np.diff(ends, prepend=0)
    placed, at = [], 0
    for scene, length, before in zip(scenes, lengths.tolist(), noise[:-1].tolist(), strict=True):
        at += before
        placed.append(PlacedEvent(scene, at, at + length))
        at += length
    return placed


def _noise_before(count: int, frames: int, random: np.random.Generator) -> npt.NDArray[np.integer]:
    """Return the frames of noise before each event and after the last, int [count + 1]."""
    chosen = random.choice(count, max(1, round(count * _EVENTS_IN_NOISE)), replace=False)
    places = np.union1d(chosen, chosen + 1)
    shares = random.uniform(1, 2, len(places))
    ends = np.round(np.cumsum(shares) / shares.sum() * frames).astype(int)
    noise = np.zeros(count + 1, dtype=int)
    noise[places] = np.diff(ends, prepend=0)
    return noise


_Job = tuple[Path, int, list[PlacedEvent], int, int]
"""Folder, number of the video, its events, its frames, and the seed."""


def _write(
    directory: Path,
    timelines: list[list[PlacedEvent]],
    num_frames: int,
    seed: int,
    num_workers: int,
    on_progress: ProgressFunction | None,
) -> None:
    (directory / VIDEOS).mkdir()
    jobs: list[_Job] = []
    lines, rows = [], []
    for number, timeline in enumerate(timelines):
        (directory / CLIPS / f"{number:02d}").mkdir(parents=True)
        jobs.append((directory, number, timeline, num_frames, seed))
        for index, event in enumerate(timeline):
            start_s, end_s = event.span_s
            clip = _clip(number, index)
            line = {"file": _video(number), "caption": event.scene.caption}
            lines.append({**line, "start_s": start_s, "end_s": end_s, "clip": f"{CLIPS}/{clip}"})
            rows.append((clip, event.scene.caption))
    with closing(_results(jobs, num_workers)) as results:
        for done, _ in enumerate(results, 1):
            if on_progress is not None:
                on_progress(Progress("videos", done, len(jobs)))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / MOMENTS_NAME).write_text(text, encoding="utf-8")
    with (directory / CLIPS / CSV_NAME).open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("file", "caption"), *rows])


def _results(jobs: list[_Job], num_workers: int) -> Generator[None, None, None]:
    if num_workers == 0:
        yield from map(_draw, jobs)
        return
    # Start new interpreters: PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        yield from pool.map(_draw, jobs)


def _draw(job: _Job) -> None:
    directory, number, timeline, num_frames, seed = job
    with video_writer(directory / _video(number)) as write:
        at = 0
        for index, event in enumerate(timeline):
            random = np.random.default_rng((seed, number, index))
            for picture in render_noise(random, (event.start - at) / FRAME_RATE):
                write(picture)
            start_s, end_s = event.span_s
            with video_writer(directory / CLIPS / _clip(number, index)) as write_clip:
                for picture in render(event.scene, random, duration_s=end_s - start_s):
                    write(picture)
                    write_clip(picture)
            at = event.end
        random = np.random.default_rng((seed, number, len(timeline)))
        for picture in render_noise(random, (num_frames - at) / FRAME_RATE):
            write(picture)


def _video(number: int) -> str:
    return f"{VIDEOS}/{number:02d}.mp4"


def _clip(number: int, index: int) -> str:
    return f"{number:02d}/{index:03d}.mp4"
