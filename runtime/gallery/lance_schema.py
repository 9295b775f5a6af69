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
from xclip_deploy.runtime.gallery.arrow_numbers import in_one_piece, to_numbers
from xclip_deploy.runtime.gallery.checksums import COLUMNS, Part, Words, checksums
from xclip_deploy.runtime.gallery.records import (
    RESERVED,
    GalleryVideo,
    VideoFile,
)
from xclip_deploy.runtime.gallery.store import FeatureKeys

SCHEMA_VERSION = 3
"""Version 3 added checksums and segments to the LanceDB table of 2; version 1 was one file for all
features."""
UNCHECKED_VERSION = 2
"""Version without checksums, which ``gallery upgrade`` reads."""
_KEY = b"xclip-deploy"
_KEY_COLUMNS = ("id", "_segment")
ARROW_TYPES: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}
SQL_TYPES: dict[type, str] = {bool: "boolean", int: "bigint", float: "double", str: "string"}
CONTENT_SHA256 = "fingerprint"
"""Column of ``GalleryVideo.content_sha256``; the name is that of the first galleries."""


@dataclass(frozen=True)
class TableHeader:
    """Content of the table's own metadata."""

    schema_version: int
    fingerprint: str
    """Fingerprint of the model that made the features."""


def make_schema(fingerprint: str, dim: int, max_frames: int, *, has_key: bool = False) -> pa.Schema:
    """Return the columns of an empty gallery.

    ``has_key``: whether LanceDB is told that id and segment are the key of a row. Of two writers
    that insert the same key at once, the slower one then gets a conflict.
    """
    header = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint}
    fields = [*_fields(dim, max_frames * dim), *(pa.field(p.value, pa.uint64()) for p in Part)]
    if has_key:
        fields = [_as_key(field) if field.name in _KEY_COLUMNS else field for field in fields]
    return pa.schema(fields, metadata={_KEY: json.dumps(header).encode()})


def _as_key(field: pa.Field) -> pa.Field:
    position = str(1 + _KEY_COLUMNS.index(field.name))
    key = "lance-schema:unenforced-primary-key"
    return field.with_nullable(False).with_metadata({key: "true", f"{key}:position": position})


def _fields(dim: int, frame_values: int) -> list[pa.Field]:
    return [
        pa.field("id", pa.string(), nullable=False),
        pa.field("paths", pa.list_(pa.string())),
        pa.field("file_sizes", pa.list_(pa.int64())),
        pa.field("file_times", pa.list_(pa.int64())),
        pa.field(CONTENT_SHA256, pa.string()),
        pa.field("duration_s", pa.float64()),
        pa.field("frame_times_s", pa.list_(pa.float64())),
        pa.field("num_frames", pa.int32()),
        pa.field("_reading_version", pa.int32()),
        pa.field("_segment", pa.int32()),
        pa.field("_num_segments", pa.int32()),
        pa.field("_start_s", pa.float64()),
        pa.field("_end_s", pa.float64()),
        pa.field("_segmentation", pa.string()),
        pa.field("video_features", pa.list_(pa.float16(), dim)),
        pa.field("frame_features", pa.list_(pa.float16(), frame_values)),
    ]


def schema_fault(schema: pa.Schema, *, is_checked: bool = True) -> str | None:
    """Say what is wrong with the columns of a table; None if they are a gallery's.

    ``is_checked``: whether the checksums belong to them.
    """
    sizes = []
    for name in ("video_features", "frame_features"):
        kind = schema.field(name).type if name in schema.names else None
        if kind is None or not pa.types.is_fixed_size_list(kind):
            return f"its column {name!r} is {kind}, expected vectors"
        sizes.append(kind.list_size)
    dim, frame_values = sizes
    if not dim or not frame_values or frame_values % dim:
        return f"its vectors have {dim} and {frame_values} numbers, expected D and F * D"
    expected = _fields(dim, frame_values)
    if is_checked:
        expected += [pa.field(part.value, pa.uint64()) for part in Part]
    else:  # version 2 knew neither segments nor versions of reading
        expected = [field for field in expected if not field.name.startswith("_")]
    for field in expected:
        if schema.names.count(field.name) != 1:
            return f"it has {schema.names.count(field.name)} columns {field.name!r}, expected 1"
        if (found := schema.field(field.name).type) != field.type:
            return f"its column {field.name!r} is {found}, expected {field.type}"
    others = {field.name for field in schema} - {field.name for field in expected}
    unknown = sorted(others - metadata_types(schema).keys())
    return f"its column {unknown[0]!r} is unknown" if unknown else None


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


