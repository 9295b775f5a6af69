"""The retriever for servers that run on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, overload

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ClosedError, InvalidArgumentError
from xclip_deploy.runtime.arguments import PathName, as_whole_number
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, MetadataValue
from xclip_deploy.runtime.indexing import IndexEstimate, IndexReport, OnDuplicate
from xclip_deploy.runtime.opened import Opened
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.runtime.search import QueryBank, SearchKeywords, SimilarityKeywords, spells_out
from xclip_deploy.runtime.sessions import DeviceName, SessionOptions
from xclip_deploy.runtime.theme import Theme
from xclip_deploy.runtime.video import ImageLike, VideoFrames, VideoLike, VideoReader
from xclip_deploy.runtime.video.segmentation import Segmentation

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
T = TypeVar("T")
_MAX_CONCURRENCY = 1024


class AsyncRetriever:
    """The methods of a retriever as coroutines, on threads of its own.

    >>> async with AsyncRetriever("xclip-bundle", "xclip-gallery") as retriever:
    ...     hits = await retriever.search("a dog on a leash", k=5)      # doctest: +SKIP

    Each coroutine has the arguments, result and errors of the method of the same name. Methods that
    write (``add``, ``add_features``, ``remove``, ``save``) run one by one on one thread. All others
    run on further threads, so that a long ``add`` delays no search. NumPy, ONNX Runtime and LanceDB
    release Python's lock while they compute. A cancelled coroutine stops waiting; its call runs to
    the end. Callbacks such as ``progress`` are called on those threads.

    A :class:`ShardedRetriever` searches in the same way, each call within its ``timeout``. Methods
    that write raise InvalidArgumentError then.
    """

    def __init__(
        self,
        bundle: Opened | PathName | Bundle = "xclip-bundle",
        gallery: PathName | Gallery | None = None,
        *,
        create: bool = False,
        device: DeviceName = "auto",
        precision: str = "auto",
        threads: int | None = None,
        max_batch: int = 16,
        reader: VideoReader = "pyav",
        session: SessionOptions | None = None,
        max_concurrency: int = 4,
    ) -> None:
        """Open a bundle and a gallery as :class:`Retriever` does, or take an opened retriever.

        ``bundle``: a bundle, or a Retriever or ShardedRetriever, which excludes the options of a
        Retriever.
        ``max_concurrency``: most calls at the same time, without those that write; more wait their
        turn. Raises as :class:`Retriever` does.
        """
        count = as_whole_number("max_concurrency", max_concurrency, 1, _MAX_CONCURRENCY)
        options: dict[str, Any] = {
            "gallery": gallery,
            "create": create,
            "device": device,
            "precision": precision,
            "threads": threads,
            "max_batch": max_batch,
            "reader": reader,
            "session": session,
        }
        if isinstance(bundle, Opened):
            kinds = {name: type(value) for name, value in options.items()}
            if kinds != _KINDS or options != _DEFAULTS:
                raise InvalidArgumentError(
                    "options of a Retriever were given beside an opened one; expected them where "
                    "it is opened"
                )
            self.retriever: Opened = bundle
        else:
            self.retriever = Retriever(bundle, **options)
        self._max_concurrency = count
        self._is_closed = False
        self._readers = ThreadPoolExecutor(count, thread_name_prefix="retriever")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="retriever-writer")

    # -- gallery ---------------------------------------------------------------------------

    async def add(
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
        """Read, encode and add videos; see :meth:`Retriever.add`."""
        return await self._write(
            self._writable.add,
            videos,
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

    async def estimate(
        self,
        videos: PathName | Iterable[PathName],
        *,
        segment: str | float | Segmentation | None = None,
        stride: str | float | None = None,
        on_duplicate: OnDuplicate = "update",
        workers: int | None = None,
    ) -> IndexEstimate:
        """Estimate what adding videos takes; see :meth:`Retriever.estimate`."""
        return await self._read(
            self._writable.estimate,
            videos,
            segment=segment,
            stride=stride,
            on_duplicate=on_duplicate,
            workers=workers,
        )

    async def add_features(self, videos: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        """Add videos that the same model encoded; see :meth:`Retriever.add_features`."""
        await self._write(self._writable.add_features, videos, features)

    async def remove(
        self, ids: str | Sequence[str] | None = None, *, where: str | None = None
    ) -> int:
        """Remove videos and return their number; see :meth:`Retriever.remove`."""
        return await self._write(self._writable.remove, ids, where=where)

    async def refresh(self) -> None:
        """Load the changes of other processes; see :meth:`Retriever.refresh`."""
        await self._read(self.retriever.refresh)

    async def warm_up(self) -> None:
        """Load what the first searches would wait for; see :meth:`Retriever.warm_up`."""
        await self._read(self.retriever.warm_up)

    async def save(self, path: PathName) -> None:
        """Write a copy of the gallery; see :meth:`Retriever.save`."""
        await self._write(self._writable.save, path)

    def __len__(self) -> int:
        """Return the number of videos in the gallery."""
        return len(self.retriever)

    def __bool__(self) -> bool:
        """Return True, for an empty gallery too."""
        return True

    # -- search ----------------------------------------------------------------------------

    @spells_out(SearchKeywords)
    async def search(
        self,
        text: str,
        k: int = 10,
        *,
        video: VideoLike | None = None,
        video_weight: float = 0.5,
        **options: Unpack[SearchKeywords],
    ) -> SearchResults:
        """Find the ``k`` videos that fit a text best; see :meth:`Retriever.search`."""
        return await self._read(
            self.retriever.search, text, k, video=video, video_weight=video_weight, **options
        )

    @spells_out(SearchKeywords)
    async def search_batch(
        self, texts: Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]
    ) -> list[SearchResults]:
        """Search for several texts at once; see :meth:`Retriever.search_batch`."""
        return await self._read(self.retriever.search_batch, texts, k, **options)

    @spells_out(SimilarityKeywords)
    async def search_by_video(
        self, video: VideoLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to a video; see :meth:`Retriever.search_by_video`."""
        return await self._read(self.retriever.search_by_video, video, k, **options)

    @spells_out(SimilarityKeywords)
    async def search_by_image(
        self, image: ImageLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to an image; see :meth:`Retriever.search_by_image`."""
        return await self._read(self.retriever.search_by_image, image, k, **options)

    async def query_bank(self, texts: Sequence[str]) -> QueryBank:
        """Encode the texts of a query bank; see :meth:`Retriever.query_bank`."""
        return await self._read(self.retriever.query_bank, texts)

    # -- evidence --------------------------------------------------------------------------

    @overload
    async def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    async def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    async def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Explain the score of a video, or the order of two; see :meth:`Retriever.explain`."""
        explain: Callable[..., Explanation | Contrast] = self.retriever.explain
        return await self._read(explain, query, a, b)

    async def plot_explanation(
        self, explanation: Explanation | Contrast, path: PathName, *, theme: Theme = "light"
    ) -> None:
        """Write an explanation as a PNG; see :meth:`Retriever.plot_explanation`."""
        await self._read(self.retriever.plot_explanation, explanation, path, theme=theme)

    # -- for pipelines of one's own --------------------------------------------------------

    async def read_video(self, path: PathName) -> VideoFrames:
        """Read one video, prepared for the model; see :meth:`Retriever.read_video`."""
        return await self._read(self.retriever.read_video, path)

    async def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts; see :meth:`Retriever.encode_texts`."""
        return await self._read(self.retriever.encode_texts, texts)

    async def encode_videos(self, videos: Sequence[VideoLike]) -> VideoFeatures:
        """Embed videos; see :meth:`Retriever.encode_videos`."""
        return await self._read(self.retriever.encode_videos, videos)

    async def encode_frames(
        self, frames: npt.NDArray[np.uint8], num_frames: npt.NDArray[np.integer[Any]]
    ) -> VideoFeatures:
        """Embed videos from prepared frames; see :meth:`Retriever.encode_frames`."""
        return await self._read(self.retriever.encode_frames, frames, num_frames)

    async def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video; see :meth:`Retriever.score`."""
        return await self._read(self.retriever.score, texts, videos)

    # -- life ------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for running calls, then close the retriever, also one that was given opened.

        Coroutines that begin afterwards raise ClosedError.
        """
        self._is_closed = True
        loop = asyncio.get_running_loop()
        for threads in (self._readers, self._writer):
            await loop.run_in_executor(None, threads.shutdown)
        await loop.run_in_executor(None, self.retriever.close)

    async def __aenter__(self) -> AsyncRetriever:
        self._check_open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        if self._is_closed:
            return f"<{type(self).__name__} of {str(self.retriever.bundle.path)!r}, closed>"
        return f"<{type(self).__name__} of {self.retriever!r}, {self._max_concurrency} at a time>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "an AsyncRetriever cannot be pickled or copied; open it in the worker: "
            f"AsyncRetriever({str(self.retriever.bundle.path)!r}, {self.retriever._uri!r})"
        )

    @property
    def _writable(self) -> Retriever:
        self._check_open()
        if isinstance(self.retriever, Retriever):
            return self.retriever
        raise InvalidArgumentError(
            f"a {type(self.retriever).__name__} only searches; to add or prune videos, run: "
            "xclip-deploy index VIDEOS --gallery GALLERY --cluster auto"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            path = self.retriever.bundle.path
            raise ClosedError(f"this AsyncRetriever of {path} is closed; open another")

    async def _read(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        call = partial(method, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._readers, call)

    async def _write(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        call = partial(method, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._writer, call)


_DEFAULTS = {
    "gallery": None,
    "create": False,
    "device": "auto",
    "precision": "auto",
    "threads": None,
    "max_batch": 16,
    "reader": "pyav",
    "session": None,
}
_KINDS = {name: type(value) for name, value in _DEFAULTS.items()}
