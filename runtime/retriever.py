"""The retriever, the public face of the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import overload

from xclip_deploy.runtime.arguments import PathName, as_truth
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.evidence import (
    Contrast,
    Explanation,
    Hit,
    explain_hits,
)
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue, Snapshot
from xclip_deploy.runtime.indexing import (
    IndexEstimate,
    IndexReport,
    OnDuplicate,
    add_videos,
    estimate_videos,
    warn_of_older_readings,
)
from xclip_deploy.runtime.opened import Opened
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.resident.residence import Residence
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import (
    Query,
    Searcher,
    SearchOptions,
)
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.video import (
    VideoLike,
    VideoReader,
    listed,
)
from xclip_deploy.runtime.video.segmentation import Segmentation


class Retriever(Opened):
    """A search engine for videos, by text, video or image.

    >>> retriever = Retriever("xclip-bundle")                       # doctest: +SKIP
    >>> retriever.add(["videos/"])                                  # doctest: +SKIP
    >>> retriever.search("a dog on a leash", k=3)[0].path           # doctest: +SKIP
    'videos/dog.mp4'

    It is safe to use from several threads, and a context manager. A search sees the gallery as it
    was when the search began, with every earlier write of this object. It sees the writes of other
    processes after :meth:`refresh`.
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
        """Open a bundle and a gallery; without ``gallery``, start an empty one in memory.

        ``gallery``: a directory, or a URI that LanceDB opens; additions are written at once.
        ``create``: whether to make it if there is none. ``device``: ``auto``, ``cpu`` or ``cuda``.
        ``precision``: ``auto``, ``fp32``, ``fp16``, ``bf16`` or ``int8``. The choice and its reason
        are in :attr:`model` ``.placement``. ``threads``: CPU threads for inference, None for one
        per core. ``max_batch``: most texts or videos in one run of an encoder; more are split.
        ``reader``: ``pyav`` or ``decord``. ``session``: all options of inference, with backend and
        GPU; it excludes ``device``, ``precision`` and ``threads``.

        Raises BundleError, GalleryError, SessionError, EngineError or MissingExtraError.
        """
        options = SessionOptions.of(device, precision, threads, session)
        as_truth("create", create)
        super().__init__(bundle, options, max_batch, reader)
        manifest = self.bundle.manifest
        self._owns_gallery = not isinstance(gallery, Gallery)
        if isinstance(gallery, Gallery):
            gallery.check_model(manifest)
            self.gallery = gallery
        elif gallery is None:
            self.gallery = Gallery(manifest)
        else:
            self.gallery = Gallery.open(gallery, manifest, create=create)
        warn_of_older_readings(self.gallery)
        self._scorer_weights = cache(self.bundle.scorer_weights)
        self.residence = Residence(self.model)
        self.gallery.watch(self.residence)
        self._searcher = Searcher(
            self.model,
            self._scorer_weights,
            self.gallery.thumbnails,
            residence=self.residence,
        )

    # -- gallery ---------------------------------------------------------------------------

    def add(
        self,
        videos: VideoLike | Iterable[VideoLike],
        *,
        ids: str | Sequence[str] | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        segment: str | float | Segmentation | None = None,
        stride: str | float | None = None,
        on_duplicate: OnDuplicate = "update",
        prune: bool = False,
        thumbnails: bool = True,
        workers: int | None = None,
        timeout_s: float = 120.0,
        progress: bool | ProgressFunction = False,
    ) -> IndexReport:
        """Read, encode and add videos; skip those that are there unchanged.

        Args:
            videos: Files, folders with all videos below them, ``.txt`` lists of files, ``.csv`` or
                ``.jsonl`` tables with a column ``file`` and metadata in the others. Or frames in
                memory, as :meth:`encode_videos` takes them, with ``ids``.
            ids: One id for each video; without them, a video's id is its absolute path.
            metadata: Metadata of every given video.
            segment: Length of the windows into which longer videos are cut, in seconds or as a time
                such as ``8s``. ``shots`` cuts each shot by itself, ``whole`` keeps every video in
                one segment. None takes the gallery's, or the model's span in an empty gallery.
            stride: Time between the starts of two windows; None takes the window's length.
            on_duplicate: Treatment of videos that the gallery has: ``update`` encodes those whose
                files changed, ``skip`` leaves them, ``replace`` encodes all again, ``error`` raises
                before anything is read.
            prune: Whether to remove videos whose files are gone from the given folders.
            thumbnails: Whether to keep a small picture of every segment beside the gallery.
            workers: Processes that decode, None for one per core.
            timeout_s: Longest time to decode one video, seconds.
            progress: True draws a bar on standard error. A function is called with a
                :class:`Progress` after every video.

        The result reports videos that cannot be read or crash their decoder; the run goes on.
        Videos are committed in batches, which stay after an exception (Ctrl-C too).

        Raises VideoNotFoundError for a path that is not there, DuplicateIdError, MetadataError,
        GallerySegmentationError if the gallery's videos are cut in another way, GalleryError,
        InvalidArgumentError.
        """
        self._check_open()
        return add_videos(
            self.gallery,
            self.model,
            self.reading,
            listed(videos),
            ids=ids,
            metadata=metadata,
            segment=segment,
            stride=stride,
            on_duplicate=on_duplicate,
            prune=prune,
            thumbnails=thumbnails,
            workers=workers,
            timeout_s=timeout_s,
            progress=progress,
        )

    def estimate(
        self,
        videos: PathName | Iterable[PathName],
        *,
        segment: str | float | Segmentation | None = None,
        stride: str | float | None = None,
        on_duplicate: OnDuplicate = "update",
        workers: int | None = None,
    ) -> IndexEstimate:
        """Estimate segments, bytes and time of :meth:`add`, which takes the same arguments.

        Decodes a few seconds of up to three files and encodes one batch; nothing is written. Raises
        as :meth:`add` does.
        """
        self._check_open()
        return estimate_videos(
            self.gallery,
            self.model,
            self.reading,
            videos,
            segment=segment,
            stride=stride,
            on_duplicate=on_duplicate,
            workers=workers,
        )

    def add_features(self, videos: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        """Add videos that the same model encoded elsewhere, all or none.

        Raises DuplicateIdError, MetadataError, and InvalidArgumentError for vectors of other shapes
        or lengths than 1.
        """
        self._check_open()
        self.gallery.add(videos, features)

    def remove(self, ids: str | Sequence[str] | None = None, *, where: str | None = None) -> int:
        """Remove videos by id, or those that match a filter; see :meth:`Gallery.remove`.

        Returns the number of removed videos. Raises GalleryError for an id that is not there.
        """
        self._check_open()
        return self.gallery.remove(ids, where=where)

    def refresh(self) -> None:
        """Load the changes that other processes made to the gallery. Raises GalleryError."""
        self._check_open()
        self.gallery.refresh()

    def warm_up(self) -> None:
        """Load what the first searches would wait for, such as before a server takes requests.

        Loads the text encoder and the scorer if the gallery holds a video. Keeps all embeddings up
        to 1.5 GB in memory (100,000 videos with D = 512 and F = 12), else ``video_features`` up to
        that size. Lasts until the gallery changes, and changes no result. Uploads a gallery that
        stays on the GPU, whatever its size; ``residence.describe()`` tells what became of it.

        Raises GalleryError; DeviceMemoryError and SessionError with ``resident_gallery=True``.
        """
        snapshot = self._snapshot()
        snapshot.warm_up()
        if len(snapshot):
            self.residence.warm_up(snapshot)
            self.search("warm-up", 1)
            if self.residence.holds_all(snapshot):
                for _ in range(2):  # the first scan loads the kernels; its time tells nothing
                    self.search("warm-up", 1, exact=True)

    def close(self) -> None:
        """Free the GPU, the sessions, and the gallery unless an opened one was given.

        Using the retriever afterwards raises ClosedError. Closing it twice does no harm.
        """
        try:
            self.residence.close()
        finally:
            super().close()

    def save(self, path: PathName) -> None:
        """Write a copy of the gallery to a directory, in one step. Raises GalleryError."""
        self._check_open()
        self.gallery.save(path)

    def __len__(self) -> int:
        """Return the number of videos in the gallery."""
        return self._snapshot().num_videos

    # -- evidence --------------------------------------------------------------------------

    @overload
    def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Explain a video's score for a text or, with ``b``, the order of two videos.

        ``a``, ``b``: hits of any search, or ids of videos in the gallery. Of a hit, its segment is
        explained; of an id, the segment with the best score for the text. The score is computed
        from the gallery as it is now and decomposed into contributions of words and frames. The
        text is also scored without each word, to find words that the video lacks. Raises
        GalleryError for a video that is not there, InvalidArgumentError for a text without a word.
        """
        snapshot, hits = self._snapshot(), [a] if b is None else [a, b]
        found = explain_hits(query, hits, snapshot, self.model, self._scorer_weights())
        return found[0] if b is None else Contrast(*found)

    @property
    def _place(self) -> str:
        return repr(self.gallery)

    @property
    def _uri(self) -> str | None:
        return self.gallery.uri

    def _search(self, queries: Sequence[Query], options: SearchOptions) -> list[SearchResults]:
        return self._searcher.search(queries, self._snapshot(), options)

    def _snapshot(self) -> Snapshot:
        self._check_open()
        return self.gallery.snapshot()

    def _close_gallery(self) -> None:
        if self._owns_gallery:
            self.gallery.close()
