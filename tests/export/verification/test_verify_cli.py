"""``xclip-deploy verify`` and what ``inspect`` says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, runner

from xclip_deploy.export.verification import inputs, verifying
from xclip_deploy.export.verification.runs import find_sessions
from xclip_deploy.runtime.video import read_videos


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def test_a_good_bundle(run: Run, bundle_copy: Path, clips: Path, captions_file: Path) -> None:
    assert "certificate: none; run: xclip-deploy verify" in run("inspect", bundle_copy).out
    outcome = run("verify", bundle_copy, "--videos", clips, "--captions", captions_file)
    assert (outcome.status, outcome.err) == (0, "")
    for part in (
        "fp16 onnxruntime cpu against fp32 onnxruntime cpu",
        "sentence_features",
        "near ties",
        "folder/test: 3 videos, 5 texts",
        f"wrote {bundle_copy / 'verification' / 'report.html'} and certificate.json",
    ):
        assert part in outcome.out
    assert "FAILED" not in outcome.out
    assert "certificate: passed" in run("inspect", bundle_copy).out
    printed = json.loads(run("inspect", bundle_copy, "--json").out)
    assert printed["certificate"]["passed"] is True


def test_a_ruined_bundle(run: Run, bundle_copy: Path, ruin: Any, tmp_path: Path) -> None:
    ruin(bundle_copy, "fp16/frame_encoder.onnx")
    outcome = run("verify", bundle_copy, "--no-report")
    assert outcome.status == 13
    assert "FAILED: fp16 onnxruntime cpu: video_encoder video_features: error" in outcome.out
    assert outcome.err.startswith("error: out of tolerance against fp32 onnxruntime cpu")
    assert outcome.err.count("\n") == 1
    assert "certificate: FAILED" in run("inspect", bundle_copy).out

    outcome = run("verify", bundle_copy, "--no-report", "--json", "-o", tmp_path / "elsewhere")
    assert outcome.status == 13
    printed = json.loads(outcome.out)
    assert printed["passed"] is False
    assert printed == json.loads((tmp_path / "elsewhere" / "certificate.json").read_text("utf-8"))


def test_texts_of_a_plain_file(run: Run, bundle_copy: Path, clips: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\ufeffa dog\n\n  two   men \n", encoding="utf-8")
    outcome = run(
        *("verify", bundle_copy, "--videos", clips / "sam2_dog.mp4", "--captions", texts),
        *("--no-report", "--json"),
    )
    assert outcome.status == 0
    shown = json.loads(outcome.out)["inputs"]
    assert (shown["num_videos"], shown["num_texts"]) == (1, 2)
    assert not shown["has_ground_truth"]
    assert not shown["built_in_texts"]


def test_threads_infer_and_workers_decode(
    run: Run, bundle_copy: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def read(*arguments: Any, num_threads: int | None) -> Any:
        asked["workers"] = num_threads
        return read_videos(*arguments, num_threads=num_threads)

    def find(*arguments: Any, threads: int | None, **options: Any) -> Any:
        asked["threads"] = threads
        return find_sessions(*arguments, threads=threads, **options)

    monkeypatch.setattr(inputs, "read_videos", read)
    monkeypatch.setattr(verifying, "find_sessions", find)
    arguments = ("verify", bundle_copy, "--videos", clips / "sam2_dog.mp4", "--no-report")
    assert run(*arguments, "--threads", "1", "--workers", "3").status == 0
    assert asked == {"threads": 1, "workers": 3}
    for option in ("--threads", "--workers"):
        assert run(*arguments, option, "0").status == 2


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe\xfa"])
def test_a_file_without_texts(run: Run, bundle_path: Path, tmp_path: Path, content: bytes) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_bytes(content)
    outcome = run("verify", bundle_path, "--captions", texts)
    assert outcome.status == 2
    assert "texts.txt" in outcome.err


def test_captions_that_are_empty(run: Run, bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("file,caption\nmdn_frog.webm,\n", encoding="utf-8")
    outcome = run("verify", bundle_path, "--videos", clips, "--captions", captions)
    assert outcome.status == 11
    assert "empty caption at line 2" in outcome.err


def test_options_that_do_not_go_together(run: Run, bundle_path: Path, captions_file: Path) -> None:
    assert run("verify", bundle_path, "--captions", captions_file).status == 2
    assert run("verify", bundle_path, "--dataset", "folder").status == 2
    assert run("verify", bundle_path, "--annotations", captions_file).status == 2


def test_a_certificate_of_an_earlier_export_is_seen(run: Run, bundle_copy: Path, ruin: Any) -> None:
    assert run("verify", bundle_copy, "--no-report").status == 0
    ruin(bundle_copy, "fp16/text_encoder.onnx")
    assert "certificate: of another export" in run("inspect", bundle_copy).out
    (bundle_copy / "verification" / "certificate.json").write_text("{")
    outcome = run("inspect", bundle_copy)
    assert outcome.status == 0
    assert "not a certificate" in outcome.out


def test_without_torch_and_matplotlib(bundle_copy: Path) -> None:
    """As on a machine that serves: the FP32 graphs are the reference, and there is no report."""
    code = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
from xclip_deploy.cli import main
main(["verify", *sys.argv[1:]])
"""
    command = [sys.executable, "-W", "error", "-c", code, str(bundle_copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no report: matplotlib is missing; run: pip install 'xclip-deploy[plot]'" in done.stdout
    files = {path.name for path in (bundle_copy / "verification").iterdir()}
    assert files == {"certificate.json"}
    for option, named in (("--report", "matplotlib"), ("--checkpoint=x.pt", "torch")):
        done = subprocess.run(
            [*command, option], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 3
        assert f"needs {named}" in done.stderr
