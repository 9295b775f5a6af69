"""Tables of the command line on a terminal of 80 columns, and the words around them."""

from __future__ import annotations

import json
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

from xclip_deploy import Bundle, Retriever
from xclip_deploy.cli import main
from xclip_deploy.cli.export import print_export
from xclip_deploy.cli.table import Column, fitted_widths, shortened
from xclip_deploy.export.exporter import ExportResult
from xclip_deploy.runtime.progress import LOOKING, READING_FIRST, WaitLine

COLUMNS = 80
LONG = "a folder with a rather long name that nobody shortens/日本語の長いフォルダ名前がここにある"
NAMES = (
    "赤い四角が右に動いてから青い三角が大きくなる動画.webm",
    "long " * 20 + ".webm",
    "frog.webm",
)
QUERY = "a red square moves right 赤い四角 " * 6


@contextmanager
def terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int = COLUMNS, stream_name: str = "stdout"
) -> Iterator[list[str]]:
    """Make a standard stream a terminal; the list has what it shows once the block ends."""
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
                patch.setattr(sys, stream_name, stream)
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
        shutil.copy(clips / ("mdn_frog.webm" if number else "conditions/dog_square.mp4"), file)
        if number == 1:
            shutil.copy(clips / "intel_asl_walk.mkv", file)
        files.append(file)
    with Retriever(bundle_path, device="cpu", threads=1) as retriever:
        notes = {"note": "a note of more than a few words, 長いメモ"}
        retriever.add(files, metadata=notes, segment="2s", stride="1s")
        retriever.save(place / "xclip-gallery")
    lines = [
        {"file": name, "caption": text, "start_s": 0.5, "end_s": 1.5}
        for name, text in zip(NAMES, ("a square", "a man", "a frog"), strict=True)
    ]
    (place / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(bundle_path, place / "own-bundle")
    return place


DATASET = ["--dataset", "folder", "--annotations", "captions.jsonl", "--videos", LONG]
SIZES = ["--video-batch", "1:2:4", "--text-batch", "1:2:4", "--scored-texts", "1:2:4",
         "--scored-videos", "1:4:8", "--flavor", "rtx"]  # fmt: skip


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
    "gallery show": ["gallery", "show", "frog.webm"],
    "gallery stats": ["gallery", "stats"],
    "gallery verify": ["gallery", "verify"],
    "gallery optimize": ["gallery", "optimize"],
    "index": ["index", LONG, "--gallery", "new-gallery"],
    "index again": ["index", LONG],
    "cut": ["cut", f"{LONG}/frog.webm", "--from", "0", "--to", "0.5", "-o", "cut.mp4"],
    "evaluate": ["evaluate", "xclip-bundle", *DATASET, "--dual-softmax"],
    "evaluate moments": ["evaluate", "xclip-bundle", *DATASET, "--task", "moments"],
    "build-trt": ["build-trt", "own-bundle", *SIZES],
    "build-trt --dry-run": ["build-trt", "own-bundle", "--dry-run", "--flavor", "rtx"],
    "verify": ["verify", "-o", "verification", "--no-report"],
    "bench": ["bench", "--seconds", "0.01", "--rounds", "1", "--warmup", "0",
              "--video-batches", "1", "--text-batches", "1", "--scored-videos", "10"],
}  # fmt: skip


SENTENCES = {"gallery show", "gallery stats", "gallery verify", "gallery optimize", "index",
             "index again", "cut", "build-trt --dry-run"}  # fmt: skip
"""Commands that print lines and no table."""
WAITS = {
    "search": ["loading the model and opening the gallery", "searching"],
    "explain": ["loading the model and opening the gallery", "searching and explaining",
                "drawing the picture"],
    "gallery verify": ["opening the gallery", "looking at the files"],
    "index": ["loading the model and opening the gallery", LOOKING, READING_FIRST],
    "cut": ["cutting"],
    "evaluate": ["reading the annotations and looking for the videos", "loading the model",
                 READING_FIRST],
    "evaluate moments": ["reading the annotations and looking for the videos",
                         "loading the model and opening the gallery", LOOKING, READING_FIRST,
                         "searching for the first captions"],
    "build-trt": ["loading TensorRT"],
    "build-trt --dry-run": ["loading TensorRT and parsing the graphs"],
    "export-triton": ["writing the models"],
    "verify": ["reading the captions and looking for the videos", "loading the graphs",
               READING_FIRST],
    "bench": ["loading the libraries"],
}  # fmt: skip
"""What commands name while they do not count yet."""


@pytest.mark.parametrize(("name", "words"), SHOWN.items(), ids=SHOWN)
def test_every_table_fits_the_terminal(
    name: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("build-trt"):
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    named: list[str] = []

    def note(line: WaitLine, what: str) -> None:
        named.append(what)
        name_wait(line, what)

    name_wait = WaitLine.name
    monkeypatch.setattr(WaitLine, "name", note)
    monkeypatch.chdir(place)
    with (
        terminal(monkeypatch, stream_name="stderr") as messages,
        terminal(monkeypatch) as lines,
        pytest.raises(SystemExit) as ended,
    ):
        main(words)
    assert ended.value.code == 0, (lines, messages)
    rows = [line for line in lines if line] if name in SENTENCES else table_lines(lines)
    assert len(rows) >= (1 if name in SENTENCES else 3), lines
    if name not in SENTENCES:
        assert [line for line in rows if cell_len(line) > COLUMNS] == []
    assert max(map(cell_len, rows)) > 20
    assert named == WAITS.get(name, named)


def test_the_tables_of_an_export_fit_the_terminal(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ExportResult(bundle, bundle.manifest.parity, bundle.manifest.provenance.notes)
    with terminal(monkeypatch) as lines:
        print_export(result)
    rows = table_lines(lines)
    assert len(rows) > 20
    assert [line for line in rows if cell_len(line) > COLUMNS] == []


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
        ("xclip-deploy se", 1, "plain,search\nplain,serve-shards\nplain,serve\n"),
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
