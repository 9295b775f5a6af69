"""What a run is given to train on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from xclip_deploy import resolve_config, train
from xclip_deploy.errors import DatasetError, InvalidArgumentError
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.training.run_data import RunData

SMALL = {
    "data.generated.train": 12,
    "data.generated.val": 4,
    "data.generated.test": 4,
    "data.workers": 0,
    "start.architecture.vision.layers": 1,
    "start.architecture.vision.width": 32,
    "start.architecture.vision.heads": 1,
    "optimization.batch_size": 6,
    "optimization.epochs": 1,
}


def settings(**changes: object) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in {**SMALL, **changes}.items()]


def test_the_demo_preset_makes_its_videos_and_trains(tmp_path: Path) -> None:
    heard: list[Progress] = []
    result = train(
        resolve_config("demo", overrides=settings()),
        tmp_path / "run",
        on_preparation=heard.append,
    )
    assert result.steps == 2
    assert {step.stage: (step.done, step.total) for step in heard} == {
        "making videos": (20, 20),
        "reading train": (12, 12),
        "reading val": (4, 4),
    }
    assert result.metrics["text_to_video"]["num_queries"] == 4
    made = sorted(path.name for path in result.path.iterdir())
    assert {"best.pt", "curves.png", "frame-cache", "metrics.json", "videos"} <= set(made)


def test_generated_videos_can_be_shared_between_runs(tmp_path: Path) -> None:
    places = {"data.videos": str(tmp_path / "v"), "data.frame_cache": str(tmp_path / "cache")}
    config = resolve_config("demo", overrides=settings(**places))
    assert config.start.architecture is not None
    (tmp_path / "run").mkdir()
    for _ in range(2):
        data = RunData(config.data, config.start.architecture, tmp_path / "run")
        split = data.split("train")
    assert len(split.videos) == 12
    assert split.videos[0].path.is_relative_to(tmp_path / "v")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["train_videos.json"]
    other = resolve_config("demo", overrides=settings(**places, **{"data.generated.seed": 1}))
    with pytest.raises(DatasetError, match="another folder"):
        RunData(other.data, config.start.architecture, tmp_path / "run").split("train")


@pytest.mark.parametrize("square_pixels", [False, True])
def test_square_pixels(tmp_path: Path, square_pixels: bool) -> None:
    config = resolve_config("demo", overrides=settings(**{"data.square_pixels": square_pixels}))
    assert config.start.architecture is not None
    data = RunData(config.data, config.start.architecture, tmp_path)
    assert data.source.reading.square_pixels is square_pixels


def test_found_datasets_need_their_places(tmp_path: Path) -> None:
    config = resolve_config("demo", overrides=["data.dataset=msrvtt"])
    assert config.start.architecture is not None
    data = RunData(config.data, config.start.architecture, tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"data\.annotations and data\.videos"):
        data.split("train")


def test_videos_that_are_left_out_are_counted(
    tmp_path: Path, clips: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copyfile(clips / "edge_cases/decord_video_90.mov", tmp_path / "whole.mov")
    (tmp_path / "damaged.mov").write_bytes(b"no video")
    rows = "".join(f"{name}.mov,a man\n" for name in ("whole", "damaged", "gone"))
    (tmp_path / "captions.csv").write_text(f"file,caption\n{rows}")
    run = tmp_path / "run"
    run.mkdir()
    config = resolve_config(
        "demo",
        overrides=settings(
            **{
                "data.dataset": "folder",
                "data.annotations": str(tmp_path),
                "data.videos": str(tmp_path),
                "data.max_missing_share": 0.5,
                "data.max_unreadable_share": 0.5,
            }
        ),
    )
    assert config.start.architecture is not None
    split = RunData(config.data, config.start.architecture, run).split("train")
    assert [video.id for video in split.videos] == ["whole.mov"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "folder/train: of 3 videos, 1 without a file and 1 unreadable are left out; they are "
        f"listed in {run / 'train_videos.json'}"
    )
