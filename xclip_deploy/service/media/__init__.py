"""Media of videos over HTTP, decoded and encoded in processes that may fail without harm."""

from __future__ import annotations

from xclip_deploy.service.media.library import MediaLibrary, MediaLimits, Span

__all__ = ["MediaLibrary", "MediaLimits", "Span"]
