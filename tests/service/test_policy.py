"""What decoders open for strangers: containers, codecs, sizes, and the memory for them."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from xclip_deploy.errors import InvalidArgumentError, VideoReadError
from xclip_deploy.runtime.decoding import DecoderPool, FileContent
from xclip_deploy.runtime.video import (
    UPLOADS,
    FrameSampling,
    LongVideo,
    MediaPolicy,
    Segmentation,
    VideoReading,
    limited_memory,
    read_blocks,
    read_frames,
)
from xclip_deploy.runtime.video.media_policy import flaw_of_ffmpeg

SAMPLING = FrameSampling(max_frames=3)
ANY = VideoReading(SAMPLING, 32)
STRANGERS = replace(ANY, policy=UPLOADS)
Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Write a small video in a codec and a container."""

    def written(
        name: str, codec: str, *, pix_fmt: str = "yuv420p", size: tuple[int, int] = (64, 48),
        frames: int = 8, sound: str | None = None, rate: int = 8, **options: str,
    ) -> Path:  # fmt: skip
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            audio: Any = container.add_stream(sound, rate=48000) if sound else None
            for n in range(frames):
                picture = np.full((size[1], size[0], 3), 20 * n % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
            if audio is not None:
                quiet = np.zeros((audio.codec_context.channels, 48000), np.float32)
                frame = av.AudioFrame.from_ndarray(quiet, "fltp", audio.layout)
                frame.rate = 48000
                container.mux(audio.encode(frame))
                container.mux(audio.encode(None))
        return path

    return written


@pytest.fixture(scope="module")
def read() -> Callable[[Path, VideoReading], object]:
    """Read a video in a decoder process."""

    def outcome(path: Path, reading: VideoReading) -> object:
        with DecoderPool[str](reading, workers=1, timeout_s=60) as pool:
            pool.submit("", path)
            taken = pool.take(120)
        assert taken is not None
        return taken[1]

    return outcome


@pytest.mark.parametrize("name", ["clip.avi", "clip.mov"])
def test_magicyuv_is_not_opened(draw: Draw, read: Any, name: str) -> None:
    path = draw(name, "magicyuv", pix_fmt="yuv444p")
    assert isinstance(read(path, ANY), FileContent)  # this FFmpeg has the decoder
    said = str(read(path, STRANGERS))
    assert "codec magicyuv, which is not accepted" in said


def test_a_refused_decoder_is_not_even_probed(draw: Draw) -> None:
    """FFmpeg opens decoders to look at a file, before anything can be asked about its streams."""
    path = draw("clip.avi", "magicyuv", pix_fmt="yuv444p")
    with UPLOADS.enforced(), pytest.raises(VideoReadError, match="magicyuv"):
        read_frames(path, STRANGERS)
    decoders = (UPLOADS.decoders() or "").split(",")
    assert "magicyuv" not in decoders
    assert {"h264", "hevc", "libdav1d", "vp9", "mp3float"} <= set(decoders)
    with av.open(str(path), options={"codec_whitelist": UPLOADS.decoders() or ""}) as container:
        # The pixel format comes from the decoder alone.
        assert container.streams.video[0].codec_context.pix_fmt is None
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt is not None


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.gif", "gif", {"pix_fmt": "rgb8"}),
        ("clip.nut", "mpeg4", {}),
        ("clip.flv", "flv1", {}),
        ("clip.avi", "ffv1", {}),
        ("clip.avi", "huffyuv", {"pix_fmt": "yuv422p"}),
    ],
)
def test_rare_containers_and_codecs(
    draw: Draw, read: Any, name: str, codec: str, options: dict[str, str]
) -> None:
    path = draw(name, codec, **options)
    assert isinstance(read(path, ANY), FileContent)
    assert "accepted" in str(read(path, STRANGERS))
    # An ending does not help.
    disguised = path.with_name("disguised.mp4")
    shutil.copy(path, disguised)
    assert "accepted" in str(read(disguised, STRANGERS))


