"""Decode videos in processes of their own, which may crash or hang.

``pool`` hands videos to decoders, ``process`` is one decoder as its parent sees it, ``channel``
the messages between the two, ``worker`` what runs in the decoder.
"""

from __future__ import annotations

from xclip_deploy.runtime.decoding.pool import DecoderPool
from xclip_deploy.runtime.decoding.process import DecoderStartError, FileChangedError, FileContent

__all__ = ["DecoderPool", "DecoderStartError", "FileChangedError", "FileContent"]
