from __future__ import annotations

from itertools import permutations
from pathlib import Path

import click
import pytest
from command_line import Run, assert_one_line_error, runner

from stand_in_device.kernels import write_kernels
from xclip_deploy import Bundle, __version__
from xclip_deploy.cli.options import alternatives
from xclip_deploy.cli.program import cli
from xclip_deploy.runtime.search import DEFAULT_CANDIDATES

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


def command_named(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


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


# The installed command
