"""Long videos on their way into a gallery: windows, batches, failures, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexing_stand_ins import FRAMES, encode, index_files, only
from long_clips import make_long, shade

from xclip_deploy.errors import MissingExtraError, SessionError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.video import Segmentation

WINDOWS = Segmentation("windows", 3, 1.5)


def rows_of(gallery: Gallery, path: Path) -> list[GalleryVideo]:
    snapshot = gallery.snapshot()
    return list(snapshot.videos(snapshot.segments([str(path)])[str(path)]))


def segments_of(gallery: Gallery, path: Path) -> list[tuple[float, float, tuple[float, ...]]]:
    rows = rows_of(gallery, path)
    assert [row.segment for row in rows] == list(range(len(rows)))
    found = []
    for row in rows:
        assert row.start_s is not None
        assert row.end_s is not None
        found.append((row.start_s, row.end_s, row.frame_times_s))
    return found


def test_windows_become_segments(gallery: Gallery, make: Any, tmp_path: Path) -> None:
    long, short = make_long(tmp_path / "videos" / "long.mp4", 31), make("short.mp4", 1)
    seen: list[list[float]] = []

    def watch(videos: Sequence[Any]) -> VideoFeatures:
        assert 1 <= len(videos) <= 4
        seen.extend(video.mean((1, 2, 3)).round().tolist() for video in videos)
        return encode(videos)

    report = index_files(
        gallery, long, short, segmentation=WINDOWS, encode=watch, settings={"max_batch": 4}
    )
    only(report, indexed=[str(long), str(short)])
    found = segments_of(gallery, long)
    starts = [1.5 * n for n in range(19)] + [28.0]
    assert [(start, end) for start, end, _ in found] == [(s, s + 3) for s in starts]
    for start, end, times in found:
        assert times == tuple(float(tick) for tick in range(31) if start <= tick < end)
    # The encoder saw the frames of these times, and the gallery has the result in this order.
    for _, _, times in found:
        expected = [shade(int(time_s)) for time_s in times]
        assert any(np.allclose(each, expected, atol=3) for each in seen if len(each) == len(times))
    assert gallery.snapshot().num_videos == 2
    assert len(gallery.snapshot()) == len(found) + 1
    # A second run has nothing to do.
    only(index_files(gallery, long, short, segmentation=WINDOWS), unchanged=[str(long), str(short)])


def test_features_lie_where_their_windows_do(gallery: Gallery, tmp_path: Path) -> None:
    path = make_long(tmp_path / "long.mp4", 60)

    def brightness(videos: Sequence[Any]) -> VideoFeatures:
        features = encode(videos)
        for row, video in zip(features.video_features, videos, strict=True):
            angle = float(video[0].mean()) / 255
            row[:] = 0
            row[:2] = np.cos(angle), np.sin(angle)
        return features

    index_files(gallery, path, segmentation=Segmentation("windows", 3, 3), encode=brightness)
    snapshot = gallery.snapshot()
    numbers = snapshot.segments([str(path)])[str(path)]
    rows, features = list(snapshot.videos(numbers)), snapshot.features(numbers).video_features
    assert len(rows) == 20
    for row, feature in zip(rows, features, strict=True):
        angle = float(np.arctan2(feature[1], feature[0]))
        assert 255 * angle == pytest.approx(shade(int(row.frame_times_s[0])), abs=3)


def test_progress_tells_seconds_of_seconds(gallery: Gallery, tmp_path: Path) -> None:
    path = make_long(tmp_path / "long.mp4", 600)
    calls: list[Progress] = []
    index_files(gallery, path, segmentation=WINDOWS, progress=calls.append, workers=1)
    notes = [call.note for call in calls if call.note]
    assert len(notes) > 1
    assert all(note.startswith("long.mp4 ") and note.endswith(" of 10:00") for note in notes)
    assert notes == sorted(notes)
    assert calls[-1] == Progress("videos", 1, 1)


def test_numbers_that_are_none_cost_that_file(gallery: Gallery, make: Any, tmp_path: Path) -> None:
    paths = [make_long(tmp_path / f"{n}.mp4", 40 + n) for n in range(2)]
    short = make("short.mp4", 1)
    calls = 0

    def once(videos: Sequence[Any]) -> VideoFeatures:
        nonlocal calls
        calls += 1
        features = encode(videos)
        if calls == 2:
            features.frame_features[0, 0] = np.nan
        return features

    report = index_files(
        gallery, *paths, short, segmentation=WINDOWS, encode=once, workers=1,
        settings={"max_batch": 4},
    )  # fmt: skip
    only(report, indexed=[str(paths[1]), str(short)], failed=[str(paths[0])])
    assert "the encoder gave wrong features for the segment at 0:0" in report.failed[0].reason
    assert gallery.snapshot().num_videos == 2


def test_segments_appear_all_or_none(gallery: Gallery, make: Any, tmp_path: Path) -> None:
    long, short = make_long(tmp_path / "videos" / "long.mp4", 60), make("short.mp4", 1)
    calls = 0

    def fails_late(videos: Sequence[Any]) -> VideoFeatures:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise SessionError("the GPU is gone")
        return encode(videos)

    options: dict[str, Any] = {"segmentation": WINDOWS, "settings": {"max_batch": 4}}
    with pytest.raises(SessionError):
        index_files(gallery, short, long, encode=fails_late, workers=1, **options)
    assert gallery.snapshot().num_videos == len(gallery) <= 1
    assert len(index_files(gallery, short, long, **options).failed) == 0
    assert len(rows_of(gallery, long)) == 39


def test_damage_is_reported_and_left_out(gallery: Gallery, tmp_path: Path) -> None:
    path = make_long(tmp_path / "long.mkv", 120)
    content = bytearray(path.read_bytes())
    first, last = int(0.4 * len(content)), int(0.6 * len(content))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    report = index_files(gallery, path, segmentation=Segmentation("windows", 3, 3))
    (warning,) = report.warnings
    assert "no frames between 0:" in warning.reason
    assert " segments have no frame and are left out" in warning.reason
    found = segments_of(gallery, path)
    assert 20 < len(found) < 38
    assert found[-1][:2] == (117, 120)
    assert all(start - 0.5 <= times[0] < times[-1] + 0.1 < end + 0.5 for start, end, times in found)


def test_copies_of_a_long_video_are_read_once(gallery: Gallery, tmp_path: Path) -> None:
    path = make_long(tmp_path / "a.mp4", 30)
    copy = tmp_path / "b.mp4"
    copy.write_bytes(path.read_bytes())
    report = index_files(gallery, path, copy, segmentation=WINDOWS)
    only(report, indexed=[str(path)], duplicates={str(copy): str(path)})
    (row, *_) = rows_of(gallery, path)
    assert [file.path for file in row.files] == [str(path), str(copy)]


def test_a_whole_video_that_is_thinned_out_is_warned_of(
    gallery: Gallery, make: Any, tmp_path: Path
) -> None:
    path = make_long(tmp_path / "videos" / "long.mp4", 60)
    report = index_files(gallery, path, make("short.mp4", 1))
    (warning,) = report.warnings
    assert warning.path == str(path)
    assert warning.reason == (
        f"1:00 are seen in {FRAMES} frames, one every 30 s; what lies between is not found: "
        "index it in segments"
    )


def test_shots_need_their_package_at_once(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(MissingExtraError, match=r"xclip-deploy\[shots\]"):
        index_files(gallery, tmp_path, segmentation=Segmentation("shots", 3, 3))


PEAKS = """
import json, sys, threading
from pathlib import Path
from indexing_stand_ins import encode, index_files, manifest
import xclip_deploy.runtime.decoding.process as process
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.video import Segmentation

