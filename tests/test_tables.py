"""Tables of the command line on a terminal of 80 columns, and the words around them."""

from __future__ import annotations

import os
import pty
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from xclip_deploy import Retriever
from xclip_deploy.cli import main
from xclip_deploy.cli.table import Column, fitted_widths, shortened

COLUMNS = 80
LONG = "a folder with a rather long name that nobody shortens/日本語の長いフォルダ名前がここにある"
NAMES = (
    "赤い四角が右に動いてから青い三角が大きくなる動画.webm",
    "long " * 20 + ".webm",
    "frog.webm",
)
QUERY = "a red square moves right 赤い四角 " * 6


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = COLUMNS) -> Iterator[list[str]]:
    """Make standard output a terminal; the list has what it shows once the block ends."""
    ours, theirs = pty.openpty()
    screen = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                screen.extend(part)
        except OSError:  # its other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    shown: list[str] = []
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("NO_COLOR", "1")
        try:
            with os.fdopen(theirs, "w", encoding="utf-8") as stream:
                patch.setattr(sys, "stdout", stream)
                yield shown
        finally:
            reader.join(timeout=60)
            os.close(ours)
    shown += screen.decode().replace("\r\n", "\n").split("\n")


def table_lines(lines: list[str]) -> list[str]:
    """Return the lines of every table: a header, a rule, and the rows down to no cell more."""
    rules = [number for number, line in enumerate(lines) if line and set(line) == {"─"}]
    found: list[str] = []
    for rule in rules:
        found += lines[rule - 1 : rule + 1]
        for line in lines[rule + 1 :]:
            if not line or "  " not in line:
                break
            found.append(line)
    return found


@pytest.fixture(scope="module")
def place(bundle_path: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and a gallery, whose videos have long and CJK names."""
    place = tmp_path_factory.mktemp("tables")
    (place / "xclip-bundle").symlink_to(bundle_path)
    folder = place / LONG
    folder.mkdir(parents=True)
    files = []
    for number, name in enumerate(NAMES):
        file = folder / name
        shutil.copy(clips / ("mdn_frog.webm" if number else "sam2_dog.mp4"), file)
        if number == 1:
            shutil.copy(clips / "intel_asl_walk.mkv", file)
        files.append(file)
    with Retriever(bundle_path, device="cpu", threads=1) as retriever:
        notes = {"note": "a note of more than a few words, 長いメモ"}
        retriever.add(files, metadata=notes, segment="2s", stride="1s")
        retriever.save(place / "xclip-gallery")
    return place


SHOWN = {
    "search": ["search", QUERY, "-k", "3"],
    "search for moments": ["search", "a frog", "--group", "moment"],
    "search by video": ["search", "--video", f"{LONG}/frog.webm"],
    "explain": ["explain", QUERY, "frog.webm"],
    "explain two": ["explain", "a frog", "frog.webm", NAMES[0]],
    "gallery list": ["gallery", "list"],
    "gallery remove": ["gallery", "remove", "--where", "duration_s > 0", "--dry-run"],
    "inspect": ["inspect"],
    "export-triton": ["export-triton", "-o", "triton"],
    "verify": ["verify", "-o", "verification", "--no-report"],
    "bench": ["bench", "--seconds", "0.01", "--rounds", "1", "--warmup", "0",
              "--video-batches", "1", "--text-batches", "1", "--scored-videos", "10"],
}  # fmt: skip


@pytest.mark.parametrize("words", SHOWN.values(), ids=SHOWN)
def test_every_table_fits_the_terminal(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with terminal(monkeypatch) as lines, pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0, lines
    rows = table_lines(lines)
    assert len(rows) >= 3, lines
    assert [line for line in rows if cell_len(line) > COLUMNS] == []
    assert max(map(cell_len, rows)) > 20


def test_a_pipe_gets_names_whole(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["gallery", "list"])
    shown = capfd.readouterr().out
    assert f"{LONG}/{NAMES[0]}" in shown
    assert "…" not in shown


def test_wide_shows_the_grains(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    headers = []
    for words in (["search", "a frog"], ["search", "a frog", "--wide"]):
        with terminal(monkeypatch) as lines, pytest.raises(SystemExit):
            main(words)
        headers.append(table_lines(lines)[0])
    assert "frame–word" not in headers[0]
    assert "frame–word" in headers[1]
    assert "…" not in " ".join(lines)


def test_a_small_gallery_says_what_a_middling_score_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit):
        main(["search", "a frog"])
    shown = capfd.readouterr().out
    assert "the median segment of this gallery has" in shown
    assert "no confidence: the gallery holds" in shown


TEXT = st.text(st.sampled_from("aé赤字 /🐕א…"), max_size=120)


@given(cells=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), width=st.integers(40, 120))
def test_columns_that_may_be_cut_make_room(cells: list[tuple[str, str]], width: int) -> None:
    columns = (Column("one", least=10), Column("two", least=10))
    widths = fitted_widths(columns, cells, width)
    assert sum(widths) + 2 <= width
    whole = fitted_widths(columns, cells, None)
    assert all(have <= most for have, most in zip(widths, whole, strict=True))
    if sum(whole) + 2 <= width:
        assert widths == whole
    for row in cells:
        for cell, room in zip(row, widths, strict=True):
            assert cell_len(shortened(cell, room)) <= room


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["serach", "x"], "no command 'serach' (did you mean 'search'?)"),
        (["gallery", "lst"], "no command 'lst' (did you mean 'list'?)"),
        (["search", "x", "--galery", "y"], "--gallery"),
        (["search", "x", "--backend", "onnxruntim"], "(did you mean 'onnxruntime'?)"),
        (["train", "--preset", "dmo", "--show-config"], "(did you mean 'demo'?)"),
        (["train", "--set", "optimization.epoch=3", "--show-config"],
         "no setting 'optimization.epoch' (did you mean 'optimization.epochs'?)"),
        (["train", "--set", "epochs=3", "--show-config"], "(did you mean 'optimization.epochs'?)"),
        (["train", "--set", "optimisation.lr=3", "--show-config"],
         "(did you mean 'optimization'?)"),
        (["train", "--set", "zzzz=3", "--show-config"], "run: xclip-deploy train --show-config"),
    ],
)  # fmt: skip
def test_a_mistyped_word_gets_the_nearest(
    words: list[str], hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    message = capfd.readouterr().err
    assert hint in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "number", "expected"),
    [
        ("xclip-deploy se", 1, "plain,search\nplain,serve\n"),
        ("xclip-deploy search --backend openv", 3, "plain,openvino\n"),
        ("xclip-deploy gallery li", 2, "plain,list\n"),
    ],
)
def test_shell_completion(
    line: str,
    number: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(number))
    monkeypatch.setenv("_XCLIP_DEPLOY_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert capfd.readouterr().out == expected
