"""Messages between a decoder process and its parent, over pipes.

A message is its length in four bytes, little-endian, then that many bytes of JSON. The bytes of
frames follow the message that announces them. The receiver never executes what arrives.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 1 << 22
"""Upper bound of a message, far above the longest path, error or list of frame times."""


class ChannelClosedError(Exception):
    """The other end closed its pipe."""


class ChannelTimeoutError(Exception):
    """No message arrived in time."""


class ProtocolError(Exception):
    """The bytes that arrived are not a valid message."""


class Channel:
    """A pair of pipe descriptors, one to read from and one to write to."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self._read_from = read_from
        self._write_to = write_to

    def send(self, message: dict[str, Any], frames: npt.NDArray[np.uint8] | None = None) -> None:
        """Write a message, then the frames if there are any. Raises ChannelClosedError."""
        content = json.dumps(message).encode()
        self._write(memoryview(_LENGTH.pack(len(content)) + content))
        if frames is not None:
            self._write(np.ascontiguousarray(frames).data.cast("B"))

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Read a message. Without ``timeout_s``, wait without a limit.

        Raises ChannelClosedError, ChannelTimeoutError, ProtocolError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        head = bytearray(_LENGTH.size)
        self._fill(memoryview(head), deadline)
        (length,) = _LENGTH.unpack(head)
        if length > _MAX_MESSAGE_BYTES:
            raise ProtocolError(
                f"a message of {length} bytes, expected at most {_MAX_MESSAGE_BYTES}"
            )
        content = bytearray(length)
        self._fill(memoryview(content), deadline)
        try:
            message = json.loads(content)
        except ValueError as error:
            raise ProtocolError("a message that is no JSON") from error
        if not isinstance(message, dict):
            raise ProtocolError("a message that is no JSON object")
        return message

    def receive_frames(
        self, shape: tuple[int, int, int, int], timeout_s: float
    ) -> npt.NDArray[np.uint8]:
        """Read frames, uint8 of ``shape``. Raises the same errors as :meth:`receive`."""
        frames = np.empty(shape, np.uint8)
        self._fill(frames.data.cast("B"), time.monotonic() + timeout_s)
        return frames

    def _fill(self, buffer: memoryview, deadline: float | None) -> None:
        poll = select.poll()  # unlike select, poll takes any descriptor number
        poll.register(self._read_from, select.POLLIN)
        while buffer:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise ChannelTimeoutError
            count = os.readv(self._read_from, [buffer])
            if count == 0:
                raise ChannelClosedError
            buffer = buffer[count:]

    def _write(self, content: memoryview) -> None:
        try:
            while content:
                content = content[os.write(self._write_to, content) :]
        except BrokenPipeError as error:
            raise ChannelClosedError from error
