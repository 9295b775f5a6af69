"""Indexing into shards on a real Ray cluster, in a process of its own."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster_galleries import ENVIRONMENT, PROGRAMS, Nodes, line_of

from xclip_deploy import Bundle, Gallery
from xclip_deploy.runtime.cluster import read_shards
from xclip_deploy.runtime.cluster.routing import shard_of

pytestmark = pytest.mark.slow
PROGRAM = "cluster_index_program.py"


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


def index(
    bundle: Path, gallery: Path, folder: Path, kills: int = 0, *options: str
) -> dict[str, Any]:
    return line_of(PROGRAM, bundle, gallery, folder, kills, "local", *options, timeout_s=400)


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
    # The copy is read after what it is a copy of, and is hashed alone.
    assert sorted(first["encoded"]) == sorted(first["indexed"])
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
    assert sorted(third["encoded"]) == sorted(third["changed"])
    check_each_once(gallery, folder)
    # Other names, and another time of each file: nothing is decoded.
    for path in sorted(folder.glob("v*.mp4")):
        path.rename(path.with_name(f"z-{path.name}"))
    (folder / "w-copy.mp4").touch()
    renamed = index(bundle_path, gallery, folder)
    assert renamed["encoded"] == []
    assert len(renamed["duplicates"]) + len(renamed["unchanged"]) == 24
    check_each_once(gallery, folder)


def test_an_encoder_that_dies_loses_nothing(
    bundle_path: Path, folder: Path, tmp_path: Path
) -> None:
    found = index(bundle_path, tmp_path / "G", folder, kills=2)
    assert found["killed"] == 2
    assert [Path(failed["path"]).name for failed in found["failed"]] == ["x-broken.mp4"]
    check_each_once(tmp_path / "G", folder)


def test_an_encoder_that_hangs_is_replaced(bundle_path: Path, folder: Path, tmp_path: Path) -> None:
    found = index(bundle_path, tmp_path / "G", folder, 1, "--stop")
    assert found["killed"] == 1
    assert [Path(failed["path"]).name for failed in found["failed"]] == ["x-broken.mp4"]
    check_each_once(tmp_path / "G", folder)


def interrupted(*words: object, when: Callable[[], bool]) -> tuple[int, str]:
    """Run a command until ``when`` holds, press Ctrl-C, and return its status and messages."""
    program = Path(sys.executable).with_name("xclip-deploy")
    with subprocess.Popen(
        [program, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        deadline = time.monotonic() + 200
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, messages = process.communicate(timeout=90)
        finally:
            process.kill()
    return process.returncode, messages


def test_ctrl_c_ends_indexing_and_search(
    bundle_path: Path, folder: Path, tmp_path: Path, nodes: Nodes
) -> None:
    gallery = tmp_path / "G"
    place = ("--bundle", bundle_path, "--gallery", gallery, "--cluster", nodes.address)
    for path in sorted(folder.glob("v*.mp4"))[12:]:
        path.unlink()
    words = ("index", folder, *place, "--shards", 3)
    status, messages = interrupted(*words, when=lambda: bool(nodes.processes("ray::EncoderActor")))
    assert status == 130, messages
    assert messages.endswith("interrupted\n")
    assert re.search(r"kept \d+ videos? in ", messages)
    published = read_shards(gallery)
    found = [Gallery.open(gallery / entry.path) for entry in published.shards]
    assert [len(each) for each in found] == [entry.num_videos for entry in published.shards]
    done = line_of(PROGRAM, bundle_path, gallery, folder, 0, nodes.address, timeout_s=400)
    assert [Path(failed["path"]).name for failed in done["failed"]] == ["x-broken.mp4"]
    check_each_once(gallery, folder)
    # A search whose actors start.
    search = ("search", "a dog", *place, "--timeout", 60)
    status, messages = interrupted(*search, when=lambda: bool(nodes.processes("ray::ShardActor")))
    assert (status, messages.splitlines()[-1]) == (130, "interrupted")
    deadline = time.monotonic() + 60
    while nodes.processes("ray::ShardActor") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert nodes.processes("ray::ShardActor") == nodes.processes("ray::EncoderActor") == []


def test_a_file_that_kills_three_encoders_fails_alone(
    bundle_path: Path, folder: Path, tmp_path: Path
) -> None:
    for path in sorted(folder.glob("*.mp4"))[10:]:
        path.unlink()
    (folder / "v04.mp4").rename(folder / "deadly.mp4")
    found = index(bundle_path, tmp_path / "G", folder, 0, "--deadly")
    # With seven others at first, then alone.
    assert found["deaths"] == ["8", "1", "1"]
    (failed,) = found["failed"]
    assert Path(failed["path"]).name == "deadly.mp4"
    assert failed["reason"].endswith("3 workers died while they read it")
    assert read_shards(tmp_path / "G").num_videos == 9


def num_versions(gallery: Path) -> int:
    return len(list(gallery.glob("shard-*/*.lance/_versions/*")))


def kill_once(gallery: Path, nodes: Nodes, driver: subprocess.Popen[bytes], round_: int) -> None:
    """Kill an encoder in most rounds, and then the driver: at a random moment, or at a commit."""
    moments = random.Random(round_)
    before = num_versions(gallery)
    deadline = time.monotonic() + 60
    while not nodes.processes("ray::EncoderActor") and time.monotonic() < deadline:
        time.sleep(0.1)
    if round_ % 4:
        time.sleep(moments.uniform(0, 4))
        for pid in nodes.processes("ray::EncoderActor")[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if round_ % 2:
        time.sleep(moments.uniform(0, 4))
    else:
        while num_versions(gallery) == before and driver.poll() is None:
            time.sleep(0.002)
    driver.kill()
    driver.wait()


def test_runs_that_are_killed_at_twenty_moments_are_continued(
    bundle_path: Path, folder: Path, tmp_path: Path, clips: Path, nodes: Nodes
) -> None:
    gallery = tmp_path / "G"
    film = (clips / "sam2_dog.mp4").read_bytes()
    for path in sorted(folder.glob("v*.mp4"))[12:]:
        path.unlink()
    arguments = (bundle_path, gallery, folder, 0, nodes.address)
    died = 0
    for round_ in range(20):
        driver = subprocess.Popen(
            [sys.executable, *map(str, (PROGRAMS / PROGRAM, *arguments))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        kill_once(gallery, nodes, driver, round_)
        died += driver.returncode == -signal.SIGKILL
        last = line_of(PROGRAM, *arguments, timeout_s=400)
        assert [Path(failed["path"]).name for failed in last["failed"]] == ["x-broken.mp4"]
        check_each_once(gallery, folder)
        # New contents, which move files between shards; a file that is gone, and a new one.
        for number in range(round_ % 3, 12, 2):
            content = film + box(1000 + 100 * round_ + number)
            (folder / f"v{number:02d}.mp4").write_bytes(content)
        (folder / f"y{round_:02d}.mp4").write_bytes(film + box(9000 + round_))
        (folder / f"y{round_ - 1:02d}.mp4").unlink(missing_ok=True)
    # A few runs may end before they are killed.
    assert died >= 12
