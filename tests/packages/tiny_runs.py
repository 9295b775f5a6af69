"""Whole runs of training on ten tiny videos."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from xclip_deploy import load_checkpoint, resolve_config
from xclip_deploy.training.config import TrainConfig

COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "brown", "cyan", "gold")
ARCHITECTURE = {
    "embed_dim": 64,
    "vision": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "heads": 1},
    "text": {"width": 64, "layers": 1, "heads": 1},
    "temporal_head": "seqTransf",
    "temporal_layers": 1,
    "temporal_heads": 1,
    "temporal_positions": 8,
    "max_words": 8,
    "max_frames": 3,
}


def write_dataset(folder: Path) -> None:
    """Write ten videos of one colour each, with two captions; the last four validate too."""
    random = np.random.default_rng(0)
    rows = [("file", "caption", "split")]
    for number, colour in enumerate(COLOURS):
        with av.open(str(folder / f"{colour}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            base = random.integers(0, 256, 3)
            for _ in range(10):
                picture = np.clip(base + random.normal(0, 9, (32, 32, 3)), 0, 255)
                frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows += [(f"{colour}.mp4", text, "train") for text in (colour, f"all is {colour}")]
        if number >= 6:
            rows.append((f"{colour}.mp4", f"only {colour}", "val"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def settings(dataset: Path, **changes: Any) -> list[str]:
    values = {
        "start.architecture": ARCHITECTURE,
        "data.annotations": str(dataset / "captions.csv"),
        "data.videos": str(dataset),
        "data.workers": 0,
        "data.frame_cache": str(dataset / "cache"),
        "optimization.batch_size": 5,
        "optimization.epochs": 3,
        "optimization.lr": 1e-3,
        "optimization.coef_lr": 1.0,
        "optimization.freeze_layers": -1,
        "save_every_steps": 3,
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def configured(dataset: Path, **changes: Any) -> TrainConfig:
    return resolve_config(overrides=settings(dataset, **changes))


def losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def assert_same_run(found: Path, expected: Path) -> None:
    assert losses(found) == losses(expected)
    known = state_of(found)
    for name, tensor in state_of(expected).items():
        assert torch.equal(known[name], tensor), name
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (found, expected)]
    assert metrics[0] == metrics[1]


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt").state_dict
