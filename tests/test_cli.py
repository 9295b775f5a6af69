from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import Run, assert_one_line_error, runner

from stand_in_device.kernels import write_kernels
from xclip_deploy import Bundle, Retriever, __version__
from xclip_deploy.cli.options import alternatives
from xclip_deploy.cli.program import cli
from xclip_deploy.runtime.search import DEFAULT_CANDIDATES
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider

SCRIPT = Path(sys.executable).with_name("xclip-deploy")
COMMANDS = (
    "train",
    "evaluate",
    "export",
    "build-trt",
    "build-scan",
    "export-triton",
    "index",
    "search",
    "cut",
    "explain",
    "verify",
    "bench",
    "inspect",
    "serve",
)
GROUPS = ("gallery",)
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


def command_named(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def script(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    command = [SCRIPT, *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=120, check=False, **options)


# Help


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(run: Run, option: str) -> None:
    outcome = run(option)
    assert (outcome.status, outcome.err) == (0, "")
    assert all(f"\n  {command} " in outcome.out for command in (*COMMANDS, *GROUPS))
    assert "Exit statuses" in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(run: Run, command: str) -> None:
    for option in ("--help", "-h"):
        outcome = run(command, option)
        assert (outcome.status, outcome.err) == (0, "")
        assert f"xclip-deploy {command}" in outcome.out
        assert "--json" in outcome.out


def test_help_states_the_default_number_of_candidates(run: Run) -> None:
    """Written out there: help does not import what searches."""
    words = run("search", "--help").out.split()
    assert words[words.index("--candidates") :].index(f"{DEFAULT_CANDIDATES}]") < 12


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert outcome.status == 0
    assert __version__ in outcome.out


# inspect


def test_inspect(run: Run, bundle_path: Path) -> None:
    outcome = run("inspect", bundle_path)
    assert (outcome.status, outcome.err) == (0, "")
    for part in (
        "x-clip",
        "video_encoder",
        "text_encoder",
        "scorer",
        "fp32",
        "fp16",
        "pytorch_model.bin",
        "build-trt",
        "kernels:     none, so that galleries are not kept on a GPU; run: xclip-deploy build-scan",
    ):
        assert part in outcome.out


def test_inspect_names_the_kernels(run: Run, bundle_copy: Path) -> None:
    kernel_set = write_kernels(Bundle.open(bundle_copy), [(8, 9), (9, 0)])
    outcome = run("inspect", bundle_copy)
    assert outcome.status == 0
    assert "kernels:     query_kernel, frames_kernel, video_kernel, digit_kernel" in outcome.out
    assert "for compute capability 8.9, 9.0 (+: and later GPUs), 10 files, " in outcome.out
    content = run("inspect", bundle_copy, "--json").json()
    assert content["scan_kernels"] == kernel_set.model_dump(mode="json")
    (bundle_copy / "kernels" / "scan" / "kernels.json").write_text("{")
    assert_one_line_error(run("inspect", bundle_copy), 6, "build-scan")


def test_inspect_json(run: Run, bundle_path: Path, bundle: Bundle) -> None:
    outcome = run("inspect", bundle_path, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    content = outcome.json()
    assert content.pop("engine_sets") == {}
    assert content.pop("scan_kernels") is None
    assert content.pop("certificate") is None
    assert content == bundle.manifest.model_dump(mode="json")


def test_inspect_verify(run: Run, bundle_copy: Path) -> None:
    assert run("inspect", bundle_copy, "--verify").status == 0
    file = bundle_copy / "fp16" / "scorer.onnx"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    assert run("inspect", bundle_copy).status == 0  # without reading the graphs
    assert_one_line_error(run("inspect", bundle_copy, "--verify"), 6, "scorer.onnx was altered")


def test_inspect_takes_the_usual_name(
    run: Run, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle_path.name == "xclip-bundle"
    monkeypatch.chdir(bundle_path.parent)
    assert run("inspect", "--json").json() == run("inspect", bundle_path, "--json").json()


# Exit statuses


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("--frobnicate",),
        ("index",),
        ("search",),
        ("search", "a dog", "a cat", "--video", "x.mp4"),
        ("search", "a dog", "--image", "x.png"),
        ("search", "--video", "x.mp4", "--image", "x.png"),
        ("optimize",),  # it is in the group gallery
        ("index", ""),
        ("inspect", ""),
        ("search", "a dog", "--bundle", ""),
        ("search", "--video", ""),
        ("train", "--checkpoint", ""),
        ("search", "a dog", "--exact", "--two-stage"),
        ("search", "--two-stage", "a dog", "--exact"),
        ("search", "a dog", "-k", "0"),
        ("search", "a dog", "--device", "tpu"),
        ("search", "a dog", "--threads", "none"),
        ("export",),
        ("export", "x.pt", "--max-words", "2"),
        ("export", "x.pt", "--fps", "0"),
        ("inspect", "a", "b"),
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert_one_line_error(outcome, 2, "see: xclip-deploy", "--help")
    assert outcome.out == ""


def test_options_that_exclude_each_other(run: Run) -> None:
    found = 0
    for name in COMMANDS:
        for flags in alternatives(command_named(name)).values():
            for first, second in permutations(flags, 2):
                outcome = run(name, first, second, "x")
                assert_one_line_error(outcome, 2, f"{name} --help", " exclude each other; expected")
                assert first in outcome.err
                assert second in outcome.err
                found += 1
    assert found >= 10  # of search, verify and build-trt


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


# The installed command


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
