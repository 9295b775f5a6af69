"""Video decoding in child processes, which may crash or hang.

``pool`` hands videos to decoders. ``process`` is the parent's side of one decoder, ``worker``
the program that the decoder runs. ``channel`` carries the messages between the two. ``stream``
holds the frames of long videos until they are used.
"""

from __future__ import annotations

from xclip_deploy.runtime.decoding.pool import DecoderPool
from xclip_deploy.runtime.decoding.process import DecoderStartError, FileChangedError, FileContent
from xclip_deploy.runtime.decoding.stream import FrameStream

__all__ = ["DecoderPool", "DecoderStartError", "FileChangedError", "FileContent", "FrameStream"]
