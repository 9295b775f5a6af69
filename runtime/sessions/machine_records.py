"""Small records of what was found out on this machine, in JSON files beside a bundle.

A record has a key: the GPU, the driver, the versions and the hashes of the files that ran. It holds
only where the whole key is the same, so that another GPU, an update or a new export voids it. A
bundle that cannot be written to has none, and the finding is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.resources import cpu_model, usable_cores

logger = logging.getLogger(__name__)

DIRECTORY = "machines"
"""Folder of the records within a bundle."""
_FORMAT = "xclip-machine-record"
_VERSION = 1
_PACKAGES = (
    "xclip-deploy",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-lean-cu13",
    "tensorrt-rtx",
)

Key = Mapping[str, str]


def machine_key(artefacts: Mapping[str, str], device_id: int = 0) -> dict[str, str]:
    """Return the key of a finding that concerns a GPU, the installed versions and some files.

    ``artefacts``: SHA-256 of each file by name.
    """
    gpus = nvidia_driver.visible_gpus()
    gpu = gpus[device_id] if device_id < len(gpus) else None
    key = {
        "machine": f"{cpu_model()}, {usable_cores()} cores",
        "gpu": "none" if gpu is None else f"{gpu.name} sm{gpu.major}{gpu.minor}",
        "CUDA driver": nvidia_driver.driver_cuda_version() or "none",
    }
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            key[package] = metadata.version(package)
    return key | {f"SHA-256 of {name}": sha256 for name, sha256 in sorted(artefacts.items())}


def read_record(bundle: Path, kind: str, key: Key) -> dict[str, Any] | None:
    """Return the finding of a kind for a key; None where there is none that can be read."""
    file = _file(bundle, kind, key)
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s cannot be read (%s) and is not used; remove it", file, error)
        return None
    is_ours = (
        isinstance(content, dict)
        and content.get("format") == _FORMAT
        and content.get("version") == _VERSION
        and content.get("key") == dict(key)
        and isinstance(content.get("finding"), dict)
    )
    if not is_ours:
        logger.warning("%s is not the record of a machine and is not used; remove it", file)
        return None
    finding: dict[str, Any] = content["finding"]
    return finding


def write_record(bundle: Path, kind: str, key: Key, finding: Mapping[str, Any]) -> Path:
    """Write a finding and return its file. Raises OSError where the bundle cannot be written."""
    file = _file(bundle, kind, key)
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": kind,
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "key": dict(key),
        "finding": dict(finding),
    }
    file.parent.mkdir(exist_ok=True)
    replace_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return file


def forget_records(bundle: Path, kind: str) -> None:
    """Remove all findings of a kind. Raises OSError where the bundle cannot be written."""
    for file in (bundle / DIRECTORY).glob(f"{kind}-*.json"):
        file.unlink(missing_ok=True)


def has_records(bundle: Path) -> bool:
    """Return whether a bundle has any records, without reading them."""
    return (bundle / DIRECTORY).is_dir()


def _file(bundle: Path, kind: str, key: Key) -> Path:
    canonical = json.dumps(dict(key), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return bundle / DIRECTORY / f"{kind}-{digest[:16]}.json"
