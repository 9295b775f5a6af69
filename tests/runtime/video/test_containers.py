"""Which files are opened as video: containers, and no playlist."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from crafted_files import black_png
from PIL import Image

from xclip_deploy.errors import InvalidArgumentError, VideoReadError
from xclip_deploy.runtime.video import FrameSampling, read_image, read_video
from xclip_deploy.runtime.video.containers import (
    FORMATS,
    MAX_PIXELS,
    container_of,
    max_pixels,
    read_head,
)

SAMPLING = FrameSampling(frames_per_second=1.0, max_frames=4)
PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile 'secret.mp4'\n",
    "ffconcat with a mark": "\ufeffffconcat version 1.0\nfile 'secret.mp4'\n",
    "HLS": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nsecret.ts\n"
    "#EXT-X-ENDLIST\n",
    "DASH": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"><Period>'
    '<AdaptationSet><Representation id="0" mimeType="video/mp4"><BaseURL>secret.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "DASH without a prologue": "<MPD profiles='urn:mpeg:dash:profile:isoff-live:2011'></MPD>",
    "IMF": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/'
    '2067-3/2016"></CompositionPlaylist>',
    "SDP": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP "
    "96\r\n",
    "SDP without a version": "c=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
    "ASX": "<asx version='3.0'><entry><ref href='secret.mp4'/></entry></asx>",
    "PLS": "[playlist]\nFile1=secret.mp4\n",
    "XSPF": "<?xml version='1.0'?><playlist><trackList/></playlist>",
    "WebVTT": "WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
}


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("name", ["upload.mp4", "upload.m3u8", "upload", "upload.ffconcat"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_no_video(
    tmp_path: Path, write_clip: Callable[..., Path], kind: str, name: str, reader: str
) -> None:
    if reader == "decord":
        pytest.importorskip("decord")
    write_clip(tmp_path / "secret.mp4", 20)
    write_clip(tmp_path / "secret.ts", 20)
    (tmp_path / name).write_text(PLAYLISTS[kind], encoding="utf-8")
    with pytest.raises(VideoReadError) as caught:
        read_video(tmp_path / name, SAMPLING, 32, reader=reader)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_reason_names_the_playlist(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.mp4").write_text(PLAYLISTS["HLS"], encoding=encoding)
        with pytest.raises(VideoReadError, match="a playlist or page, which names other files"):
            read_video(tmp_path / "a.mp4", SAMPLING, 32)


def test_a_name_with_a_pattern_is_one_file(tmp_path: Path) -> None:
    for name in ("a001.png", "a002.png", "a%03d.png"):
        Image.new("RGB", (32, 32), (250, 0, 0) if "%" in name else (0, 0, 250)).save(
            tmp_path / name
        )
    with pytest.raises(VideoReadError, match="expected video"):
        read_video(tmp_path / "a%03d.png", SAMPLING, 32)


def test_every_ordinary_container_is_opened(
    tmp_path: Path, side: int, write_clip: Callable[..., Path]
) -> None:
    codecs = {".avi": "mpeg4", ".mpg": "mpeg2video", ".webm": "libvpx", ".flv": "flv"}
    codecs |= {".ogv": "libtheora", ".wmv": "wmv2", ".gif": "gif", ".m2v": "mpeg2video"}
    codecs |= {".mxf": "mpeg2video", ".3gp": "mpeg4", ".nut": "ffv1", ".vob": "mpeg2video"}
    endings = (".mp4", ".mov", ".mkv", ".ts", ".m2ts", ".h264", ".hevc", ".ivf", ".y4m")
    for ending in (*endings, *codecs):
        codec = codecs.get(ending, "libx264")
        codec = {".hevc": "libx265", ".ivf": "libvpx", ".y4m": "rawvideo"}.get(ending, codec)
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        formats = {"gif": "rgb8", "ffv1": "yuv420p"}
        path = tmp_path / f"clip{ending}"
        if codec not in av.codecs_available:
            continue
        write_clip(
            path,
            25,
            codec=codec,
            rate=25,
            options=options,
            pixel_format=formats.get(codec, "yuv420p"),
        )
        with av.open(str(path)) as container:
            assert set(container.format.name.split(",")) & set(FORMATS), ending
        assert container_of(read_head(path)) is not None, ending
        assert len(read_video(path, SAMPLING, side).frames) >= 1


def test_formats_are_names_that_ffmpeg_knows() -> None:
    for name in FORMATS:
        assert av.ContainerFormat(name, "r").name


def test_other_files_do_not_begin_as_video(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.bmp", "a.tiff", "a.webp", "a.ppm"):
        Image.new("RGB", (64, 48), (9, 99, 200)).save(tmp_path / name)
        assert container_of(read_head(tmp_path / name)) is None, name
    np.save(tmp_path / "a.npy", np.zeros(9))
    np.savez(tmp_path / "a.npz", a=np.zeros(9))
    for name in ("a.npy", "a.npz"):
        assert container_of(read_head(tmp_path / name)) is None, name
    for head in (b"", b"\0" * 8192, b"G" * 7, b"%PDF-1.7", *map(str.encode, PLAYLISTS.values())):
        assert container_of(head) is None
    for brand in (b"heic", b"avif", b"M4A "):
        assert container_of(b"\0\0\0\x18ftyp" + brand + bytes(12)) is None
    assert container_of(b"OggS" + bytes(24) + b"\x01vorbis") is None


# The limit of pixels


def write_picture(path: Path, content: bytes, side: int, title: str = "picture") -> Path:
    """Put a PNG into a container as its only frame."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = side
        stream.pix_fmt = "rgb24"
        packet = av.Packet(content)
        packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, 1
        packet.time_base = Fraction(1, 1)
        container.mux(packet)
    return path