def test_sound_of_a_rare_codec(draw: Draw, read: Any) -> None:
    """Other parts of the service decode the sound, so a file with a rare one is not let in."""
    path = draw("clip.mkv", "mpeg4", sound="wavpack")
    assert isinstance(read(path, ANY), FileContent)
    assert "audio in the codec wavpack" in str(read(path, STRANGERS))
    assert isinstance(read(draw("fine.mkv", "mpeg4", sound="aac"), STRANGERS), FileContent)


@pytest.mark.parametrize(
    "names", [(".",), pytest.param(("conditions", "edge_cases", "shared"), marks=pytest.mark.slow)]
)
def test_common_videos_give_the_same_frames(clips: Path, read: Any, names: tuple[str, ...]) -> None:
    shared = clips.parents[1].parent / "shared"
    folders = [clips / name for name in names]
    if "shared" in names:
        folders += [shared / "cases", shared / "clips"]
    paths = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix in (".mp4", ".mkv", ".webm", ".mov")
    ]
    assert len(paths) >= (3 if names == (".",) else 9)
    for path in paths:
        one, other = read(path, ANY), read(path, STRANGERS)
        assert isinstance(one, FileContent), path
        assert isinstance(other, FileContent), other
        assert np.array_equal(one.frames.frames, other.frames.frames), path  # type: ignore[union-attr]
        assert one.frames.warnings == other.frames.warnings  # type: ignore[union-attr]


def test_duration(draw: Draw, read: Any) -> None:
    path = draw("clip.mp4", "mpeg4", frames=40)
    for policy, is_fine in (
        (MediaPolicy(max_duration_s=6), True),
        (MediaPolicy(max_duration_s=4), False),
    ):
        outcome = read(path, replace(ANY, policy=policy))
        assert isinstance(outcome, FileContent) == is_fine, outcome
    assert "lasts 5 s; expected 4 s at most" in str(outcome)


def test_duration_of_a_long_video_and_of_one_without_timestamps(draw: Draw) -> None:
    path = draw("clip.mp4", "mpeg4", frames=40)
    reading = replace(ANY, policy=MediaPolicy(max_duration_s=4))
    windows = Segmentation.of("2s", None, 2.0)
    with pytest.raises(VideoReadError, match="lasts 5 s"):
        read_blocks(path, reading, windows)
    raw = draw("clip.m4v", "mpeg4", frames=250, rate=25)
    with pytest.raises(VideoReadError, match="lasts 10 s"):
        read_frames(raw, reading)


def test_the_policy_holds_while_blocks_are_read(draw: Draw) -> None:
    """A long video is opened again when its blocks are taken, out of the first call."""
    path = draw("clip.mp4", "mpeg4", frames=40)
    windows = Segmentation.of("2s", None, 2.0)
    within = MediaPolicy(within=(str(path.parent),))
    video = read_blocks(path, replace(ANY, policy=within), windows)
    assert isinstance(video, LongVideo)
    other = path.parent.with_name("elsewhere")
    other.mkdir()
    path.rename(other / "clip.mp4")
    path.symlink_to(other / "clip.mp4")
    with pytest.raises(VideoReadError, match="leads out"):
        list(video.blocks())


def test_pixels_and_packets(draw: Draw, read: Any) -> None:
    path = draw("clip.mp4", "libx264")
    few = read(path, replace(ANY, policy=MediaPolicy(max_pixels=64 * 47)))
    assert "too many pixels: 64x48; expected at most 3,008" in str(few)
    assert "XCLIP" not in str(few)  # a stranger cannot set a variable
    assert isinstance(read(path, replace(ANY, policy=MediaPolicy(max_pixels=64 * 48))), FileContent)
    packets = read(path, replace(ANY, policy=MediaPolicy(max_packets=7)))
    assert "more than 7 packets" in str(packets)


