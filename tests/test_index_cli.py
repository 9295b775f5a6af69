"""The commands index and search: what they print, and what they keep."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Run, assert_one_line_error, runner

from xclip_deploy import Bundle, Gallery, Retriever
from xclip_deploy.runtime import progress as progress_module
from xclip_deploy.runtime.progress import Progress, ProgressFunction

FROG, TURNED = "mdn_frog.webm", "edge_cases/decord_video_90.mov"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def test_index_and_search(run: Run, bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    gallery = tmp_path / "gallery"
    places = ("--bundle", bundle_path, "--gallery", gallery, "--device", "cpu")

    outcome = run("index", clips / FROG, clips / TURNED, bad, *places)
    assert outcome.status == 0
    assert "2 indexed" in outcome.out
    assert str(bad) in outcome.out
    assert "3/3" in outcome.err  # the progress bar
    assert len(Gallery.open(gallery, Bundle.open(bundle_path).manifest)) == 2

    outcome = run("index", clips / FROG, bad, *places, "--json")
    assert outcome.status == 0
    report = outcome.json()
    assert report["unchanged"] == [str(clips / FROG)]
    assert (report["indexed"], report["videos"]) == ([], 2)
    assert [failure["path"] for failure in report["failed"]] == [str(bad)]
    assert run("index", clips / FROG, bad, *places, "--strict").status == 8

    outcome = run("search", "a man", "a dog", *places)
    assert (outcome.status, outcome.err) == (0, "")
    for part in ("a man", "a dog", FROG, TURNED):
        assert part in outcome.out

    outcome = run("search", "a man", "a dog", "-k", "1", *places, "--json")
    found = outcome.json()
    assert [entry["query"] for entry in found] == ["a man", "a dog"]
    with Retriever(bundle_path, gallery, device="cpu") as retriever:
        expected = retriever.search_batch(["a man", "a dog"], k=1)
    assert [entry["results"] for entry in found] == [
        json.loads(json.dumps([result.to_dict() for result in results])) for results in expected
    ]

    outcome = run("search", "--video", clips / FROG, *places, "--json")
    results = outcome.json()[0]["results"]
    assert [result["id"] for result in results] == [str(clips / FROG), str(clips / TURNED)]
    assert results[0]["grains"] is None
    outcome = run("search", "--video", clips / FROG, *places)
    assert outcome.status == 0
    assert FROG in outcome.out


def test_a_text_that_is_cut_is_said(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    assert run("index", clips / FROG, *places).status == 0
    long = "cat " + " ".join(["dog"] * 99)
    words = Bundle.open(bundle_path).manifest.model.max_words
    said = f"longer than the {words - 2} tokens that the model reads; its last {102 - words} were"
    outcome = run("search", "a man", long, *places, "--json")
    assert outcome.status == 0
    assert [entry["truncated_tokens"] for entry in outcome.json()] == [0, 102 - words]
    assert outcome.err.count("warning: ") == 1
    assert "warning: the text 'cat dog dog" in outcome.err
    assert said in outcome.err
    assert said in run("explain", long, *places, "--json").err
    (tmp_path / "bank.txt").write_text(f"a man\n{long}\n")
    outcome = run("search", "a man", *places, "--query-bank", tmp_path / "bank.txt")
    assert "warning: a text of the query bank 'cat dog dog" in outcome.err


def test_a_pipe_is_refused(run: Run, bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    assert run("index", clips / FROG, *places).status == 0
    for name in ("a.png", "a.mp4", "a.txt"):
        os.mkfifo(tmp_path / name)
    assert_one_line_error(run("search", "--image", tmp_path / "a.png", *places), 8, "a pipe")
    outcome = run("search", "--video", tmp_path / "a.mp4", *places)
    assert_one_line_error(outcome, 8, "is no regular file")
    outcome = run("search", "a", "--query-bank", tmp_path / "a.txt", *places)
    assert_one_line_error(outcome, 2, "a pipe")
    assert_one_line_error(run("index", tmp_path / "a.txt", *places), 2, "a pipe")


def test_a_folder_without_a_video(run: Run, bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    folder, videos = tmp_path / "pictures", tmp_path / "videos"
    folder.mkdir()
    videos.mkdir()
    assert run("index", folder, *places).status == 0  # empty
    (folder / "a.jpg").touch()
    outcome = run("index", folder, *places)
    assert outcome.status == 8
    assert f"failed: {folder}: holds 1 files and no video (1 .jpg); expected" in outcome.out
    assert "passed over 1 file that is no video: 1 .jpg" in outcome.out
    shutil.copyfile(clips / FROG, videos / "frog")  # whose content tells
    (videos / "notes.txt").touch()
    outcome = run("index", videos, folder, *places, "--json")
    assert outcome.status == 8
    assert outcome.json()["indexed"] == [str(videos / "frog")]
    assert outcome.json()["passed_over"] == [str(videos / "notes.txt"), str(folder / "a.jpg")]
    named_otherwise = videos / ".." / "pictures"
    assert run("index", named_otherwise, videos, *places).status == 8
    odd = tmp_path / os.fsdecode(b"pictur\xe9s")
    shutil.copytree(folder, odd)
    assert run("index", odd, videos, *places).status == 8
    outcome = run("index", videos, *places)
    assert outcome.status == 0
    assert "passed over 1 file that is no video: 1 .txt" in outcome.out


def test_index_duplicates(run: Run, bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    assert run("index", clips / TURNED, *places).status == 0
    again = run("index", clips / TURNED, *places, "--on-duplicate", "error")
    assert again.status == 10
    assert "is already in the gallery" in again.err
    again = run("index", clips / TURNED, *places, "--on-duplicate", "replace", "--json")
    assert again.json()["changed"] == [str(clips / TURNED)]
    assert again.json()["videos"] == 1


def test_index_follows_a_folder(run: Run, bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    folder, written = tmp_path / "videos", tmp_path / "report.json"
    folder.mkdir()
    for name in (FROG, TURNED.rsplit("/", 1)[-1]):
        shutil.copyfile(next(clips.rglob(name)), folder / name)
    shutil.copyfile(folder / FROG, folder / "copy of frog.webm")
    listing = tmp_path / "list.csv"
    listing.write_text(f"file,place\nvideos/{FROG},pond\nvideos/gone.mp4,sea\n")
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    outcome = run("-v", "index", folder, listing, *places, "--report", written, "--workers", 1)
    assert outcome.status == 0
    assert "2 indexed, 0 unchanged, 1 duplicate, 1 failed in " in outcome.out
    report = json.loads(written.read_text(encoding="utf-8"))
    assert report["videos"] == len(report["indexed"]) == 2
    assert [entry["path"] for entry in report["failed"]] == [str(folder / "gone.mp4")]

    (folder / FROG).unlink()
    outcome = run("index", folder, *places, "--prune", "--json")
    assert outcome.json()["pruned"] == [str(folder / FROG)]
    assert outcome.json()["videos"] == 2
    outcome = run("index", folder, *places, "--report", tmp_path / "none" / "report.json")
    assert_one_line_error(outcome, 2, "report.json cannot be written: no such folder")


def test_names_are_printed_as_they_are(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    """What means colours or pictures to the table's library is part of a name here."""
    names = ["[red]frog[bold].mov", ":dog:.mov", "[", "back\\[slash].mov", "é 🎬.mov"]
    for n, name in enumerate(names):
        # Other bytes behind the video: files of the same content are one.
        (tmp_path / name).write_bytes((clips / TURNED).read_bytes() + bytes(n))
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    files = [tmp_path / name for name in names]
    assert run("index", *files, *places).status == 0
    outcome = run("search", "a man", *places)
    assert outcome.status == 0
    for name in names:
        assert str(tmp_path / name) in outcome.out


