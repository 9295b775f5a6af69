"""Frames out of videos, for serving and for training.

Importing this package loads no video library; reading the first video does.
"""

from __future__ import annotations

from xclip_deploy.runtime.video.finding import VIDEO_SUFFIXES, find_videos
from xclip_deploy.runtime.video.frames import (
    READING_VERSION,
    SampledBy,
    VideoFrames,
    VideoReader,
    VideoReading,
)
from xclip_deploy.runtime.video.image import read_image
from xclip_deploy.runtime.video.in_memory import (
    ImageLike,
    VideoLike,
    are_frames,
    as_videos,
    listed,
    take_frames,
)
from xclip_deploy.runtime.video.long_video import FrameBlock, LongVideo, read_blocks
from xclip_deploy.runtime.video.media_policy import (
    NO_POLICY,
    UPLOADS,
    MediaPolicy,
    current_policy,
    limited_memory,
)
from xclip_deploy.runtime.video.preprocessing import CLIP_MEAN, CLIP_STD, resize_and_crop
from xclip_deploy.runtime.video.reading import (
    check_reader,
    read_frames,
    read_or_take,
    read_video,
    read_videos,
)
from xclip_deploy.runtime.video.sampling import FrameSampling, sample_frame_numbers
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.runtime.video.segmenter import Segmenter, SegmentFrames

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "NO_POLICY",
    "READING_VERSION",
    "UPLOADS",
    "VIDEO_SUFFIXES",
    "FrameBlock",
    "FrameSampling",
    "ImageLike",
    "LongVideo",
    "MediaPolicy",
    "SampledBy",
    "SegmentFrames",
    "Segmentation",
    "Segmenter",
    "VideoFrames",
    "VideoLike",
    "VideoReader",
    "VideoReading",
    "are_frames",
    "as_videos",
    "check_reader",
    "current_policy",
    "find_videos",
    "limited_memory",
    "listed",
    "read_blocks",
    "read_frames",
    "read_image",
    "read_or_take",
    "read_video",
    "read_videos",
    "resize_and_crop",
    "sample_frame_numbers",
    "take_frames",
]
