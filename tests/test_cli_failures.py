"""Failures of commands: one line, a status, and a traceback on request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_one_line_error, runner

from xclip_deploy import Bundle, Retriever
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider

SCRIPT = Path(sys.executable).with_name("xclip-deploy")


FROG, TURNED = "mdn_frog.webm", "edge_cases/decord_video_90.mov"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def gallery_path(bundle: Bundle, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of two clips. Not to be changed."""
    path = tmp_path_factory.mktemp("cli") / "gallery"
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add([clips / FROG, clips / TURNED])
        retriever.save(path)
    return path


def script(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=120, check=False, **options)


def test_a_text_that_looks_like_an_option(run: Run, bundle_path: Path, gallery_path: Path) -> None:
    places = ("--bundle", bundle_path, "--gallery", gallery_path)
    outcome = run("search", *places, "--exact", "--", "--two-stage")
    assert outcome.status == 0
    assert outcome.out.startswith("--two-stage\n")


@pytest.mark.parametrize("score", ["nan", "x"])
def test_a_least_score_that_is_no_number(
    run: Run, bundle_path: Path, gallery_path: Path, score: str
) -> None:
    places = ("--bundle", bundle_path, "--gallery", gallery_path)
    outcome = run("search", "a dog", *places, "--min-score", score)
    assert_one_line_error(outcome, 2, score)


def test_an_empty_text_is_wrong_usage(run: Run, bundle_path: Path, gallery_path: Path) -> None:
    outcome = run("search", " ", "--bundle", bundle_path, "--gallery", gallery_path)
    assert_one_line_error(outcome, 2, "holds no word")


def test_a_missing_checkpoint(run: Run, tmp_path: Path) -> None:
    outcome = run("export", tmp_path / "none.pt", "-o", tmp_path / "bundle")
    assert outcome.status == 4
    assert "error: " in outcome.err
    assert str(tmp_path / "none.pt") in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "bundle").exists()


