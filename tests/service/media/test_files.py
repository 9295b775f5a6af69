"""The file of a video: its bytes and no others, whole or in ranges."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import CLIPS, SAMPLES, Media, Own
from running_services import served
from starlette.datastructures import Headers

from xclip_deploy.service.media.files import OpenFile
from xclip_deploy.service.media.ranges import UnsatisfiableRangeError, is_known, range_of
from xclip_deploy.service.media.responses import (
    ChangedWhileSentError,
    OpenFileResponse,
    Validity,
    disposition,
)

TYPES = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
}
NAME = "silent.mp4"


@pytest.fixture(scope="module")
def content(media: Media) -> bytes:
    return (media.path(NAME)).read_bytes()


@pytest.mark.parametrize("name", [*SAMPLES, *(Path(clip).name for clip in CLIPS)])
def test_the_whole_file(media: Media, name: str) -> None:
    found = media.get(name, "media")
    assert found.status_code == 200
    assert found.content == (media.path(name)).read_bytes()
    assert found.headers["content-type"] == TYPES[Path(name).suffix]
    assert found.headers["etag"] == f'"{media.handles[name]}"'
    assert found.headers["accept-ranges"] == "bytes"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert "content-disposition" not in found.headers


@given(data=st.data())
def test_a_range_is_those_bytes(media: Media, content: bytes, data: st.DataObject) -> None:
    size = len(content)
    near = st.one_of(
        st.integers(0, size + 5), st.sampled_from([0, 1, size - 1, size, size + 1, 10**17])
    )
    first = data.draw(st.none() | near)
    last = data.draw(near if first is None else st.none() | near)
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    found = media.get(NAME, "media", {"Range": text})
    if first is None:
        start, end = max(size - (last or 0), 0), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
    if first is not None and last is not None and last < first:
        assert (found.status_code, found.content) == (200, content)
    elif start >= end:
        assert found.status_code == 416
        assert found.headers["content-range"] == f"bytes */{size}"
        assert found.json()["error"]["kind"] == "RangeNotSatisfiable"
    else:
        assert found.status_code == 206
        assert found.content == content[start:end]
        assert found.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert found.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "text",
    [
        *("bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes=-", "bytes", "bytes=1-0", "bytes=٣-٤"),
        *(f"bytes={'1' * 500}-", "bytes=--1", "bytes=0x1-0x2", "bytes=1.5-2", "="),
    ],
)
def test_what_is_no_single_range_gives_the_whole(text: str) -> None:
    assert range_of({"range": text}, '"a"', 100) is None


@settings(max_examples=50)
@given(text=st.text(alphabet="bytes=-0123456789, ", max_size=12), size=st.integers(0, 50))
def test_no_range_leaves_the_file(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            found = range_of({"range": header}, '"a"', size)
        except UnsatisfiableRangeError:
            continue
        assert found is None or 0 <= found.start < found.end <= size


def test_a_range_of_another_version_gives_the_whole(media: Media, content: bytes) -> None:
    tag = f'"{media.handles[NAME]}"'
    ranged = {"Range": "bytes=1-4"}
    assert media.get(NAME, "media", {**ranged, "If-Range": tag}).content == content[1:5]
    dated = "Thu, 26 Nov 2026 10:00:00 GMT"
    for other in ('"other"', f"W/{tag}", dated, tag.strip('"')):
        found = media.get(NAME, "media", {**ranged, "If-Range": other})
        assert (found.status_code, found.content) == (200, content)


def test_a_client_that_has_the_file(media: Media) -> None:
    tag = f'"{media.handles[NAME]}"'
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        found = media.get(NAME, "media", {"If-None-Match": known, "Range": "bytes=0-1"})
        assert (found.status_code, found.content) == (304, b"")
    assert not is_known({"if-none-match": '"x"'}, tag)


@pytest.mark.parametrize(("headers", "status"), [({}, 200), ({"Range": "bytes=-7"}, 206)])
def test_head(media: Media, content: bytes, headers: dict[str, str], status: int) -> None:
    found = media.client.head(media.address(NAME, "media"), headers=headers)
    assert (found.status_code, found.content) == (status, b"")
    assert found.headers["content-length"] == str(7 if headers else len(content))


def test_a_file_that_is_gone(own: Own) -> None:
    path = own.path
    path.unlink()
    for what, query in _all_media():
        found = own.get(what, **query)
        assert found.status_code == 410, (what, found.text)
        assert str(own.path.parent) not in found.text
    path.mkdir()  # something else stands in its place
    assert own.get("media").status_code in (409, 410)


@pytest.mark.parametrize("how", ["replaced", "longer", "touched", "linked", "pipe"])
def test_a_file_that_changed(own: Own, how: str, tmp_path: Path) -> None:
    path = own.path
    assert own.get("media").status_code == 200
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    if how == "replaced":
        secret.replace(path)
    elif how == "longer":
        with path.open("ab") as file:
            file.write(b"more")
    elif how == "touched":
        os.utime(path)
    else:
        path.unlink()
        path.symlink_to(secret) if how == "linked" else os.mkfifo(path)
    for what, query in _all_media():
        found = own.get(what, **query)
        assert found.status_code == 409, (what, found.text)
        assert b"secret" not in found.content
        assert found.json()["error"]["kind"] == "MomentSourceError"


def _all_media() -> list[tuple[str, dict[str, Any]]]:
    span = {"start_s": 1, "end_s": 2}
    return [
        ("media", {}),
        ("frame", {"time_s": 1}),
        ("thumbnail", {"start_s": 1}),
        ("frames", span),
        ("playable", span),
        ("cut", span),
        ("cut", {**span, "mode": "copy"}),
    ]


def test_another_file_of_the_same_content(own: Own) -> None:
    first = own.path
    content = first.read_bytes()
    own.path.with_name("twin.mp4").write_bytes(content)
    retriever = own.media.service.served.writer
    retriever.add([own.path.parent], workers=1, segment="4s", thumbnails=False)
    first.write_bytes(b"other")
    assert own.get("media").content == content
    own.path.with_name("twin.mp4").unlink()
    assert own.get("media").status_code == 409


def test_a_video_that_was_removed(own: Own) -> None:
    assert own.get("media").status_code == 200
    own.media.service.served.writer.remove([str(own.path)])
    assert own.get("media").status_code == 404


class Wire:
    """What a server gives to an application, and takes from it."""

    def __init__(self, leave_after: int = 1 << 30) -> None:
        self.sent: list[Any] = []
        self.leave_after = leave_after
        self.left = asyncio.Event()
        self.hold = asyncio.Event()

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)
        if len(self.sent) > self.leave_after:
            self.left.set()
            await self.hold.wait()  # a socket that nobody reads from


def response_of(path: Path, headers: dict[str, str] | None = None) -> OpenFileResponse:
    content = OpenFile(os.open(path, os.O_RDONLY))
    return OpenFileResponse(content, Headers(headers or {}), "video/mp4", Validity('"a"', True))


SCOPE: dict[str, Any] = {"type": "http", "method": "GET"}


def test_a_client_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 << 20))
    wire = Wire(leave_after=3)
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(asyncio.wait_for(response_of(path)(SCOPE, wire.receive, wire.send), 20))
    assert len(wire.sent) == 4
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("how", ["written", "cut"])
def test_a_file_that_changes_while_it_is_sent(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 << 20))
    response = response_of(path)
    if how == "written":
        path.write_bytes(b"x" * (10 << 20))
        os.utime(path, ns=(0, 1))
    else:
        os.truncate(path, 100)
    wire = Wire()
    with pytest.raises(ChangedWhileSentError):
        asyncio.run(response(SCOPE, wire.receive, wire.send))
    assert b"x" not in b"".join(message.get("body", b"") for message in wire.sent)


def test_a_file_that_is_removed_while_it_is_sent_is_sent_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    response = response_of(path)
    path.unlink()
    wire = Wire()
    asyncio.run(response(SCOPE, wire.receive, wire.send))
    assert sum(len(message.get("body", b"")) for message in wire.sent) == 1 << 20
    assert [message.get("more_body") for message in wire.sent[1:]] == [True] * 3 + [False]


def test_names_of_downloads() -> None:
    assert disposition("a_1.mp4") == 'attachment; filename="a_1.mp4"'
    odd = disposition('é"\r\nX: y.mp4')
    assert "\r" not in odd
    assert "\n" not in odd
    assert odd.endswith("filename*=UTF-8''%C3%A9%22%0D%0AX%3A%20y.mp4")


def test_a_real_server_sends_ranges(live_address: str, videos_path: Path) -> None:
    from xclip_deploy.runtime.files import sha256_of

    path = videos_path / "numbers.mp4"
    address = f"{live_address}/api/v1/videos/{sha256_of(path)}/media"
    found = httpx2.get(address, headers={"Range": "bytes=1000-1999"})
    assert (found.status_code, found.content) == (206, path.read_bytes()[1000:2000])
    assert httpx2.head(address).headers["content-length"] == str(path.stat().st_size)


def test_a_player_that_jumps_leaves_the_rest(tmp_path: Path) -> None:
    """A player opens an end that is open, takes what it needs and hangs up."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(400 << 20)
    read: list[int] = []

    class Counted(OpenFile):
        def read(self, place: int, count: int) -> bytes:
            chunk = super().read(place, count)
            read.append(len(chunk))
            return chunk

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            content = Counted(os.open(path, os.O_RDONLY))
            headers = Headers(scope=scope)
            response = OpenFileResponse(content, headers, "video/mp4", Validity('"a"', True))
            await response(scope, receive, send)

    with served(None, app) as address:  # type: ignore[arg-type]
        for start in (0, 390 << 20, 200 << 20):
            headers = {"Range": f"bytes={start}-"}
            with httpx2.stream("GET", address, headers=headers) as found:
                assert found.status_code == 206
                next(found.iter_bytes(256 << 10))
    assert 0 < sum(read) < 0.05 * (400 << 20)
