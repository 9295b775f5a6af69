"""A service over clips of many codecs, whose frames carry their numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from running_services import BASE_URL
from starlette.testclient import TestClient

from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.media import MediaLibrary
from xclip_deploy.service.state import Service
from xclip_deploy.wire import API

SECONDS = 12
VFR_MS = [0, 100, 150, 400, 1400, 1500, 1900, 2500, 2600, 3900, 4000, 4600, 5000, 5900, 6000, 7000]
SAMPLES: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "hevc.mp4": {"codecs": ("libx265", "aac"), "options": {"x265-params": "log-level=none"}},
    "mpeg4.avi": {"codecs": ("mpeg4", "mp3")},
    "prores.mov": {"codecs": ("prores_ks", "pcm_s16le"), "pixel_format": "yuv422p10le"},
    "vfr.mkv": {"times_ms": VFR_MS, "sounds": ()},
    "silent.mp4": {"sounds": ()},
}
"""What no browser plays, and some that they do."""
CLIPS = ("mdn_frog.webm", "edge_cases/torchcodec_av1.mkv", "edge_cases/decord_video_90.mov")


@dataclass(frozen=True)
class Media:
    """A client of a service, with the handles and the files of its videos."""

    client: TestClient
    handles: dict[str, str]
    paths: dict[str, Path]

    def path(self, name: str) -> Path:
        return self.paths[name]

    @property
    def service(self) -> Service:
        service = self.client.app.state.service  # type: ignore[attr-defined]
        assert isinstance(service, Service)
        return service

    @property
    def library(self) -> MediaLibrary:
        return self.service.media

    def address(self, name: str, what: str) -> str:
        return f"{API}/videos/{self.handles[name]}/{what}"

    def get(self, name: str, what: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        return self.client.get(self.address(name, what), headers=headers, params=query)


@dataclass(frozen=True)
class Own:
    """A movie that a test may spoil."""

    media: Media
    name: str
    path: Path

    def get(self, what: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        return self.media.get(self.name, what, headers, **query)


OpenMedia = Callable[..., Media]


def opened(stack: ExitStack, settings: ServiceSettings) -> Media:
    app = create_app(settings)
    client = stack.enter_context(TestClient(app, base_url=BASE_URL))
    service: Service = app.state.service
    videos = service.served.writer.gallery.videos()
    handles = {Path(str(video.path)).name: str(video.content_sha256) for video in videos}
    paths = {Path(str(video.path)).name: Path(str(video.path)) for video in videos}
    return Media(client, handles, paths)


def picture_of(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def streams_of(content: bytes) -> list[str]:
    with av.open(io.BytesIO(content)) as container:
        return [stream.codec_context.name for stream in container.streams]
