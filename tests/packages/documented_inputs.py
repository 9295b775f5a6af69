"""Files that the commands of the documentation expect: a trained model and videos for it.

``demo_model.npz`` has the weights of ``xclip-deploy train --preset demo`` after 16 epochs (seed 0,
R@1 63.0 % on its 200 validation videos), as FP16. Token embeddings that no caption uses are
left out, and are zero in the checkpoint. To replace it by the weights of another run::

    python tests/packages/documented_inputs.py xclip-run/best.pt
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.training.datasets.generated import Event, Scene
from xclip_deploy.training.datasets.generated.encoding import video_writer
from xclip_deploy.training.datasets.generated.rendering import render
from xclip_deploy.training.datasets.generated.scenes import Kind, all_scenes

MODEL = Path(__file__).resolve().parents[1] / "docs" / "demo_model.npz"
_TOKENS = "clip.token_embedding.weight"
_CONFIG = "xclip_deploy_config"


def _scene(text: str) -> Scene:
    """``red square right, blue triangle grow`` and ``... while green circle flash``."""
    kind = "flash" if " while " in text else "sequence" if ", " in text else "single"
    parts = text.replace(" while ", ", ").split(", ")
    return Scene(kind, *(Event(*part.split()) for part in parts))  # type: ignore[arg-type]


VIDEOS = {
    "red-square.mp4": "red square right",
    "red-then-blue.mp4": "red square right, blue triangle grow",
    "blue-then-red.mp4": "blue triangle grow, red square right",
    "green-triangle.mp4": "green triangle shrink",
    "yellow-circle.mp4": "yellow circle up",
    "blue-circle.mp4": "blue circle left",
    "green-flash.mp4": "red square right while green square flash",
    "yellow-then-green.mp4": "yellow triangle down, green circle grow",
}
"""Short videos and their scenes."""
LONG_VIDEO = (
    "yellow circle up",
    "green square down",
    "blue circle left",
    "yellow triangle grow",
    "red square right",
    "green circle shrink",
    "blue triangle up",
    "yellow square left",
    "green triangle grow",
    "blue square down",
)
"""Scenes of ``tour.mkv``, six seconds each."""


def write_inputs(folder: Path) -> None:
    """Write ``ckpt.pt``, ``videos/``, ``captions.csv``, ``query.mp4`` and ``tour.mkv``."""
    write_checkpoint(folder / "ckpt.pt")
    (folder / "videos").mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("file", "caption"))
        for number, (name, text) in enumerate(VIDEOS.items()):
            scene = _scene(text)
            write_video(folder / "videos" / name, [scene], seed=number)
            table.writerow((name, scene.caption))
    write_video(folder / "query.mp4", [_scene("red square right")], seed=100)
    write_video(folder / "tour.mkv", [_scene(text) for text in LONG_VIDEO], seed=200)


def write_video(path: Path, scenes: list[Scene], seed: int) -> None:
    """Draw scenes one after the other."""
    with video_writer(path) as write:
        for number, scene in enumerate(scenes):
            for picture in render(scene, np.random.default_rng((seed, number))):
                write(picture)


def write_checkpoint(path: Path) -> None:
    """Write the trained model as a checkpoint that ``xclip-deploy export`` reads."""
    with np.load(MODEL) as arrays:
        weights = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files[:-2]}
        used, config = arrays["used_tokens"], str(arrays[_CONFIG])
    embeddings = torch.zeros(49408, weights[_TOKENS].shape[1])
    embeddings[torch.from_numpy(used)] = weights[_TOKENS]
    torch.save({"state_dict": {**weights, _TOKENS: embeddings}, _CONFIG: config}, path)


def keep_model(checkpoint: Path) -> None:
    """Write ``demo_model.npz`` from a checkpoint of ``train --preset demo``."""
    content = torch.load(checkpoint, weights_only=True)
    weights = {name: value.half().numpy() for name, value in content["state_dict"].items()}
    kinds: tuple[Kind, ...] = ("single", "sequence", "flash")
    captions = [scene.caption for kind in kinds for scene in all_scenes(kind)]
    used = np.unique(Tokenizer.default().encode(captions, 32))
    weights[_TOKENS] = weights[_TOKENS][used]
    MODEL.parent.mkdir(exist_ok=True)
    config = np.array(content[_CONFIG])
    arrays: dict[str, Any] = {**weights, "used_tokens": used, _CONFIG: config}
    np.savez_compressed(MODEL, **arrays)


if __name__ == "__main__":
    keep_model(Path(sys.argv[1]))
