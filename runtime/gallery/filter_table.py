"""Filters on an Arrow table, for galleries in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xclip_deploy.runtime.gallery.conditions import (
    Column,
    Comparison,
    Condition,
    Constant,
    IsNull,
    IsTrue,
    Joined,
    Like,
    Membership,
    Not,
    Operand,
)
from xclip_deploy.runtime.gallery.lance_schema import ARROW_TYPES, CONTENT_SHA256
from xclip_deploy.runtime.gallery.records import GalleryVideo, Rows

_COMPARE: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


class FilterTable:
    """The columns that filters can name, of all videos."""

    def __init__(self, videos: Sequence[GalleryVideo], metadata: Mapping[str, type]) -> None:
        """Make the table; ``metadata`` gives the types of the user's own columns."""
        columns = {
            "id": pa.array([video.id for video in videos], pa.string()),
            CONTENT_SHA256: pa.array([video.content_sha256 for video in videos], pa.string()),
            "duration_s": pa.array([video.duration_s for video in videos], pa.float64()),
            "num_frames": pa.array([len(video.frame_times_s) for video in videos], pa.int64()),
            "_segment": pa.array([video.segment for video in videos], pa.int64()),
            "_num_segments": pa.array([video.num_segments for video in videos], pa.int64()),
            "_start_s": pa.array([video.start_s for video in videos], pa.float64()),
            "_end_s": pa.array([video.end_s for video in videos], pa.float64()),
        }
        for name, kind in metadata.items():
            values = [video.metadata.get(name) for video in videos]
            columns[name] = pa.array(values, ARROW_TYPES[kind])
        self._table = pa.table(columns)

    def matching(self, condition: Condition) -> Rows:
        """Return the places of the videos for which the condition is true."""
        mask = pc.fill_null(self._mask(condition), False)
        found: Rows = np.flatnonzero(mask.to_numpy()).astype(np.int64)
        return found

    def _mask(self, condition: Condition) -> Any:
        """Return truth values, null if the condition is neither true nor false."""
        if isinstance(condition, Joined):
            join = pc.and_kleene if condition.word == "and" else pc.or_kleene
            mask = self._mask(condition.parts[0])
            for part in condition.parts[1:]:
                mask = join(mask, self._mask(part))
            return mask
        if isinstance(condition, Not):
            return pc.invert(self._mask(condition.part))
        if isinstance(condition, Constant):
            return pa.chunked_array([pa.array([condition.value] * len(self._table), pa.bool_())])
        column = self._table[condition.column.name]
        if isinstance(condition, IsTrue):
            return column
        if isinstance(condition, IsNull):
            return pc.is_null(column)
        if isinstance(condition, Like):
            return pc.match_like(column, condition.pattern, ignore_case=condition.ignore_case)
        if isinstance(condition, Membership):
            values = list(condition.values)
            if float in (condition.column.kind, *map(type, values)):
                column, values = _as_decimal(column), list(map(float, values))
            found = pc.is_in(column, pa.array(values, column.type))
            return pc.if_else(pc.is_valid(column), found, None)
        assert isinstance(condition, Comparison)
        other = self._operand(condition.other)
        if pa.types.is_floating(other.type) or pa.types.is_floating(column.type):
            column, other = _as_decimal(column), _as_decimal(other)
        return _COMPARE[condition.sign](column, other)

    def _operand(self, operand: Operand) -> Any:
        return self._table[operand.name] if isinstance(operand, Column) else pa.scalar(operand)


def _as_decimal(values: Any) -> Any:
    # Like a database, round whole numbers above 2^53 to the nearest FP64.
    is_whole = pa.types.is_integer(values.type)
    return pc.cast(values, pa.float64(), safe=False) if is_whole else values
