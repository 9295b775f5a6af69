"""The layout of a gallery in a LanceDB table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.records import RESERVED, GalleryVideo, VideoFile

SCHEMA_VERSION = 2
"""Version 2 is a LanceDB table; version 1 was one file for all features."""
_KEY = b"xclip-deploy"
ARROW_TYPES: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}
SQL_TYPES: dict[type, str] = {bool: "boolean", int: "bigint", float: "double", str: "string"}
CONTENT_SHA256 = "fingerprint"
"""Column of ``GalleryVideo.content_sha256``; the name is that of the first galleries."""
LISTING = ("id", "paths", "file_sizes", "file_times", CONTENT_SHA256, "duration_s", "frame_times_s")
FEATURES = ("num_frames", "video_features", "frame_features")


@dataclass(frozen=True)
class TableHeader:
    """Content of the table's own metadata."""

    schema_version: int
    fingerprint: str
    """Fingerprint of the model that made the features."""


def make_schema(fingerprint: str, dim: int, max_frames: int) -> pa.Schema:
    """Return the columns of an empty gallery."""
    header = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint}
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("paths", pa.list_(pa.string())),
            pa.field("file_sizes", pa.list_(pa.int64())),
            pa.field("file_times", pa.list_(pa.int64())),
            pa.field(CONTENT_SHA256, pa.string()),
            pa.field("duration_s", pa.float64()),
            pa.field("frame_times_s", pa.list_(pa.float64())),
            pa.field("num_frames", pa.int32()),
            pa.field("video_features", pa.list_(pa.float16(), dim)),
            pa.field("frame_features", pa.list_(pa.float16(), max_frames * dim)),
        ],
        metadata={_KEY: json.dumps(header).encode()},
    )


def read_header(schema: pa.Schema) -> TableHeader | None:
    """Return the header of a table; None for a table of another program."""
    try:
        content = json.loads((schema.metadata or {})[_KEY])
        return TableHeader(int(content["schema_version"]), str(content["fingerprint"]))
    except (KeyError, ValueError, TypeError):
        return None


def metadata_types(schema: pa.Schema) -> dict[str, type]:
    """Return names and Python types of the user's own columns."""
    python = {arrow: kind for kind, arrow in ARROW_TYPES.items()}
    return {
        field.name: python[field.type]
        for field in schema
        if field.name not in RESERVED and field.type in python
    }


def to_table(
    videos: Sequence[GalleryVideo], features: VideoFeatures | None, schema: pa.Schema
) -> pa.Table:
    """Return rows to write, with the columns of ``schema``.

    Without ``features``, the schema must not name their columns.
    """
    columns: dict[str, Any] = {
        "id": [video.id for video in videos],
        "paths": [[file.path for file in video.files] for video in videos],
        "file_sizes": [[file.size_bytes for file in video.files] for video in videos],
        "file_times": [[file.modified_ns for file in video.files] for video in videos],
        CONTENT_SHA256: [video.content_sha256 for video in videos],
        "duration_s": [video.duration_s for video in videos],
        "frame_times_s": [list(video.frame_times_s) for video in videos],
    }
    if features is not None:
        columns["num_frames"] = features.num_frames
        for name in ("video_features", "frame_features"):
            field = schema.field(name).type
            values = pa.array(np.ascontiguousarray(getattr(features, name)).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(values, field.list_size)
    for name in metadata_types(schema):
        columns[name] = [video.metadata.get(name) for video in videos]
    arrays = []
    for field in schema:
        value = columns[field.name]
        is_array = isinstance(value, pa.Array)
        arrays.append(value if is_array else pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def to_videos(table: pa.Table) -> list[GalleryVideo]:
    """Return the videos of rows, with the metadata columns that were read."""
    fields = list(metadata_types(table.schema))
    return [_to_video(row, fields) for row in table.to_pylist()]


def _to_video(row: Mapping[str, Any], fields: Sequence[str]) -> GalleryVideo:
    files = tuple(
        VideoFile(path=path, size_bytes=size, modified_ns=time)
        for path, size, time in zip(
            row["paths"] or (), row["file_sizes"] or (), row["file_times"] or (), strict=True
        )
    )
    return GalleryVideo(
        id=row["id"],
        path=files[0].path if files else None,
        files=files,
        content_sha256=row[CONTENT_SHA256],
        duration_s=row["duration_s"],
        frame_times_s=tuple(row["frame_times_s"]),
        metadata={name: row[name] for name in fields if row[name] is not None},
    )


def to_features(table: pa.Table) -> VideoFeatures:
    """Return the embeddings of rows."""
    vectors = matrix_of(table, "video_features")  # [V, D]
    frames = matrix_of(table, "frame_features")  # [V, F * D]
    dim = vectors.shape[1]
    num_frames = array_of(table, "num_frames")
    return VideoFeatures(
        vectors,
        frames.reshape(len(vectors), frames.shape[1] // dim, dim),
        num_frames.astype(np.int32, copy=False),
    )


def array_of(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column as an array: [V] of numbers, [V, n] of vectors."""
    if pa.types.is_fixed_size_list(table.schema.field(name).type):
        array: npt.NDArray[Any] = matrix_of(table, name)
    else:
        array = table[name].combine_chunks().to_numpy(zero_copy_only=False)
    return array


def matrix_of(table: pa.Table, name: str) -> Any:
    """Return a column of vectors as a matrix [V, n], uncopied if it is one chunk."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # pyarrow returns one for a column without chunks
        column = pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    size = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
