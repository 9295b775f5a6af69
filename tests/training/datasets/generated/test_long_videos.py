"""Long generated videos: unique captions, true times, the same pixels as the clips."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from xclip_deploy.errors import DatasetError, InvalidArgumentError
from xclip_deploy.runtime.datasets import open_dataset
from xclip_deploy.runtime.datasets.moments import open_moments
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.training.datasets.generated import LongVideoSizes, make_long_videos
from xclip_deploy.training.datasets.generated.long_videos import TOY, place_events
from xclip_deploy.training.datasets.generated.rendering import FRAME_RATE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("long") / "dataset"
    make_long_videos(directory, TOY)
    return directory


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_it_is_read_as_moments_and_as_clips(dataset: Path) -> None:
    moments = open_moments("folder", "test", dataset, dataset)
    assert (len(moments.videos), len(moments.queries)) == (2, 20)
    clips = open_dataset("folder", "test", dataset / "clips", dataset / "clips")
    assert [query.text for query in moments.queries] == list(clips.captions)
    assert len(clips.videos) == 20


def test_times_are_where_the_events_are(dataset: Path) -> None:
    """The frames between the times are those of the clip, but for the coder's losses."""
    moments = open_moments("folder", "test", dataset, dataset)
    with (dataset / "clips/captions.csv").open() as file:
        clips = [row["file"] for row in csv.DictReader(file)]
    paths = {video.id: video.path for video in moments.videos}
    whole = {name: frames_of(path) for name, path in paths.items()}
    assert {len(frames) for frames in whole.values()} == {TOY.duration_s * FRAME_RATE}
    for query, clip in zip(moments.queries, clips, strict=True):
        [(start_s, end_s)] = query.spans
        start, end = round(start_s * FRAME_RATE), round(end_s * FRAME_RATE)
        expected = frames_of(dataset / "clips" / clip).astype(int)
        assert len(expected) == end - start

        def difference(shift: int, video: str = query.video_id) -> float:
            frames = whole[video][start + shift : end + shift]  # noqa: B023
            return float(np.abs(frames - expected[: len(frames)]).mean())  # noqa: B023

        assert difference(0) < 2
        # A second of another event or of noise tells, whichever way.
        assert difference(0) < 0.8 * max(difference(8), difference(-min(8, start)))


def test_noise_has_no_colour_and_surrounds_an_event(dataset: Path) -> None:
    timelines = place_events(TOY, 0)
    for number, timeline in enumerate(timelines):
        edges = [0, *(frame for e in timeline for frame in (e.start, e.end)), 60 * FRAME_RATE]
        gaps = list(zip(edges[::2], edges[1::2], strict=True))
        noisy = [end > start for start, end in gaps]
        assert any(before and after for before, after in itertools.pairwise(noisy))
        frames = frames_of(dataset / f"videos/{number:02d}.mp4").astype(int)
        for start, end in gaps:
            assert not len(frames[start:end]) or np.ptp(frames[start:end], axis=3).max() < 40


def test_the_full_set_is_as_it_should_be() -> None:
    sizes = LongVideoSizes()
    timelines = place_events(sizes, 0)
    events = [event for timeline in timelines for event in timeline]
    assert len({event.scene.caption for event in events}) == len(events) == 2000
    lengths = np.array([event.end - event.start for event in events]) / FRAME_RATE
    assert 3 < lengths.min() < 4.5
    assert 6.5 < lengths.max() < 8
    assert 5 < lengths.mean() < 6
    assert len(set(lengths.tolist())) > 20
    assert {event.scene.kind for event in events} == {"single", "sequence", "flash"}
    for timeline in timelines:
        assert all(a.end <= b.start for a, b in itertools.pairwise(timeline))
        assert timeline[-1].end <= 600 * FRAME_RATE
        in_noise = sum(
            b.start > a.end and c.start > b.end
            for a, b, c in zip(timeline, timeline[1:], timeline[2:], strict=False)
        )
        assert in_noise >= 3
    assert place_events(sizes, 0) == timelines != place_events(sizes, 1)


def test_no_boundary_shows_a_caption() -> None:
    """ "A, then B" is not also the end of one event and the start of the next."""
    timelines = place_events(LongVideoSizes(), 0)
    captions = {event.scene.caption for timeline in timelines for event in timeline}
    shown = {
        f"{motions(before.scene.caption)[-1]}, then {motions(after.scene.caption)[0]}"
        for timeline in timelines
        for before, after in itertools.pairwise(timeline)
    }
    assert not captions & shown
    assert len(shown) > 1000


def motions(caption: str) -> list[str]:
    return caption.split(" while ")[0].split(", then ")


def test_the_same_seed_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    make_long_videos(tmp_path / "again", TOY, num_workers=2)
    files = [path.relative_to(dataset) for path in sorted(dataset.rglob("*")) if path.is_file()]
    assert len(files) == 2 + 20 + 3
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (dataset / file).read_bytes()


def test_what_is_there_is_used_and_nothing_else_is_touched(dataset: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert make_long_videos(dataset, TOY) == dataset / "moments.jsonl"
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    with pytest.raises(DatasetError, match=r"'seed': 0.*expected.*'seed': 7"):
        make_long_videos(dataset, TOY, seed=7)
    (tmp_path / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(DatasetError, match="holds no generated dataset"):
        make_long_videos(tmp_path, TOY)
    assert (tmp_path / "holiday.mp4").read_bytes() == b"precious"


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_long_videos(tmp_path / "videos", TOY, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sizes", [(0, 10, 60), (2, 10, 49), (1, 1, 61), (100, 100, 600), (2, 10.5, 60)]
)
def test_impossible_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        LongVideoSizes(*sizes)
