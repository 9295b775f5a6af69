"""Random videos and small galleries for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, Snapshot, lance_schema
from xclip_deploy.runtime.gallery.lance_opening import open_store
from xclip_deploy.runtime.gallery.lance_schema import make_schema, to_table
from xclip_deploy.runtime.gallery.lance_store import LanceStore
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.manifest import Manifest

DIM, FRAMES = 16, 3
MODEL = "0" * 64
"""Fingerprint of the model that all these features are said to be of."""
NOTHING_IN_MEMORY = SearchLimits(flat_videos=0, flat_bytes=0, held_bytes=0)
"""LanceDB searches and reads everything itself, as in the largest galleries."""


def sample(
    ids: Sequence[str], seed: int = 0, **metadata: Any
) -> tuple[list[GalleryVideo], VideoFeatures]:
    """Videos with ``n``, their place in ``ids``, among their metadata."""
    rng = np.random.default_rng([seed, len(ids)])
    videos = [
        GalleryVideo(
            id=name,
            path=f"/videos/{name}",
            content_sha256=f"{seed}-{name}",
            duration_s=float(n),
            frame_times_s=(0.0, 1.5),
            metadata={"n": n, **metadata},
        )
        for n, name in enumerate(ids)
    ]
    return videos, sample_features(len(ids), rng)


def sample_features(count: int, rng: np.random.Generator) -> VideoFeatures:
    """Two frames each, and one of padding."""
    return VideoFeatures(
        unit(rng.standard_normal((count, DIM))).astype(np.float16),
        unit(rng.standard_normal((count, FRAMES, DIM))).astype(np.float16),
        np.full(count, 2, np.int32),
    )


def unit(vectors: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Vectors along the last axis, of unit length."""
    scaled: np.ndarray[Any, np.dtype[Any]] = vectors / np.linalg.norm(
        vectors, axis=-1, keepdims=True
    )
    return scaled


def lance_store(
    path: Path, limits: SearchLimits | None = None, *, create: bool = True
) -> LanceStore:
    """The gallery at ``path``."""
    return open_store(path, MODEL, DIM, FRAMES, create=create, limits=limits)


def rows_of(snapshot: Snapshot, ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of videos that are there."""
    found = snapshot.find(ids)
    return np.array([found[name] for name in ids], np.int64)


def content_of(snapshot: Snapshot, part: int = 7) -> dict[str, tuple[GalleryVideo, bytes]]:
    """All that a snapshot knows, by id."""
    content = {}
    for rows, features in snapshot.scan(part):
        for n, video in enumerate(snapshot.videos(rows)):
            arrays = (
                features.video_features[n],
                features.frame_features[n],
                features.num_frames[n],
            )
            assert video.id not in content
            content[video.id] = (video, b"".join(array.tobytes() for array in arrays))
    return content


def make_unchecked(path: Path, features: VideoFeatures | None = None) -> dict[str, Any]:
    """A gallery as releases before checksums wrote it; returns its content."""
    videos, made_features = sample([f"v{n}" for n in range(9)], source="cam1")
    features = features or made_features
    schema = make_schema(MODEL, DIM, FRAMES).append(pa.field("n", pa.int64()))
    schema = schema.append(pa.field("source", pa.string()))
    names = [name for name in schema.names if not name.startswith("_")]
    header = (schema.metadata or {})[lance_schema._KEY].replace(
        b'"schema_version": 3', b'"schema_version": 2'
    )
    old = pa.schema([schema.field(n) for n in names], metadata={lance_schema._KEY: header})
    rows = to_table(videos, features, schema).select(names)
    table = lancedb.connect(path).create_table("videos", schema=old)
    table.add(rows.replace_schema_metadata(old.metadata))
    table.delete("id = 'v4'")
    whole = {video.id: video.model_copy(update={"segmentation": "whole"}) for video in videos}
    del whole["v4"]
    return whole


@contextmanager
def mounted(path: Path, *arguments: str) -> Iterator[None]:
    """A file system of the test's own at ``path``."""

    path.mkdir(exist_ok=True)
    command = ["mount", *arguments, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def entries(
    manifest: Manifest, names: list[str], seed: int = 0
) -> tuple[list[GalleryVideo], VideoFeatures]:
    """FP32, as encoders give them."""
    rng = np.random.default_rng([seed, len(names)])
    frames, dim = manifest.model.max_frames, manifest.model.embed_dim
    features = VideoFeatures(
        unit(rng.standard_normal((len(names), dim))).astype(np.float32),
        unit(rng.standard_normal((len(names), frames, dim))).astype(np.float32),
        np.full(len(names), 2, np.int32),
    )
    videos = [
        GalleryVideo(id=name, path=f"/{name}", frame_times_s=(0.0, 1.0), metadata={"seed": seed})
        for name in names
    ]
    return videos, features


def ids(gallery: Gallery) -> list[str]:
    return sorted(video.id for video in gallery.snapshot().listing())
