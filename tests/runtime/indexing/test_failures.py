"""Videos, encoders and galleries that fail: what it costs, and what is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexing_stand_ins import (
    SAMPLING,
    SIZE,
    encode,
    index_files,
    make_some,
    only,
    videos_of,
)

from xclip_deploy.errors import GalleryError, SessionError
from xclip_deploy.runtime.decoding import DecoderPool
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.indexing import Sources
from xclip_deploy.runtime.progress import Progress


def test_failures_are_reported(gallery: Gallery, index: Any, make: Any, tmp_path: Path) -> None:
    good = make("good “name” 'x' 🐕 %20.mp4", 1)
    bad, copy = good.with_name("bad.mp4"), good.with_name("bad copy.mp4")
    bad.write_bytes(b"no video")
    shutil.copyfile(bad, copy)
    good.with_name("empty.mp4").touch()
    odd = good.with_name(os.fsdecode(b"caf\xe9.mp4"))
    shutil.copyfile(good, odd)
    listing = tmp_path / "list.txt"
    listing.write_text("videos/gone.mp4\n")
    calls: list[Progress] = []
    report = index(good.parent, listing, progress=calls.append)
    assert report.indexed == (str(good),)
    reasons = {Path(failure.path).name: failure.reason for failure in report.failed}
    assert set(reasons) == {"bad.mp4", "bad copy.mp4", "empty.mp4", "gone.mp4", "caf\\udce9.mp4"}
    assert "is empty" in reasons["empty.mp4"]
    assert "no such file" in reasons["gone.mp4"]
    assert "no UTF-8 path" in reasons["caf\\udce9.mp4"]
    assert all("\n" not in reason for reason in reasons.values())
    assert calls[-1] == Progress("videos", 6, 6, failed=5)
    json.dumps(report.to_dict(), ensure_ascii=False).encode()
    assert str(report).splitlines()[-1].startswith("1 indexed, 0 unchanged, 5 failed in ")
    assert [line for line in str(report).splitlines() if line.startswith("failed: ")]


def test_an_encoder_that_gives_nan_costs_that_video(gallery: Gallery, make: Any) -> None:
    paths = [make(f"{n}.mp4", n) for n in range(3)]
    twin = make("twin.mp4", 1)

    def sometimes(videos: Sequence[Any]) -> VideoFeatures:
        features = encode(videos)
        bad = encode([_frames(paths[1])]).video_features[0]
        rows = np.isclose(features.video_features, bad).all(1)
        features.frame_features[rows] = np.nan
        return features

    report = index_files(gallery, paths[0].parent, encode=sometimes)
    assert report.indexed == (str(paths[0]), str(paths[2]))
    assert {failure.path for failure in report.failed} == {str(paths[1]), str(twin)}
    assert all("NaN" in failure.reason for failure in report.failed)


def _longer(features: VideoFeatures, row: int) -> None:
    features.video_features[row] *= 2


def _without_frames(features: VideoFeatures, row: int) -> None:
    features.num_frames[row] = 0


def _more_frames_than_times(features: VideoFeatures, row: int) -> None:
    features.num_frames[row] = 3


def _beyond_fp16(features: VideoFeatures, row: int) -> None:
    features.frame_features[row] = 1e6


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_longer, "vector of length 2, expected 1"),
        (_without_frames, "num_frames 0"),
        (_more_frames_than_times, "num_frames 3 and 2 frame times"),
        (_beyond_fp16, "holds NaN or infinity"),
    ],
)
def test_features_that_no_gallery_takes_cost_that_video(
    gallery: Gallery, make: Any, damage: Any, reason: str
) -> None:
    paths = [make(f"{n}.mp4", n) for n in range(3)]

    def sometimes(videos: Sequence[Any]) -> VideoFeatures:
        features = encode(videos)
        bad = encode([_frames(paths[1])]).video_features[0]
        for row in np.flatnonzero(np.isclose(features.video_features, bad).all(1)):
            damage(features, row)
        return features

    report = index_files(gallery, paths[0].parent, encode=sometimes)
    assert report.indexed == (str(paths[0]), str(paths[2]))
    (failure,) = report.failed
    assert failure.path == str(paths[1])
    assert reason in failure.reason
    assert len(gallery) == 2


def _frames(path: Path) -> Any:
    from xclip_deploy import read_video

    return read_video(path, SAMPLING, SIZE).frames


def test_an_encoder_that_fails_keeps_what_was_encoded(gallery: Gallery, make: Any) -> None:
    folder = make_some(make, 6)
    calls = 0

    def second_fails(videos: Sequence[Any]) -> VideoFeatures:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise SessionError("the GPU is gone")
        return encode(videos)

    options: dict[str, Any] = {"encode": second_fails, "settings": {"max_batch": 2}}
    with pytest.raises(SessionError):
        index_files(gallery, folder, **options)
    assert len(gallery) == 2
    assert len(index_files(gallery, folder, **options).indexed) == 4


def test_an_interruption_keeps_what_was_read(gallery: Gallery, make: Any, index: Any) -> None:
    folder = make_some(make, 6)

    def interrupt(progress: Progress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(folder, progress=interrupt)
    assert len(gallery) == 5
    assert len(index(folder).indexed) == 1


def test_a_gallery_that_cannot_be_written_stops_the_run(
    gallery: Gallery, make: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_some(make, 6)
    committed: list[str] = []
    add = gallery.add

    def full(videos: Any, features: Any, **options: Any) -> None:
        if committed:
            raise GalleryError("the disk is full")
        add(videos, features, **options)

    monkeypatch.setattr(gallery, "add", full)
    settings = {"commit_videos": 2, "on_commit": committed.extend}
    with pytest.raises(GalleryError, match="full"):
        index(folder, settings=settings)
    assert set(videos_of(gallery)) == set(committed)
    assert committed


def test_commits_by_number_and_time(gallery: Gallery, make: Any, index: Any) -> None:
    folder = make_some(make, 7)
    sizes: list[int] = []
    note = {"on_commit": lambda paths: sizes.append(len(paths))}
    index(folder, settings={"commit_videos": 3, "commit_s": 1000.0, **note})
    assert sum(sizes) == 7
    assert max(sizes) <= 3
    sizes.clear()
    index(folder, on_duplicate="replace", settings={"commit_s": 1e-9, **note})
    assert sum(sizes) == 7
    assert len(sizes) > 1


def test_nothing_to_index(index: Any, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    only(index())
    only(index(tmp_path / "none"))
    assert Sources([]).videos == []


def test_a_crash_and_a_hang(gallery: Gallery, make: Any, misbehaving: tuple[str, ...]) -> None:
    """Copies of a video that takes its decoder down are not tried one after the other."""
    folder = make("0.mp4", 0).parent
    make("crash.mp4", 1), make("hang.mp4", 2)
    for n in range(3, 9):
        make(f"{n}.mp4", n)
    make("copy of crash.mp4", 1)
    report = index_files(gallery, folder, pool={"timeout_s": 3, "command": misbehaving})
    assert len(report.indexed) == len(gallery) == 7
    reasons = {Path(failure.path).name: failure.reason for failure in report.failed}
    assert set(reasons) == {"crash.mp4", "hang.mp4", "copy of crash.mp4"}
    assert "SIGSEGV" in reasons["crash.mp4"]
    assert "not read within 3 s" in reasons["hang.mp4"]


def test_no_more_videos_are_in_flight_than_fit_in_memory(
    gallery: Gallery, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_some(make, 20)
    most = 0
    submit = DecoderPool.submit

    def spy(pool: DecoderPool[Any], *arguments: Any) -> None:
        nonlocal most
        submit(pool, *arguments)
        most = max(most, pool.in_flight)

    monkeypatch.setattr(DecoderPool, "submit", spy)
    index_files(gallery, folder, workers=2, settings={"max_batch": 3})
    assert most == 2 * 2 + 3
