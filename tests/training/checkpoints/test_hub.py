"""Models of the Hugging Face hub from a cache that is laid out as the hub's client does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xclip_deploy.errors import CheckpointReadError, MissingExtraError
from xclip_deploy.training.checkpoints import load_checkpoint
from xclip_deploy.training.checkpoints.hub import is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Fill = Callable[[Path], object]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Fill], Path]:
    """Put a model into a cache of the hub that is offline; return its snapshot's folder."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name: str, fill: Fill) -> Path:
        folder = cache / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        fill(snapshot)
        # The client keeps contents in blobs/, and links in the snapshot.
        (folder / "blobs").mkdir()
        for number, file in enumerate(sorted(snapshot.iterdir())):
            blob = folder / "blobs" / f"{number:064x}"
            file.rename(blob)
            file.symlink_to(Path("..", "..", "blobs", blob.name))
        return snapshot

    return put


def save_clip(folder: Path, **options: object) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={**sizes, "hidden_size": 64, "vocab_size": 50, "eos_token_id": 49},
        vision_config={**sizes, "hidden_size": 64, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    transformers.CLIPModel(config).save_pretrained(folder, **options)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_cached_model(
    cached: Callable[[str, Fill], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shards: int,
) -> None:
    size = "10GB" if shards == 1 else "100KB"
    snapshot = cached("org/small-clip", lambda folder: save_clip(folder, max_shard_size=size))
    assert (len(list(snapshot.glob("*.safetensors"))) > 1) == (shards > 1)
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint("org/small-clip")
    assert checkpoint.layout == "Hugging Face CLIP"
    assert checkpoint.config.vision.image_size == 32
    assert checkpoint.notes[0] == f"org/small-clip was read from the hub's cache, commit {COMMIT}"
    same = load_checkpoint(snapshot)
    assert same.source_sha256 == checkpoint.source_sha256


def test_a_model_that_is_not_cached_offline(
    cached: Callable[[str, Fill], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointReadError) as caught:
        load_checkpoint("org/absent")
    message = str(caught.value)
    assert message.startswith("org/absent: no such path here, and not in the hub's cache; ")
    assert "the hub was not reached" in message
    assert message.endswith("where there is a network, run: hf download org/absent")
    assert "\n" not in message


def test_pickled_weights_of_a_hub_are_not_read(
    cached: Callable[[str, Fill], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fill(folder: Path) -> None:
        torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))

    cached("org/pickled", fill)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointReadError, match="org/pickled: "):
        load_checkpoint("org/pickled")


def test_a_snapshot_with_a_missing_shard_is_not_whole(
    cached: Callable[[str, Fill], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = cached("org/partial", lambda folder: save_clip(folder, max_shard_size="100KB"))
    next(iter(snapshot.glob("model-*.safetensors"))).unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointReadError, match="org/partial: "):
        load_checkpoint("org/partial")


def test_what_is_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_name(Path("openai/clip-vit-base-patch32"))
    for other in (
        "checkpoint", "runs/last", "a/b/c", "/org/name", "../name", "./name",
        "org/name.safetensors", "org/-name", "org/nämé!",
    ):  # fmt: skip
        assert not is_hub_name(Path(other)), other
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    assert not is_hub_name(Path("org/name"))


def test_a_mistyped_path_does_not_ask_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointReadError, match=r"runs/last\.pt: no such file or folder"):
        load_checkpoint("runs/last.pt")


def test_without_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"xclip-deploy\[hub\]"):
        load_checkpoint("org/name")
