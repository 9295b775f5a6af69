"""Standard streams that fail, and names that a terminal would act on."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from command_line import Run, on_a_terminal, runner
from gallery_samples import lance_store, sample

from xclip_deploy import Bundle, Retriever
from xclip_deploy.cli import display
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.presentation import printable

SCRIPT = str(Path(sys.executable).with_name("xclip-deploy"))
ALARMING = "a\x1b[31m\x07\r\n\x9b2J\u202egpj.\u2028\x7f"
"""A name that colours, rings, overwrites, breaks lines and reorders what follows."""
ESCAPED = r"a\x1b[31m\x07\r\n\x9b2J\u202egpj.\u2028\x7f"
ACTIVE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def gallery_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of 100 videos, one of them with an alarming id and metadata. Not to be changed."""
    path = tmp_path_factory.mktemp("streams") / "gallery"
    store = lance_store(path)
    ids = [ALARMING, *(f"video {n} é….mp4" for n in range(99))]
    store.put(*sample(ids, note=ALARMING), replace=False)
    store.close()
    return path


def call(
    *arguments: object, redirections: str = "", encoding: str = "utf-8"
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command by a shell that redirects its streams."""
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", SCRIPT, *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)


CALLS: dict[str, tuple[object, ...]] = {
    "help": ("--help",),
    "version": ("--version",),
    "table": ("gallery", "list", "--limit", 100, "--gallery"),
    "json": ("gallery", "list", "--json", "--limit", 100, "--gallery"),
}


REASONS = {">/dev/full": "No space left on device", ">&-": "it is closed"}


def pairs(others: Iterable[str], *fast: tuple[str, str]) -> list[ParameterSet]:
    """Pair every call with each of ``others``; all but some pairs are slow."""
    return [
        pytest.param(*pair, marks=() if pair in fast else pytest.mark.slow)
        for pair in product(CALLS, others)
    ]


def arguments_of(name: str, gallery: Path) -> tuple[object, ...]:
    words = CALLS[name]
    return (*words, gallery) if "--gallery" in words else words


# Standard output


@pytest.mark.parametrize(
    ("name", "redirections"),
    pairs(REASONS, ("help", ">/dev/full"), ("table", ">&-"), ("json", ">/dev/full")),
)
def test_results_that_cannot_be_written(gallery_path: Path, name: str, redirections: str) -> None:
    reason = REASONS[redirections]
    done = call(*arguments_of(name, gallery_path), redirections=redirections)
    assert done.returncode == 14
    assert done.stderr.decode().startswith(
        f"error: standard output cannot be written: {reason}; expected "
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("help", "json") else pytest.mark.slow)
        for name in CALLS
    ],
)
def test_a_reader_that_goes_away(gallery_path: Path, name: str) -> None:
    """`head` does so. Nothing is wrong, so nothing is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [SCRIPT, *map(str, arguments_of(name, gallery_path))]
    try:
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_reads_the_first_line(gallery_path: Path, unbuffered: str) -> None:
    """`head -1` does so: the program still writes when its reader goes."""
    command = [SCRIPT, *map(str, arguments_of("json", gallery_path))]
    # A pipe of one page is full at once. An unbuffered stream writes what fits.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pipesize=4096,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"{\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_work_is_done_before_its_report_fails(
    bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    done = call("index", clips / "mdn_frog.webm", *places, redirections=">/dev/full 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (14, b"", b"")
    with Retriever(bundle_path, tmp_path / "gallery", device="cpu") as retriever:
        assert len(retriever) == 1


@pytest.mark.parametrize(
    ("name", "encoding"),
    pairs(("ascii", "latin-1"), ("help", "latin-1"), ("table", "ascii"), ("json", "latin-1")),
)
def test_output_in_few_characters(gallery_path: Path, name: str, encoding: str) -> None:
    done = call(*arguments_of(name, gallery_path), encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    printed = done.stdout.decode(encoding)
    if name == "json":
        ids = [video["id"] for video in json.loads(printed)["videos"]]
        assert ids[:2] == [ALARMING, "video 0 é….mp4"]
    if name == "table":
        e = "é" if encoding == "latin-1" else r"\xe9"
        assert rf"video 0 {e}\u2026.mp4" in printed
    assert not ACTIVE.search(printed)


def test_errors_in_few_characters() -> None:
    done = call("inspect", "/é…/none", encoding="ascii")
    assert done.returncode == 6
    assert done.stderr.startswith(rb"error: no bundle at /\xe9\u2026/none ")


# Standard error


@pytest.mark.parametrize(
    "redirections",
    ["2>/dev/full", pytest.param("2>&-", marks=pytest.mark.slow), "2>&- <&-"],
)
def test_messages_that_cannot_be_written(gallery_path: Path, redirections: str) -> None:
    done = call(*arguments_of("json", gallery_path), redirections=redirections)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(json.loads(done.stdout)["videos"]) == 100
    done = call("inspect", "none", redirections=redirections)
    assert (done.returncode, done.stdout, done.stderr) == (6, b"", b"")
    done = call("frobnicate", redirections=redirections)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_all_streams_closed(gallery_path: Path) -> None:
    done = call(*arguments_of("table", gallery_path), redirections="<&- >&- 2>&-")
    assert done.returncode == 14
    done = call("inspect", "none", redirections="<&- >&- 2>&-")
    assert done.returncode == 6


def test_no_stream_is_a_data_file(bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    """With closed streams, the first files opened would be 0, 1 and 2."""
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    written = tmp_path / "report.json"
    clip = clips / "mdn_frog.webm"
    done = call("index", clip, *places, "--report", written, redirections="<&- >&- 2>&-")
    assert done.returncode == 14
    assert json.loads(written.read_text())["indexed"] == [str(clip)]
    assert len(Gallery.open(tmp_path / "gallery", Bundle.open(bundle_path).manifest)) == 1


def test_removal_without_standard_input(gallery_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gallery"
    shutil.copytree(gallery_path, copy)
    arguments = ("gallery", "remove", "--where", "n >= 0", "--gallery", copy)
    done = call(*arguments, redirections="<&-")
    assert done.returncode == 2
    assert b"there is no terminal to ask on" in done.stderr
    assert len(Gallery.open(copy)) == 100


def test_the_help_documents_the_statuses(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    assert "14 standard output cannot be written" in text
    assert "141 the reader of standard output went away" in text


# Names that a terminal would act on


def test_names_of_a_gallery_are_escaped(run: Run, gallery_path: Path) -> None:
    shown = run("gallery", "show", ALARMING, "--gallery", gallery_path)
    listed = run("gallery", "list", "--gallery", gallery_path)
    for outcome in (shown, listed):
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.out.count(ESCAPED) >= 2  # the id and its metadata
        assert not ACTIVE.search(outcome.out)
    refused = run("gallery", "show", f"no {ALARMING}", "--gallery", gallery_path)
    assert (refused.status, refused.err.count("\n")) == (10, 1)
    assert not ACTIVE.search(refused.err)


def test_names_are_escaped_on_a_terminal_too(gallery_path: Path) -> None:
    status, screen = on_a_terminal(
        "gallery", "list", "--limit", 1, "--gallery", gallery_path, columns=300
    )
    assert status == 0
    assert ESCAPED in screen
    assert ALARMING[:4] not in screen


def test_json_escapes_and_keeps_names(run: Run, gallery_path: Path) -> None:
    outcome = run("gallery", "show", ALARMING, "--gallery", gallery_path, "--json")
    assert not ACTIVE.search(outcome.out)
    assert (outcome.json()["id"], outcome.json()["metadata"]["note"]) == (ALARMING, ALARMING)


def test_names_of_files_are_escaped(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    undecodable = os.fsdecode(b"\xff.webm")
    good, bad, bytes_ = tmp_path / ALARMING, tmp_path / f"{ALARMING}bad.mp4", tmp_path / undecodable
    shutil.copyfile(clips / "mdn_frog.webm", good)
    bad.write_text("no video")
    bytes_.write_text("no video")
    places = ("--bundle", bundle_path, "--gallery", tmp_path / "gallery", "--device", "cpu")
    outcome = run("index", good, bad, bytes_, *places, "--report", tmp_path / "report.json")
    assert outcome.status == 0
    assert len(outcome.out.splitlines()) == 3  # two failures and the counts
    assert f"{ESCAPED}bad.mp4" in outcome.out
    assert r"\udcff.webm" in outcome.out
    written = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert not ACTIVE.search(written)
    failed = [failure["path"] for failure in json.loads(written)["failed"]]
    assert (str(bad) in failed, len(failed)) == (True, 2)
    found = run("search", f"a frog{ALARMING}", *places)
    explained = run("explain", f"a frog {ALARMING}", *places, "-o", tmp_path / "\x1b.png")
    removed = run("gallery", "remove", good, "--gallery", tmp_path / "gallery", "--dry-run")
    for outcome in (found, explained, removed):
        assert outcome.status == 0, outcome
        assert not ACTIVE.search(outcome.out)
    assert found.out.startswith(f"a frog{ESCAPED}\n")
    assert f"wrote {tmp_path}/\\x1b.png" in explained.out


def test_names_of_tensors_are_escaped(run: Run, golden: Any, tmp_path: Path) -> None:
    path = tmp_path / f"{ALARMING}.pt"
    torch.save({f"visual.{ALARMING}{n}": torch.zeros(3) for n in range(500)}, path)
    outcome = run("export", path, "-o", tmp_path / "bundle")
    assert outcome.status == 4
    assert outcome.err.count("\n") == 1
    assert not ACTIVE.search(outcome.err)
    assert len(outcome.err) <= 1001


# Length


@pytest.mark.parametrize(
    "arguments",
    [
        ("{}",),
        ("inspect", "{}"),
        ("export", "{}"),
        ("export", "x.pt", "-o", "{}"),
        ("evaluate", "x", "--dataset", "{}", "--annotations", "{}", "--videos", "{}"),
        ("train", "--set", "{}"),
        ("bench", "--session", "{}"),
        ("search", "x", "--query-bank", "{}"),
        ("search", "-k", "{}"),
        ("build-trt", "--video-batch", "{}"),
    ],
    ids=" ".join,
)
def test_messages_are_short(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*(word.format("long " * 2000) for word in arguments))
    assert outcome.status not in (0, 1)
    assert outcome.err.startswith("error: ")
    assert len(outcome.err) <= display.MAX_LINE + 1


def test_log_messages_are_short_and_escaped() -> None:
    code = f"""
import logging, sys
from xclip_deploy.cli import program
from xclip_deploy import Bundle

def warn(path):
    logging.getLogger("x").warning("%s", {ALARMING!r} + "n" * 5000)
    sys.exit(0)

Bundle.open = warn
program.main(["inspect"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert done.stderr.startswith(r"x: a\x1b[31m\x07 \x9b2J\u202egpj. \x7fnnn")
    assert (len(done.stderr), done.stderr.count("\n")) == (1001, 1)


# The function


def test_printable() -> None:
    assert printable(ALARMING) == ESCAPED
    for text in ("", "plain", "é 🎬 東京 👩\u200d🚀", r"back\slash", "[red]"):
        assert printable(text) == text


def test_everything_is_printed_by_display() -> None:
    folder = Path(display.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                where = f"{file.name}:{node.lineno}: {name}"
                assert name not in ("print", "click.secho", "sys.stdout.write"), where
                assert name != "click.echo" or file.name == "table.py", where