if __name__ == "__main__":
    def peak(pid):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    gallery = Gallery.open(sys.argv[1], manifest(), create=True)
    notes, workers = [], []

    def watch(progress):
        notes.append(progress.note)
        workers.extend(peak(running.pid) for running in list(started) if running.is_alive())

    started = []
    start = process.DecoderProcess.__init__

    def note(self, command):
        start(self, command)
        started.append(self)

    process.DecoderProcess.__init__ = note
    report = index_files(
        gallery, sys.argv[2], segmentation=Segmentation("windows", 8.0, 4.0), progress=watch
    )
    peaks = {"parent": peak("self"), "worker": max(workers), "rows": len(gallery.snapshot())}
    print(json.dumps({**peaks, "indexed": len(report.indexed), "last": notes[-2]}))
"""


@pytest.mark.slow
def test_six_hours_take_little_memory(tmp_path: Path) -> None:
    """Parent and worker together stay far below 1.5 GB, with an encoder that needs no memory."""
    path = make_long(tmp_path / "six_hours.mp4", 6 * 3600, rate=10, seconds_per_key=60)
    peaks = _peaks(tmp_path, path)
    small = _peaks(tmp_path, make_long(tmp_path / "minute.mp4", 60, rate=10))
    assert peaks["indexed"] == 1
    assert peaks["rows"] == 5399
    assert peaks["last"].endswith(" of 6:00:00")
    assert peaks["parent"] + peaks["worker"] < 700
    # 216,000 packets of 41 bytes, Python's lists of them, and 5,399 segments.
    assert peaks["worker"] - small["worker"] < 120
    assert peaks["parent"] - small["parent"] < 200


def _peaks(folder: Path, path: Path) -> dict[str, Any]:
    script = folder / "peaks.py"
    script.write_text(PEAKS)
    run = subprocess.run(
        [sys.executable, str(script), str(folder / f"gallery-{path.stem}"), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    sys.stderr.write(f"{path.name}: {found}\n")
    return found


def _environment() -> dict[str, str]:

    packages = str(Path(__file__).resolve().parents[2] / "packages")
    above = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{packages}:{above}" if above else packages}
