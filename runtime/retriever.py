"""Retriever: videos in, text queries out. The public face of the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ClosedError, InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_instance,
    as_number,
    as_path,
    as_text,
    as_texts,
    as_truth,
)
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
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue, Snapshot
from xclip_deploy.runtime.indexing import IndexReport, OnDuplicate, add_videos
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import (
    Query,
    QueryBank,
    Searcher,
    SearchKeywords,
    SearchOptions,
    SimilarityKeywords,
    spells_out,
)
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import (
    ImageLike,
    VideoFrames,
    VideoLike,
    VideoReader,
    frames_of,
    read_frames,
    read_image,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
        self._scorer_weights = cache(self.bundle.scorer_weights)
        self._searcher = Searcher(self.model, self._scorer_weights)
        self._is_closed = False

    # -- gallery ---------------------------------------------------------------------------

    def add(
        self,
        videos: VideoLike | Iterable[VideoLike],
        *,
        ids: str | Sequence[str] | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        on_duplicate: OnDuplicate = "update",
        prune: bool = False,
        workers: int | None = None,
        timeout_s: float = 120.0,
        progress: bool | ProgressFunction = False,
    ) -> IndexReport:
        """Read, encode and add videos, and pass over those that are there and unchanged.

        ``videos``: files, folders with all videos below them, ``.txt`` lists of files, ``.csv``
        or ``.jsonl`` tables with a column ``file`` and metadata in the others; or frames in
        memory, as :meth:`encode_videos` takes them, under ``ids``. ``ids``: one for each video
        file; without them, a video's id is its absolute path.
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
        self._check_open()
        return add_videos(
            self.gallery,
            self.model,
            self.reading,
            videos,
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
        self._check_open()
        self.gallery.add(videos, features)

    def remove(self, ids: str | Sequence[str] | None = None, *, where: str | None = None) -> int:
        """Remove videos by id, or those that a filter lets through; see :meth:`Gallery.remove`.

        Returns how many were removed. Raises GalleryError for an id that is not there.
        """
        self._check_open()
        return self.gallery.remove(ids, where=where)

    def refresh(self) -> None:
        """See what other processes wrote to the gallery. Raises GalleryError."""
        self._check_open()
        self.gallery.refresh()

    def warm_up(self) -> None:
        """Do now what the first searches would wait for; for servers, before they take requests.

        Loads the text encoder and the scorer, and keeps embeddings in memory: all of them up to
        1.5 GB (100,000 videos of D = 512, F = 12), else those of whole videos up to that size.
        Holds until the gallery changes: searches are right without it. Raises GalleryError.
        """
        self._check_open()
        self.gallery.warm_up()
        if len(self.gallery):
            self.search("warm-up", 1)

    def save(self, path: PathName) -> None:
        """Write a copy of the gallery to a directory, in one step. Raises GalleryError."""
        self._check_open()
        self.gallery.save(path)

    def __len__(self) -> int:
        """Number of videos in the gallery."""
        return len(self._snapshot())

    def __bool__(self) -> bool:
        """A retriever is true, empty or not."""
        return True

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
        weight = as_number("video_weight", video_weight, 0, 1)
        chosen = SearchOptions.of(k, options)
        if video is None:
            return self._search_texts([text], chosen)[0]
        query = Query(self._encode_words([text]), self.encode_videos([video]), weight)
        found = self._searcher.search([query], self._snapshot(), chosen)
        return self._with_cuts([text], found)[0]

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
        query = Query(None, self.encode_videos([video]))
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
        return self.search_by_video(read_image(image, self.reading.image_size), k, **options)

    def query_bank(self, texts: Sequence[str]) -> QueryBank:
        """Encode the texts of a bank that scores are calibrated over."""
        return QueryBank(self._encode_words(as_texts("texts", texts)))

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
        snapshot, hits = self._snapshot(), [a] if b is None else [a, b]
        found = explain_hits(query, hits, snapshot, self.model, self._scorer_weights())
        return found[0] if b is None else Contrast(*found)

    def plot_explanation(self, explanation: Explanation | Contrast, path: PathName) -> None:
        """Write an explanation as a PNG: frames over a heat map against the words.

        Frames are read again from the video's file; where that is gone or another by now, they
        are grey, and the picture says so. Raises MissingExtraError without matplotlib,
        InvalidArgumentError where ``path`` cannot be written.
        """
        self._check_open()
        as_instance(
            "explanation", explanation, (Explanation, Contrast), "what retriever.explain gives"
        )
        plot_explanation(explanation, as_path("path", path), self.read_video)

    # -- for pipelines of one's own --------------------------------------------------------

    def read_video(self, path: PathName) -> VideoFrames:
        """Read one video as the model wants it. Raises VideoError."""
        self._check_open()
        return read_frames(as_path("path", path), self.reading)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed any number of texts. Raises InvalidArgumentError for what is no text."""
        return self.model.encode_texts(texts)

    def encode_videos(self, videos: Sequence[VideoLike]) -> VideoFeatures:
        """Embed any number of videos.

        ``videos``: files, frames from :meth:`read_video`, or uint8 RGB [n, height, width, 3] at
        the model's rate of frames; more than the model takes are thinned out evenly. Raises
        VideoError, InvalidArgumentError.
        """
        self._check_open()
        return self.model.encode_videos(frames_of(videos, self.reading))

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
        """Free the sessions, and the gallery unless it was given opened.

        A retriever that is used afterwards raises ClosedError. Closing it twice does no harm.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.model.close()
        finally:
            if self._owns_gallery:
                self.gallery.close()

    def __enter__(self) -> Retriever:
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
            "a Retriever cannot be pickled or copied; open it in the worker: "
            f"Retriever({str(self.bundle.path)!r}, {self.gallery.uri!r})"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"this Retriever of {self.bundle.path} is closed; open another")

    def _snapshot(self) -> Snapshot:
        self._check_open()
        return self.gallery.snapshot()

    def _search_texts(self, texts: Sequence[str], options: SearchOptions) -> list[SearchResults]:
        features = self._encode_words(texts)
        queries = [Query(features[n : n + 1]) for n in range(len(features))]
        return self._with_cuts(texts, self._searcher.search(queries, self._snapshot(), options))

    def _with_cuts(self, texts: Sequence[str], found: list[SearchResults]) -> list[SearchResults]:
        """Note in the results of each text how much of it was not read."""
        cuts = self.model.tokenizer.count_cut(texts, self.model.config.max_words)
        return [
            replace(results, truncated_tokens=cut) if cut else results
            for results, cut in zip(found, cuts, strict=True)
        ]

    def _encode_words(self, texts: Sequence[str]) -> TextFeatures:
        for text in texts:
            if not clean_text(text):
                raise InvalidArgumentError(f"the text {text!r:.200} holds no word to search for")
        return self.encode_texts(texts)
