"""Indexing into shards on a real Ray cluster, in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle, Gallery
from xclip_deploy.runtime.cluster import read_shards
from xclip_deploy.runtime.cluster.routing import shard_of

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parents[2] / "packages" / "cluster_index_program.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}


def box(number: int) -> bytes:
    """Return an MP4 box that players skip, so that a copy of a file is another content."""
    content = number.to_bytes(4, "big")
    return (8 + len(content)).to_bytes(4, "big") + b"free" + content


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    """Twenty-four videos of different contents, a copy of one, and a file that is broken."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'xclip-deploy[cluster]'")
    folder = tmp_path / "videos"
    folder.mkdir()
    film = (clips / "sam2_dog.mp4").read_bytes()
    for number in range(24):
        (folder / f"v{number:02d}.mp4").write_bytes(film + box(number))
    (folder / "w-copy.mp4").write_bytes(film + box(0))
    (folder / "x-broken.mp4").write_text("no video")
    return folder


def command(bundle: Path, gallery: Path, folder: Path, kills: int = 0) -> list[str]:
    return [sys.executable, *map(str, (PROGRAM, bundle, gallery, folder, kills))]


def index(bundle: Path, gallery: Path, folder: Path, kills: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        command(bundle, gallery, folder, kills),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    outcome: dict[str, Any] = json.loads(lines[-1])
    return outcome


def check_each_once(gallery: Path, folder: Path) -> None:
    """Check that the shards hold every content once, and list every file once."""
    shards = read_shards(gallery)
    files: Counter[str] = Counter()
    contents: Counter[str | None] = Counter()
    ids: Counter[str] = Counter()
    for number, entry in enumerate(shards.shards):
        opened = Gallery.open(gallery / entry.path, version=entry.version)
        for video in opened:
            ids[video.id] += 1
            contents[video.content_sha256] += 1
            files.update(file.path for file in video.files)
            assert shard_of(str(video.content_sha256), len(shards.shards)) == number
        opened.close()
    expected = {str(path) for path in folder.glob("*.mp4") if path.name != "x-broken.mp4"}
    assert set(files) == expected
    assert max(files.values()) == max(contents.values()) == max(ids.values()) == 1
    assert shards.num_videos == len(contents)


def test_a_run_is_continued_and_changes_are_followed(
    bundle_path: Path, bundle: Bundle, folder: Path, tmp_path: Path, clips: Path
) -> None:
    gallery = tmp_path / "G"
    first = index(bundle_path, gallery, folder)
    assert len(first["indexed"]) == 24
    assert list(first["duplicates"]) == [str(folder / "w-copy.mp4")]
    assert [Path(failed["path"]).name for failed in first["failed"]] == ["x-broken.mp4"]
    check_each_once(gallery, folder)
    thumbnails = list(gallery.glob("shard-*/thumbnails/*/*.webp"))
    assert len(thumbnails) == sum(shard.num_segments for shard in read_shards(gallery).shards)
    again = index(bundle_path, gallery, folder)
    assert again["indexed"] == again["changed"] == []
    assert len(again["unchanged"]) == 25
    # New contents move files between shards.
    film = (clips / "sam2_dog.mp4").read_bytes()
    for number in range(5, 15):
        (folder / f"v{number:02d}.mp4").write_bytes(film + box(1000 + number))
    (folder / "v20.mp4").unlink()
    third = index(bundle_path, gallery, folder)
    assert len(third["changed"]) == 10
    assert third["indexed"] == []
    assert third["pruned"] == [str(folder / "v20.mp4")]
    check_each_once(gallery, folder)


def test_an_encoder_that_dies_loses_nothing(
    bundle_path: Path, folder: Path, tmp_path: Path
) -> None:
    found = index(bundle_path, tmp_path / "G", folder, kills=2)
    assert found["killed"] == 2
    assert [Path(failed["path"]).name for failed in found["failed"]] == ["x-broken.mp4"]
    check_each_once(tmp_path / "G", folder)


def test_a_file_that_kills_three_encoders_fails_alone(
    bundle_path: Path, folder: Path, tmp_path: Path
) -> None:
    for path in sorted(folder.glob("*.mp4"))[1:]:
        path.unlink()
    found = index(bundle_path, tmp_path / "G", folder, kills=3)
    assert found["killed"] == 3
    (failed,) = found["failed"]
    assert failed["reason"].endswith("3 workers died while they read it")
    assert read_shards(tmp_path / "G").num_videos == 0


def test_a_run_that_is_killed_at_any_moment_is_continued(
    bundle_path: Path, folder: Path, tmp_path: Path
) -> None:
    moments = random.Random(7)
    gallery = tmp_path / "G"
    for _ in range(3):
        process = subprocess.Popen(
            command(bundle_path, gallery, folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        deadline = time.monotonic() + 120
        while not (gallery / "shards.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(moments.uniform(0, 25))
        process.kill()
        process.wait()
    index(bundle_path, gallery, folder)
    check_each_once(gallery, folder)
