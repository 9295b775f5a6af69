"""Which files are opened as video: containers, and no playlist or list of pictures.

A playlist names other files. FFmpeg would read those, whatever the playlist itself is called, and
so show a user what another file holds. It therefore opens the formats of :data:`FORMATS` alone,
each of which holds its pictures in the one file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from xclip_deploy.errors import InvalidArgumentError, VideoReadError
from xclip_deploy.runtime.video.media_policy import current_policy

FORMATS: tuple[str, ...] = (
    # Containers of cameras, editors, broadcast and the web.
    *("mov", "mp4", "matroska", "webm", "avi", "asf", "asf_o", "flv", "live_flv", "kux", "swf"),
    *("mpeg", "mpegts", "mxf", "gxf", "lxf", "ogg", "rm", "ivr", "nut", "nuv", "nsv", "wtv", "ty"),
    *("dhav", "pva", "pmp", "mpjpeg", "smjpeg", "mjpeg_2000", "cine", "ser", "r3d", "ifv", "mtv"),
    *("bink", "smk", "flic", "roq", "thp", "vividas", "vivo", "xmv", "cdxl", "mgsts"),
    # One stream without a container.
    *("mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "ivf"),
    *("vc1", "vc1test", "dirac", "dnxhd", "cavsvideo", "avs2", "avs3", "dv", "mjpeg", "ipu"),
    "yuv4mpegpipe",
    # One picture, or several in one file.
    *("gif", "gif_pipe", "apng", "png_pipe", "jpeg_pipe", "jpegls_pipe", "jpegxl_anim"),
    *("jpegxl_pipe", "j2k_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "exr_pipe", "dpx_pipe"),
    *("pam_pipe", "pbm_pipe", "pgm_pipe", "ppm_pipe", "pcx_pipe", "psd_pipe", "qoi_pipe"),
    *("sgi_pipe", "sunrast_pipe", "dds_pipe", "hdr_pipe"),
    # Sound alone, so that the message is that a file has no video.
    *("aac", "ac3", "eac3", "aiff", "amr", "amrnb", "amrwb", "ape", "au", "caf", "dts", "flac"),
    *("mp3", "tta", "truehd", "w64", "wav", "wv", "xwma"),
)
"""FFmpeg's names of the formats that are opened. Among those left out are ``concat``, ``hls``,
``dash``, ``imf``, ``sdp``, ``image2`` (a name such as ``a%03d.png`` is many files), ``mlv`` and
``vobsub`` (which open neighbouring files), devices, and texts that FFmpeg would render."""

MAX_PIXELS = 2**28 // 3
"""Most pixels of a picture that is decoded: 256 MiB of RGB, Pillow's own limit; 8K has 33 million.
A small file can hold a large picture. The environment variable of :data:`MAX_PIXELS_VARIABLE`
sets another limit."""
MAX_PIXELS_VARIABLE = "XCLIP_DEPLOY_MAX_PIXELS"

HEAD_BYTES = 8192
"""Bytes at the start of a file that tell its container."""

_PLAYLIST = re.compile(
    rb"ffconcat|#EXTM3U|#EXTINF|<\?xml|<MPD|<smil|<asx|<wpl|<playlist|<html|<!doctype|<svg"
    rb"|\[playlist\]|\[reference\]|v=0[\r\n]|rtsp(text|://)|https?://|file://",
    re.IGNORECASE,
)
_START_CODE = b"\x00\x00\x01"
_ASF = bytes.fromhex("3026b2758e66cf11")
_WTV = bytes.fromhex("b7d800203749da11a64e0007e95ead8d")
_MXF = bytes.fromhex("060e2b34020501010d0102010102")
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (_ASF, "asf"),
    (_WTV, "wtv"),
    (b"FLV\x01", "flv"),
    (b"GIF8", "gif"),
    (b".RMF", "rm"),
    (b"nut/multimedia container\0", "nut"),
    (b"DKIF", "ivf"),
    (b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (b"NSVf", "nsv"),
    (b"DHAV", "dhav"),
    (b"BIK", "bink"),
    (b"KB2", "bink"),
    (b"\x00\x00\x00\x00\x01\xbc", "gxf"),
    (b"\x1f\x07\x00", "dv"),
    (b"\x12\x00\x0a", "obu"),
    (_START_CODE + b"\xba", "mpeg"),
    (_START_CODE + b"\xb3", "mpegvideo"),
    (_START_CODE + b"\xb0", "m4v"),
    (b"IMKH", "mpeg"),
)
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
"""Boxes of MP4 and MOV that a file begins with."""
_OTHER_BRANDS = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 msf1 avif avis crx jp2 jpx jxl".split()
    + b"M4A M4B M4P F4A F4B".split()
)
"""Brands of MP4's relatives that hold a picture or sound."""
_OGG_VIDEO = re.compile(rb"\x80theora|BBCD\x00|OVP80|\x01video\x00")


