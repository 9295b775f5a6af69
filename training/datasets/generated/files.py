"""Write the generated dataset to disk: mp4 files and one file of captions."""

from __future__ import annotations

import csv
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from xclip_deploy.errors import DatasetError
from xclip_deploy.runtime.datasets import SplitName
from xclip_deploy.runtime.datasets.folder import CSV_NAME
from xclip_deploy.runtime.files import replaced_directory
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.training.datasets.generated.encoding import (
    check_recipe,
    video_writer,
    write_recipe,
)
from xclip_deploy.training.datasets.generated.excerpts import render_excerpt
from xclip_deploy.training.datasets.generated.rendering import render
from xclip_deploy.training.datasets.generated.scenes import Scene
from xclip_deploy.training.datasets.generated.splits import SplitSizes, make_splits

_VERSION = 3
"""Version of the dataset; it rises when a seed gives other scenes or drawings."""
_CHUNK = 16
_Job = tuple[Path, Scene, tuple[Scene, Scene] | None, tuple[int, ...]]
"""File, its scene, the scenes beside it in an excerpt, and the seed."""


def make_videos(
    directory: Path,
    sizes: SplitSizes | None = None,
    seed: int = 0,
    *,
    excerpts: bool = True,
    num_workers: int = 0,
    on_progress: ProgressFunction | None = None,
) -> Path:
    """Make the dataset in ``directory``, unless it is there; return its caption file.

    Videos are H.264 mp4 files, ``train/0000.mp4`` and so on, at 8 frames a second. Held-out ones
    are one event of 6 s. Training videos are excerpts, see :func:`render_excerpt`, unless
    ``excerpts`` is false. ``captions.csv`` has their ``file``, ``caption`` and ``split``; the
    dataset ``folder`` reads it. Scenes, captions and pixels before encoding are a function of
    ``sizes``, ``seed`` and ``excerpts`` alone. The directory takes its place when it is whole.

    Args:
        directory: Folder of the dataset; other content is not touched.
        sizes: Videos of each split.
        seed: Seed of scenes and drawings.
        excerpts: Whether training videos are excerpts; false makes each one event of 6 s.
        num_workers: Processes that draw and encode; 0 draws in this one.
        on_progress: Called after every few videos.

    Raises:
        DatasetError: the directory holds something else, another seed or other sizes, or
            cannot be written.
    """
    sizes = sizes or SplitSizes()
    recipe: dict[str, object] = {"version": _VERSION, "seed": seed, **vars(sizes)}
    if not excerpts:  # Datasets with excerpts were noted before there was a choice.
        recipe["excerpts"] = False
    captions = directory / CSV_NAME
    if directory.exists() and any(directory.iterdir()):
        check_recipe(directory, recipe)
        return captions
    splits = make_splits(sizes, seed)
    try:
        with replaced_directory(directory) as partial_directory:
            for name in splits:
                (partial_directory / name).mkdir()
            jobs = _jobs(partial_directory, splits, seed, excerpts=excerpts)
            _write(jobs, num_workers, on_progress)
            _write_captions(partial_directory, splits)
            write_recipe(partial_directory, recipe)
    except OSError as error:
        raise DatasetError(
            f"{directory}: videos cannot be written ({error.strerror or error}); "
            "make room or choose another folder"
        ) from error
    return captions


def _jobs(
    directory: Path, splits: dict[SplitName, list[Scene]], seed: int, *, excerpts: bool
) -> list[_Job]:
    jobs: list[_Job] = []
    for number, (name, scenes) in enumerate(splits.items()):
        for index, scene in enumerate(scenes):
            # The scenes are in random order, so those beside this one are random.
            beside = (scenes[index - 1], scenes[(index + 1) % len(scenes)])
            neighbours = beside if excerpts and name == "train" else None
            path = directory / _file(name, index)
            jobs.append((path, scene, neighbours, (seed, number, index)))
    return jobs


def _write(jobs: list[_Job], num_workers: int, on_progress: ProgressFunction | None) -> None:
    done = 0
    with closing(_results(jobs, num_workers)) as results:
        for count in results:
            done += count
            if on_progress is not None:
                on_progress(Progress("videos", done, len(jobs)))


def _write_captions(directory: Path, splits: dict[SplitName, list[Scene]]) -> None:
    with (directory / CSV_NAME).open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(("file", "caption", "split"))
        for name, scenes in splits.items():
            rows.writerows((_file(name, index), s.caption, name) for index, s in enumerate(scenes))


def _file(split: SplitName, index: int) -> str:
    return f"{split}/{index:04d}.mp4"


def _results(jobs: list[_Job], num_workers: int) -> Generator[int, None, None]:
    """Do the jobs; yield the number of videos of each finished chunk."""
    remaining = iter(jobs)
    chunks = list(iter(lambda: list(islice(remaining, _CHUNK)), []))
    if num_workers == 0:
        yield from map(_draw_all, chunks)
        return
    # Start new interpreters: PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        yield from pool.map(_draw_all, chunks)


def _draw_all(jobs: list[_Job]) -> int:
    for path, scene, neighbours, seed in jobs:
        random = np.random.default_rng(seed)
        pictures = (
            render_excerpt(scene, *neighbours, random) if neighbours else render(scene, random)
        )
        with video_writer(path) as write:
            for picture in pictures:
                write(picture)
    return len(jobs)
