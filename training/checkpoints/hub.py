"""Models of the Hugging Face hub: from the local cache, or else downloaded into it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from xclip_deploy.errors import CheckpointError, CheckpointReadError, MissingExtraError
from xclip_deploy.training.checkpoints.folders import find_weights
from xclip_deploy.training.checkpoints.refusals import first_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILES_OF_WEIGHTS = (".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors", ".tar", ".zip")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)
_CONFIGS = ("config.json", "open_clip_config.json")
_WANTED = (*_CONFIGS, *_WEIGHTS, "model-*-of-*.safetensors")
_ADVICE = "expected a path, or org/name of a model whose weights are safetensors"


def is_hub_name(path: Path) -> bool:
    """Tell whether a path that does not exist may be ``org/name`` of a model of the hub.

    A name that ends like a file of weights is a mistyped path, as is one below a folder here.
    """
    name = path.as_posix()
    return (
        _NAME.fullmatch(name) is not None
        and path.suffix.lower() not in _FILES_OF_WEIGHTS
        and not path.exists()
        and not path.parent.exists()
    )


def fetch_model(name: str) -> Path:
    """Return the folder of a model's weights and configuration in the cache of the hub.

    A model that the cache holds is taken from there, and the network is not asked. Otherwise its
    safetensors are downloaded, as ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` say.

    Raises:
        CheckpointReadError: neither the cache nor the hub has such weights, or the hub was not
            reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtraError("huggingface_hub", "hub", f"the model {name} of a hub") from error
    folder = _cached(huggingface_hub, name)
    if folder is not None and _is_whole(folder):
        return folder
    try:
        found = huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED))
    except Exception as error:  # the library and its HTTP client have many kinds
        if isinstance(error, RepositoryNotFoundError):
            raise CheckpointReadError(
                f"{name}: no such path here, and no such model on the hub, or a private one; "
                f"{_ADVICE}; for a private one, run: hf auth login"
            ) from error
        raise CheckpointReadError(
            f"{name}: no such path here, and not in the hub's cache; the hub was not reached "
            f"({type(error).__name__}: {first_line(error)}); {_ADVICE}; where there is a network, "
            f"run: hf download {name}"
        ) from error
    folder = Path(found)
    if not _is_whole(folder):
        raise CheckpointReadError(
            f"{name}: this model of the hub has no safetensors; {_ADVICE}; pickled weights of a "
            "hub are not read, so convert them to safetensors first"
        )
    return folder


def _cached(hub: Any, name: str) -> Path | None:  # noqa: ANN401 - the library is optional
    for file in _WEIGHTS:
        found = hub.try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _is_whole(folder: Path) -> bool:
    """Tell whether a folder has all safetensors of a model, and whether those are its weights."""
    try:
        files = find_weights(folder).files
    except CheckpointError:
        return False
    return all(file.suffix == ".safetensors" and file.is_file() for file in files)
