"""The page opens a moment deep in a long file without loading it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from xclip_deploy import Retriever
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, VideoFile

HOURS_S = 7200
GOP_S = 4
RATE = 10


def write_long(path: Path, seconds: int) -> Path:
    """Write a film of noise, so that it is large, by repeating one group of encoded pictures."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        options = {"preset": "ultrafast", "g": str(GOP_S * RATE), "bf": "0", "crf": "30"}
        stream: Any = container.add_stream("libx264", rate=RATE, options=options)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        packets: list[Any] = []
        for _ in range(GOP_S * RATE):
            noise = random.integers(0, 255, (128, 128, 3), np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24"))
        packets += stream.encode(None)
        contents = [(bytes(packet), packet.is_keyframe) for packet in packets]
        base = packets[0].time_base
        step = round(1 / RATE / base)
        for number in range(seconds * RATE):
            content, is_key = contents[number % len(contents)]
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, base, is_key
            packet.pts = packet.dts = number * step
            packet.duration = step
            container.mux(packet)
    return path


@pytest.mark.slow
def test_an_hour_into_two_hours_transfers_little(
    open_live: Callable[..., str], visit: Any, bundle_path: Path, tmp_path: Path
) -> None:
    movie = write_long(tmp_path / "long.mp4", HOURS_S)
    size = movie.stat().st_size
    assert size > 50_000_000, "the film is too small to tell"
    content = hashlib.sha256(movie.read_bytes()).hexdigest()
    with Retriever(bundle_path, tmp_path / "gallery", create=True, device="cpu") as retriever:
        frames = np.zeros((4, 64, 64, 3), np.uint8)
        features: VideoFeatures = retriever.encode_videos([frames])
        file = VideoFile(path=str(movie), size_bytes=size, modified_ns=movie.stat().st_mtime_ns)
        entry = GalleryVideo(
            id="long", path=str(movie), files=(file,), content_sha256=content,
            duration_s=float(HOURS_S), frame_times_s=(0.0, 1.0, 2.0, 3.0),
        )  # fmt: skip
        retriever.add_features([entry], features)

    site = visit(open_live(gallery=tmp_path / "gallery"))
    page = site.page
    meter = page.context.new_cdp_session(page)
    meter.send("Network.enable")
    received = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal received
        received += max(event["encodedDataLength"], event["dataLength"])

    meter.on("Network.dataReceived", count)
    page.goto(f"{site.address}/?v={content}&t=3600&e=3610")
    page.wait_for_selector("html[data-ready]")
    site.moment()
    page.wait_for_timeout(3000)  # what a player reads ahead comes now
    assert page.evaluate("document.getElementById('video').currentTime") >= 3600
    assert received < 0.05 * size, f"{received / size:.1%} of the file were transferred"
