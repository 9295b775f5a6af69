"""The files of the generated dataset: real mp4 files, read as any others are."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from xclip_deploy.errors import DatasetError
from xclip_deploy.runtime.datasets import open_dataset
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.video import FrameSampling, read_video
from xclip_deploy.training.datasets.generated import Event, Scene, SplitSizes, make_videos
from xclip_deploy.training.datasets.generated.excerpts import render_excerpt
from xclip_deploy.training.datasets.generated.rendering import render

SIZES = SplitSizes(train=20, val=8, test=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generated") / "videos"
    make_videos(directory, SIZES)
    return directory


def test_it_is_a_folder_dataset(dataset: Path) -> None:
    splits = {name: open_dataset("folder", name, dataset, dataset) for name in vars(SIZES)}
    assert {name: len(split.videos) for name, split in splits.items()} == vars(SIZES)
    frames = read_video(splits["test"].videos[0].path, FrameSampling(max_frames=12), 64)
    assert frames.frames.shape == (6, 64, 64, 3)
    np.testing.assert_allclose(frames.times_s, range(6), atol=0.01)


def test_the_same_seed_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    make_videos(tmp_path / "again", SIZES, num_workers=2)
    make_videos(tmp_path / "other", SIZES, seed=1)
    files = [path.relative_to(dataset) for path in sorted(dataset.rglob("*")) if path.is_file()]
    assert len(files) == 36 + 2
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (dataset / file).read_bytes()
    assert (tmp_path / "other/captions.csv").read_text() != (dataset / "captions.csv").read_text()


def test_what_is_there_is_used_and_nothing_else_is_touched(dataset: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert make_videos(dataset, SIZES) == dataset / "captions.csv"
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    with pytest.raises(DatasetError, match=r"'seed': 0.*expected.*'seed': 7"):
        make_videos(dataset, SIZES, seed=7)
    (tmp_path / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(DatasetError, match="holds no generated dataset"):
        make_videos(tmp_path, SIZES)
    assert (tmp_path / "holiday.mp4").read_bytes() == b"precious"
    os.mkfifo(tmp_path / "generated.json")
    with pytest.raises(DatasetError, match="is no regular file but a pipe"):
        make_videos(tmp_path, SIZES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DatasetError, match="cannot be written"):
        make_videos(tmp_path / "videos", SIZES)


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_videos(tmp_path / "videos", SIZES, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_captions_say_what_is_drawn(dataset: Path) -> None:
    """The colour that a caption names first is the one that the first frame shows."""
    with (dataset / "captions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "train"]
    assert len([row for row in rows if "flashes" not in row["caption"]]) >= 8
    for row in rows:
        frames = read_video(dataset / row["file"], FrameSampling(max_frames=6), 96).frames
        # A flash may be in the first frame too; of a thing alone, all pixels tell.
        if "flashes" not in row["caption"]:
            assert colour_of(frames[0]) == row["caption"].split()[1], row


def test_an_excerpt_is_a_whole_event_or_a_window_near_it() -> None:
    red, blue, green = (
        Scene("single", Event(colour, "circle", "up")) for colour in ("red", "blue", "green")
    )
    lengths, starts, ends = set(), Counter[str | None](), Counter[str | None]()
    for seed in range(200):
        frames = list(render_excerpt(red, blue, green, np.random.default_rng(seed)))
        assert colour_of(frames[len(frames) // 2]) == "red"
        lengths.add(len(frames))
        if len(frames) != 48:  # the event alone
            assert {colour_of(frame) for frame in frames} == {"red"}
        starts[colour_of(frames[0])] += 1
        ends[colour_of(frames[-1])] += 1
    assert 32 <= min(lengths) < 36 < 60 < max(lengths) <= 64
    # Half of the windows begin before their event, with its neighbour or, rarely, with noise.
    assert set(starts) == {"red", "blue", None}
    assert set(ends) == {"red", "green", None}
    for edges, neighbour in ((starts, "blue"), (ends, "green")):
        assert edges["red"] > edges[neighbour] > 30 > edges[None]


def test_only_training_videos_are_excerpts(dataset: Path) -> None:
    frames = {path: len(frames_of(path)) for path in dataset.rglob("*.mp4")}
    assert {n for path, n in frames.items() if path.parent.name != "train"} == {48}
    assert {n for path, n in frames.items() if path.parent.name == "train"} > {48}


def test_without_excerpts_every_training_video_is_one_event(dataset: Path, tmp_path: Path) -> None:
    make_videos(tmp_path / "whole", SIZES, excerpts=False)
    paths = sorted((tmp_path / "whole").rglob("*.mp4"))
    assert {len(frames_of(path)) for path in paths} == {48}
    assert (tmp_path / "whole" / "captions.csv").read_text() == (
        dataset / "captions.csv"
    ).read_text()
    with pytest.raises(DatasetError, match="'excerpts': False"):
        make_videos(tmp_path / "whole", SIZES)


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def colour_of(frame: np.ndarray) -> str | None:
    """Return the colour of a frame's only thing, None where there is none."""
    pixels = frame.reshape(-1, 3).astype(int)
    colourful = pixels[np.ptp(pixels, axis=1) > 60]
    if not len(colourful):
        return None
    mean = colourful.mean(axis=0)
    high = tuple(int(channel) for channel in np.flatnonzero(mean > mean.max() * 0.75))
    return {(0,): "red", (1,): "green", (2,): "blue", (0, 1): "yellow"}[high]


@pytest.mark.parametrize(
    ("action", "axis", "sign"),
    [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)],
)
def test_motions_go_where_they_say(action: str, axis: int, sign: int) -> None:
    frames = list(render(Scene("single", Event("red", "square", action)), np.random.default_rng(0)))
    places = [np.argwhere(np.ptp(frame.astype(int), axis=2) > 60).mean(axis=0) for frame in frames]
    moved = np.diff(places, axis=0)
    assert (sign * moved[:, axis] > -1e-6).all()
    assert sign * (places[-1] - places[0])[axis] > 40
    assert abs((places[-1] - places[0])[1 - axis]) < 2


@pytest.mark.parametrize(("action", "sign"), [("grow", 1), ("shrink", -1)])
def test_sizes_change_as_they_say(action: str, sign: int) -> None:
    scene = Scene("single", Event("blue", "circle", action))
    frames = list(render(scene, np.random.default_rng(0)))
    areas = [int((np.ptp(frame.astype(int), axis=2) > 60).sum()) for frame in frames]
    assert sign * (areas[-1] - areas[0]) > 200


def test_a_flash_is_seen_in_one_sampled_frame_of_six() -> None:
    scene = Scene("flash", Event("red", "square", "left"), Event("blue", "circle", "flash"))
    for seed in range(20):
        frames = list(render(scene, np.random.default_rng(seed)))
        blue = [
            bool(((frame[..., 2] > 120) & (frame[..., 0] < 110)).sum() > 40)
            for frame in frames[::8]
        ]
        assert sum(blue) == 1
