"""Moments that every browser plays, and cuts to keep."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import pytest
from media_samples import SAMPLES, VFR_MS, Media, streams_of
from numbered_movies import decode

from xclip_deploy.runtime.moments import cut

NUMBERED = [name for name in SAMPLES if name != "vfr.mkv"]


def decoded(content: bytes, folder: Path, ending: str = ".mp4") -> Any:
    path = folder / f"found{ending}"
    path.write_bytes(content)
    return decode(path)


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize(("start", "end", "pad"), [(3.5, 5.2, 0), (0.3, 2, 1), (10, 12, 0.5)])
def test_a_playable_moment(
    media: Media, name: str, start: float, end: float, pad: float, tmp_path: Path
) -> None:
    found = media.get(name, "playable", start_s=start, end_s=end, pad_s=pad)
    assert found.status_code == 200, found.text
    first, last = float(found.headers["x-start-s"]), float(found.headers["x-end-s"])
    assert (first, last) == pytest.approx((max(0, start - pad), min(12, end + pad)), abs=0.04)
    moment = decoded(found.content, tmp_path)
    # The picture at each time is within one frame of the video's at that time.
    assert moment.numbers == list(range(round(first * 10), round(last * 10)))
    for number, time_s in zip(moment.numbers, moment.times_s, strict=True):
        assert time_s + first == pytest.approx(number / 10, abs=0.05)
    has_sound = name != "silent.mp4"
    assert streams_of(found.content) == (["h264", "aac"] if has_sound else ["h264"])
    assert found.headers["x-has-sound"] == str(has_sound).lower()
    assert json.loads(found.headers["x-warnings"]) == []
    assert found.headers["content-type"] == "video/mp4"
    assert found.content.index(b"moov") < found.content.index(b"mdat")
    with av.open(io.BytesIO(found.content)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


def test_a_variable_rate_keeps_its_times(media: Media, tmp_path: Path) -> None:
    found = media.get("vfr.mkv", "playable", start_s=1.4, end_s=4.0)
    moment = decoded(found.content, tmp_path)
    expected = [number for number, ms in enumerate(VFR_MS) if 1400 <= ms < 4000]
    assert moment.numbers == expected
    assert [1.4 + time_s for time_s in moment.times_s] == pytest.approx(
        [VFR_MS[number] / 1000 for number in expected], abs=0.002
    )


@pytest.mark.parametrize("name", ["torchcodec_av1.mkv", "decord_video_90.mov", "mdn_frog.webm"])
def test_real_clips_become_playable(media: Media, name: str) -> None:
    found = media.get(name, "playable")  # to the end
    assert found.status_code == 200, found.text
    assert streams_of(found.content)[0] == "h264"
    with av.open(io.BytesIO(found.content)) as made, av.open(str(media.path(name))) as source:
        frames = sum(1 for _ in made.decode(video=0))
        assert frames == sum(1 for _ in source.decode(video=0))


def test_an_end_beyond_the_video_is_the_videos(media: Media) -> None:
    found = media.get("h264.mp4", "playable", start_s=11, end_s=30)
    assert float(found.headers["x-end-s"]) == pytest.approx(12, abs=0.03)
    assert media.get("h264.mp4", "cut", start_s=11, end_s=30).status_code == 422
    assert media.get("h264.mp4", "playable", start_s=13, end_s=30).status_code == 422


def test_ranges_of_a_playable_moment(media: Media) -> None:
    query: dict[str, Any] = {"start_s": 2, "end_s": 4}
    whole = media.get("hevc.mp4", "playable", **query)
    tag = whole.headers["etag"]
    headers = {"Range": "bytes=100-199", "If-Range": tag}
    part = media.get("hevc.mp4", "playable", headers, **query)
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["x-start-s"] == whole.headers["x-start-s"]
    known = media.get("hevc.mp4", "playable", {"If-None-Match": tag}, **query)
    assert (known.status_code, known.content) == (304, b"")
    address = media.address("hevc.mp4", "playable")
    head = media.client.head(address, params=query)
    assert (head.headers["content-length"], head.content) == (str(len(whole.content)), b"")


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_cut_is_that_of_the_library(media: Media, mode: Any, tmp_path: Path) -> None:
    found = media.get("h264.mp4", "cut", start_s=3.5, end_s=5.25, mode=mode, pad_s=0.25)
    assert found.status_code == 200, found.text
    expected = cut(
        media.path("h264.mp4"), 3.5, 5.25, tmp_path / "expected.mp4", mode=mode, pad_s=0.25
    )
    if mode == "copy":
        assert found.content == expected.path.read_bytes()
    # Encoders with several threads need not write the same bytes twice.
    moment, library = decoded(found.content, tmp_path), decode(expected.path)
    assert (moment.numbers, moment.times_s) == (library.numbers, library.times_s)
    assert streams_of(found.content) == streams_of(expected.path.read_bytes())
    assert float(found.headers["x-start-s"]) == pytest.approx(expected.start_s, abs=1e-6)
    assert float(found.headers["x-end-s"]) == pytest.approx(expected.end_s, abs=1e-6)
    assert found.headers["x-has-sound"] == "true"
    assert found.headers["x-mode"] == mode
    name = 'attachment; filename="h264_0.03.5-0.05.2.mp4"'
    assert found.headers["content-disposition"] == name


@pytest.mark.parametrize(
    ("name", "container", "kind", "codec"),
    [
        ("prores.mov", None, "video/quicktime", "prores"),
        ("mpeg4.avi", None, "video/x-matroska", "mpeg4"),
        ("mdn_frog.webm", None, "video/webm", "vp8"),
        ("hevc.mp4", "mkv", "video/x-matroska", "hevc"),
    ],
)
def test_a_copy_keeps_the_codec(
    media: Media, name: str, container: str | None, kind: str, codec: str
) -> None:
    query: dict[str, Any] = {} if container is None else {"container": container}
    found = media.get(name, "cut", start_s=0.5, end_s=1.5, mode="copy", **query)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == kind
    assert streams_of(found.content)[0].startswith(codec)


@pytest.mark.parametrize(
    "query",
    [
        {"start_s": 3, "end_s": 3},
        {"start_s": 4, "end_s": 3},
        {"start_s": 0, "end_s": 601},
        {"start_s": 0, "end_s": 300, "pad_s": 151},
        {"start_s": 0, "end_s": 1, "pad_s": 400},
        {"start_s": 0, "end_s": 1, "mode": "fast"},
        {"start_s": 0, "end_s": 1, "container": "exe"},
        {"start_s": 0},
        {"start_s": 20, "end_s": 22},
        {"start_s": 0, "end_s": 1, "mode": "copy", "container": "webm"},
    ],
)
def test_cuts_that_cannot_be(media: Media, query: dict[str, Any]) -> None:
    found = media.get("h264.mp4", "cut", **query)
    assert found.status_code == 422, found.text
    assert str(media.path("h264.mp4").parent) not in found.text
    assert "media" not in found.text  # the folder of the cache
