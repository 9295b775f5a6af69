"""Search results as a picture: the frames of every video that was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from xclip_deploy.runtime.video import FrameSampling, read_video

_SIDE = 72
_FRAMES = 6
_LINE = 26


def draw_results(results: Mapping[str, Sequence[tuple[Path, str]]], path: Path) -> None:
    """Write a PNG with, under each query, one row of frames for each (video, caption)."""
    rows = sum(len(found) for found in results.values())
    height = rows * (_SIDE + 4) + len(results) * _LINE
    image = Image.new("RGB", (_FRAMES * (_SIDE + 2) + 440, height + 8), "white")
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    top = 4
    for query, found in results.items():
        draw.text((6, top + 4), f"“{query}”", fill="black", font=large)
        top += _LINE
        for rank, (video, caption) in enumerate(found, 1):
            video_frames = read_video(video, FrameSampling(max_frames=_FRAMES), _SIDE)
            for number, frame in enumerate(video_frames.frames):
                image.paste(Image.fromarray(frame), (6 + number * (_SIDE + 2), top))
            colour = "darkgreen" if caption == query else "dimgrey"
            place = (_FRAMES * (_SIDE + 2) + 14, top + _SIDE // 2 - 8)
            draw.text(place, f"{rank}.  {caption}", fill=colour, font=small)
            top += _SIDE + 4
    image.save(path)