def test_an_output_that_is_no_bundle(run: Run, checkpoint_path: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    outcome = run("export", checkpoint_path, "-o", tmp_path)
    assert outcome.status == 2
    assert "exists and is no bundle" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", [("inspect",), ("search", "a dog", "--bundle")])
def test_a_missing_bundle(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "none"
    outcome = run(*command, path)
    assert_one_line_error(outcome, 6, f"run: xclip-deploy export CHECKPOINT -o {path}")
    assert outcome.out == ""


def test_engines_that_are_none(run: Run, bundle_copy: Path) -> None:
    (bundle_copy / "engines" / "x").mkdir(parents=True)
    (bundle_copy / "engines" / "x" / "engines.json").write_text("{}")
    assert_one_line_error(run("inspect", bundle_copy), 7, "not a description of engines")


def test_no_video_could_be_read(run: Run, bundle_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    gallery = tmp_path / "gallery"
    outcome = run("index", bad, "--bundle", bundle_path, "--gallery", gallery)
    assert outcome.status == 8
    assert str(bad) in outcome.out
    assert outcome.err.splitlines()[-1].startswith("error: 1 video failed")
    assert "Traceback" not in outcome.err
    outcome = run("index", tmp_path / "none.mp4", "--bundle", bundle_path, "--gallery", gallery)
    assert_one_line_error(outcome, 8, "no such file")


def test_a_device_that_is_not_there(run: Run, bundle_path: Path, gallery_path: Path) -> None:
    if why_no_provider("CUDAExecutionProvider") is None:
        pytest.skip("this machine has a GPU")
    places = ("--bundle", bundle_path, "--gallery", gallery_path)
    outcome = run("search", "a dog", *places, "--device", "cuda")
    assert_one_line_error(outcome, 9, "device cuda was asked for, but ")


def test_a_missing_gallery(run: Run, bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "none"
    outcome = run("search", "a dog", "--bundle", bundle_path, "--gallery", path)
    assert_one_line_error(outcome, 10, f"run: xclip-deploy index VIDEOS --gallery {path}")


def test_traceback_on_request(tmp_path: Path) -> None:
    path = tmp_path / "odd\x1b[31m\nname"
    for arguments in (("--traceback", "inspect", path), ("inspect", path, "--traceback")):
        done = script(*arguments, capture_output=True)
        assert done.returncode == 6
        assert done.stderr.startswith("Traceback (most recent call last):\n  File ")
        assert "BundleNotFoundError: no bundle at" in done.stderr
        assert {text for text in done.stderr if not text.isprintable()} == {"\n"}


def test_traceback_of_an_unexpected_error(
    run: Run, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Bundle:
        raise RuntimeError("something\x1b[31m unforeseen")

    monkeypatch.setattr(Bundle, "open", fail)
    outcome = run("inspect", bundle_path, "--traceback")
    assert outcome.status == 1
    assert outcome.err.startswith("Traceback (most recent call last):\n")
    assert outcome.err.endswith("\nRuntimeError: something\\x1b[31m unforeseen\n")


def test_an_unexpected_error_is_one_line(
    run: Run, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Bundle:
        raise RuntimeError("something\nunforeseen")

    monkeypatch.setattr(Bundle, "open", fail)
    outcome = run("inspect", bundle_path)
    assert outcome.status == 1
    assert outcome.err == (
        "unexpected error: RuntimeError: something unforeseen "
        "(run again with --traceback to see where)\n"
    )


def test_a_broken_pipe_within_is_no_reader_that_goes_away(
    run: Run, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Bundle:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Bundle, "open", fail)
    outcome = run("inspect", bundle_path)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    assert "unexpected error" in outcome.err
    assert "Broken pipe" in outcome.err


def test_the_installed_command(bundle_path: Path, gallery_path: Path, tmp_path: Path) -> None:
    done = script("inspect", bundle_path, "--json", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["format"] == "xclip-bundle"
    places = ("--bundle", bundle_path, "--gallery", gallery_path)
    done = script("search", "a man", *places, "--json", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)[0]["results"]) == 2
    done = script("inspect", tmp_path / "none", capture_output=True)
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1


def test_the_installed_command_without_arguments(tmp_path: Path) -> None:
    done = script(capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == script("--help", capture_output=True).stdout
    done = script("inspect", capture_output=True, cwd=tmp_path)
    assert done.returncode == 6
    assert "no bundle at xclip-bundle" in done.stderr


def test_verbose_shows_what_the_libraries_report(bundle_path: Path, gallery_path: Path) -> None:
    arguments = ("search", "word " * 100, "--bundle", bundle_path, "--gallery", gallery_path)
    quiet = script(*arguments, capture_output=True)
    loud = script("-v", *arguments, capture_output=True)
    assert quiet.returncode == loud.returncode == 0
    assert quiet.stderr.startswith("warning: the text 'word word")
    assert quiet.stderr.endswith(
        " is longer than the 30 tokens that the model reads; its last 70 were not read\n"
    )
    assert quiet.stderr.count("\n") == 1
    assert "tokens is cut to the 30" in loud.stderr
    assert loud.stdout == quiet.stdout


def test_an_empty_folder_becomes_a_gallery(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    outcome = run("index", clips / FROG, "--bundle", bundle_path, "--gallery", folder, "--json")
    assert outcome.status == 0
    assert outcome.json()["videos"] == 1


def test_a_folder_of_other_things_does_not(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    outcome = run("index", clips / FROG, "--bundle", bundle_path, "--gallery", tmp_path)
    assert_one_line_error(outcome, 10, "choose another path")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_same_query_twice(run: Run, bundle_path: Path, gallery_path: Path) -> None:
    places = ("--bundle", bundle_path, "--gallery", gallery_path, "--json")
    found = run("search", "a frog", "a frog", *places).json()
    assert [entry["query"] for entry in found] == ["a frog", "a frog"]
    assert found[0] == found[1]
