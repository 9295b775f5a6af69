"""The records that a gallery keeps of a video beside its embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from xclip_deploy.errors import InvalidArgumentError, MetadataError
from xclip_deploy.runtime.model_config import FrozenModel

MetadataValue: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr
"""Value of a metadata field: one of four types, the same for all videos of a gallery."""

MAX_TEXT_BYTES = 1 << 24
"""Largest text in one metadata value: 16 MiB."""
MAX_FIELDS = 256
RECORD_COLUMNS = (
    "id",
    "paths",
    "file_sizes",
    "file_times",
    "fingerprint",
    "duration_s",
    "frame_times_s",
    "num_frames",
    "_reading_version",
)
"""Columns that every video has, apart from its metadata and features."""
SEGMENT_COLUMNS = ("_segment", "_num_segments", "_start_s", "_end_s", "_segmentation")
"""Columns that tell which part of its video a row is. No metadata field begins with ``_``."""
RESERVED = frozenset({*RECORD_COLUMNS, *SEGMENT_COLUMNS, "video_features", "frame_features"})
"""Columns of the gallery itself; metadata fields may not take these names."""
TYPE_NAMES: dict[type, str] = {
    bool: "truth values",
    int: "whole numbers",
    float: "decimal numbers",
    str: "texts",
}
Rows: TypeAlias = npt.NDArray[np.int64]
"""Row numbers of videos or their segments, valid in one snapshot only."""
NO_ROWS: Rows = np.empty(0, np.int64)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_INT32 = 1 << 31
_INT64 = 1 << 63
_EXACT = 1 << 53
"""2^53: FP64 represents every whole number up to here."""


class VideoFile(FrozenModel):
    """A file that holds a video's content, with its state when it was read."""

    path: Annotated[str, Field(min_length=1)]
    """Absolute path, or a URL."""
    size_bytes: Annotated[int, Field(ge=0, lt=_INT64)] | None = None
    modified_ns: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    """Time of the last change, nanoseconds, from ``os.stat``. A file with the same size and time
    counts as unchanged and is not read again."""


class GalleryVideo(FrozenModel):
    """One row of a gallery, apart from its embeddings: a video, or a segment of a long one.

    The segments of a video differ in ``segment``, ``start_s``, ``end_s`` and ``frame_times_s``
    alone.
    """

    # JSON has no infinity, and no video has such a time.
    model_config = ConfigDict(allow_inf_nan=False)

    id: Annotated[str, Field(min_length=1)]
    """Id of the video; all its segments have it."""
    path: str | None = None
    """Location of the video; None for features that were added without a file."""
    files: tuple[VideoFile, ...] = ()
    """Every file with this content; the file at ``path`` comes first."""
    content_sha256: str | None = None
    """SHA-256 of the file, hexadecimal; None if it was not computed. Filters and the gallery's
    column name it ``fingerprint``."""
    duration_s: float | None = None
    frame_times_s: tuple[float, ...]
    """Time of each encoded frame, seconds from the video's start."""
    reading_version: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """``READING_VERSION`` of the release that read the file; None if it recorded none."""
    metadata: Mapping[str, MetadataValue] = Field(default_factory=dict)
    """The user's own fields; filters can name them."""
    segment: Annotated[int, Field(ge=0, lt=_INT32)] = 0
    """Number of this segment within its video, from 0."""
    num_segments: Annotated[int, Field(ge=1, lt=_INT32)] = 1
    """Number of the video's segments."""
    start_s: float | None = None
    """Start of the segment, seconds; None if it is not known, as for features without a file."""
    end_s: float | None = None
    """End of the segment, seconds."""
    segmentation: str | None = None
    """:attr:`Segmentation.text` of the policy that cut the video; None takes the gallery's."""

    @model_validator(mode="before")
    @classmethod
    def _path_and_files_agree(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("path") is not None and not data.get("files"):
            return {**data, "files": (VideoFile(path=data["path"]),)}
        return data

    @model_validator(mode="after")
    def _segment_is_one_of_them(self) -> GalleryVideo:
        if self.segment >= self.num_segments:
            raise ValueError(f"segment is {self.segment} of {self.num_segments}")
        return self

    @model_validator(mode="after")
    def _path_is_the_first_file(self) -> GalleryVideo:
        if (self.files[0].path if self.files else None) != self.path:
            raise ValueError("path is not that of the first of files")
        return self

    @field_validator("metadata", mode="before")
    @classmethod
    def _metadata_can_be_stored(cls, metadata: object) -> object:
        # Runs before Pydantic's own check, which turns NumPy's 1 and True into 1.0.
        return plain_metadata(metadata) if isinstance(metadata, Mapping) else metadata


def as_segment_of(row: GalleryVideo, video: GalleryVideo) -> GalleryVideo:
    """Return a row with the id, files, content, duration and metadata of ``video``."""
    names = ("id", "path", "files", "content_sha256", "duration_s", "metadata")
    return row.model_copy(update={name: getattr(video, name) for name in names})


def times_of(row: GalleryVideo) -> tuple[float, float | None]:
    """Return start and end of a row, seconds; a whole video lasts from 0 to its duration."""
    end_s = row.duration_s if row.end_s is None else row.end_s
    return row.start_s or 0.0, end_s


def plain_metadata(metadata: Mapping[Any, Any]) -> dict[str, MetadataValue]:
    """Convert NumPy scalars to Python's. Raises MetadataError as check_metadata does."""
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in metadata.items()
    }
    check_metadata(plain)
    return plain


