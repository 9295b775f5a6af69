"""Presets, files and overrides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import runner

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead
from xclip_deploy.training.config import PRESETS, TrainConfig, resolve_config

PUBLISHED = {
    "msrvtt": (5, 300, 32, 12),
    "msvd": (5, 300, 32, 12),
    "lsmdc": (5, 300, 32, 12),
    "didemo": (20, 64, 64, 64),
    "activitynet": (20, 112, 64, 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name: str) -> None:
    config = resolve_config(name)
    o, start = config.optimization, config.start
    assert (o.epochs, o.batch_size, start.max_words, start.max_frames) == PUBLISHED[name]
    assert (o.lr, o.coef_lr, o.warmup, o.weight_decay) == (1e-4, 1e-3, 0.1, 0.2)
    assert start.temporal_head is TemporalHead.TRANSFORMER
    assert (config.data.dataset, config.data.frames_per_second) == (name, 1.0)


def test_every_preset_is_published() -> None:
    assert set(PRESETS) >= set(PUBLISHED)


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_preset_then_file_then_overrides(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"run.{kind}"
    if kind == "toml":
        file.write_text(
            '[optimization]\nlr = 3e-4\nepochs = 7\n[data]\nvideos = "clips"\n'
            '[start]\ngrains = ["video_sentence"]\nsentence_projection = false\n'
        )
    else:
        content = {
            "optimization": {"lr": 3e-4, "epochs": 7},
            "data": {"videos": "clips"},
            "start": {"grains": ["video_sentence"], "sentence_projection": False},
        }
        file.write_text(json.dumps(content))
    overrides = ["optimization.epochs=9", "data.annotations=a b.csv", "start.mask_padding=true"]
    config = resolve_config("didemo", file, overrides)
    assert (config.optimization.lr, config.optimization.epochs) == (3e-4, 9)
    assert config.optimization.batch_size == 64
    assert (config.data.videos, config.data.annotations) == (Path("clips"), Path("a b.csv"))
    assert config.start.mask_padding
    assert [grain.value for grain in config.start.grains] == ["video_sentence"]
    assert PRESETS["didemo"]["optimization"] == {"epochs": 20, "batch_size": 64}  # untouched


def test_round_trip_through_json() -> None:
    config = resolve_config("msvd", overrides=["start.checkpoint=ViT-B-32.pt"])
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.lr=-1", r"optimization\.lr"),
        ("optimization.learning_rate=1", r"optimization\.learning_rate"),
        ("optimization.epochs=many", r"optimization\.epochs"),
        ("optimization", "expected section.name=value"),
        ("=3", "expected section.name=value"),
        ("lr=1", "lr"),
        ("start.temporal_head=best", r"start\.temporal_head"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        resolve_config(overrides=[override])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"lr = ", "is not TOML"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[1]", "expected sections"),
        ("a.toml", b"\xff", "is not TOML"),
        ("a.toml", b"[data]\nvideos = 2024-01-01\n", "not JSON serializable"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=message):
        resolve_config(file=tmp_path / name)


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(InvalidArgumentError, match="is no regular file but a pipe; expected"):
        resolve_config(file=tmp_path / "a.toml")


def test_missing_file_and_unknown_preset(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        resolve_config(file=tmp_path / "none.toml")
    with pytest.raises(InvalidArgumentError, match="expected one of msrvtt"):
        resolve_config("imagenet")


def test_the_model_on_top_of_clip() -> None:
    clip = ModelConfig.model_validate(
        {
            "embed_dim": 512,
            "vision": {
                "image_size": 224,
                "patch_size": 32,
                "width": 768,
                "layers": 12,
                "heads": 12,
            },
            "text": {"width": 512, "layers": 12, "heads": 8},
            "grains": ("video_sentence",),
            "sentence_projection": False,
        }
    )
    model = resolve_config("activitynet").start.model_config_for(clip)
    assert (model.temporal_layers, model.temporal_heads, model.temporal_positions) == (4, 8, 77)
    assert (model.max_words, model.max_frames) == (64, 64)
    assert len(model.grains) == 4
    assert model.sentence_projection
    assert model.vision == clip.vision


def test_overrides_do_not_reach_the_preset() -> None:
    before = json.dumps(PRESETS)
    first = resolve_config("demo", overrides=["start.architecture.vision.layers=1"])
    assert first.start.architecture is not None
    assert first.start.architecture.vision.layers == 1
    assert json.dumps(PRESETS) == before
    again = resolve_config("demo").start.architecture
    assert again is not None
    assert again.vision.layers == 3


def test_the_recipe_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    train = runner(capfd, "train")
    shown = train("--preset", "didemo", "--recipe", "published", "--show-config")
    assert shown.status == 0
    config = TrainConfig.model_validate_json(shown.out)
    assert config == resolve_config("didemo", recipe="published")
    assert config.optimization.clip_in_fp16
    wrong = train("--recipe", "authors", "--show-config")
    assert wrong.status == 2
    assert "recipe 'authors': expected one of published" in wrong.err
