"""Find the weights in a folder: Hugging Face's, open_clip's, or a training run's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from xclip_deploy.errors import CheckpointReadError, UnknownLayoutError
from xclip_deploy.training.checkpoints.refusals import LORA_ADVICE, listing

# The order is that of preference. A safetensors file can hold nothing but weights.
_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_MAX_JSON_BYTES = 64 << 20


class SiblingConfig(TypedDict):
    """Configuration files that lie beside the weights."""

    hf_config: dict[str, Any] | None
    open_clip_config: dict[str, Any] | None


@dataclass(frozen=True)
class FolderContents:
    """Files of a folder that together are one checkpoint."""

    path: Path
    files: tuple[Path, ...]
    promised: frozenset[str] = frozenset()
    """Tensor names that the index of sharded weights lists."""
    hf_config: dict[str, Any] | None = None
    open_clip_config: dict[str, Any] | None = None


def find_weights(folder: Path) -> FolderContents:
    """Choose the weights of a folder.

    Hugging Face's names go first (``model.safetensors``, its shards, ``pytorch_model.bin``,
    its shards), then open_clip's, then a single epoch of the authors' training
    (``pytorch_model.bin.3``).

    Raises:
        CheckpointReadError: no weights, several epochs, or an index that names files outside
            the folder or files that are missing.
        UnknownLayoutError: the folder holds adapters alone.
    """
    for name in _HUGGING_FACE:
        if (folder / name).is_file():
            return FolderContents(folder, (folder / name,), **_configs(folder, open_clip=False))
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _sharded(folder, index)
    for name in _OPEN_CLIP:
        if (folder / name).is_file():
            return FolderContents(folder, (folder / name,), **_configs(folder, open_clip=True))
    epochs = sorted(file for file in folder.glob("pytorch_model.bin.*") if file.is_file())
    if len(epochs) == 1:
        return FolderContents(folder, (epochs[0],))
    if epochs:
        raise CheckpointReadError(
            f"{folder}: holds {len(epochs)} checkpoints "
            f"({listing(file.name for file in epochs)}); name one, such as {epochs[-1]}"
        )
    if any((folder / name).is_file() for name in _ADAPTERS):
        raise UnknownLayoutError(f"{folder}: holds LoRA adapters and no model; {LORA_ADVICE}")
    if (folder / ".metadata").is_file():
        raise CheckpointReadError(
            f"{folder}: a distributed checkpoint of PyTorch; make one file of it: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt"
        )
    found = listing(sorted(entry.name for entry in folder.iterdir()))
    raise CheckpointReadError(
        f"{folder}: a folder without weights: found {found}; expected model.safetensors or "
        "pytorch_model.bin, or name the checkpoint file itself"
    )


def sibling_config(file: Path) -> SiblingConfig:
    """Read the configuration that belongs to a file of Hugging Face's or open_clip's name.

    A file of another name has no configuration, even where a ``config.json`` lies beside it.
    """
    if file.name in _HUGGING_FACE:
        return _configs(file.parent, open_clip=False)
    if file.name in _OPEN_CLIP:
        return _configs(file.parent, open_clip=True)
    return SiblingConfig(hf_config=None, open_clip_config=None)


def _configs(folder: Path, *, open_clip: bool) -> SiblingConfig:
    if open_clip:
        config = _read_json(folder / "open_clip_config.json")
        return SiblingConfig(hf_config=None, open_clip_config=config)
    config = _read_json(folder / "config.json")
    # The authors' training writes a config.json of another kind, which is not read.
    is_hugging_face = config is not None and bool(
        config.keys() & {"model_type", "text_config", "vision_config", "architectures"}
    )
    return SiblingConfig(hf_config=config if is_hugging_face else None, open_clip_config=None)


def _sharded(folder: Path, index: Path) -> FolderContents:
    content = _read_json(index)
    weight_map = (content or {}).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CheckpointReadError(f"{index}: expected a weight_map of tensor names to shards")
    shards = sorted(set(weight_map.values()))
    # Names are compared, not resolved paths: files in Hugging Face's cache are links.
    outside = [s for s in shards if s in ("", ".", "..") or any(c in s for c in "/\\:\0")]
    if outside:
        raise CheckpointReadError(f"{index}: names shards outside its folder: {listing(outside)}")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointReadError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing: "
            f"{listing(missing)}; download them again"
        )
    return FolderContents(
        folder,
        tuple(folder / shard for shard in shards),
        frozenset(weight_map),
        **_configs(folder, open_clip=False),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointReadError(f"{path}: too large for a configuration")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointReadError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointReadError(f"{path}: expected a JSON object")
    return content
