"""An opened bundle with its gallery: the part of a retriever that lives, encodes and closes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ClosedError, InvalidArgumentError
from xclip_deploy.runtime.arguments import PathName, as_path, as_sequence, as_truth
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, Snapshot
from xclip_deploy.runtime.indexing import warn_of_older_readings
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import (
    VideoFrames,
    VideoLike,
    VideoReader,
    read_frames,
    read_or_take,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger(__name__)


class Opened:
    """A bundle and a gallery that are open, with the verbs for pipelines of one's own.

    :class:`Retriever` adds indexing, search and evidence.
    """

    def __init__(
        self,
        bundle: PathName | Bundle,
        gallery: PathName | Gallery | None,
        *,
        create: bool,
        device: DeviceName,
        precision: str,
        threads: int | None,
        max_batch: int,
        reader: VideoReader,
        session: SessionOptions | None,
    ) -> None:
        """Open a bundle and a gallery; see :class:`Retriever`."""
        options = SessionOptions.of(device, precision, threads, session)
        as_truth("create", create)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        self.reading = manifest.video_reading(reader)
        self.model = DeployedModel(self.bundle, options, max_batch)
        self._owns_gallery = not isinstance(gallery, Gallery)
        if isinstance(gallery, Gallery):
            gallery.check_model(manifest)
            self.gallery = gallery
        elif gallery is None:
            self.gallery = Gallery(manifest)
        else:
            self.gallery = Gallery.open(gallery, manifest, create=create)
        warn_of_older_readings(self.gallery)
        self._is_closed = False

    # -- for pipelines of one's own --------------------------------------------------------

    def read_video(self, path: PathName) -> VideoFrames:
        """Read one video, sampled and resized for the model. Raises VideoError."""
        self._check_open()
        return read_frames(as_path("path", path), self.reading)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed any number of texts. Raises InvalidArgumentError for anything but text."""
        self._check_open()
        return self.model.encode_texts(texts)

    def encode_videos(self, videos: Sequence[VideoLike]) -> VideoFeatures:
        """Embed any number of videos.

        ``videos``: files, frames from :meth:`read_video`, or uint8 RGB [n, height, width, 3] at
        the model's rate of frames; more than the model takes are thinned out evenly. A log
        message warns of a damaged video and of one that is thinned out more than three times.
        Raises VideoError, InvalidArgumentError.
        """
        return self._encode_read(videos)[0]

    def encode_frames(
        self, frames: npt.NDArray[np.uint8], num_frames: npt.NDArray[np.integer[Any]]
    ) -> VideoFeatures:
        """Embed videos from prepared frames: see :meth:`DeployedModel.encode_frames`.

        Prepared frames carry no times, so that nothing warns of frames that are far apart.
        """
        return self.model.encode_frames(frames, num_frames)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video: logits and grains, each [T, V]."""
        return self.model.score(texts, videos)

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the sessions, and the gallery unless an opened one was given.

        Using the retriever afterwards raises ClosedError. Closing it twice does no harm.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.model.close()
        finally:
            if self._owns_gallery:
                self.gallery.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._is_closed:
            return f"<{name} of {str(self.bundle.path)!r}, closed>"
        what = f"{self.bundle.manifest.model.family.value}, {self.model.placement.summary}"
        return f"<{name} of {str(self.bundle.path)!r} ({what}), {self.gallery!r}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            f"a {type(self).__name__} cannot be pickled or copied; open it in the worker: "
            f"{type(self).__name__}({str(self.bundle.path)!r}, {self.gallery.uri!r})"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(
                f"this {type(self).__name__} of {self.bundle.path} is closed; open another"
            )

    def _snapshot(self) -> Snapshot:
        self._check_open()
        return self.gallery.snapshot()

    def _encode_read(self, videos: object) -> tuple[VideoFeatures, tuple[str, ...]]:
        """Embed videos as :meth:`encode_videos` does; return the warnings that it logs, too."""
        self._check_open()
        given = as_sequence("videos", videos, "videos")
        read = [read_or_take(video, self.reading) for video in given]
        warnings = tuple(warning for frames in read for warning in frames.warnings)
        for warning in warnings:
            _LOG.warning("%s", warning)
        return self.model.encode_videos([frames.frames for frames in read]), warnings

    def _encode_words(self, texts: Sequence[str]) -> TextFeatures:
        self._check_open()
        empty = [text for text in texts if not clean_text(text)]
        if empty:
            raise InvalidArgumentError(f"the text {empty[0]!r:.200} holds no word to search for")
        return self.encode_texts(texts)
