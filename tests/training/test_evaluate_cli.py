"""``xclip-deploy evaluate``, end to end on real clips."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run, runner

from xclip_deploy.runtime.evaluation import evaluating
from xclip_deploy.runtime.video import read_videos

# Of words whose embeddings the small checkpoint has kept.
CAPTIONS = {
    "conditions/burst.mp4": ["video broadcaster comparing cheese"],
    "edge_cases/torchcodec_test_non_zero_start.mp4": [
        "psycho readings territories",
        "teacher saturdays pools hospitalized",
    ],
    "conditions/dog_square.mp4": ["foundation suspense bombed rookie"],
    "edge_cases/torchcodec_h265.mp4": ["managing nyc canucks", "toilet deadlines magnitude"],
}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "evaluate")


def write_captions(path: Path, captions: dict[str, list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        writer.writerows((name, text) for name, texts in captions.items() for text in texts)
    return path


@pytest.fixture
def dataset(tmp_path: Path, clips: Path) -> list[object]:
    path = write_captions(tmp_path / "captions.csv", CAPTIONS)
    return ["--dataset", "folder", "--annotations", path, "--videos", clips]


def test_a_checkpoint_and_its_bundle_have_the_same_numbers(
    run: Run, dataset: list[object], bundle_path: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    on_cpu = [*dataset, "--device", "cpu", "--threads", "2", "--dual-softmax"]
    of_checkpoint = run(checkpoint_path, *on_cpu, "--json")
    of_bundle = run(bundle_path, *on_cpu, "--precision", "fp32", "-o", tmp_path / "result.json")
    assert (of_checkpoint.status, of_bundle.status) == (0, 0)
    assert (of_checkpoint.err, of_bundle.err) == ("", "")
    first = json.loads(of_checkpoint.out)
    second = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert first["model"].pop("kind") == "checkpoint"
    assert second["model"].pop("kind") == "bundle"
    for content in (first, second):
        assert content["model"].pop("identity")
        assert content["model"].pop("path")
    assert first == second
    assert first["split"] == "folder/test"
    assert (first["num_videos"], first["num_captions"]) == (4, 6)
    assert first["text_to_video"]["num_queries"] == 6
    assert first["dual_softmax"]["temperature"] == 1.0
    assert set(first["dual_softmax"]["video_to_text"]) == set(first["video_to_text"])


def test_the_table(run: Run, dataset: list[object], bundle_path: Path) -> None:
    outcome = run(bundle_path, *dataset, "--device", "cpu", "--dual-softmax")
    assert outcome.status == 0, outcome
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["R@1", "R@5", "R@10", "MdR", "MnR", "queries"]
    starts = [line[:13] for line in lines[2:6]]
    assert starts == ["text to video", "video to text"] * 2
    assert [("(dual softmax)" in line) for line in lines[2:6]] == [False, False, True, True]
    assert lines[2].split()[-1] == "6"
    assert lines[-1] == (
        "folder/test: 4 videos, 6 captions; left out: 0 without a file, 0 unreadable; "
        "bundle in fp32 on cpu"
    )


def test_what_is_missing_or_unreadable_is_told(
    run: Run, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("mdn_frog.webm", "sam2_dog.mp4"):
        (videos / name).symlink_to(clips / name)
    (videos / "damaged.mp4").symlink_to(clips / "edge_cases" / "decord_corrupted.mp4")
    (videos / "broken.mp4").write_bytes(b"no video")
    names = ["mdn_frog.webm", "sam2_dog.mp4", "damaged.mp4", "broken.mp4", "gone.mp4"]
    path = write_captions(tmp_path / "captions.csv", {name: [f"caption {name}"] for name in names})
    arguments = ["--dataset", "folder", "--annotations", path, "--videos", videos]
    arguments += ["--max-missing-share", "0.3", "--device", "cpu"]
    outcome = run(bundle_path, *arguments, "--max-unreadable-share", "0.3")
    assert outcome.status == 0, outcome
    assert f"unreadable: {videos / 'broken.mp4'}: " in outcome.out
    assert f"damaged: {videos / 'damaged.mp4'}: " in outcome.out
    assert "missing: gone.mp4\n" in outcome.out
    assert "3 videos, 3 captions; left out: 1 without a file, 1 unreadable" in outcome.out
    refused = run(bundle_path, *arguments)
    assert refused.status == 11
    assert refused.out == ""
    assert refused.err.startswith("error: folder/test: 1 of the first 4 videos cannot be read")
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--split", "nonsense"], 2, "split is 'nonsense'"),
        (["--max-frames", "8"], 2, "expected none for a bundle"),
        (["--fps", "2"], 2, "exported for 1; run: xclip-deploy export CHECKPOINT --fps 2"),
        (["-o", "no-such-folder/result.json"], 2, "expected a file in a folder that is there"),
    ],
)
def test_wrong_arguments(
    run: Run,
    dataset: list[object],
    bundle_path: Path,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    outcome = run(bundle_path, *dataset, "--device", "cpu", *arguments)
    assert (outcome.status, outcome.out) == (status, "")
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_no_model(run: Run, dataset: list[object], tmp_path: Path) -> None:
    outcome = run(tmp_path / "nothing", *dataset)
    assert outcome.status == 4
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_options_of_a_checkpoint(run: Run, dataset: list[object], checkpoint_path: Path) -> None:
    outcome = run(checkpoint_path, *dataset, "--max-frames", "8")
    assert outcome.status == 2
    assert "max_frames" in outcome.err
    options = ["--max-words", "32", "--activation", "quick_gelu", "--fps", "0.5", "--json"]
    content: dict[str, Any] = json.loads(run(checkpoint_path, *dataset, *options).out)
    assert (content["max_words"], content["frames_per_second"]) == (32, 0.5)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--backend", "onnxruntime"], "backend"),
        (["--device-id", "1"], "device_id"),
        (["--backend", "rtx", "--device-id", "1"], "backend, device_id"),
    ],
)
def test_session_options_that_pytorch_does_not_have(
    run: Run, dataset: list[object], checkpoint_path: Path, options: list[str], found: str
) -> None:
    outcome = run(checkpoint_path, *dataset, *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == (
        f"error: {checkpoint_path} is no bundle, so PyTorch runs it: found {found} among the "
        "session's options, expected device, precision and threads alone; for the others run: "
        f"xclip-deploy export {checkpoint_path}, and evaluate the bundle\n"
    )


def test_session_options_of_a_bundle(
    run: Run, dataset: list[object], bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = []

    def read(*arguments: Any, num_threads: int | None, **options: Any) -> Any:
        workers.append(num_threads)
        return read_videos(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr(evaluating, "read_videos", read)
    options = ["--device", "cpu", "--backend", "onnxruntime", "--precision", "fp16"]
    options += ["--threads", "1", "--workers", "3", "--json"]
    outcome = run(bundle_path, *dataset, *options)
    assert (outcome.status, outcome.err, workers) == (0, "", [3])
    model = outcome.json()["model"]
    assert (model["kind"], model["precision"], model["device"]) == ("bundle", "fp16", "cpu")


# Every day, test_torch_free.py runs the command without torch and all that comes with training.
@pytest.mark.slow
def test_a_bundle_without_torch(dataset: list[object], bundle_path: Path) -> None:
    code = """
