"""Forms with files, taken apart while they arrive.

``request.form()`` would keep whole files in a temporary folder. Here, parts come out as events, and
no more is held than the bytes that were just fed.
"""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service.errors import Refusal


@dataclass(frozen=True)
class PartStart:
    """The headers of a part."""

    name: str
    filename: str | None


@dataclass(frozen=True)
class PartData:
    """Some bytes of a part."""

    content: bytes


@dataclass(frozen=True)
class PartEnd:
    """The end of a part."""


Event = PartStart | PartData | PartEnd


class MultipartForm:
    """A parser of one ``multipart/form-data`` body."""

    def __init__(self, content_type: str) -> None:
        """Read the boundary. Raises Refusal (415) for another type of content."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind.lower() != b"multipart/form-data" or not boundary:
            raise Refusal(
                415,
                "UnsupportedMediaType",
                f"the content has the type {content_type!r:.100}; expected multipart/form-data "
                "with a boundary",
            )
        self._events: list[Event] = []
        self._field = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": lambda: self._events.append(PartEnd()),
                    "on_end": self._on_end,
                },
            )
        except (FormParserError, ValueError) as error:
            raise InvalidArgumentError(f"the boundary of the form is wrong: {error}") from error

    def feed(self, content: bytes) -> list[Event]:
        """Take bytes in; return what they end or continue. Raises InvalidArgumentError."""
        try:
            self._parser.write(content)
        except (FormParserError, ValueError) as error:
            raise InvalidArgumentError(f"the form is malformed: {error}") from error
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        """Check that the form was complete. Raises InvalidArgumentError."""
        if not self._is_complete:
            raise InvalidArgumentError(
                "the form ends in the middle; expected its last boundary, so send it again"
            )

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._events.append(
            PartStart(name, None if filename is None else filename.decode("utf-8", "replace"))
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _on_end(self) -> None:
        self._is_complete = True
