"""The listing of a gallery on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from command_line import Outcome, Run, on_a_terminal, runner
from gallery_samples import lance_store, sample
from rich.cells import cell_len

from xclip_deploy.cli.table import shortened
from xclip_deploy.runtime.gallery import Gallery

IDS = [f"v{n:02}.mp4" for n in range(25)]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "gallery")


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A gallery of 25 videos: v01.mp4 takes 1 s and has n = 1, and so on."""
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(IDS, source="cam [1]"), replace=False)
    store.close()
    return path


def ids_of(path: Path) -> list[str]:
    return [video.id for video in Gallery.open(path)]


def assert_refused(outcome: Outcome, status: int, *parts: str) -> None:
    """One line on standard error, nothing on standard output."""
    assert (outcome.status, outcome.out) == (status, ""), outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


def test_list(run: Run, gallery: Path) -> None:
    outcome = run("list", "--gallery", gallery)
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["video", "duration", "metadata"]
    assert [line.split()[0] for line in lines[2:-1]] == IDS[:20]
    assert lines[2 + 7].strip().split(maxsplit=2) == ["v07.mp4", "0:07", "n=7, source=cam [1]"]
    start, command = lines[-1].split("; see more: ")
    assert start == "1 to 20 of 25 videos"
    more = run(*shlex.split(command)[2:])
    assert [line.split()[0] for line in more.out.splitlines()[2:-1]] == IDS[20:]
    assert more.out.splitlines()[-1] == "21 to 25 of 25 videos"


def test_list_what_matches_a_filter(run: Run, gallery: Path) -> None:
    where = "n >= 3 and source = 'cam [1]'"
    outcome = run("list", "--gallery", gallery, "--where", where, "--offset", 2, "--limit", 2)
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["v05.mp4", "v06.mp4"]
    start, command = lines[-1].split("; see more: ")
    assert start == "3 to 4 of 22 videos that match"
    more = run(*shlex.split(command)[2:])
    assert [line.split()[0] for line in more.out.splitlines()[2:-1]] == ["v07.mp4", "v08.mp4"]


def test_list_json(run: Run, gallery: Path) -> None:
    outcome = run("list", "--gallery", gallery, "--where", "n > 21", "--limit", 2, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    content = outcome.json()
    videos = content.pop("videos")
    assert content == {"gallery": str(gallery), "total": 3, "offset": 0}
    assert [video["id"] for video in videos] == ["v22.mp4", "v23.mp4"]
    assert videos[0] == Gallery.open(gallery).get("v22.mp4").model_dump(mode="json")


def test_list_nothing(run: Run, gallery: Path, tmp_path: Path) -> None:
    assert run("list", "--gallery", gallery, "--offset", 25).out == (
        f"{gallery} holds 25 videos; expected an offset below 25\n"
    )
    assert run("list", "--gallery", gallery, "--where", "n < 0").out == (
        f"{gallery} holds 0 videos that match\n"
    )
    lance_store(tmp_path / "empty").close()
    assert run("list", "--gallery", tmp_path / "empty").out == (
        f"{tmp_path / 'empty'} holds 0 videos\n"
    )


@pytest.mark.parametrize("where", ["", "n >", "m = 1", "source < 3", "n = 1; drop table videos"])
def test_filters_that_are_not_understood(run: Run, gallery: Path, where: str) -> None:
    for arguments in (("list",), ("remove", "--yes"), ("remove", "--dry-run")):
        outcome = run(*arguments, "--gallery", gallery, "--where", where)
        assert_refused(outcome, 2, "the filter", "is not understood", "expected an expression")
    assert ids_of(gallery) == IDS


def test_a_list_fits_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    names = [f"/{'long/' * 40}video.mp4", f"/{'東京' * 40}.mp4", "short.mp4"]
    store = lance_store(path)
    store.put(*sample(names, source="cam" * 50), replace=False)
    status, screen = on_a_terminal("gallery", "list", "--gallery", path)
    assert status == 0
    lines = screen.splitlines()
    rows = lines[2:5]
    assert [max(map(cell_len, rows)) <= 80, len(lines[-1]) > 0] == [True, True], screen
    assert rows[0].startswith("/long/")
    assert "…" in rows[0]
    assert "video.mp4 " in rows[0]
    assert ".mp4 " in rows[1]
    assert rows[2].split()[:2] == ["short.mp4", "0:02"]
    status, screen = on_a_terminal("gallery", "list", "--gallery", path, columns=600)
    assert names[0] in screen


@pytest.mark.parametrize("width", [3, 4, 9, 10, 11])
@pytest.mark.parametrize("text", ["0123456789", "東京東京東京", "a東b京c東d"])
def test_shortened(text: str, width: int) -> None:
    cut = shortened(text, width)
    if cell_len(text) <= width:
        assert cut == text
        return
    start, end = cut.split("…")
    assert width - 2 < cell_len(cut) <= width
    assert text.startswith(start)
    assert text.endswith(end)