def test_a_large_picture_in_a_small_file_takes_no_memory(tmp_path: Path) -> None:
    side = 16000
    content = black_png(side, side)
    assert len(content) < 1_000_000
    (tmp_path / "large.png").write_bytes(content)
    write_picture(tmp_path / "large.mov", content, side)
    write_picture(tmp_path / "large.nut", content, side)
    code = """
        import sys
        from xclip_deploy.errors import VideoReadError
        from xclip_deploy.runtime.resources import peak_resident_bytes
        from xclip_deploy.runtime.video import FrameSampling, read_image, read_video
        sampling = FrameSampling(frames_per_second=1.0, max_frames=4)
        for read, name in ((read_video, "large.mov"), (read_video, "large.nut"),
                           (read_video, "large.png"), (read_image, "large.png")):
            arguments = (sampling, 32) if read is read_video else (32,)
            try:
                read(f"{sys.argv[1]}/{name}", *arguments)
            except VideoReadError as error:
                assert "too many pixels" in str(error), error
            else:
                raise AssertionError(name)
        print(peak_resident_bytes() >> 20)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 200, "MiB"


def test_the_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(black_png(64, 64))
    write_picture(tmp_path / "a.mov", black_png(64, 64), 64)
    monkeypatch.delenv("XCLIP_DEPLOY_MAX_PIXELS", raising=False)
    assert max_pixels() == MAX_PIXELS
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", "4095")
    with pytest.raises(VideoReadError, match="too many pixels: 64x64; expected at most 4,095"):
        read_video(tmp_path / "a.mov", SAMPLING, 32)
    with pytest.raises(VideoReadError, match=r"set XCLIP_DEPLOY_MAX_PIXELS=4096$"):
        read_image(tmp_path / "a.png", 32)
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", "4096")
    assert len(read_video(tmp_path / "a.mov", SAMPLING, 32).frames) == 1
    assert len(read_image(tmp_path / "a.png", 32).frames) == 1


@pytest.mark.parametrize("ending", ["mov", "nut"])
def test_the_limit_holds_where_a_title_is_no_text(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = "a title in Latin-1"
    path = write_picture(tmp_path / f"a.{ending}", black_png(64, 64), 64, title)
    content = path.read_bytes()
    assert title.encode() in content
    path.write_bytes(content.replace(title.encode(), b"\xe9" * len(title)))
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", "4095")
    with pytest.raises(VideoReadError, match="too many pixels: 64x64; expected at most 4,095"):
        read_video(path, SAMPLING, 32)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e9", "9" * 30])
def test_wrong_limits(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", value)
    with pytest.raises(InvalidArgumentError, match="XCLIP_DEPLOY_MAX_PIXELS is"):
        max_pixels()
