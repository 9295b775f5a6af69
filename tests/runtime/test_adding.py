"""Adding files to a gallery: paths, ids, duplicates, interruptions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy import (
    Bundle,
    Retriever,
    SearchResult,
)
from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    InvalidArgumentError,
    VideoNotFoundError,
)
from xclip_deploy.runtime.progress import LOOKING, READING_FIRST, Progress

FROG, DOG, WALK = "mdn_frog.webm", "sam2_dog.mp4", "intel_asl_walk.mkv"
# Small, for tests to which the content does not matter.
TURNED, STREET = "edge_cases/decord_video_90.mov", "edge_cases/torchcodec_h265.mp4"
# Words of the golden texts: the tiny model knows no others.
TEXTS = ("a man is driving a car", "a cat's dog", "a man", "dogs 3 toys")


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    """Good and bad videos: 3 good ones, 4 bad ones and a text file."""
    path = tmp_path / "videos"
    (path / "sub").mkdir(parents=True)
    shutil.copyfile(clips / FROG, path / "frog.webm")
    shutil.copyfile(clips / WALK, path / "sub" / "walk.mkv")
    shutil.copyfile(clips / "edge_cases" / "decord_video_90.mov", path / "turned.MOV")
    (path / "empty.mp4").touch()
    (path / "text.mp4").write_text("I am no video.")
    (path / "cut.mp4").write_bytes((clips / DOG).read_bytes()[:5000])
    (path / "random.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    (path / "notes.txt").write_text("not looked at")
    return path


def ids(retriever: Retriever) -> list[str]:
    return [video.id for video in retriever.gallery.snapshot().listing()]


def assert_ranked(results: Sequence[SearchResult], count: int) -> None:
    assert [result.rank for result in results] == list(range(1, count + 1))
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert len({result.id for result in results}) == count


def test_bad_files_are_reported_and_the_rest_goes_on(retriever: Retriever, folder: Path) -> None:
    calls: list[Progress] = []
    report = retriever.add(folder, progress=calls.append)
    good = ["frog.webm", "turned.MOV", "sub/walk.mkv"]
    assert report.added == tuple(str(folder / name) for name in good)
    assert ids(retriever) == list(report.added)
    bad = {Path(failure.path).name: failure.reason for failure in report.failed}
    assert set(bad) == {"empty.mp4", "text.mp4", "cut.mp4", "random.avi"}
    assert "is empty" in bad["empty.mp4"]
    assert all("\n" not in reason for reason in bad.values())
    assert report.skipped == ()
    waits, counts = calls[:2], calls[2:]
    assert [call.note for call in waits if call.is_waiting] == [LOOKING, READING_FIRST]
    assert [call.done for call in counts] == list(range(1, 8))
    assert {call.total for call in counts} == {7}
    assert calls[-1] == Progress("videos", 7, 7, failed=4)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["indexed"] == list(report.added)
    assert again["failed"] == [vars(failure) for failure in report.failed]


def test_a_damaged_video_is_added_with_a_warning(retriever: Retriever, clips: Path) -> None:
    path = clips / "edge_cases" / "decord_corrupted.mp4"
    report = retriever.add(path)
    assert report.added == (str(path),)
    assert [warning.path for warning in report.warnings] == [str(path)]
    assert "could not be decoded" in report.warnings[0].reason


def test_nothing_to_add(retriever: Retriever, tmp_path: Path) -> None:
    for nothing in ([], tmp_path, [tmp_path, tmp_path]):
        report = retriever.add(nothing)
        assert not any((report.added, report.skipped, report.failed, report.warnings))


def test_all_forms_of_paths(
    retriever: Retriever, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips)
    one = str(clips / TURNED)
    for paths in (TURNED, Path(TURNED), one, [TURNED], (Path(TURNED),), iter([one])):
        assert retriever.add(paths).added == (one,)
        retriever.remove(one)


@pytest.mark.parametrize("on_duplicate", ["error", "skip", "replace"])
def test_a_file_given_in_two_ways_is_one(
    retriever: Retriever, clips: Path, monkeypatch: pytest.MonkeyPatch, on_duplicate: Any
) -> None:
    monkeypatch.chdir(clips)
    names: list[str | Path] = [TURNED, clips / TURNED, f"./{TURNED}", TURNED]
    assert retriever.add(names, on_duplicate=on_duplicate).added == (str(clips / TURNED),)


def test_a_path_that_is_not_there(retriever: Retriever, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError):
        retriever.add([clips / TURNED, tmp_path / "none.mp4"])
    with pytest.raises(VideoNotFoundError):
        retriever.add([clips / TURNED, tmp_path / "none.mp4"], ids=["a", "b"])
    assert len(retriever) == 0


def test_a_name_that_is_no_text(retriever: Retriever, clips: Path, tmp_path: Path) -> None:
    """Linux file names are bytes; one that is not UTF-8 cannot be an id, nor be written as JSON."""
    odd = tmp_path / os.fsdecode(b"caf\xe9.webm")
    shutil.copyfile(clips / FROG, odd)
    shutil.copyfile(clips / FROG, tmp_path / "fine.webm")
    calls: list[Progress] = []
    report = retriever.add(tmp_path, progress=calls.append)
    assert report.added == (str(tmp_path / "fine.webm"),)
    assert [failure.path for failure in report.failed] == [f"{tmp_path}/caf\\udce9.webm"]
    assert "is no UTF-8 path" in report.failed[0].reason
    assert [call for call in calls if not call.is_waiting] == [Progress("videos", 2, 2, failed=1)]
    json.dumps(report.to_dict(), ensure_ascii=False).encode()
    assert retriever.add(odd, ids=["coffee"]).added == ()


def test_ids_of_ones_own(retriever: Retriever, clips: Path) -> None:
    names = ["frog/1", "a “dog” 🐕"]
    report = retriever.add([clips / TURNED, clips / STREET], ids=names)
    assert list(report.added) == ids(retriever) == names
    assert [video.path for video in retriever.gallery.snapshot().listing()] == [
        str(clips / TURNED),
        str(clips / STREET),
    ]


@pytest.mark.parametrize(
    "wrong",
    [["a"], ["a", "b", "c"], ["a", "a"], ["a", ""], "ab", ["a", 3], ["a", None], ["a", "\ud800"]],
)
def test_wrong_ids(retriever: Retriever, clips: Path, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="ids"):
        retriever.add([clips / TURNED, clips / STREET], ids=wrong)
    assert len(retriever) == 0


def test_ids_for_a_folder(retriever: Retriever, clips: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is a folder"):
        retriever.add([clips], ids=["a"])


def test_duplicates(retriever: Retriever, clips: Path) -> None:
    retriever.add([clips / TURNED, clips / STREET], ids=["frog", "x"])
    before = retriever.gallery.snapshot()
    files = [clips / WALK, clips / TURNED]
    with pytest.raises(DuplicateIdError, match="'x' is already in the gallery"):
        retriever.add(files, ids=["x", "new"], on_duplicate="error")
    assert retriever.gallery.snapshot() is before  # raised before anything was read
    report = retriever.add(files, ids=["x", "new"], on_duplicate="skip")
    assert report.added == ()
    # The second file is listed already, as the first video.
    assert report.skipped == ("x", "frog")
    assert path_of(retriever, "x") == str(clips / STREET)
    with pytest.raises(InvalidArgumentError, match="on_duplicate is 'ignore'"):
        retriever.add(files, on_duplicate="ignore")  # type: ignore[arg-type]


def path_of(retriever: Retriever, video_id: str) -> str | None:
    return next(v.path for v in retriever.gallery.snapshot().listing() if v.id == video_id)


def test_replacing_by_a_file_that_cannot_be_read_keeps_the_old(
    retriever: Retriever, clips: Path, tmp_path: Path
) -> None:
    retriever.add([clips / TURNED], ids=["x"])
    (tmp_path / "bad.mp4").write_text("no video")
    report = retriever.add([tmp_path / "bad.mp4"], ids=["x"], on_duplicate="replace")
    assert len(report.failed) == 1
    assert path_of(retriever, "x") == str(clips / TURNED)


@pytest.mark.parametrize("max_batch", [1, 2, 16])
def test_an_interruption_keeps_what_was_encoded(
    bundle: Bundle, clips: Path, tmp_path: Path, max_batch: int
) -> None:
    """Ctrl-C reaches Python code between two videos, as here from the progress callback."""
    (tmp_path / "bad.mp4").write_text("no video")
    files = [clips / TURNED, tmp_path / "bad.mp4", clips / WALK, clips / STREET]

    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with Retriever(bundle, device="cpu", max_batch=max_batch) as retriever:
        with pytest.raises(KeyboardInterrupt):
            retriever.add(files, progress=interrupt)
        # In the order in which they were ready; the bad one is among the three or not.
        kept = set(ids(retriever))
        assert 2 <= len(kept) <= 3
        report = retriever.add(files)
        assert (
            set(report.added)
            == {str(file) for file in files if file.suffix != ".mp4" or file.parent != tmp_path}
            - kept
        )
        assert set(report.skipped) == kept
        assert_ranked(retriever.search(TEXTS[0]), 3)


def test_a_progress_bar_on_standard_error(
    retriever: Retriever, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    retriever.add(folder, progress=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "7/7" in printed.err
    assert "4 failed" in printed.err


def test_remove(retriever: Retriever, clips: Path) -> None:
    retriever.add([clips / TURNED, clips / STREET, clips / WALK], ids=["a", "b", "c"])
    retriever.remove("a")
    assert ids(retriever) == ["b", "c"]
    with pytest.raises(GalleryError, match="no video 'a'"):
        retriever.remove(["b", "a"])
    retriever.remove(["b", "c"])
    assert len(retriever) == 0
    assert len(retriever.search(TEXTS[0])) == 0
