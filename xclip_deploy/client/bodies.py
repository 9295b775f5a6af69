"""Bodies of requests: JSON, and files that are streamed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xclip_deploy.errors import InvalidArgumentError, VideoNotFoundError
from xclip_deploy.runtime.arguments import as_callback, as_path
from xclip_deploy.runtime.files import require_regular_file
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.wire import WireModel

_CHUNK_BYTES = 1 << 18
_UNSAFE = re.compile(r'["\x00-\x1f\x7f]')


class Body(Protocol):
    """The content of a request. It can be read again for a repetition."""

    @property
    def content_type(self) -> str:
        """Value of Content-Type."""
        ...

    @property
    def length(self) -> int:
        """Number of bytes."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes from the start."""
        ...


@dataclass(frozen=True)
class JsonBody:
    """A model as JSON."""

    content: bytes
    content_type: str = "application/json"

    @classmethod
    def of(cls, model: WireModel) -> JsonBody:
        """Encode a model; fields with their defaults are left out."""
        return cls(model.model_dump_json(exclude_defaults=True).encode())

    @property
    def length(self) -> int:
        """Number of bytes."""
        return len(self.content)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes at once."""
        yield self.content


@dataclass(frozen=True)
class FilePart:
    """A file of a form: one on this machine, or bytes in memory."""

    field: str
    name: str
    content: Path | bytes
    size: int

    @classmethod
    def of(cls, field: str, path: object) -> FilePart:
        """Take a local file. Raises VideoNotFoundError, or InvalidArgumentError for a folder."""
        file = as_path(field, path)
        try:
            require_regular_file(file, "a file to upload")
            size = file.stat().st_size
        except FileNotFoundError as error:
            raise VideoNotFoundError(f"{file}: no such file; expected one to upload") from error
        except OSError as error:
            raise InvalidArgumentError(f"{file} cannot be read: {error.strerror}") from error
        return cls(field, file.name, file, size)

    def chunks(self) -> Iterator[bytes]:
        """Yield the file's bytes. Raises InvalidArgumentError if it is not as long as before."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        left = self.size
        try:
            with self.content.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        break
                    yield chunk
        except OSError as error:
            raise InvalidArgumentError(
                f"{self.content} cannot be read: {error.strerror or error}"
            ) from error
        if left:
            raise InvalidArgumentError(
                f"{self.content} changed while it was uploaded; upload it again"
            )


class FormBody:
    """A form of texts and files (``multipart/form-data``), streamed with a known length."""

    def __init__(
        self,
        texts: Sequence[tuple[str, str, str]],
        files: Sequence[FilePart],
        progress: ProgressFunction | None = None,
    ) -> None:
        """Take texts, as field, value and content type, then files.

        ``progress``: a function that is called with the bytes of files that were sent so far.
        """
        as_callback("progress", progress)
        self._progress = progress
        self._files = tuple(files)
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        line = f"--{boundary}\r\n"
        self._texts = "".join(
            f'{line}Content-Disposition: form-data; name="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n{value}\r\n"
            for name, value, kind in texts
        ).encode()
        self._heads = [
            f'{line}Content-Disposition: form-data; name="{file.field}"; '
            f'filename="{_escaped(file.name)}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode()
            for file in files
        ]
        self._end = f"--{boundary}--\r\n".encode()
        self.total_bytes = sum(file.size for file in files)
        """Number of bytes of the files."""
        self.length = len(self._texts) + self.total_bytes + len(self._end)
        self.length += sum(len(head) + 2 for head in self._heads)

    def chunks(self) -> Iterator[bytes]:
        """Yield the form's bytes. Raises InvalidArgumentError for a file that changes."""
        done = 0
        if self._texts:
            yield self._texts
        for head, file in zip(self._heads, self._files, strict=True):
            yield head
            for chunk in file.chunks():
                yield chunk
                # The next chunk is asked for once this one is with the system.
                done += len(chunk)
                self._report(done, file.name)
            yield b"\r\n"
        yield self._end

    def _report(self, done: int, name: str) -> None:
        if self._progress is not None:
            self._progress(Progress("uploading", done, self.total_bytes, note=name))


def _escaped(name: str) -> str:
    """Escape a file name as browsers do in forms."""
    text = name.encode("utf-8", "replace").decode()
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", text)
