from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.video import FrameSampling, VideoReading
from xclip_deploy.training.datasets import frame_cache
from xclip_deploy.training.datasets.frame_cache import FrameCache, frame_key

FILE_BYTES = 56 + 2 * 8 * 8 * 3


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def frames_of(number: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def files_of(cache: FrameCache) -> list[Path]:
    return [path for path in cache.directory.rglob("*") if path.is_file()]


def size_of(cache: FrameCache) -> int:
    return sum(path.stat().st_size for path in files_of(cache))


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    return FrameCache(tmp_path / "made" / "cache", 1_000_000)


def test_what_was_written_is_read(cache: FrameCache) -> None:
    assert cache.read(key_of(1)) is None
    assert not cache.holds(key_of(1))
    cache.write(key_of(1), frames_of(1))
    cache.write(key_of(2), frames_of(2)[:, ::-1])  # not contiguous
    assert cache.holds(key_of(1))
    for number, expected in ((1, frames_of(1)), (2, frames_of(2)[:, ::-1])):
        read = cache.read(key_of(number))
        assert read is not None
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)
    assert size_of(cache) == 2 * FILE_BYTES


def test_another_cache_and_a_pickled_one_share_the_directory(cache: FrameCache) -> None:
    cache.write(key_of(1), frames_of(1))
    for other in (FrameCache(cache.directory, 1), pickle.loads(pickle.dumps(cache))):
        np.testing.assert_array_equal(other.read(key_of(1)), frames_of(1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(position=st.integers(0, FILE_BYTES - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_a_miss(cache: FrameCache, position: int, bit: int) -> None:
    cache.write(key_of(1), frames_of(1))
    (path,) = files_of(cache)
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)
    assert cache.read(key_of(1)) is None
    cache.write(key_of(1), frames_of(1))
    np.testing.assert_array_equal(cache.read(key_of(1)), frames_of(1))


@pytest.mark.parametrize("kept", [0, 1, 55, 56, FILE_BYTES - 1])
def test_a_truncated_file_is_a_miss(cache: FrameCache, kept: int) -> None:
    cache.write(key_of(1), frames_of(1))
    (path,) = files_of(cache)
    os.truncate(path, kept)
    assert cache.read(key_of(1)) is None
    assert not cache.holds(key_of(1))


def test_a_longer_file_and_that_of_another_key_are_misses(cache: FrameCache) -> None:
    cache.write(key_of(1), frames_of(1))
    (path,) = files_of(cache)
    path.rename(path.with_name(f"{key_of(2).hex()[2:]}.frames"))
    assert cache.read(key_of(2)) is None
    cache.write(key_of(3), frames_of(3))
    longer = path.with_name(f"{key_of(3).hex()[2:]}.frames")
    longer.write_bytes(longer.read_bytes() + b"\0")
    assert cache.read(key_of(3)) is None


def test_another_version_is_a_miss(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(key_of(1), frames_of(1))
    monkeypatch.setattr(frame_cache, "_VERSION", frame_cache._VERSION + 1)
    assert cache.read(key_of(1)) is None


def test_the_size_stays_bounded_and_the_last_used_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FrameCache(tmp_path, 20 * FILE_BYTES)
    foreign = [tmp_path / "notes.txt", tmp_path / "00" / "photo.jpg"]
    foreign[1].parent.mkdir()
    for path in foreign:
        path.write_bytes(bytes(100 * FILE_BYTES))
    foreign_bytes = sum(path.stat().st_size for path in foreign)
    for number in range(60):
        cache.write(key_of(number), frames_of(number))
        # Number 0 is used all the time.
        np.testing.assert_array_equal(cache.read(key_of(0)), frames_of(0))
        assert size_of(cache) - foreign_bytes <= cache.max_bytes
        time.sleep(0.011)  # file times can be as coarse as this
    assert all(path.exists() for path in foreign)
    assert cache.holds(key_of(59))
    held = [number for number in range(60) if cache.holds(key_of(number))]
    assert held == [0, *range(61 - len(held), 60)]
    assert len(held) >= 17
    (record,) = caplog.records
    assert "the frame cache is full" in record.message


def test_what_fits_no_cache_is_not_written(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, FILE_BYTES - 1)
    cache.write(key_of(1), frames_of(1))
    assert files_of(cache) == []


def test_what_killed_writers_left_is_removed_in_time(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, 4 * FILE_BYTES)
    cache.write(key_of(1), frames_of(1))
    (path,) = files_of(cache)
    partial = [path.with_name(f".{path.name}.partial-{digit * 16}") for digit in "ab"]
    for left in partial:
        left.write_bytes(bytes(FILE_BYTES))
    os.utime(partial[0], (0, 0))
    for number in range(2, 5):  # in the same folder, under other names
        FrameCache(tmp_path, 4 * FILE_BYTES).write(key_of(number), frames_of(number))
    assert not partial[0].exists()
    assert partial[1].exists()  # its writer may live
    assert size_of(cache) <= cache.max_bytes


def test_a_full_disk_stops_caching_with_one_warning(
    cache: FrameCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write(key_of(1), frames_of(1))
    open_file = Path.open

    class FullDisk:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> FullDisk:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> int:
            self.file.write(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_on_full_disk(path: Path, mode: str = "r", **options: Any) -> Any:
        file = open_file(path, mode, **options)
        return FullDisk(file) if "w" in mode else file

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    cache.write(key_of(2), frames_of(2))
    cache.write(key_of(3), frames_of(3))
    monkeypatch.undo()
    cache.write(key_of(4), frames_of(4))
    assert len(files_of(cache)) == 1
    np.testing.assert_array_equal(cache.read(key_of(1)), frames_of(1))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "No space left on device" in record.message
    FrameCache(cache.directory, 1_000_000).write(key_of(2), frames_of(2))
    assert cache.holds(key_of(2))


WRITER = """
import sys
import numpy as np
from xclip_deploy.training.datasets.frame_cache import FrameCache

_, directory, max_bytes = sys.argv
cache = FrameCache(directory, int(max_bytes))
random = np.random.default_rng()
misses = 0
for _ in range(400):
    number = int(random.integers(0, 30))
    expected = np.full((2, 8, 8, 3), number, np.uint8)
    read = cache.read(number.to_bytes(32, "big"))
    if read is None:
        misses += 1
        cache.write(number.to_bytes(32, "big"), expected)
    else:
        assert (read == expected).all()
assert cache._is_writing
print(misses)
"""


@pytest.mark.parametrize("num_files", [1000, 20])
def test_processes_at_once(tmp_path: Path, num_files: int) -> None:
    max_bytes = num_files * FILE_BYTES
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(max_bytes)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert int(out) > 0 or num_files == 1000
    cache = FrameCache(tmp_path, max_bytes)
    assert size_of(cache) <= max_bytes + 3 * FILE_BYTES
    assert not [path for path in files_of(cache) if "partial" in path.name]


def test_the_key_is_of_the_file_and_the_way_of_reading(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"1234")
    sampling = FrameSampling(max_frames=12)
    first = frame_key(path, VideoReading(sampling, 224))
    assert first == frame_key(path, VideoReading(sampling, 224))
    assert len(first) == 32
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(b"1234")
    os.utime(copy, ns=(0, path.stat().st_mtime_ns))
    others = [
        frame_key(copy, VideoReading(sampling, 224)),
        frame_key(path, VideoReading(FrameSampling(max_frames=13), 224, "pyav")),
        frame_key(
            path, VideoReading(FrameSampling(max_frames=12, frames_per_second=2), 224, "pyav")
        ),
        frame_key(path, VideoReading(FrameSampling(max_frames=12, end_s=3.0), 224, "pyav")),
        frame_key(path, VideoReading(sampling, 288, "pyav")),
        frame_key(path, VideoReading(sampling, 224, "decord")),
        frame_key(path, VideoReading(sampling, 224, square_pixels=True)),
    ]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    others.append(frame_key(path, VideoReading(sampling, 224)))
    assert len({first, *others}) == 1 + len(others)


def test_the_key_of_a_relative_path_is_that_of_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"no-text-\xff.mp4")
    (tmp_path / name).write_bytes(b"1234")
    monkeypatch.chdir(tmp_path)
    sampling = FrameSampling(max_frames=12)
    keys = {frame_key(path, VideoReading(sampling, 224)) for path in (Path(name), tmp_path / name)}
    assert len(keys) == 1


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="max_bytes is 0"):
        FrameCache(tmp_path, 0)
    with pytest.raises(InvalidArgumentError, match="the frame cache cannot be made here"):
        FrameCache(tmp_path / "file", 1)
