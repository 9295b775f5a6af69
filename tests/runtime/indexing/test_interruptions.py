"""Killed, side by side with another, and on a full disk: what was committed is there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import indexing_stand_ins
import pytest
from indexing_stand_ins import contents, encode, index_files, manifest

from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.gallery import Gallery


def start(gallery: Path, delay_s: float, *paths: Path) -> subprocess.Popen[str]:
    words = [gallery, delay_s, *paths]
    return subprocess.Popen(
        [sys.executable, indexing_stand_ins.__file__, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
    )


def reported(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """What the process says is committed, while it runs and before it was killed."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[") and line.endswith("\n"):
            yield json.loads(line)


def opened(path: Path) -> Gallery:
    return Gallery.open(path, manifest())


def listed(gallery: Path) -> set[str]:
    return {path for paths, _ in contents(opened(gallery)).values() for path in paths}


def fill(make: Any, count: int) -> Path:
    """A folder of videos, every fifth equal to another."""
    for n in range(count):
        make(f"{n:03}.mp4", n - 3 if n % 5 == 4 else n)
    return Path(make("000.mp4", 0)).parent


def uninterrupted(folder: Path) -> dict[str, tuple[list[str], bytes]]:
    gallery = Gallery(manifest())
    report = index_files(gallery, folder)
    assert not report.failed
    return contents(gallery)


def kill_and_continue(make: Any, gallery: Path, kills: int, videos: int, seed: int) -> None:
    rng = random.Random(seed)
    folder = fill(make, videos)
    committed: set[str] = set()
    for n in range(kills):
        # Some videos change while nobody looks, so that rows are replaced and renamed, too.
        changed = make(f"{rng.randrange(videos):03}.mp4", videos + n)
        committed.discard(str(changed))
        process = start(gallery, 0.3, folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        delay_s = rng.uniform(0, 1.5)
        killer = threading.Timer(delay_s, process.kill)
        killer.start()
        committed.update(path for paths in reported(process) for path in paths)
        killer.cancel()
        process.wait()
        process.stdout.close()
        if gallery.exists() and any(gallery.glob("*/_versions/*")):
            now = listed(gallery)
            assert committed <= now, f"seed {seed}, kill {n} after {delay_s:.3f} s"
    process = start(gallery, 0, folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert output.endswith("done\n")
    assert contents(opened(gallery)) == uninterrupted(folder)


def test_killed_once(make: Any, tmp_path: Path) -> None:
    kill_and_continue(make, tmp_path / "gallery", 1, 16, seed=1)


@pytest.mark.slow
def test_killed_twenty_times(make: Any, tmp_path: Path) -> None:
    kill_and_continue(make, tmp_path / "gallery", 20, 160, seed=2)


@pytest.mark.slow
def test_the_command_killed_twenty_times(
    bundle_path: Path, clips: Path, make: Any, tmp_path: Path
) -> None:
    """The whole program, with a model; decoders do not outlive it."""
    folder = fill(make, 60)
    for path in clips.glob("*.[mw]*"):
        shutil.copy(path, folder)
    rng = random.Random(3)
    gallery = tmp_path / "gallery"
    command = [sys.executable, "-c", "from xclip_deploy.cli import main; main()", "-v", "index"]
    options = ["--bundle", bundle_path, "--gallery", gallery, "--device", "cpu", "--workers", 1]
    words = list(map(str, [*command, folder, *options]))
    started = time.monotonic()
    whole = [*words[:-5], str(tmp_path / "whole"), *words[-4:]]
    subprocess.run(whole, check=True, capture_output=True)
    longest = time.monotonic() - started
    for _ in range(20):
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.3, 1) * longest)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(words, check=True, capture_output=True)
    galleries = [Gallery.open(path, _manifest_of(bundle_path)) for path in (gallery, whole[-5])]
    found, expected = map(contents, galleries)
    assert {f: paths for f, (paths, _) in found.items()} == {
        f: paths for f, (paths, _) in expected.items()
    }


def _manifest_of(bundle_path: Path) -> Any:
    from xclip_deploy import Bundle

    return Bundle.open(bundle_path).manifest


def test_two_at_once_lose_nothing(make: Any, tmp_path: Path) -> None:
    """Both index the same folder, equal files in it, and one of its own."""
    gallery, both = tmp_path / "gallery", fill(make, 20)
    for n in range(10):
        make(f"../left/{n}.mp4", 100 + n)
        make(f"../right/{n}.mp4", 105 + n)
    left, right = tmp_path / "left", tmp_path / "right"
    processes = [start(gallery, 0.02, both, own) for own in (left, right)]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert output.endswith("done\n")
    whole = Gallery(manifest())
    index_files(whole, both, left, right)
    assert contents(opened(gallery)) == contents(whole)


def test_another_stored_the_same_content_meanwhile(make: Any, tmp_path: Path) -> None:
    """Both have decoded it; the second to commit lists its file under the first's video."""
    first, second = make("a.mp4", 1), make("sub/b.mp4", 1)
    path = tmp_path / "gallery"
    one = Gallery.open(path, manifest(), create=True)
    other = opened(path)

    def encode_when_it_is_stored(videos: Any) -> Any:
        index_files(one, first)
        return encode(videos)

    report = index_files(other, second, encode=encode_when_it_is_stored)
    assert report.duplicates == {str(second): str(first)}
    assert report.indexed == ()
    (stored,) = contents(opened(path)).values()
    assert stored[0] == [str(first), str(second)]


def test_the_video_of_an_equal_file_is_removed_meanwhile(make: Any, tmp_path: Path) -> None:
    """What was thought to be stored is not: the file is decoded after all."""
    first, second = make("a.mp4", 1), make("sub/b.mp4", 1)
    third = make("sub/c.mp4", 2)
    path = tmp_path / "gallery"
    one = Gallery.open(path, manifest(), create=True)
    index_files(one, first)
    other = opened(path)

    def encode_when_it_is_gone(videos: Any) -> Any:
        one.refresh()
        if str(first) in one:
            one.remove([str(first)])
        return encode(videos)

    report = index_files(other, second, third, encode=encode_when_it_is_gone)
    assert report.indexed == (str(second), str(third))
    assert listed(path) == {str(second), str(third)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(make: Any, small_disk: Path) -> None:
    folder, path = fill(make, 40), small_disk / "gallery"
    committed: list[str] = []

    def note(paths: Any) -> None:
        committed.extend(paths)
        if len(committed) >= 8 and not filler.exists():
            left = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(max(0, left - 16384)))

    filler = small_disk / "filler"
    settings = {"max_batch": 2, "commit_videos": 4, "on_commit": note}
    gallery = Gallery.open(path, manifest(), create=True)
    with pytest.raises(GalleryError, match="the disk is full") as caught:
        index_files(gallery, folder, workers=1, settings=settings)
    assert "what was committed before stands" in str(caught.value)
    assert len(committed) >= 8
    assert (
        set(committed)
        == listed(path)
        == {file for paths, _ in contents(gallery).values() for file in paths}
    )
    filler.unlink()
    index_files(opened(path), folder)
    assert contents(opened(path)) == uninterrupted(folder)
    assert os.path.ismount(small_disk)
