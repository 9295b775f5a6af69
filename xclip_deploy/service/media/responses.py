"""Responses that carry media: files with ranges from an open descriptor, and pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.media.files import OpenFile
from xclip_deploy.service.media.ranges import (
    ByteRange,
    UnsatisfiableRangeError,
    is_known,
    range_of,
)

IMMUTABLE = "private, max-age=31536000, immutable"
"""Caching of what is named by its content, and so never changes."""
REVALIDATED = "private, no-cache"
"""Caching of what may change: the client asks each time whether it has."""
_CHUNK_BYTES = 1 << 18
_UNSAFE = re.compile(r"[^A-Za-z0-9._ -]")


@dataclass(frozen=True)
class Validity:
    """How a response is cached, and the tag by which its version is told."""

    etag: str
    """Strong tag with its quotes."""
    is_immutable: bool

    def headers(self) -> dict[str, str]:
        """Return the headers that say so."""
        return {
            "ETag": self.etag,
            "Cache-Control": IMMUTABLE if self.is_immutable else REVALIDATED,
            "X-Content-Type-Options": "nosniff",
        }


def not_modified(headers: Mapping[str, str], validity: Validity) -> Response | None:
    """Return a response 304 if the client has this version, else None."""
    if not is_known(headers, validity.etag):
        return None
    return Response(status_code=304, headers=validity.headers())


class PictureResponse(Response):
    """A picture."""

    def __init__(self, content: bytes, media_type: str, validity: Validity) -> None:
        super().__init__(content, headers=validity.headers(), media_type=media_type)


class OpenFileResponse(Response):
    """A file, or one range of it.

    The bytes are those of the file that was opened, whatever its name leads to meanwhile. A file
    that is written to while it is sent ends the connection early, so nobody takes the mixture for
    the file.
    """

    def __init__(
        self,
        content: OpenFile,
        request: Headers,
        media_type: str,
        validity: Validity,
        *,
        headers: Mapping[str, str] | None = None,
        filename: str | None = None,
    ) -> None:
        """Choose status and range by a request's headers.

        Raises Refusal (416) for a range behind the file's end.
        """
        self._content: OpenFile | None = content
        size = content.status.st_size
        told = {**validity.headers(), "Accept-Ranges": "bytes", **(headers or {})}
        if filename is not None:
            told["Content-Disposition"] = disposition(filename)
        try:
            found = range_of(request, validity.etag, size)
        except UnsatisfiableRangeError:
            raise Refusal(
                416,
                "RangeNotSatisfiable",
                f"the range begins behind the end of the file, which has {size} bytes",
                headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
            ) from None
        self._range = found or ByteRange(0, size)
        told["Content-Length"] = str(self._range.end - self._range.start)
        if found is not None:
            told["Content-Range"] = f"bytes {found.start}-{found.end - 1}/{size}"
        self.status_code = 200 if found is None else 206
        self.media_type = media_type
        self.background = None
        self.init_headers(told)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until it ends or the client goes away."""
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await _gone(receive)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                await self._send(send, is_head=scope["method"] == "HEAD")
            except Exception as error:  # noqa: BLE001 - raised below, outside the group
                failure = error
            group.cancel_scope.cancel()
        self._content = None  # an error's traceback must not keep the file open
        if failure is not None:
            raise failure

    async def _send(self, send: Send, *, is_head: bool) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        place, end = self._range.start, self._range.end
        while place < end and not is_head:
            chunk = await anyio.to_thread.run_sync(_read, self._content, place, end)
            place += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": place < end})
        if is_head or self._range.start == end:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class ChangedWhileSentError(Exception):
    """The file was written to while it was sent, so the connection must end early."""


def _read(content: OpenFile | None, place: int, end: int) -> bytes:
    assert content is not None
    chunk = content.read(place, min(_CHUNK_BYTES, end - place))
    if not chunk or not content.is_unchanged():
        raise ChangedWhileSentError("the file changed while it was sent")
    return chunk


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def disposition(filename: str) -> str:
    """Return the header that makes a browser save a file under a name."""
    plain = _UNSAFE.sub("_", filename)
    if plain == filename:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