import sys

heavy = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib")
for name in heavy:
    sys.modules[name] = None
from xclip_deploy.cli import main

main(sys.argv[1:])
"""
    arguments = ["evaluate", bundle_path, *dataset, "--device", "cpu", "--json"]
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_captions"] == 6


@pytest.fixture
def with_average(checkpoint_path: Path, tmp_path: Path) -> Path:
    """A checkpoint whose moving average is the golden model; the raw weights are another's."""
    weights = torch.load(checkpoint_path, weights_only=True)
    raw = {name: tensor + 0.1 for name, tensor in weights.items()}
    path = tmp_path / "average.pt"
    torch.save({"model": raw, "model_ema": weights}, path)
    return path


def test_the_moving_average_is_chosen_by_weights(
    run: Run,
    dataset: list[object],
    checkpoint_path: Path,
    with_average: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    common = [*dataset, "--device", "cpu", "--json"]
    expected = json.loads(run(checkpoint_path, *common).out)
    chosen = run(with_average, *common, "--weights", "ema")
    assert (chosen.status, chosen.err) == (0, "")
    found = json.loads(chosen.out)
    for content in (expected, found):
        del content["model"]
    assert found == expected
    raw = run(with_average, *common)
    assert raw.status == 0
    # The command line shows warnings on standard error.
    assert "took the weights under model; the file also holds their moving average" in caplog.text
    assert "--weights ema" in caplog.text


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_weights_that_the_checkpoint_does_not_hold(
    capfd: pytest.CaptureFixture[str],
    dataset: list[object],
    with_average: Path,
    tmp_path: Path,
    command: str,
) -> None:
    arguments = dataset if command == "evaluate" else ["-o", tmp_path / "bundle"]
    outcome = runner(capfd, command)(with_average, *arguments, "--weights", "teacher")
    assert outcome.status == 2
    assert "weights=teacher, but the file holds weights under model, model_ema" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_verify_compares_with_the_chosen_weights(
    capfd: pytest.CaptureFixture[str], bundle_copy: Path, with_average: Path
) -> None:
    verify = runner(capfd, "verify")
    common = [bundle_copy, "--no-report", "--threads", "2"]
    chosen = verify(*common, "--checkpoint", with_average, "--weights", "ema")
    assert chosen.status == 0, chosen
    raw = verify(*common, "--checkpoint", with_average)
    assert raw.status != 0
    assert "is another model" in raw.err
    assert "--weights ema" in raw.err
    without = verify(*common, "--weights", "ema")
    assert without.status == 2
    assert "without a checkpoint" in without.err
