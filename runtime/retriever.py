"""Retriever: videos in, text queries out. The public face of the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evidence import (
    Contrast,
    Explanation,
    Hit,
    explain_hits,
    plot_explanation,
)
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue
from xclip_deploy.runtime.indexing import IndexReport, OnDuplicate, Progress, index_videos
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import (
    DEFAULT_CANDIDATES,
    Query,
    QueryBank,
    Searcher,
    SearchOptions,
)
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import (
    FrameSampling,
    VideoFrames,
    VideoReader,
    read_image,
    read_video,
)

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
        precision: str = "auto",
        threads: int | None = None,
        max_batch: int = 16,
        reader: VideoReader = "pyav",
        session: SessionOptions | None = None,
    ) -> None:
        """Open a bundle, and a gallery where one is given; else start an empty one in memory.

        ``gallery``: a directory, or a URI that LanceDB opens; what is added is written there at
        once. ``create``: whether to make it where there is none. ``device``: ``auto``, ``cpu`` or
        ``cuda``; ``precision``: ``auto``, ``fp32``, ``fp16``, ``bf16`` or ``int8``; what was
        chosen and why is in :attr:`model` ``.placement``. ``threads``: CPU threads for inference,
        None for one per core. ``max_batch``: most texts or videos in one run
        of an encoder; more are split. ``reader``: ``pyav`` or ``decord``. ``session``: all
        options of inference, backend and GPU among them, instead of ``device``,
        ``precision`` and ``threads``, to be left alone then.

        Raises BundleError, GalleryError, SessionError, EngineError or MissingExtraError.
        """
        if reader not in get_args(VideoReader):
            raise InvalidArgumentError(f"reader {reader!r}: expected pyav or decord")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        if session is not None and (device, precision, threads) != ("auto", "auto", None):
            raise InvalidArgumentError(
                f"device {device!r}, precision {precision!r} and threads {threads!r} were given "
                "beside session; expected them in it alone"
            )
        options = session or SessionOptions(device=device, precision=precision, threads=threads)
        self.model = DeployedModel(self.bundle, options, max_batch)
        manifest = self.bundle.manifest
        if gallery is None:
            self.gallery = Gallery(manifest)
        elif isinstance(gallery, Gallery):
            gallery.check_model(manifest)
            self.gallery = gallery
        else:
            name = gallery if isinstance(gallery, str) else Path(gallery)
            self.gallery = Gallery.open(name, manifest, create=create)
        self.sampling = FrameSampling(
            frames_per_second=manifest.frames_per_second, max_frames=manifest.model.max_frames
        )
        self._image_size = manifest.preprocessing.image_size
        self._reader: VideoReader = reader
        self._scorer_weights = cache(self.bundle.scorer_weights)
        self._searcher = Searcher(self.model, self._scorer_weights)

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
        progress: bool | Progress = False,
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
        after every video.

        A video that cannot be read, or takes its worker with it, is reported in the result and
        the rest goes on. Written in batches: after an exception (Ctrl-C too) the videos encoded
        so far are in the gallery.

        Raises VideoNotFoundError for a path that is not there, DuplicateIdError, MetadataError,
        GalleryError, InvalidArgumentError.
        """
        given = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
        return index_videos(
            self.gallery,
            self.model,
            [Path(path) for path in given],
            sampling=self.sampling,
            image_size=self._image_size,
            reader=self._reader,
            ids=ids,
            metadata=metadata,
            on_duplicate=on_duplicate,
            prune=prune,
            workers=workers,
            timeout_s=timeout_s,
            progress=progress,
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
        """Find the ``k`` videos that fit a text best, best first; all where there are fewer.

        ``video``: one to resemble as well, as :meth:`search_by_video` takes it. The score is then
        ``(1 - video_weight)`` of the text's and ``video_weight`` of the cosine with the video,
        times the score scale. ``options``: see :class:`SearchOptions`.

        An empty gallery gives an empty result. Raises InvalidArgumentError for a text without a
        word, a filter that is not understood or a number out of range; GalleryError.
        """
        as_text("text", text)
        chosen = SearchOptions.of(k, options)
        if video is None:
            return self._search_texts([text], chosen)[0]
        weight = as_number("video_weight", video_weight, 0, 1)
        query = Query(self._encode_words([text]), self._encode_query(video), weight)
        return self._searcher.search([query], self._snapshot(), chosen)[0]

    @spells_out(SearchKeywords)
    def search_batch(
        self, texts: Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]
    ) -> list[SearchResults]:
        """Search for several texts at once; results for each. See :meth:`search`."""
        return self._search_texts(as_texts("texts", texts), SearchOptions.of(k, options))

    @spells_out(SimilarityKeywords)
    def search_by_video(
        self, video: VideoLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to a video, best first.

        ``video``: a file, frames from :func:`read_video`, or uint8 RGB [n, height, width, 3], at
        the model's rate of frames. The score is the cosine of the two video embeddings. A video
        that is itself in the gallery is found like any other. ``options``: see
        :class:`SearchOptions`. Raises VideoError, InvalidArgumentError, GalleryError.
        """
        chosen = SearchOptions.of(k, options)
        query = Query(None, self._encode_query(video))
        return self._searcher.search([query], self._snapshot(), chosen)[0]

    @spells_out(SimilarityKeywords)
    def search_by_image(
        self, image: ImageLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to an image, taken as a video of one frame.

        ``image``: a file that Pillow reads, one of Pillow's images, or uint8 RGB
        [height, width, 3]. The rest and errors as for :meth:`search_by_video`.
        """
        self._check_open()
        frame = read_image(image, self._image_size)
        return self.search_by_video(frame, k, **options)

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
        nothing of. Raises GalleryError for a video that is not there, InvalidArgumentError for a
        text without a word.
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
        plot_explanation(explanation, path, self.read_video)

    # -- for pipelines of one's own --------------------------------------------------------

    def read_video(self, path: PathName) -> VideoFrames:
        """Read one video as the model wants it. Raises VideoError."""
        return read_video(Path(path), self.sampling, self._image_size, reader=self._reader)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed any number of texts. Raises InvalidArgumentError for non-texts."""
        return self.model.encode_texts(texts)

    def encode_videos(self, videos: Sequence[VideoFrames]) -> VideoFeatures:
        """Embed any number of videos that were read with :meth:`read_video`."""
        return self.model.encode_clips([video.frames for video in videos])

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