def test_an_interrupted_index_keeps_what_was_encoded(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted() -> Iterator[ProgressFunction]:
        def report(progress: Progress) -> None:
            if progress.done == 2:
                raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(progress_module, "video_progress", interrupted)
    gallery = tmp_path / "gallery"
    files = [clips / TURNED, clips / FROG, clips / "edge_cases" / "torchcodec_h265.mp4"]
    outcome = run("index", *files, "--bundle", bundle_path, "--gallery", gallery)
    assert outcome.status == 130
    assert "videos in" in outcome.err
    assert "Traceback" not in outcome.err
    opened = Gallery.open(gallery, Bundle.open(bundle_path).manifest)
    kept = {video.id for video in opened.snapshot().listing()}
    assert len(kept) >= 2
    assert kept <= {str(file) for file in files}


def test_an_empty_gallery_is_pointed_out(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    gallery = tmp_path / "my gallery"
    Gallery(bundle.manifest).save(gallery)
    for extra in ((), ("--json",)):
        outcome = run("search", "a dog", "--bundle", bundle.path, "--gallery", gallery, *extra)
        assert outcome.status == 0
        hint = f"run: xclip-deploy index VIDEOS --gallery '{gallery}'\n"
        assert outcome.err == f"{gallery} holds no videos; {hint}"
    (found,) = outcome.json()
    assert (found["query"], found["num_videos"], found["results"]) == ("a dog", 0, [])