def check_container(path: Path, *, must_be_known: bool = False) -> None:
    """Refuse a file whose content is a playlist.

    This gives the reason in words and for readers that have no list of formats. PyAV is also
    held to :data:`FORMATS`, by :func:`open_options`.

    Args:
        path: A regular file.
        must_be_known: Refuse every file whose start is not that of a known container.

    Raises:
        VideoReadError: The file is refused.
        OSError: The file cannot be read.
    """
    head = read_head(path)
    if _PLAYLIST.match(_as_text(head)):
        raise VideoReadError(
            f"{path}: is a playlist or page, which names other files; expected a video that "
            "holds its own pictures"
        )
    if must_be_known and container_of(head) is None:
        raise VideoReadError(
            f"{path}: is in no container that is known by its start; expected MP4, Matroska, AVI "
            "or the like; use reader='pyav'"
        )


def open_options() -> dict[str, str]:
    """Return the options for ``av.open``: files alone, :data:`FORMATS` alone, limited pixels.

    The policy of this thread leaves fewer formats, and decoders, to look at a file with.
    """
    policy = current_policy()
    formats = FORMATS if policy.formats is None else set(FORMATS).intersection(policy.formats)
    decoders = policy.decoders()
    return {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(formats),
        "max_pixels": str(max_pixels()),
        **({} if decoders is None else {"codec_whitelist": decoders}),
    }


def max_pixels() -> int:
    """Return the most pixels of a picture that is decoded, under the policy of this thread.

    Raises:
        InvalidArgumentError: The environment variable holds no whole number above 0.
    """
    bound = current_policy().max_pixels
    most = _max_pixels_of_all()
    return most if bound is None else min(bound, most)


def _max_pixels_of_all() -> int:
    given = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not given:
        return MAX_PIXELS
    # FFmpeg keeps the limit in 64 bits.
    if not given.isdecimal() or not 0 < int(given[:20]) < 2**63:
        raise InvalidArgumentError(
            f"{MAX_PIXELS_VARIABLE} is {given!r:.100}; expected a whole number of pixels above 0"
        )
    return int(given)


def check_pixels(name: object, width: int, height: int) -> None:
    """Refuse a picture of more than :func:`max_pixels`. ``name``: what it is or lies in.

    Raises:
        VideoReadError: ``width`` times ``height``, in pixels, is more.
    """
    most = max_pixels()
    if width * height > most and most < _max_pixels_of_all():
        raise VideoReadError(
            f"{name}: has too many pixels: {width}x{height}; expected at most {most:,}"
        )
    if width * height > most:
        raise VideoReadError(
            f"{name}: has too many pixels: {width}x{height}; expected at most {most:,}; if it may "
            f"take that memory, set {MAX_PIXELS_VARIABLE}={width * height}"
        )


def read_head(path: Path) -> bytes:
    """Read the first :data:`HEAD_BYTES` of a regular file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def container_of(head: bytes) -> str | None:
    """Return FFmpeg's name of the video container that a file begins as; None for other files.

    A picture or sound in a container of videos, such as HEIC, AVIF and M4A, is another file.

    Args:
        head: The first :data:`HEAD_BYTES` of the file.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[4:8] in _BOXES:
        is_other = head[4:8] == b"ftyp" and head[8:12].rstrip() in _OTHER_BRANDS
        return None if is_other else "mov"
    if head[4:12] == b"jP  \r\n\x87\n":
        return "mov" if head[20:24] == b"mjp2" else None
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX", b"AMV "):
        return "avi"
    if head[:4] == b"RIFF" and head[8:12] == b"CDXA":  # MPEG of a Video CD
        return "mpeg"
    if head[:4] == b"OggS":
        return "ogg" if _OGG_VIDEO.search(head) else None
    if _MXF in head:  # up to 64 KiB may stand before it, hardly ever any do
        return "mxf"
    if _is_transport_stream(head):
        return "mpegts"
    return _raw_stream(head)


def _is_transport_stream(head: bytes) -> bool:
    # A packet begins with 0x47 and has 188 bytes, with 4 before it (M2TS) or 16 after it.
    return any(
        head[first : first + 4 * size : size] == b"GGGG"
        for first, size in ((0, 188), (4, 192), (0, 204))
    )


def _raw_stream(head: bytes) -> str | None:
    """Name a bare stream of H.264, HEVC or MPEG-4 by its first units."""
    start = head.find(_START_CODE)
    if start not in (0, 1) or len(head) < start + 5:
        return None
    unit = head[start + 3]
    if unit in (0x67, 0x27, 0x47) or (unit == 0x09 and head[start + 4] & 0x1F == 0x10):
        return "h264"
    if unit in (0x40, 0x46) and head[start + 4] == 0x01:
        return "hevc"
    return "m4v" if unit < 0x30 and _START_CODE + b"\xb6" in head else None


def _as_text(head: bytes) -> bytes:
    """Strip what may stand before the first word of a text, in UTF-8 or UTF-16."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head[2:].replace(b"\0", b"")
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()
