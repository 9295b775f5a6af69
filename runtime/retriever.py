"""Retriever: videos in, text queries out. The public face of the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import BundleVersionError, InvalidArgumentError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.decoding import DecoderPool
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit, draw, explain_hits
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue
from xclip_deploy.runtime.indexing import (
    IndexReport,
    IndexSettings,
    OnDuplicate,
    Task,
    index_videos,
    open_sources,
)
from xclip_deploy.runtime.progress import ProgressFunction, progress_function
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.search import (
    DEFAULT_CANDIDATES,
    Query,
    QueryBank,
    Searcher,
    SearchOptions,
)
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.protocol import DeviceName, PrecisionName
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import VideoFrames, VideoReader, read_frames, read_image

PathName = str | PathLike[str]


class Retriever:
    """Finds videos by text, and videos by video.

    >>> retriever = Retriever("xclip-bundle")                       # doctest: +SKIP
    >>> retriever.add(["videos/"])                                  # doctest: +SKIP
    >>> retriever.search("a dog on a leash", k=3)[0].path           # doctest: +SKIP
    'videos/dog.mp4'

    Safe to use from several threads; a context manager. A search sees the gallery as it was
    when the search began, with all that this object wrote before; what other processes wrote,
    after :meth:`refresh`.
    """

    def __init__(
        self,
        bundle: PathName | Bundle = "xclip-bundle",
        gallery: PathName | Gallery | None = None,
        *,
        create: bool = False,
        device: DeviceName = "auto",
        precision: PrecisionName = "auto",
        threads: int | None = None,
        max_batch: int = 16,
        reader: VideoReader = "pyav",
        session: SessionOptions | None = None,
    ) -> None:
        """Open a bundle, and a gallery where one is given; else start an empty one in memory.

        ``gallery``: a directory, or a URI that LanceDB opens; what is added is written there at
        once. ``create``: whether to make it where there is none. ``device``: ``auto``, ``cpu`` or
        ``cuda``; ``precision``: ``auto``, ``fp32``, ``fp16``, ``bf16`` or ``int8``; what was
        chosen and why is in :attr:`model` ``.placement``. ``threads``: CPU threads for inference
        and for decoding, None for one per core. ``max_batch``: most texts or videos in one run
        of an encoder; more are split. ``reader``: ``pyav`` or ``decord``. ``session``: all
        options of inference, backend and GPU among them, instead of ``device`` and
        ``precision``, to be left alone then.

        Raises BundleError, GalleryError, SessionError, EngineError or MissingExtraError.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        if session is not None and (device, precision) != ("auto", "auto"):
            raise InvalidArgumentError(
                f"device {device!r} and precision {precision!r} were given beside session; "
                "expected them in it alone"
            )
        options = session or SessionOptions(device=device, precision=precision, threads=threads)
        manifest = self.bundle.manifest
        self.reading = manifest.video_reading(reader)
        self.model = DeployedModel(self.bundle, options, max_batch)
        if gallery is None:
            self.gallery = Gallery(manifest)
        elif isinstance(gallery, Gallery):
            gallery.check_model(manifest)
            self.gallery = gallery
        else:
            name = gallery if isinstance(gallery, str) else Path(gallery)
            self.gallery = Gallery.open(name, manifest, create=create)
        self._threads = threads
        self._scorer_weights = cache(self.bundle.scorer_weights)
        self._searcher = Searcher(self.model, self._weights_or_none)

    # -- gallery ---------------------------------------------------------------------------

    def add(
        self,
        paths: PathName | Iterable[PathName],
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        on_duplicate: OnDuplicate = "update",
        prune: bool = False,
        workers: int | None = None,
        timeout_s: float = 120.0,
        progress: bool | ProgressFunction = False,
    ) -> IndexReport:
        """Read, encode and add videos, and pass over those that are there and unchanged.

        ``paths``: files, folders with all videos below them, ``.txt`` lists of files, ``.csv``
        or ``.jsonl`` tables with a column ``file`` and metadata in the others. ``ids``: one for
        each path, which must then be a video; without them, a video's id is its absolute path.
        ``metadata``: for every video given. ``on_duplicate``: what to do with a video that the
        gallery has: ``update`` encodes it again where its file changed, ``skip`` leaves it,
        ``replace`` always encodes it again, ``error`` raises before anything is read.
        ``prune``: whether to remove videos whose files are gone from the folders given.
        ``workers``: processes that decode, None for one per core; ``timeout_s``: what one video
        may take there. ``progress``: True draws a bar on standard error; a function is called
        with a :class:`Progress` after every video.

        A video that cannot be read, or takes its worker with it, is reported in the result and
        the rest goes on. Written in batches: after an exception (Ctrl-C too) the videos encoded
        so far are in the gallery.

        Raises VideoNotFoundError for a path that is not there, DuplicateIdError, MetadataError,
        GalleryError, InvalidArgumentError.
        """
        given = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
        sources = open_sources(given, ids, metadata)
        workers = workers if workers is not None else self._threads
        with (
            DecoderPool[Task](self.reading, workers=workers, timeout_s=timeout_s) as pool,
            progress_function(progress) as report,
        ):
            return index_videos(
                sources,
                self.gallery,
                self.model.encode_videos,
                pool,
                on_duplicate=on_duplicate,
                prune=prune,
                settings=IndexSettings(max_batch=self.model.max_batch),
                progress=report,
            )

    def add_features(self, videos: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        """Add videos that were encoded elsewhere with the same model, all or none.

        Raises DuplicateIdError, MetadataError, InvalidArgumentError for features of other shapes.
        """
        self.gallery.add(videos, features)

    def remove(self, ids: str | Sequence[str]) -> None:
        """Remove videos, all or none. Raises GalleryError for an id that is not there."""
        self.gallery.remove([ids] if isinstance(ids, str) else ids)

    def refresh(self) -> None:
        """See what other processes wrote to the gallery. Raises GalleryError."""
        self.gallery.refresh()

    def warm_up(self) -> None:
        """Do now what the first searches would wait for; for servers, before they take requests.

        Loads the text encoder and the scorer, and keeps embeddings in memory: all of them up to
        1.5 GB (100,000 videos of D = 512, F = 12), else those of whole videos up to that size.
        Holds until the gallery changes: searches are right without it. Raises GalleryError.
        """
        self.gallery.warm_up()
        if len(self.gallery):
            self.search("warm-up", 1)

    def save(self, path: PathName) -> None:
        """Write a copy of the gallery to a directory, in one step. Raises GalleryError."""
        self.gallery.save(Path(path))

    def __len__(self) -> int:
        """Number of videos in the gallery."""
        return len(self.gallery)

    # -- search ----------------------------------------------------------------------------

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        video: PathName | VideoFrames | None = None,
        video_weight: float = 0.5,
        where: str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        deduplicate: bool | float = False,
        exact: bool | None = None,
        candidates: int = DEFAULT_CANDIDATES,
        query_bank: QueryBank | None = None,
    ) -> SearchResults:
        """Find the ``k`` videos that fit a text best, best first; all where there are fewer.

        ``video``: one to resemble as well; the score is then ``(1 - video_weight)`` of the
        text's and ``video_weight`` of the cosine with it, times the logit scale. ``where``: an
        SQL expression over metadata and columns, ``duration_s < 30 and source = 'cam1'``.
        ``offset``: hits to pass over, for paging. ``min_score``: least score of a hit.
        ``deduplicate``: True (0.995) or a cosine: hits whose frame embeddings are all that near
        to those of a better one, each to that at its place, are left out and named in it.
        ``exact``: True scores every video by the whole scorer, False takes two stages, None
        chooses; ``candidates``: how many the second stage scores. ``query_bank``: see
        :class:`QueryBank`.

        An empty gallery gives an empty result. Raises InvalidArgumentError for a text without a
        word, a filter that is not understood or a number out of range; GalleryError.
        """
        if not isinstance(text, str):
            raise InvalidArgumentError(f"expected a text (str), found {type(text).__name__}")
        options = SearchOptions(
            k, offset, where, min_score, deduplicate, exact, candidates, query_bank
        )
        if video is None:
            return self._search_texts([text], options)[0]
        if not 0 <= video_weight <= 1:
            raise InvalidArgumentError(f"video_weight is {video_weight}: expected 0 to 1")
        encoded = self._encode_query(video)
        query = Query(self._encode_words([text]), encoded, video_weight)
        return self._searcher.search([query], self.gallery.snapshot(), options)[0]

    def search_batch(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        where: str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        deduplicate: bool | float = False,
        exact: bool | None = None,
        candidates: int = DEFAULT_CANDIDATES,
        query_bank: QueryBank | None = None,
    ) -> list[SearchResults]:
        """Search for several texts at once; results for each. See :meth:`search`."""
        options = SearchOptions(
            k, offset, where, min_score, deduplicate, exact, candidates, query_bank
        )
        return self._search_texts(texts, options)

    def search_by_video(
        self,
        video: PathName | VideoFrames,
        k: int = 10,
        *,
        where: str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        deduplicate: bool | float = False,
        exact: bool | None = None,
        candidates: int = DEFAULT_CANDIDATES,
    ) -> SearchResults:
        """Find the ``k`` videos most similar to a video, best first.

        ``video``: a file, or frames from :func:`read_video`. The score is the cosine of the
        two video embeddings. A video that is itself in the gallery is found like any other.
        The rest as for :meth:`search`. Raises VideoError, InvalidArgumentError, GalleryError.
        """
        options = SearchOptions(k, offset, where, min_score, deduplicate, exact, candidates)
        query = Query(None, self._encode_query(video))
        return self._searcher.search([query], self.gallery.snapshot(), options)[0]

    def search_by_image(
        self,
        image: PathName | npt.NDArray[np.uint8],
        k: int = 10,
        *,
        where: str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        deduplicate: bool | float = False,
        exact: bool | None = None,
        candidates: int = DEFAULT_CANDIDATES,
    ) -> SearchResults:
        """Find the ``k`` videos most similar to an image, taken as a video of one frame.

        ``image``: a file that Pillow reads, or uint8 RGB [height, width, 3]. The rest and errors
        as for :meth:`search_by_video`.
        """
        return self.search_by_video(
            read_image(image, self.reading.image_size),
            k,
            where=where,
            offset=offset,
            min_score=min_score,
            deduplicate=deduplicate,
            exact=exact,
            candidates=candidates,
        )

    def query_bank(self, texts: Sequence[str]) -> QueryBank:
        """Encode the texts of a bank that scores are calibrated over."""
        return QueryBank(self._encode_words(texts))

    # -- evidence --------------------------------------------------------------------------

    @overload
    def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Why a video has the score that it has for a text, or why it ranks above another.

        ``a``, ``b``: hits of a search, of whatever query, or ids of videos in the gallery. The
        score is computed anew from the gallery as it is now, and taken apart into what every
        word and frame contributes; once more without each word, to find those that the video has
        nothing of. Raises GalleryError for a video that is not there, BundleVersionError
        for a bundle without the scorer's matrices, InvalidArgumentError for a text without a
        word.
        """
        hits = [hit for hit in (a, b) if hit is not None]
        weights = self._scorer_weights()
        found = explain_hits(query, hits, self.gallery.snapshot(), self.model, weights)
        return found[0] if b is None else Contrast(*found)

    def plot_explanation(self, explanation: Explanation | Contrast, path: PathName) -> None:
        """Write an explanation as a PNG: frames over a heat map against the words.

        Frames are read again from the video's file; where that is gone or another by now, they
        are grey, and the picture says so. Raises MissingExtraError without matplotlib,
        InvalidArgumentError where ``path`` cannot be written.
        """
        draw(explanation, path, self.read_video)

    # -- for pipelines of one's own --------------------------------------------------------

    def read_video(self, path: PathName) -> VideoFrames:
        """Read one video as the model wants it. Raises VideoError."""
        return read_frames(path, self.reading)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed any number of texts. Raises InvalidArgumentError for non-texts."""
        return self.model.encode_texts(texts)

    def encode_videos(self, videos: Sequence[VideoFrames]) -> VideoFeatures:
        """Embed any number of videos that were read with :meth:`read_video`."""
        return self.model.encode_videos([video.frames for video in videos])

    def encode_frames(
        self, frames: npt.NDArray[np.uint8], num_frames: npt.NDArray[np.integer[Any]]
    ) -> VideoFeatures:
        """Embed videos from frames of one's own: see :meth:`DeployedModel.encode_frames`."""
        return self.model.encode_frames(frames, num_frames)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video: logits and grains, each [T, V]."""
        return self.model.score(texts, videos)

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the inference sessions. The gallery stays."""
        self.model.close()

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _search_texts(self, texts: Sequence[str], options: SearchOptions) -> list[SearchResults]:
        features = self._encode_words(texts)
        queries = [Query(features[n : n + 1]) for n in range(len(features))]
        return self._searcher.search(queries, self.gallery.snapshot(), options)

    def _encode_words(self, texts: Sequence[str]) -> TextFeatures:
        for text in texts:
            if isinstance(text, str) and not clean_text(text):
                raise InvalidArgumentError(f"the text {text!r} holds no word to search for")
        return self.encode_texts(texts)

    def _encode_query(self, video: PathName | VideoFrames) -> VideoFeatures:
        return self.encode_videos(
            [video if isinstance(video, VideoFrames) else self.read_video(video)]
        )

    def _weights_or_none(self) -> ScorerWeights | None:
        try:
            return self._scorer_weights()
        except BundleVersionError:
            return None  # exported before they were kept: searches score every video