def check_metadata(metadata: Mapping[str, object]) -> None:
    """Raise MetadataError for a name or value that no gallery can hold."""
    if len(metadata) > MAX_FIELDS:
        raise MetadataError(f"found {len(metadata)} metadata fields, expected at most {MAX_FIELDS}")
    for name, value in metadata.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise MetadataError(
                f"metadata field {name!r}: expected a letter, then letters, digits and "
                "underscores, 64 at most, so that filters can name it"
            )
        if name.lower() in RESERVED:
            raise MetadataError(
                f"metadata field {name!r} is a column of the gallery itself; use another name"
            )
        if not isinstance(value, (bool, int, float, str)):
            raise MetadataError(
                f"metadata field {name!r} holds a {type(value).__name__}, expected a text, "
                "number or truth value; leave the field out where there is none"
            )
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise MetadataError(f"metadata field {name!r} is {value}, expected 64 bits at most")
        if isinstance(value, float) and not math.isfinite(value):
            raise MetadataError(f"metadata field {name!r} is {value}, expected a finite number")
        if isinstance(value, str):
            _check_text(name, value)
    lowered = [name.lower() for name in metadata]
    if len(set(lowered)) != len(lowered):
        raise MetadataError(f"metadata fields {sorted(metadata)} differ in case alone")


def merged_types(
    known: Mapping[str, type], metadata: Iterable[Mapping[str, MetadataValue]]
) -> dict[str, type]:
    """Return the types of ``known`` fields and of those in ``metadata``.

    A field of decimals takes whole numbers. A new field with both kinds holds decimals. Any other
    difference of types raises MetadataError.
    """
    types = dict(known)
    spelled = {name.lower(): name for name in types}
    given = list(metadata)
    for fields in given:
        for name, value in fields.items():
            found = type(value)
            other = spelled.setdefault(name.lower(), name)
            if other != name:
                raise MetadataError(
                    f"metadata field {name!r} is {other!r} in the gallery; expected one spelling"
                )
            expected = types.setdefault(name, found)
            if found is float and expected is int and name not in known:
                types[name] = float
            elif found is not expected and not (found is int and expected is float):
                raise MetadataError(
                    f"metadata field {name!r} holds {value!r:.80} ({TYPE_NAMES[found]}), the "
                    f"gallery's holds {TYPE_NAMES[expected]}; give it as that or under another name"
                )
    if len(types) > MAX_FIELDS:
        raise MetadataError(f"found {len(types)} metadata fields, expected at most {MAX_FIELDS}")
    for fields in given:
        for name, value in fields.items():
            if types[name] is float and abs(cast("float", value)) > _EXACT and type(value) is int:
                raise MetadataError(
                    f"metadata field {name!r} holds decimal numbers, which {value} is too long for"
                )
    return types


def has_name(video: GalleryVideo, paths: Collection[str], name: str | None) -> bool:
    """Tell whether a video has a file at one of ``paths``, or a path or id with this file name."""
    own = [file.path for file in video.files] or ([] if video.path is None else [video.path])
    if any(path in paths for path in own):
        return True
    return name is not None and any(path.endswith(f"/{name}") for path in (video.id, *own))


def coerced(video: GalleryVideo, types: Mapping[str, type]) -> GalleryVideo:
    """Return the video with whole numbers as floats in the fields that hold decimals."""
    changed = {
        name: float(value)
        for name, value in video.metadata.items()
        if type(value) is int and types[name] is float
    }
    if not changed:
        return video
    return video.model_copy(update={"metadata": {**video.metadata, **changed}})


def check_texts(video: GalleryVideo) -> None:
    """Raise InvalidArgumentError for an id, path or hash that is not UTF-8."""
    texts = {"id": video.id, "content_sha256": video.content_sha256 or ""}
    for what, text in [*texts.items(), *(("path", file.path) for file in video.files)]:
        if text.encode(errors="replace").decode() != text:
            raise InvalidArgumentError(f"the {what} {text!r:.200} is no UTF-8 text")


def _check_text(name: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise MetadataError(
            f"metadata field {name!r} holds {value!r:.80}, no UTF-8 text"
        ) from error
    if size > MAX_TEXT_BYTES:
        raise MetadataError(
            f"metadata field {name!r} holds {size} bytes, expected at most {MAX_TEXT_BYTES}"
        )
