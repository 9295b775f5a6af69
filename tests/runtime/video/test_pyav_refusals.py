"""Files that PyAV cannot read, or that would cost too much: refused, told, and silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.video import FrameSampling, read_video
from xclip_deploy.runtime.video.pyav_container import read_packets

SAMPLING = FrameSampling(max_frames=12)


def test_pyav_fails_at_the_end_of_damaged_transport_streams() -> None:
    class Container:
        def demux(self) -> Iterator[av.Packet[Any]]:
            yield av.Packet(b"content")
            yield av.Packet()
            raise IndexError("list index out of range")

    packets = list(read_packets(Container()))  # type: ignore[arg-type]
    assert [packet.size for packet in packets] == [7]


def test_sound_only(tmp_path: Path, write_audio: Callable[[Path], Path]) -> None:
    path = write_audio(tmp_path / "sound.mp4")
    with pytest.raises(VideoReadError, match=r"has no video \(streams: audio\)"):
        read_video(path, SAMPLING, 64)


def test_cover_picture_is_no_video(tmp_path: Path, write_audio: Callable[[Path], Path]) -> None:
    sound = write_audio(tmp_path / "sound.mp4")
    path = tmp_path / "cover.mp4"
    encoder = av.CodecContext.create("png", "w")
    encoder.width = encoder.height = 16
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 25)
    picture = encoder.encode(av.VideoFrame(16, 16, "rgb24"))[0]
    with av.open(str(sound)) as before, av.open(str(path), "w") as after:
        audio = after.add_stream_from_template(before.streams.audio[0])
        cover = after.add_stream("png", rate=25)
        cover.width = cover.height = 16
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        after.start_encoding()
        picture.stream, picture.pts, picture.dts = cover, 0, 0
        after.mux(picture)
        for packet in before.demux(audio=0):
            if packet.size:
                packet.stream = audio
                after.mux(packet)
    with pytest.raises(VideoReadError, match="only a cover picture"):
        read_video(path, SAMPLING, 64)


def test_text_that_calls_itself_video(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("These are notes.\n" * 100)
    with pytest.raises(VideoReadError, match="in no video format"):
        read_video(path, SAMPLING, 64)


def test_text_is_not_rendered(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are notes.\n" * 100)
    with pytest.raises(VideoReadError, match="expected video"):
        read_video(path, SAMPLING, 64)


def test_recording_that_did_not_finish(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = write_clip(tmp_path / "clip.mp4", 20)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])  # written last, with a size before it
    with pytest.raises(VideoReadError, match=r"without a usable index \(moov\)"):
        read_video(path, SAMPLING, 64)


def test_absurd_size_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "huge.gif"
    size = (65535).to_bytes(2, "little")
    path.write_bytes(b"GIF89a" + size + size + bytes([0, 0, 0, 0x3B]))
    with pytest.raises(VideoReadError, match=r"no frame could be decoded|expected at most"):
        read_video(path, SAMPLING, 64)


def test_size_limit(
    tmp_path: Path, write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", str(96 * 96 - 1))
    with pytest.raises(VideoReadError, match="too many pixels: 96x96; expected at most 9,215"):
        read_video(path, SAMPLING, 64)


def test_names_that_look_like_protocols(
    tmp_path: Path, side: int, write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "clip.mp4", 5).rename(tmp_path / "concat:clip %03d.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_video("concat:clip %03d.mp4", SAMPLING, side).frames) == 1


def test_log_stays_silent(clips: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_video(clips / "edge_cases/decord_corrupted.mp4", SAMPLING, 32)
    assert capfd.readouterr() == ("", "")


def test_tags_that_are_no_text_do_not_cost_the_video(
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[..., list[int]],
) -> None:
    path = write_clip(tmp_path / "plain.mp4", 10)
    tagged = tmp_path / "tagged.mp4"
    with av.open(str(path)) as source, av.open(str(tagged), "w") as target:
        target.metadata["title"] = "T" * 20
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = tagged.read_bytes()
    assert b"T" * 20 in content
    tagged.write_bytes(content.replace(b"T" * 20, b"\xff\xfe" * 10))
    video = read_video(tagged, FrameSampling(max_frames=4), side)
    assert read_numbers(video.frames) == [0]
