"""The policy by which long videos are cut into segments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_choice, as_number
from xclip_deploy.runtime.presentation import parse_time

SegmentationKind = Literal["windows", "shots", "whole"]
MAX_WINDOW_S = 86_400.0
"""Longest window: a day."""
MAX_SEGMENTS = 200_000
"""Most segments of one video; 9 days of 4 s strides."""
_TEXT = re.compile(r"(windows|each shot in windows|shots) of ([0-9.e+-]+) s every ([0-9.e+-]+) s")


@dataclass(frozen=True)
class Segmentation:
    """How a long video is cut: into windows of equal length, in the whole video or in each shot.

    A video no longer than ``window_s`` is one segment, whatever the kind. Windows begin at
    0, ``stride_s``, 2 · ``stride_s``, … seconds. The last one ends with the video, so that every
    window has its full length.

    Raises InvalidArgumentError for a length that is no time, and for a stride longer than the
    window, which would leave parts of the video out.
    """

    kind: SegmentationKind
    window_s: float | None = None
    """Length of a window, seconds; None for ``whole``."""
    stride_s: float | None = None
    """Time from the start of a window to the start of the next, seconds; None for ``whole``."""
    is_snapped: bool = False
    """True for ``shots`` of older galleries, whose windows were moved to cuts nearby. Such a
    gallery is searched as before, and no file is indexed into it."""

    def __post_init__(self) -> None:
        """Check the fields."""
        as_choice("segment", self.kind, SegmentationKind)
        if self.kind == "whole":
            if (self.window_s, self.stride_s) != (None, None):
                raise InvalidArgumentError(
                    "a stride goes with windows; expected none where videos stay whole"
                )
            return
        window_s = as_number("segment", self.window_s, 1e-3, MAX_WINDOW_S)
        stride_s = as_number("stride", self.stride_s, 1e-3, MAX_WINDOW_S)
        if stride_s > window_s:
            raise InvalidArgumentError(
                f"stride is {stride_s:g} s and a segment {window_s:g} s long, which would skip "
                "parts of every video; expected a stride no longer than the segment"
            )
        object.__setattr__(self, "window_s", window_s)
        object.__setattr__(self, "stride_s", stride_s)

    @classmethod
    def whole(cls) -> Segmentation:
        """Return the policy that keeps every video in one segment."""
        return cls("whole")

    @classmethod
    def of(
        cls, segment: str | float | Segmentation | None, stride: str | float | None, span_s: float
    ) -> Segmentation:
        """Make a policy from what a user writes.

        ``segment``: a policy, ``whole``, ``shots``, or the length of a window as a number of
        seconds or a time such as ``8s`` or ``1:30``; None takes ``span_s``, the span of the model:
        ``max_frames / frames_per_second``. ``stride``: a time; None takes the window's length.

        Raises InvalidArgumentError.
        """
        if isinstance(segment, Segmentation):
            if stride is not None:
                raise InvalidArgumentError(
                    f"stride is {stride!r:.60}, and segment a policy that has one; expected None"
                )
            return segment
        if isinstance(segment, str) and segment.strip().lower() == "whole":
            return cls("whole", None, None if stride is None else _seconds("stride", stride))
        kind: SegmentationKind = "windows"
        if isinstance(segment, str) and segment.strip().lower() == "shots":
            kind, segment = "shots", None
        window_s = span_s if segment is None else _seconds("segment", segment)
        return cls(kind, window_s, window_s if stride is None else _seconds("stride", stride))

    @classmethod
    def from_text(cls, text: str) -> Segmentation:
        """Restore a policy from :attr:`text`. Raises InvalidArgumentError."""
        if text == "whole":
            return cls.whole()
        found = _TEXT.fullmatch(text)
        if found is None:
            raise InvalidArgumentError(
                f"the segmentation {text!r:.100} is not known; expected whole, or windows or "
                "shots of a length"
            )
        kind: SegmentationKind = "windows" if found[1] == "windows" else "shots"
        return cls(kind, float(found[2]), float(found[3]), is_snapped=found[1] == "shots")

    @property
    def text(self) -> str:
        """The policy in words, the same for equal policies; galleries keep it."""
        if self.kind == "whole":
            return "whole"
        whole = {"windows": "windows", "shots": "each shot in windows"}[self.kind]
        name = "shots" if self.is_snapped else whole
        return f"{name} of {self.window_s!r} s every {self.stride_s!r} s"

    @property
    def options(self) -> str:
        """The options of ``xclip-deploy index`` that give this policy."""
        if self.kind == "whole":
            return "--segment whole"
        if self.kind == "shots":
            return f"--segment shots --stride {self.stride_s:g}s"
        return f"--segment {self.window_s:g}s --stride {self.stride_s:g}s"

    def spans(self, duration_s: float) -> list[tuple[float, float]]:
        """Return start and end of each segment of a video without shots, seconds.

        Raises InvalidArgumentError for more than ``MAX_SEGMENTS``.
        """
        window_s, stride_s = self.window_s, self.stride_s
        if window_s is None or stride_s is None or duration_s <= window_s:
            return [(0.0, duration_s)]
        count = 1 + int((duration_s - window_s) / stride_s)
        if count > MAX_SEGMENTS:
            raise InvalidArgumentError(
                f"{duration_s:.0f} s every {stride_s:g} s give {count} segments; expected "
                f"{MAX_SEGMENTS} at most: pass a longer --stride"
            )
        starts = [n * stride_s for n in range(count)]
        if duration_s - (starts[-1] + window_s) > 1e-3:
            starts.append(duration_s - window_s)
        return [(start, start + window_s) for start in starts]


KINDS: tuple[str, ...] = get_args(SegmentationKind)


def _seconds(name: str, given: str | float) -> float:
    return parse_time(name, given) if isinstance(given, str) else as_number(name, given)
