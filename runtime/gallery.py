"""The searchable collection of encoded videos, in memory and as a directory on disk."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xclip_deploy.errors import (
    DuplicateIdError,
    GalleryError,
    GalleryIntegrityError,
    GalleryModelError,
    GalleryNotFoundError,
    GalleryVersionError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.atomic import replaced_directory
from xclip_deploy.runtime.features import VideoFeatures, check_finite
from xclip_deploy.runtime.hashing import sha256_of, sha256_of_stream
from xclip_deploy.runtime.manifest import Manifest, Sha256, checksum

SCHEMA_VERSION = 1
FORMAT = "xclip-gallery"
_FILE_NAME = "gallery.json"
_FEATURES_NAME = "features.npz"
_REINDEX = "xclip-deploy index VIDEOS --gallery {path}"


class GalleryVideo(BaseModel):
    """One video of a gallery, apart from its embeddings."""

    # JSON has no NaN and no infinity: a gallery that held them could not be opened again.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: Annotated[str, Field(min_length=1)]
    path: str | None = None
    """Where the video is; None for features that came without one."""
    duration_s: float | None = None
    frame_times_s: tuple[float, ...]
    """Time of each frame that was encoded, seconds from the video's start."""


class _GalleryFile(BaseModel):
    """Contents of ``gallery.json``."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["xclip-gallery"] = "xclip-gallery"
    schema_version: Literal[1] = 1
    fingerprint: Sha256
    features_sha256: Sha256
    videos: list[GalleryVideo]

    def to_json(self) -> bytes:
        """Serialise, with a checksum over the content, so that an edit is noticed."""
        content = self.model_dump(mode="json")
        content["checksum"] = checksum(content)
        return json.dumps(content, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Snapshot:
    """A gallery as it was at one moment; later changes do not touch it."""

    videos: tuple[GalleryVideo, ...]
    features: VideoFeatures
    """Of the same videos in the same order, FP16."""

    def __len__(self) -> int:
        return len(self.videos)


class Gallery:
    """Videos with their embeddings, all made by one model.

    Embeddings are kept in FP16: the scorer casts them up before it multiplies, so that search
    loses nothing that FP16 rounding of a unit vector does not. Safe to use from several
    threads.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Make an empty gallery for the model that ``manifest`` describes."""
        self._fingerprint = manifest.fingerprint
        self._frames = manifest.model.max_frames
        self._dim = manifest.model.embed_dim
        self._lock = threading.RLock()
        self._snapshot = Snapshot((), self._empty_features())
        self._ids: set[str] = set()
        # Added since the snapshot was last joined: many small additions then cost one copy.
        self._pending: list[tuple[tuple[GalleryVideo, ...], VideoFeatures]] = []

    def check_model(self, manifest: Manifest) -> None:
        """Raise GalleryModelError unless the features are of the model of ``manifest``."""
        _check_model("the gallery", self._fingerprint, manifest)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._ids

    def snapshot(self) -> Snapshot:
        """Everything in the gallery now, in the order of addition."""
        with self._lock:
            if self._pending:
                videos = [self._snapshot.videos, *(part for part, _ in self._pending)]
                features = [self._snapshot.features, *(part for _, part in self._pending)]
                self._snapshot = Snapshot(
                    tuple(video for part in videos for video in part),
                    VideoFeatures.concatenate(features),
                )
                self._pending = []
            return self._snapshot

    def add(
        self,
        videos: Sequence[GalleryVideo],
        features: VideoFeatures,
        *,
        replace: bool = False,
    ) -> None:
        """Add encoded videos, all or none.

        ``replace``: whether they take the place of videos with the same ids. Raises
        DuplicateIdError for an id twice among ``videos`` or, without ``replace``, in the
        gallery; InvalidArgumentError for features of other shapes, or not finite.
        """
        self._check(videos, features)
        features = _half(features)
        ids = [video.id for video in videos]
        with self._lock:
            present = self._ids.intersection(ids) if replace else set()
            self.check_new(ids, allowed=present)
            self.remove(present)
            self._ids.update(ids)
            self._pending.append((tuple(videos), features))

    def remove(self, ids: Collection[str]) -> None:
        """Remove videos, all or none. Raises GalleryError for an id that is not there."""
        with self._lock:
            gone = set(ids)
            if not gone:
                return
            if unknown := sorted(gone - self._ids):
                raise GalleryError(f"no video {unknown[0]!r} in the gallery")
            old = self.snapshot()
            keep = [n for n, video in enumerate(old.videos) if video.id not in gone]
            features = old.features
            self._snapshot = Snapshot(
                tuple(old.videos[n] for n in keep),
                VideoFeatures(
                    features.video_features[keep],
                    features.frame_features[keep],
                    features.num_frames[keep],
                ),
            )
            self._ids -= gone

    def check_new(self, ids: Sequence[str], allowed: Collection[str] = ()) -> None:
        """Raise DuplicateIdError for an id in the gallery, unless allowed, or twice in ``ids``."""
        seen: set[str] = set()
        for video_id in ids:
            if video_id in self._ids and video_id not in allowed:
                raise DuplicateIdError(
                    f"a video {video_id!r} is already in the gallery; "
                    "add it under another id, or pass on_duplicate='skip' or 'replace'"
                )
            if video_id in seen:
                raise DuplicateIdError(f"the id {video_id!r} is given to two videos")
            seen.add(video_id)

    def save(self, path: str | Path) -> None:
        """Write the gallery to a directory, in one step: an interrupted save leaves the old one.

        Raises GalleryError where ``path`` holds something else or cannot be written.
        """
        path = Path(path)
        if path.exists() and not _may_replace(path):
            raise GalleryError(f"{path} is no gallery and not empty; choose another path")
        snapshot = self.snapshot()
        try:
            with replaced_directory(path) as directory:
                file = directory / _FEATURES_NAME
                with file.open("wb") as stream:
                    np.savez(stream, **vars(snapshot.features))
                content = _GalleryFile(
                    fingerprint=self._fingerprint,
                    features_sha256=sha256_of(file),
                    videos=list(snapshot.videos),
                )
                (directory / _FILE_NAME).write_bytes(content.to_json())
        except OSError as error:
            raise GalleryError(
                f"gallery {path} cannot be written ({error.strerror}); what was there stands"
            ) from error

    @classmethod
    def open(cls, path: str | Path, manifest: Manifest) -> Gallery:
        """Open a saved gallery for the model that ``manifest`` describes.

        Raises GalleryNotFoundError, GalleryVersionError, GalleryIntegrityError, or
        GalleryModelError for features of another model.
        """
        path = Path(path)
        while True:
            seen = _identity(path)
            content = _read_description(path)
            _check_model(f"gallery {path}", content.fingerprint, manifest)
            try:
                features = _read_features(path, content.features_sha256)
                break
            except GalleryIntegrityError:
                if _identity(path) == seen:
                    raise
                # Another was saved in its place while this one was read.
        gallery = cls(manifest)
        try:
            gallery.add(content.videos, features)
        except (InvalidArgumentError, DuplicateIdError) as error:
            raise _damaged(path, str(error)) from error
        return gallery

    def _check(self, videos: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        shapes = {
            "video_features": (len(videos), self._dim),
            "frame_features": (len(videos), self._frames, self._dim),
            "num_frames": (len(videos),),
        }
        for name, expected in shapes.items():
            found = getattr(features, name).shape
            if found != expected:
                raise InvalidArgumentError(
                    f"{name} has shape {list(found)}, expected {list(expected)} "
                    f"for {len(videos)} videos"
                )
        for video, count in zip(videos, features.num_frames, strict=True):
            if not 1 <= count <= self._frames or len(video.frame_times_s) != count:
                raise InvalidArgumentError(
                    f"video {video.id!r} has num_frames {count} and "
                    f"{len(video.frame_times_s)} frame times, expected the same, "
                    f"1 to {self._frames}"
                )

    def _empty_features(self) -> VideoFeatures:
        return VideoFeatures(
            np.empty((0, self._dim), np.float16),
            np.empty((0, self._frames, self._dim), np.float16),
            np.empty(0, np.int32),
        )


def _half(features: VideoFeatures) -> VideoFeatures:
    with np.errstate(over="ignore"):  # what does not fit becomes infinity, and is refused
        half = VideoFeatures(
            features.video_features.astype(np.float16),
            features.frame_features.astype(np.float16),
            features.num_frames.astype(np.int32),
        )
    check_finite("video_features", half.video_features)
    check_finite("frame_features", half.frame_features)
    return half


def _check_model(gallery: str, fingerprint: str, manifest: Manifest) -> None:
    if fingerprint != manifest.fingerprint:
        raise GalleryModelError(
            f"{gallery} holds features of model {fingerprint[:12]}…, the bundle "
            f"is model {manifest.fingerprint[:12]}…; run: {_REINDEX.format(path='NEW_GALLERY')}"
        )


def _may_replace(path: Path) -> bool:
    return path.is_dir() and ((path / _FILE_NAME).is_file() or not any(path.iterdir()))


def _damaged(path: Path, what: str) -> GalleryIntegrityError:
    return GalleryIntegrityError(
        f"gallery {path}: {what}; restore it from a copy or run: {_REINDEX.format(path=path)}"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a directory from one that is put in its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_description(path: Path) -> _GalleryFile:
    try:
        text = (path / _FILE_NAME).read_text(encoding="utf-8")
        content: Any = json.loads(text)
        found = checksum(content) if isinstance(content, dict) else None
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.exists() and not _may_replace(path):
            raise GalleryNotFoundError(
                f"{path} is no gallery (no {_FILE_NAME}) and not empty; choose another path"
            ) from error
        raise GalleryNotFoundError(
            f"no gallery at {path} (no {_FILE_NAME}); run: {_REINDEX.format(path=path)}"
        ) from error
    except OSError as error:
        raise GalleryError(f"gallery {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{_FILE_NAME} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, f"{_FILE_NAME} does not describe an {FORMAT}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise GalleryVersionError(
            f"gallery {path} has schema version {version!r}, this release reads "
            f"{SCHEMA_VERSION}; run: pip install --upgrade xclip-deploy"
        )
    if content.pop("checksum", None) != found:
        raise _damaged(path, f"{_FILE_NAME} was altered: its checksum does not fit")
    try:
        return _GalleryFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{_FILE_NAME}: {where}: {first['msg']}") from error


def _read_features(path: Path, expected_sha256: str) -> VideoFeatures:
    file = path / _FEATURES_NAME
    try:
        with file.open("rb", buffering=0) as stream:
            found = sha256_of_stream(stream)
            if found != expected_sha256:
                raise _damaged(
                    path,
                    f"{_FEATURES_NAME} was altered or cut: its SHA-256 is {found[:12]}…, "
                    f"{_FILE_NAME} says {expected_sha256[:12]}…",
                )
            # From the same open file: another can have taken its name by now.
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return VideoFeatures(
                    arrays["video_features"], arrays["frame_features"], arrays["num_frames"]
                )
    except FileNotFoundError as error:
        raise _damaged(path, f"{_FEATURES_NAME} is missing") from error
    except OSError as error:
        raise GalleryError(
            f"gallery {path} cannot be read ({error.strerror or os.fspath(file)})"
        ) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, f"{_FEATURES_NAME} is no feature file ({error})") from error
