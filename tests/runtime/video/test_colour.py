"""HDR and wide gamuts come out as the same pictures in SDR do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from xclip_deploy.runtime.video import FrameSampling, colour, read_video

SAMPLING = FrameSampling(max_frames=4)
SIDE = 64
IS_CONVERTED = int(av.__version__.partition(".")[0]) >= 18
needs_conversion = pytest.mark.skipif(not IS_CONVERTED, reason="PyAV 17 converts no HDR; it warns")

Picture = NDArray[np.float64]

# Linear RGB of BT.709 to that of BT.2020 (ITU-R BT.2087) and of Display P3.
TO_2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
TO_P3 = [[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]
WHITE_NITS = 203  # of SDR in HDR, ITU-R BT.2408


def sdr_picture() -> Picture:
    """Ramps of every hue, smooth, RGB in 0..1 as BT.709 codes it: [S, S, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return np.stack([0.1 + 0.8 * x, 0.1 + 0.8 * y, 0.9 - 0.4 * (x + y)], -1)


def as_pq(nits: Picture) -> Picture:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875  # SMPTE ST 2084
    power = (nits / 10_000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def as_hlg(nits: Picture) -> Picture:
    """ITU-R BT.2100: inverse OOTF of a display of 1000 nits, then the OETF."""
    light = nits / 1000
    luminance = light @ [0.2627, 0.6780, 0.0593]
    scene = light * luminance[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(12 * scene - b) + c)


def linear(coded: Picture) -> Picture:
    return coded**2.4  # as a display shows it, ITU-R BT.1886


CODED = {
    "PQ": (as_pq(WHITE_NITS * (linear(sdr_picture()) @ np.transpose(TO_2020))), 16, 9, 9),
    "HLG": (as_hlg(WHITE_NITS * (linear(sdr_picture()) @ np.transpose(TO_2020))), 18, 9, 9),
    "BT.2020": ((linear(sdr_picture()) @ np.transpose(TO_2020)) ** (1 / 2.4), 14, 9, 9),
    "Display P3": ((linear(sdr_picture()) @ np.transpose(TO_P3)) ** (1 / 2.4), 1, 12, 1),
}
"""Of the same picture: RGB, transfer, primaries and matrix by ITU-T H.273."""


def write(path: Path, picture: Picture, transfer: int, primaries: int, matrix: int) -> Path:
    red, blue = {9: (0.2627, 0.0593), 1: (0.2126, 0.0722)}[matrix]
    luma = picture @ [red, 1 - red - blue, blue]
    planes = [
        64 + 876 * luma,
        512 + 896 * (picture[..., 2] - luma) / (2 * (1 - blue)),
        512 + 896 * (picture[..., 0] - luma) / (2 * (1 - red)),
    ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=2, options={"x265-params": "log-level=none"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv444p10le"
        codec = stream.codec_context
        codec.color_trc, codec.color_primaries, codec.colorspace = transfer, primaries, matrix
        codec.color_range = 1
        for _ in range(4):
            frame = av.VideoFrame(SIDE, SIDE, "yuv444p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((SIDE, plane.line_size // 2), "<u2")
                rows[:, :SIDE] = values.round()
                plane.update(rows.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def error(path: Path) -> float:
    frames = read_video(path, SAMPLING, SIDE).frames
    return float(np.abs(frames - 255 * sdr_picture()).mean())


@needs_conversion
@pytest.mark.parametrize(
    "kind",
    # swscale computes for 2.6 s on the first frame of a coding. test_a_real_clip_in_pq reads
    # PQ of BT.2020, and the fast cases here are the codings that no other test reads.
    [
        pytest.param(kind, marks=() if kind in ("Display P3", "HLG") else pytest.mark.slow)
        for kind in CODED
    ],
)
def test_the_same_picture_in_another_coding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "clip.mp4", *CODED[kind])
    assert error(path) < 8
    assert read_video(path, SAMPLING, SIDE).warnings == ()
    monkeypatch.setattr(colour, "_HDR_TRANSFERS", {})
    monkeypatch.setattr(colour, "_WIDE_PRIMARIES", {})
    assert error(path) > {"PQ": 30, "HLG": 15, "BT.2020": 8, "Display P3": 4}[kind]


@needs_conversion
def test_a_real_clip_in_pq(clips: Path) -> None:
    sampling = FrameSampling(max_frames=12)
    sdr = read_video(clips / "conditions/dog_square.mp4", sampling, 96)
    hdr = read_video(clips / "conditions/dog_pq.mp4", sampling, 96)
    assert hdr.frame_numbers.tolist() == [0, 29, 58, 87]
    difference = np.abs(hdr.frames.astype(int) - sdr.frames[:4])
    assert difference.mean(axis=(1, 2, 3)).max() < 8
    assert hdr.warnings == ()


def test_a_pyav_that_cannot_convert_is_told(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "__version__", "17.1.0")
    (warning,) = read_video(clips / "conditions/dog_pq.mp4", SAMPLING, 32).warnings
    assert warning == (
        "PQ BT.2020 is not converted to BT.709, so colours are wrong: PyAV 17.1.0 cannot; "
        "install PyAV 18 or later"
    )


@needs_conversion
def test_a_matrix_that_ffmpeg_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        color_trc, color_primaries, colorspace = 16, 9, 15

    class Reformatter:
        def reformat(self, *_: Any, **__: Any) -> str:
            return "rgb"

    monkeypatch.setattr(colour, "_reformatter", lambda _frame: Reformatter())
    rgb, warning = colour.to_rgb(Frame())  # type: ignore[arg-type]
    assert rgb == "rgb"  # type: ignore[comparison-overlap]
    assert warning == "FFmpeg cannot convert PQ BT.2020 IPT, so colours are wrong"


def test_reformatters_are_used_again_and_bounded() -> None:
    frames = [av.VideoFrame(16 * side, 16, "yuv420p10le") for side in range(1, 12)]
    first = colour._reformatter(frames[0])
    assert colour._reformatter(frames[0]) is first
    for frame in frames:
        colour._reformatter(frame)
    assert len(colour._kept.reformatters) == 8
    assert colour._reformatter(frames[0]) is not first
