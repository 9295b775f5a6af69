"""Bundles that are not what they should be, and captions for the clips."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from xclip_deploy import Bundle, open_dataset
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.manifest import MANIFEST_NAME, FileRecord, Manifest

# Of words whose embeddings the small checkpoint has kept.
CAPTIONS = {
    "conditions/dog_square.mp4": ["video broadcaster comparing cheese"],
    "edge_cases/torchcodec_test_non_zero_start.mp4": [
        "psycho readings territories",
        "teacher saturdays pools hospitalized",
    ],
    "edge_cases/torchcodec_h265.mp4": ["managing nyc canucks", "toilet deadlines magnitude"],
}
Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@pytest.fixture
def rewrite_manifest() -> Callable[[Path, Callable[[Manifest], Manifest]], None]:
    """Change the manifest of a bundle, with a checksum that fits."""
    return _rewrite_manifest


@pytest.fixture
def change_weights() -> Callable[[Path, str, Change], None]:
    """Change the matrices of a bundle's graph, and its hash in the manifest."""
    return _change_weights


def _rewrite_manifest(path: Path, change: Callable[[Manifest], Manifest]) -> None:
    manifest = change(Bundle.open(path).manifest)
    (path / MANIFEST_NAME).write_bytes(manifest.to_json())


def _change_weights(path: Path, file: str, change: Change) -> None:
    manifest = Bundle.open(path).manifest
    graph = path / file
    model = onnx.load(str(graph))
    changed = 0
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 2 and weights.dtype.kind == "f":
            tensor.CopyFrom(
                numpy_helper.from_array(change(weights).astype(weights.dtype), tensor.name)
            )
            changed += 1
    assert changed, "nothing was changed"
    onnx.save(model, str(graph))
    record = FileRecord(sha256=sha256_of(graph), size_bytes=graph.stat().st_size)
    files = manifest.files | {file: record}
    (path / MANIFEST_NAME).write_bytes(manifest.model_copy(update={"files": files}).to_json())


@pytest.fixture
def ruin(change_weights: Callable[[Path, str, Change], None]) -> Callable[[Path, str], None]:
    """Shake the matrices of a bundle's graph far more than rounding does."""
    return lambda path, file: change_weights(path, file, _shake)


def _shake(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Noise of a twentieth of the weights' spread: rounding is a hundredth of that."""
    wide = weights.astype(np.float32)
    noise = np.random.default_rng(0).normal(size=wide.shape)
    return np.asarray(wide + 0.05 * wide.std() * noise)


@pytest.fixture
def captions_file(tmp_path: Path) -> Path:
    """Captions of three clips, as ``--dataset folder`` reads them."""
    path = tmp_path / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        writer.writerows((name, text) for name, texts in CAPTIONS.items() for text in texts)
    return path


@pytest.fixture
def split(captions_file: Path, clips: Path) -> Split:
    """The same, opened."""
    return open_dataset("folder", "test", captions_file, clips)