def test_the_environment_keeps_its_limit(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", "1000")
    with pytest.raises(VideoReadError, match="expected at most 1,000; if it may"):
        read_frames(draw("clip.mp4", "libx264"), STRANGERS)


def test_a_bomb_costs_one_video(draw: Draw, read: Any) -> None:
    """A decoder has its memory and no more; the next video is read as ever."""
    bomb = draw("bomb.mp4", "mpeg4", size=(4096, 4096), frames=2)
    small = draw("small.mp4", "mpeg4")
    tight = replace(ANY, policy=MediaPolicy(memory_bytes=48 << 20))
    assert isinstance(read(bomb, ANY), FileContent)
    with DecoderPool[str](tight, workers=1) as pool:
        for name, path in (("bomb", bomb), ("small", small), ("again", bomb), ("last", small)):
            pool.submit(name, path)
        outcomes = dict(filter(None, (pool.take(120) for _ in range(4))))
    assert isinstance(outcomes["bomb"], VideoReadError), outcomes["bomb"]
    assert isinstance(outcomes["again"], VideoReadError)
    assert isinstance(outcomes["small"], FileContent), outcomes["small"]
    assert isinstance(outcomes["last"], FileContent)
    # Decoders are shared: the next pool has no limit.
    assert isinstance(read(bomb, ANY), FileContent)


def test_the_memory_of_this_process_is_free_again() -> None:
    code = (
        "import resource, numpy as np\n"
        "from xclip_deploy.runtime.video import limited_memory\n"
        "before = resource.getrlimit(resource.RLIMIT_AS)\n"
        "with limited_memory(64 << 20):\n"
        "    try:\n"
        "        np.ones(200 << 20, np.uint8)\n"
        "        print('too much')\n"
        "    except MemoryError:\n"
        "        pass\n"
        "assert resource.getrlimit(resource.RLIMIT_AS) == before\n"
        "np.ones(200 << 20, np.uint8)\n"
        "print('free')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "free\n", done.stderr
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(None):
        assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_policy_lasts_for_its_request_only(draw: Draw, read: Any) -> None:
    path = draw("clip.gif", "gif", pix_fmt="rgb8")
    for reading, is_fine in ((STRANGERS, False), (ANY, True), (STRANGERS, False)):
        assert isinstance(read(path, reading), FileContent) == is_fine


def test_it_travels_to_the_decoder() -> None:
    policy = replace(UPLOADS, within=("/somewhere",), max_duration_s=1.5)
    reading = replace(ANY, policy=policy)
    assert VideoReading.from_dict(reading.to_dict()) == reading
    assert VideoReading.from_dict(ANY.to_dict()) == ANY


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="decord opens every format"):
        VideoReading(SAMPLING, 32, "decord", policy=UPLOADS)
    VideoReading(SAMPLING, 32, "decord", policy=MediaPolicy(max_pixels=1000))
    with pytest.raises(InvalidArgumentError, match="max_pixels is 0"):
        MediaPolicy(max_pixels=0)


def test_every_listed_codec_has_a_decoder() -> None:
    """A misspelt name would refuse what should be accepted."""
    known = set(av.codecs_available)
    for codec in UPLOADS.codecs or ():
        names = MediaPolicy(codecs=(codec,)).decoders()
        assert names is not None
        decoders = [each for each in names.split(",") if each in known]
        assert decoders, codec
        assert {av.Codec(each, "r").canonical_name for each in decoders} == {codec}


@pytest.mark.parametrize(
    ("version", "is_open"),
    [((62, 11, 100), True), ((62, 28, 101), True), ((62, 28, 102), False), ((63, 1, 0), False)],
)
def test_ffmpeg_with_the_flaw_is_told(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], is_open: bool
) -> None:
    monkeypatch.setattr(av, "library_versions", {"libavcodec": version})
    flaw = flaw_of_ffmpeg()
    assert (flaw is not None) == is_open
    if flaw is not None:
        assert flaw.version == ".".join(map(str, version))
