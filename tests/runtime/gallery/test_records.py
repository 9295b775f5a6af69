"""What a gallery takes as a video and as metadata."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from xclip_deploy.errors import InvalidArgumentError, MetadataError
from xclip_deploy.runtime.gallery import GalleryVideo, VideoFile
from xclip_deploy.runtime.gallery.records import (
    MAX_TEXT_BYTES,
    check_texts,
    coerced,
    merged_types,
)


class Level(IntEnum):
    HIGH = 3


def video(**fields: Any) -> GalleryVideo:
    return GalleryVideo(**{"id": "a", "frame_times_s": (0.0,), **fields})


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"id": "x"}, "'id' is a column of the gallery itself"),
        ({"Video_Features": "x"}, "is a column of the gallery itself"),
        ({"a b": 1}, "'a b': expected a letter"),
        ({"": 1}, "expected a letter"),
        ({"_rowid": 1}, "expected a letter"),
        ({"straße": 1}, "expected a letter"),
        ({"x" * 65: 1}, "64 at most"),
        ({3: 1}, "expected a letter"),
        ({"a": None}, "holds a NoneType, expected a text, number or truth value"),
        ({"a": [1]}, "holds a list"),
        ({"a": b"x"}, "holds a bytes"),
        ({"a": np.ones(1)}, "holds a ndarray"),
        ({"n": 1 << 63}, "64 bits at most"),
        ({"n": np.uint64((1 << 64) - 1)}, "64 bits at most"),
        ({"n": float("nan")}, "is nan, expected a finite number"),
        ({"n": np.float32("-inf")}, "is -inf, expected a finite number"),
        ({"t": "\ud800"}, "no UTF-8 text"),
        ({"t": "x" * (MAX_TEXT_BYTES + 1)}, "holds 16777217 bytes"),
        ({"a": 1, "A": 2}, "differ in case alone"),
        ({f"k{n}": n for n in range(257)}, "found 257 metadata fields, expected at most 256"),
    ],
)
def test_metadata_that_no_gallery_can_hold(metadata: dict[Any, Any], reason: str) -> None:
    # Not Pydantic's error: MetadataError is no ValueError, so that it passes through validators.
    with pytest.raises(MetadataError, match=reason) as raised:
        video(metadata=metadata)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_scalars_of_numpy_keep_their_kind() -> None:
    given = {
        "whole": np.int16(3),
        "share": np.float64(0.5),
        "is_day": np.bool_(True),
        "source": np.str_("x"),
        "level": Level.HIGH,
        "longest": (1 << 63) - 1,
    }
    found = video(metadata=given).metadata
    assert {name: (type(value), value) for name, value in found.items()} == {
        "whole": (int, 3),
        "share": (float, 0.5),
        "is_day": (bool, True),
        "source": (str, "x"),
        "level": (int, 3),
        "longest": (int, (1 << 63) - 1),
    }


def test_the_caller_keeps_his_dictionary() -> None:
    given = {"n": 1}
    found = video(metadata=given)
    given["n"] = 2
    assert found.metadata == {"n": 1}


def test_types_of_several_videos() -> None:
    assert merged_types({"n": int}, [{"n": 1, "s": "x"}, {"f": 1}, {"f": 0.5}, {"f": 2}]) == {
        "n": int,
        "s": str,
        "f": float,
    }
    known = {"share": float, "n": int, "Source": str}
    for fields, reason in (
        ({"n": 0.5}, r"'n' holds 0.5 \(decimal numbers\), the gallery's holds whole numbers"),
        ({"n": True}, r"True \(truth values\)"),
        ({"share": "x"}, r"'x' \(texts\), the gallery's holds decimal numbers"),
        ({"source": "x"}, "'source' is 'Source' in the gallery"),
        ({"share": (1 << 53) + 1}, "9007199254740993 is too long for"),
    ):
        with pytest.raises(MetadataError, match=reason):
            merged_types(known, [fields])
    assert known == {"share": float, "n": int, "Source": str}
    with pytest.raises(MetadataError, match="one spelling"):
        merged_types({}, [{"a": 1}, {"A": 1}])
    with pytest.raises(MetadataError, match="too long for"):
        merged_types({}, [{"f": (1 << 53) + 1}, {"f": 0.5}])


def test_whole_numbers_become_decimal_ones() -> None:
    whole = video(metadata={"share": 1, "n": 1, "is_day": True})
    found = coerced(whole, {"share": float, "n": int, "is_day": bool}).metadata
    assert [type(value) for value in found.values()] == [float, int, bool]
    assert coerced(whole, {"share": int, "n": int, "is_day": bool}) is whole


def test_path_and_files() -> None:
    assert video(path="/a").files == (VideoFile(path="/a"),)
    assert video().files == ()
    files = (VideoFile(path="/a"), VideoFile(path="/b", size_bytes=3))
    assert video(path="/a", files=files).files == files
    for wrong in ({"path": "/b", "files": files}, {"files": files}):
        with pytest.raises(InvalidArgumentError, match="path is not that of the first"):
            video(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": "\ud800"},
        {"path": "/videos/\udcff.mp4"},
        {"path": ""},
        {"duration_s": float("inf")},
        {"frame_times_s": (float("nan"),)},
        {"metadata": "n=1"},
        {"other": 1},
    ],
)
def test_a_video_that_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        video(**wrong)


def test_texts_that_are_no_utf8() -> None:
    good = video(path="/a", content_sha256="f")
    check_texts(good)
    file = VideoFile.model_construct(path="/videos/\udcff.mp4")
    for wrong in ({"id": "\ud800"}, {"content_sha256": "\ud800"}, {"files": (file,)}):
        with pytest.raises(InvalidArgumentError, match=r"the .* '.*\\ud.*' is no UTF-8 text"):
            check_texts(good.model_copy(update=wrong))
