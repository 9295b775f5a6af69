"""The command ``xclip-deploy cut``."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run, runner
from numbered_movies import decode, write_movie


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "cut")


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy seconds, five frames a second, a key frame every four. Not to be changed."""
    return write_movie(
        tmp_path_factory.mktemp("movie") / "movie.mp4", seconds=70, rate=5, sounds=[(0, 70)]
    )


def test_exactly(run: Run, movie: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.mp4"
    outcome = run(movie, "--from", "1:02", "--to", "1:04.4", "-o", out)
    assert outcome.status == 0, outcome
    assert outcome.out == f"wrote {out}: 1:02.000 to 1:04.400 (2.400 s, exact, with sound)\n"
    assert outcome.err == ""
    assert decode(out).numbers == list(range(310, 322))


def test_a_copy_says_what_it_holds(run: Run, movie: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.mp4"
    outcome = run(movie, "--from", "1:02", "--to", "1:04.4", "-o", out, "--mode", "copy")
    assert outcome.status == 0
    assert outcome.out.startswith(f"wrote {out}: 1:00.000 to 1:04.")
    assert "asked for 1:02.000 to 1:04.400" in outcome.out
    assert decode(out).numbers[0] == 300


def test_json_and_padding(run: Run, movie: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.webm"
    outcome = run(movie, "--from", "0.4", "--to", "2s", "--pad", "1s", "-o", out, "--json")
    assert outcome.json() == {
        "path": str(out),
        "start_s": 0.0,
        "end_s": 3.0,
        "has_sound": True,
        "mode": "exact",
        "warnings": [],
    }


def test_the_name_of_the_file(
    run: Run, movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(movie, "--from", "1:02", "--to", "1:04").status == 0
    assert [each.name for each in tmp_path.iterdir()] == ["movie_1.02.0-1.04.0.mp4"]
    again = run(movie, "--from", "1:02", "--to", "1:04")
    assert again.status == 2
    assert "--overwrite" in again.err
    assert run(movie, "--from", "1:02", "--to", "1:04", "--overwrite").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (("--from", "2:00", "--to", "3:00"), 2, "1:10.0 long"),
        (("--from", "9", "--to", "5"), 2, "ends before it starts"),
        (("--from", "5", "--to", "5"), 2, "is empty"),
        (("--from", "soon", "--to", "5"), 2, "--from is 'soon'"),
        (("--from", "-5", "--to", "5"), 2, "--from is '-5'"),
        (("--from", "1", "--to", "5", "--pad", "x"), 2, "--pad is 'x'"),
        (("--from", "1", "--to", "5", "-o", "m.gif"), 2, ".webm"),
        (("--from", "1"), 2, "--to"),
    ],
)
def test_one_line_errors(
    run: Run, movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], status: int, part: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    outcome = run(movie, *arguments)
    assert outcome.status == status, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert part in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_no_video(run: Run, tmp_path: Path) -> None:
    outcome = run(tmp_path / "none.mp4", "--from", "1", "--to", "2", "-o", tmp_path / "m.mp4")
    assert outcome.status == 8
    assert "no such file" in outcome.err