def columns_of(part: Part, schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of a part; for metadata, the gallery's own fields."""
    return COLUMNS[part] or tuple(sorted(metadata_types(schema)))


def is_whole(table: pa.Table, part: Part, schema: pa.Schema) -> npt.NDArray[np.bool_]:
    """Tell for each row whether a part that was read is as it was written: bool [N]."""
    stored: Words = array_of(table, part.value)
    whole: npt.NDArray[np.bool_] = checksums(table, columns_of(part, schema)) == stored
    return whole


def to_table(
    videos: Sequence[GalleryVideo], features: VideoFeatures, schema: pa.Schema
) -> pa.Table:
    """Return rows to write, with all columns of ``schema``, checksums included."""
    columns: dict[str, Any] = {
        "id": [video.id for video in videos],
        "paths": [[file.path for file in video.files] for video in videos],
        "file_sizes": [[file.size_bytes for file in video.files] for video in videos],
        "file_times": [[file.modified_ns for file in video.files] for video in videos],
        CONTENT_SHA256: [video.content_sha256 for video in videos],
        "duration_s": [video.duration_s for video in videos],
        "frame_times_s": [list(video.frame_times_s) for video in videos],
        "num_frames": features.num_frames,
        "_segment": [video.segment for video in videos],
        "_num_segments": [video.num_segments for video in videos],
        "_start_s": [video.start_s for video in videos],
        "_end_s": [video.end_s for video in videos],
        "_segmentation": [video.segmentation for video in videos],
        "_reading_version": [video.reading_version for video in videos],
    }
    for name in ("video_features", "frame_features"):
        field = schema.field(name).type
        values = pa.array(np.ascontiguousarray(getattr(features, name)).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(values, field.list_size)
    for name in metadata_types(schema):
        columns[name] = [video.metadata.get(name) for video in videos]
    arrays = {}
    for field in schema:
        if field.name in columns:
            value = columns[field.name]
            is_array = isinstance(value, pa.Array)
            arrays[field.name] = value if is_array else pa.array(value, field.type)
    unchecked = pa.table(arrays)
    for part in Part:
        arrays[part.value] = pa.array(checksums(unchecked, columns_of(part, schema)))
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def to_videos(table: pa.Table) -> list[GalleryVideo]:
    """Return the videos of rows, with the metadata columns that were read."""
    fields = list(metadata_types(table.schema))
    # Vectors as Python numbers would take sixteen times as long as all else.
    vectors = {"video_features", "frame_features"} & set(table.schema.names)
    table = table.drop_columns(sorted(vectors))
    return [_to_video(row, fields) for row in table.to_pylist()]


def _to_video(row: Mapping[str, Any], fields: Sequence[str]) -> GalleryVideo:
    # Records were checked when they were written, and their checksums when they were read. To check
    # them once more would take a sixth of a search.
    files = tuple(
        VideoFile.model_construct(path=path, size_bytes=size, modified_ns=time)
        for path, size, time in zip(
            row["paths"] or (), row["file_sizes"] or (), row["file_times"] or (), strict=True
        )
    )
    return GalleryVideo.model_construct(
        id=row["id"],
        path=files[0].path if files else None,
        files=files,
        content_sha256=row[CONTENT_SHA256],
        duration_s=row["duration_s"],
        frame_times_s=tuple(row["frame_times_s"]),
        reading_version=row.get("_reading_version"),
        metadata={name: row[name] for name in fields if row[name] is not None},
        segment=row.get("_segment", 0),
        num_segments=row.get("_num_segments", 1),
        start_s=row.get("_start_s"),
        end_s=row.get("_end_s"),
        segmentation=row.get("_segmentation"),
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


def keys_of(table: pa.Table) -> FeatureKeys:
    """Return the keys of the rows' features, their checksums: uint64 [N, 2]."""
    return np.stack([array_of(table, part.value) for part in (Part.VIDEO, Part.FRAMES)], axis=1)


def array_of(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column as an array: [V] of numbers, [V, n] of vectors."""
    if pa.types.is_fixed_size_list(table.schema.field(name).type):
        array: npt.NDArray[Any] = matrix_of(table, name)
    else:
        array = to_numbers(table[name])
    return array


def matrix_of(table: pa.Table, name: str) -> Any:
    """Return a column of vectors as a matrix [V, n], uncopied if it is one chunk."""
    column = in_one_piece(table[name])
    return to_numbers(column.flatten()).reshape(-1, column.type.list_size)
