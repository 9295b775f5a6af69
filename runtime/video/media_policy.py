"""Limits on files from strangers: which containers and codecs are decoded, and how much of them.

Decoders of rare formats are FFmpeg's least tested code. MagicYUV is an example: CVE-2026-8461 lets
a crafted AVI, Matroska or MOV file write behind a buffer, and FFmpeg 8.1.2 mends it. The wheels of
PyAV bundle FFmpeg, so the version of PyAV decides:

====== ====================== ==============
PyAV   libavcodec             CVE-2026-8461
====== ====================== ==============
17.0.0 62.11.100 (FFmpeg 8.0) open
17.1.0 62.28.101 (8.1.1)      open
18.0.0 62.28.102 (8.1.2)      mended
18.1.0 62.28.102 (8.1.2)      mended
====== ====================== ==============

Every one of them contains the decoder. :data:`UPLOADS` never opens it, whatever the version, and
:func:`flaw_of_ffmpeg` tells which versions to replace. The command line opens all formats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from xclip_deploy.errors import InvalidArgumentError, VideoReadError

MENDED_LIBAVCODEC = (62, 28, 102)
"""Version of libavcodec in FFmpeg 8.1.2, which mends CVE-2026-8461."""


@dataclass(frozen=True)
class MediaPolicy:
    """Limits on the files that are opened. None sets no limit.

    Decoder processes, :func:`read_frames` and :func:`read_blocks` apply the policy of their
    ``VideoReading``. Other code applies one by :meth:`enforced`.
    """

    formats: tuple[str, ...] | None = None
    """FFmpeg's names of the containers that are opened, among those that are ever opened."""
    codecs: tuple[str, ...] | None = None
    """FFmpeg's names of the codecs that video and sound may have."""
    max_duration_s: float | None = None
    """Longest video, seconds."""
    max_packets: int | None = None
    """Most packets that are read from one file, of all streams together."""
    max_pixels: int | None = None
    """Most pixels of a picture."""
    memory_bytes: int | None = None
    """Most memory that a decoder process takes for a file, beside its libraries."""
    within: tuple[str, ...] | None = None
    """Folders, free of links, that a file must lie in while it is read."""

    def __post_init__(self) -> None:
        """Check the numbers. Raises InvalidArgumentError."""
        for name in ("max_duration_s", "max_packets", "max_pixels", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgumentError(f"{name} is {value}; expected more than 0, or None")

    @property
    def chooses_formats(self) -> bool:
        """True if some containers or codecs are refused."""
        return self.formats is not None or self.codecs is not None

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Apply the policy to every file that this thread opens within the block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> MediaPolicy:
        """Restore a policy from the result of :meth:`to_dict`."""
        values: dict[str, Any] = {each.name: content[each.name] for each in fields(cls)}
        for name in ("formats", "codecs", "within"):
            if values[name] is not None:
                values[name] = tuple(map(str, values[name]))
        return cls(**values)

    # -- checks, each of which raises VideoReadError -----------------------------------------

    def check_place(self, path: str | os.PathLike[str]) -> None:
        """Refuse a file whose links lead out of :attr:`within`."""
        if self.within is None:
            return
        real = os.path.realpath(path)
        if not any(real.startswith(folder.rstrip("/") + "/") for folder in self.within):
            raise VideoReadError(
                f"{path}: leads out of the folders whose files can be added; expected a file "
                "below them"
            )

    def check_codec(self, path: object, kind: str, codec: str | None) -> None:
        """Refuse a stream of a codec that is not listed. ``kind``: ``video`` or ``audio``."""
        if self.codecs is not None and codec not in self.codecs:
            raise VideoReadError(
                f"{path}: has {kind} in the codec {codec or 'unknown'}, which is not accepted from "
                "uploads; expected H.264, HEVC, AV1, VP9 or another that is common"
            )

    def check_duration(self, path: object, seconds: float) -> None:
        """Refuse a video that is too long."""
        if self.max_duration_s is not None and seconds > self.max_duration_s:
            raise VideoReadError(
                f"{path}: lasts {seconds:.0f} s; expected {self.max_duration_s:g} s at most"
            )

    def check_packets(self, path: object, count: int) -> None:
        """Refuse a file of too many packets."""
        if self.max_packets is not None and count > self.max_packets:
            raise VideoReadError(
                f"{path}: holds more than {self.max_packets:,} packets; expected fewer"
            )

    # -- what FFmpeg is told --------------------------------------------------------------------

    def decoders(self) -> str | None:
        """Return FFmpeg's ``codec_whitelist``: the decoders of :attr:`codecs`, None for all."""
        if self.codecs is None:
            return None
        names = [decoder for codec in self.codecs for decoder in _DECODERS.get(codec, (codec,))]
        return ",".join(names)


NO_POLICY = MediaPolicy()
"""The policy of the command line: no limit beside those that always hold."""
_current: ContextVar[MediaPolicy] = ContextVar("media_policy", default=NO_POLICY)

_DECODERS: dict[str, tuple[str, ...]] = {
    "av1": ("libdav1d", "libaom-av1", "av1"),
    "vp8": ("vp8", "libvpx"),
    "vp9": ("vp9", "libvpx-vp9"),
    "mp3": ("mp3float", "mp3"),
    "mp2": ("mp2float", "mp2"),
    "opus": ("opus", "libopus"),
    "vorbis": ("vorbis", "libvorbis"),
    "msmpeg4v3": ("msmpeg4",),
    "amr_nb": ("amrnb", "libopencore_amrnb"),
    "amr_wb": ("amrwb", "libopencore_amrwb"),
}
"""Codec to the decoders that FFmpeg may take, where they are not called like the codec."""

UPLOADS = MediaPolicy(
    formats=("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg"),
    codecs=(
        *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "msmpeg4v3", "mpeg1video", "mpeg2video"),
        *("mjpeg", "prores", "dnxhd", "png"),
        *("aac", "mp3", "mp2", "ac3", "eac3", "opus", "vorbis", "flac", "alac"),
        *("amr_nb", "amr_wb", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le"),
        *("pcm_u8", "pcm_f32le", "pcm_alaw", "pcm_mulaw"),
    ),
    max_duration_s=6 * 3600.0,
    max_packets=16_000_000,
    max_pixels=8192 * 4352,
    memory_bytes=3 << 30,
)
"""Policy for files of strangers: what phones, cameras, editors and the web make, up to 8K."""


def current_policy() -> MediaPolicy:
    """Return the policy that this thread applies."""
    return _current.get()


@dataclass(frozen=True)
class FFmpegFlaw:
    """A known flaw of the FFmpeg that PyAV bundles."""

    version: str
    """Version of libavcodec."""
    advice: str = field(default="CVE-2026-8461 (MagicYUV) is open in it; run: pip install 'av>=18'")


def flaw_of_ffmpeg() -> FFmpegFlaw | None:
    """Return the flaw of the FFmpeg in use, None if it has 8.1.2's repairs."""
    import av

    version = av.library_versions["libavcodec"]
    if tuple(version) >= MENDED_LIBAVCODEC:
        return None
    return FFmpegFlaw(".".join(map(str, version)))


@contextmanager
def limited_memory(memory_bytes: int | None) -> Iterator[None]:
    """Bound the address space of this process to what it has now, and ``memory_bytes`` more.

    An allocation beyond raises MemoryError, or ends the process where a library aborts. The limit
    concerns the whole process, so it is for decoder processes. None sets none.
    """
    if memory_bytes is None:
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + memory_bytes
    for bound in (soft, hard):
        if bound != resource.RLIM_INFINITY:
            limit = min(limit, bound)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
