"""An opened bundle: the part of a retriever that encodes, asks and closes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ClosedError, InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_number,
    as_path,
    as_sequence,
    as_text,
    as_texts,
)
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit, plot_explanation
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import (
    Query,
    QueryBank,
    SearchKeywords,
    SearchOptions,
    SimilarityKeywords,
    spells_out,
)
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.theme import Theme
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import (
    ImageLike,
    VideoFrames,
    VideoLike,
    VideoReader,
    read_frames,
    read_image,
    read_or_take,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_LOG = logging.getLogger(__name__)


class Opened(ABC):
    """A bundle that is open, with the verbs of search and those for pipelines of one's own.

    A subclass searches: :class:`Retriever` in a gallery, :class:`ShardedRetriever` in a cluster.
    """

    def __init__(
        self,
        bundle: PathName | Bundle,
        options: SessionOptions,
        max_batch: int,
        reader: VideoReader,
    ) -> None:
        """Open a bundle; see :class:`Retriever`."""
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.reading = self.bundle.manifest.video_reading(reader)
        self.model = DeployedModel(self.bundle, options, max_batch)
        self._is_closed = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of videos in the gallery."""

    def __bool__(self) -> bool:
        """Return True, for an empty gallery too."""
        return True

    @abstractmethod
    def refresh(self) -> None:
        """Load the changes that other processes made to the gallery."""

    @abstractmethod
    def warm_up(self) -> None:
        """Load what the first searches would wait for."""

    @overload
    def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    @abstractmethod
    def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Explain a video's score for a text or, with ``b``, the order of two videos."""

    @property
    @abstractmethod
    def _place(self) -> str:
        """The gallery in words, for messages."""

    @property
    @abstractmethod
    def _uri(self) -> str | None:
        """Location of the gallery; None in memory."""

    @abstractmethod
    def _search(self, queries: Sequence[Query], options: SearchOptions) -> list[SearchResults]:
        """Search for queries, which all have a text, or none has."""

    @abstractmethod
    def _close_gallery(self) -> None:
        """Free what the searches need beside the model."""

    # -- search ----------------------------------------------------------------------------

    @spells_out(SearchKeywords)
    def search(
        self,
        text: str,
        k: int = 10,
        *,
        video: VideoLike | None = None,
        video_weight: float = 0.5,
        **options: Unpack[SearchKeywords],
    ) -> SearchResults:
        """Find the ``k`` videos that fit a text best, best first; all if there are fewer.

        ``video``: a video that hits should also resemble, as :meth:`search_by_video` takes it. The
        score is then ``(1 - video_weight) · score + video_weight · score scale · cosine``.
        ``options``: see :class:`SearchOptions`. Long videos rank by their best moment, which a hit
        names by ``start_s`` and ``end_s``; ``group="moment"`` ranks moments.

        An empty gallery gives an empty result. Raises InvalidArgumentError for a text without a
        word, an invalid filter or a number out of range; GalleryError.
        """
        as_text("text", text)
        weight = as_number("video_weight", video_weight, 0, 1)
        chosen = SearchOptions.of(k, options)
        if video is None:
            return self._search_texts([text], chosen)[0]
        (cut,) = self.model.count_cut([text])
        words = self._encode_words([text])
        features, warnings = self._encode_read([video])
        query = Query(words, features, weight, cut, warnings)
        return self._search([query], chosen)[0]

    @spells_out(SearchKeywords)
    def search_batch(
        self, texts: Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]
    ) -> list[SearchResults]:
        """Search for several texts at once and return results for each. See :meth:`search`."""
        return self._search_texts(as_texts("texts", texts), SearchOptions.of(k, options))

    @spells_out(SimilarityKeywords)
    def search_by_video(
        self, video: VideoLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to a video, best first.

        ``video``: a file, frames from :func:`read_video`, or uint8 RGB [n, height, width, 3], at
        the model's rate of frames. The score is the cosine of the two video embeddings. A search
        finds the video itself too if the gallery holds it. Results have ``warnings`` of a damaged
        file, and of a long one that is seen in few frames. ``options``: see
        :class:`SearchOptions`. Raises VideoError, InvalidArgumentError, GalleryError.
        """
        chosen = SearchOptions.of(k, options)
        features, warnings = self._encode_read([video])
        query = Query(None, features, warnings=warnings)
        return self._search([query], chosen)[0]

    @spells_out(SimilarityKeywords)
    def search_by_image(
        self, image: ImageLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to an image, as :meth:`search_by_video` does.

        ``image``: a file that Pillow reads, a Pillow image, or uint8 RGB [height, width, 3].
        """
        self._check_open()
        return self.search_by_video(read_image(image, self.reading.image_size), k, **options)

    def query_bank(self, texts: Sequence[str]) -> QueryBank:
        """Encode the texts of a query bank, which calibrates scores."""
        return QueryBank(self._encode_words(as_texts("texts", texts)))

    def plot_explanation(
        self, explanation: Explanation | Contrast, path: PathName, *, theme: Theme = "light"
    ) -> None:
        """Write an explanation as a PNG: frames over a heat map against the words.

        ``theme``: ``light`` or ``dark``, the page that the picture is drawn on.

        Frames are read again from the video's file. If that is gone or has changed, they are grey,
        and the picture says so. Raises MissingExtraError without matplotlib, InvalidArgumentError
        if ``path`` cannot be written.
        """
        self._check_open()
        plot_explanation(explanation, as_path("path", path), self.read_video, theme)

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
            self._close_gallery()

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
        return f"<{name} of {str(self.bundle.path)!r} ({what}), {self._place}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            f"a {type(self).__name__} cannot be pickled or copied; open it in the worker: "
            f"{type(self).__name__}({str(self.bundle.path)!r}, {self._uri!r})"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(
                f"this {type(self).__name__} of {self.bundle.path} is closed; open another"
            )

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

    def _search_texts(self, texts: Sequence[str], options: SearchOptions) -> list[SearchResults]:
        features = self._encode_words(texts)
        cuts = enumerate(self.model.count_cut(texts))
        queries = [Query(features[n : n + 1], truncated_tokens=cut) for n, cut in cuts]
        return self._search(queries, options)
