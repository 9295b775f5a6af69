"""Checks of the input of a gallery."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xclip_deploy.errors import DuplicateIdError, GalleryModelError, InvalidArgumentError
from xclip_deploy.runtime.arguments import as_instance, shown
from xclip_deploy.runtime.arrays import Float32Array, FloatArray, check_finite, slices
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.lance_errors import REINDEX
from xclip_deploy.runtime.gallery.records import (
    GalleryVideo,
    as_segment_of,
    check_metadata,
    check_texts,
)
from xclip_deploy.runtime.gallery.store import FeatureModel, Snapshot
from xclip_deploy.runtime.manifest import Manifest

UNIT_TOLERANCE = 0.01
"""Largest distance of a vector's length from 1; BF16 rounds within 0.004, FP16 within 0.0005."""
_VIDEOS_AT_ONCE = 256


def checked_features(
    names: Sequence[str],
    num_times: Sequence[int],
    features: VideoFeatures,
    max_frames: int,
    dim: int,
) -> VideoFeatures:
    """Return the features of the videos ``names`` as a gallery keeps them, in FP16.

    Raises InvalidArgumentError for features of other shapes, for values that are not finite and
    for vectors that are not of unit length. It is raised too where ``num_frames`` differs from
    ``num_times``, the number of the video's frame times.
    """
    as_instance("features", features, VideoFeatures, "VideoFeatures")
    shapes = {
        "video_features": (len(names), dim),
        "frame_features": (len(names), max_frames, dim),
        "num_frames": (len(names),),
    }
    for name, expected in shapes.items():
        found = getattr(features, name)
        kinds = "iu" if name == "num_frames" else "f"
        is_fit = isinstance(found, np.ndarray) and found.shape == expected
        if not is_fit or found.dtype.kind not in kinds:
            kind = "whole numbers" if name == "num_frames" else "decimal numbers"
            raise InvalidArgumentError(
                f"{name} is {shown(found)}, expected {kind} of shape {list(expected)} "
                f"for {len(names)} videos"
            )
    for name, times, count in zip(names, num_times, features.num_frames, strict=True):
        if not 1 <= count <= max_frames or times != count:
            raise InvalidArgumentError(
                f"video {name!r:.200} has num_frames {count} and {times} frame times, expected "
                f"the same, 1 to {max_frames}"
            )
    with np.errstate(over="ignore"):  # an overflow becomes infinity, and is refused below
        half = VideoFeatures(
            features.video_features.astype(np.float16),
            features.frame_features.astype(np.float16),
            features.num_frames.astype(np.int32),
        )
    check_finite("video_features", half.video_features)
    check_finite("frame_features", half.frame_features)
    check_unit_length(names, half)
    return half


def check_unit_length(names: Sequence[str], features: VideoFeatures) -> None:
    """Raise InvalidArgumentError for a vector of the videos ``names`` that is not of unit length.

    A scorer takes products of vectors for cosines. A padded frame may be zero instead.
    """
    places = np.arange(features.frame_features.shape[1])
    for part in slices(len(names), _VIDEOS_AT_ONCE):
        counts = features.num_frames[part]
        frames = _lengths(features.frame_features[part])  # [V, F]
        frames[(places >= counts[:, np.newaxis]) & (frames == 0)] = 1
        lengths = {
            "video_features": _lengths(features.video_features[part])[:, np.newaxis],
            "frame_features": frames,
        }
        for name, found in lengths.items():
            is_off = ~(abs(found - 1) <= UNIT_TOLERANCE)
            if is_off.any():
                n, place = np.argwhere(is_off)[0]
                raise InvalidArgumentError(
                    f"{name} of video {names[part][n]!r:.200} has a vector of length "
                    f"{found[n, place]:.4g}, expected 1; divide each vector by its length"
                )


def _lengths(vectors: FloatArray) -> Float32Array:
    wide = vectors.astype(np.float32)
    lengths: Float32Array = np.sqrt(np.einsum("...d,...d->...", wide, wide))
    return lengths


def check_segments(videos: Sequence[GalleryVideo]) -> None:
    """Raise for rows that are not all the segments of their videos, each once.

    Raises DuplicateIdError for a segment that is given twice, and InvalidArgumentError for one that
    is missing or differs from the others in what belongs to the video.
    """
    segments: dict[str, dict[int, GalleryVideo]] = {}
    for video in videos:
        known = segments.setdefault(video.id, {})
        if video.segment in known:
            raise DuplicateIdError(f"the id {video.id!r:.200} is given to two videos")
        known[video.segment] = video
    for name, known in segments.items():
        first = next(iter(known.values()))
        if len(known) != first.num_segments:
            raise InvalidArgumentError(
                f"video {name!r:.200} comes with {len(known)} of its {first.num_segments} "
                "segments; expected all of them at once"
            )
        for row in known.values() if len(known) > 1 else ():
            is_same = row.num_segments == first.num_segments and as_segment_of(row, first) == row
            if not is_same or row.segmentation != first.segmentation:
                raise InvalidArgumentError(
                    f"segment {row.segment} of video {name!r:.200} differs from the others; "
                    "expected the same files, duration, metadata and segmentation"
                )


def check_unique_ids(ids: Sequence[str]) -> None:
    """Raise DuplicateIdError for an id that is given twice."""
    seen: set[str] = set()
    for video_id in ids:
        if video_id in seen:
            raise DuplicateIdError(f"the id {video_id!r:.200} is given to two videos")
        seen.add(video_id)


def check_frame_times(videos: Sequence[GalleryVideo], snapshot: Snapshot) -> None:
    """Raise InvalidArgumentError for a video with another number of frame times than is stored.

    They are the times of the stored embeddings, which an update of the records keeps.
    """
    for part in slices(len(videos), _VIDEOS_AT_ONCE):
        found = snapshot.find([video.id for video in videos[part]])
        stored = snapshot.videos(np.array(sorted(found.values()), np.int64))
        expected = {video.id: len(video.frame_times_s) for video in stored}
        for video in videos[part]:
            times = len(video.frame_times_s)
            if times != expected.get(video.id, times):
                raise InvalidArgumentError(
                    f"video {video.id!r:.200} has {times} frame times, expected "
                    f"{expected[video.id]}, one for each frame that the gallery holds"
                )


def check_records(videos: Sequence[GalleryVideo]) -> None:
    """Raise InvalidArgumentError or MetadataError for a video that no gallery can hold."""
    for video in videos:
        as_instance("a video", video, GalleryVideo, "GalleryVideo")
        check_texts(video)
        check_metadata(video.metadata)  # model_copy() skips the validators


def check_manifest(manifest: object) -> None:
    """Raise InvalidArgumentError unless this is a manifest, or a gallery's model."""
    as_instance("manifest", manifest, (Manifest, FeatureModel), "the Manifest of a bundle")


def check_model(gallery: str, fingerprint: str, manifest: Manifest) -> None:
    """Raise GalleryModelError unless ``fingerprint`` is that of the manifest's model.

    ``gallery``: what the error calls the gallery.
    """
    if fingerprint != manifest.fingerprint:
        raise GalleryModelError(
            f"{gallery} holds features of model {fingerprint[:12]}…, the bundle "
            f"is model {manifest.fingerprint[:12]}…; run: {REINDEX.format(uri='NEW_GALLERY')}"
        )
