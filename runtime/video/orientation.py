"""Turn and mirror pictures as a video's display matrix says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_TOLERANCE_DEGREES = 1.0
"""FFmpeg's player snaps to quarter turns within this angle."""


class Orientation(NamedTuple):
    """The linear part of a display matrix, in 16.16 fixed point.

    A point x right and y down is shown at (a·x + c·y, b·x + d·y), ISO/IEC 14496-12, 8.5.2.
    """

    a: int
    b: int
    c: int
    d: int

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of ``picture`` ``[H, W, 3]`` as a player shows it.

        An odd angle is rounded to a quarter turn.
        """
        across, down = self.a, self.d
        if self.is_transposed:
            picture = picture.swapaxes(0, 1)
            across, down = self.c, self.b
        if across < 0:
            picture = picture[:, ::-1]
        if down < 0:
            picture = picture[::-1]
        return picture

    @property
    def is_transposed(self) -> bool:
        """True if rows of the stored picture are columns of the shown one."""
        return abs(self.b) + abs(self.c) > abs(self.a) + abs(self.d)

    @property
    def is_odd(self) -> bool:
        """True unless the matrix is a quarter turn, a mirror, or both."""
        kept, lost = (self.a, self.d), (self.b, self.c)
        if self.is_transposed:
            kept, lost = lost, kept
        limit = math.tan(math.radians(_TOLERANCE_DEGREES)) * min(map(abs, kept))
        return 0 in kept or max(map(abs, lost)) > limit

    @property
    def is_mirror(self) -> bool:
        """True if no turn alone gives the picture that is shown."""
        return self.a * self.d - self.b * self.c < 0

    def __str__(self) -> str:
        return " ".join(f"{value / 65536:g}" for value in self)


UPRIGHT = Orientation(65536, 0, 0, 65536)


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return how a frame is to be shown; ``UPRIGHT`` without a display matrix."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(memoryview(data), np.int32, count=9).tolist()
    return Orientation(matrix[0], matrix[1], matrix[3], matrix[4])
