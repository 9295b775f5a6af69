"""The client for asyncio."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.client import adding, evidence, media
from xclip_deploy.client.adding import AddOptions
from xclip_deploy.client.exchange import Flow
from xclip_deploy.client.http import LoopHTTP, ThreadHTTP
from xclip_deploy.client.jobs import AsyncJob
from xclip_deploy.client.media import RemoteMedia
from xclip_deploy.client.settings import ClientSettings, Rules
from xclip_deploy.client.verbs import ClientSearchKeywords, TextBank, Verbs
from xclip_deploy.client.videos import Video
from xclip_deploy.errors import ClosedError, InvalidArgumentError
from xclip_deploy.runtime.arguments import PathName, as_texts
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import MetadataValue
from xclip_deploy.runtime.indexing import OnDuplicate
from xclip_deploy.runtime.media import Cut, CutMode
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.results import Moment, SearchResult, SearchResults
from xclip_deploy.runtime.search import SearchKeywords, SimilarityKeywords, spells_out
from xclip_deploy.runtime.video import ImageLike
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.wire import GalleryModel, VideoModel, VideoPage

if TYPE_CHECKING:
    import httpx2
    from typing_extensions import Self, Unpack


class AsyncClient:
    """The methods of a :class:`Client` as coroutines.

    >>> async with AsyncClient("http://127.0.0.1:8000") as client:
    ...     hits = await client.search("a dog on a leash", k=5)         # doctest: +SKIP
    ...     await client.cut(hits[0], "dog.mp4")                        # doctest: +SKIP

    Each coroutine has the arguments, result and errors of the method of the same name. A client
    belongs to the event loop that uses it first. Methods of a hit block, and so refuse to run on an
    event loop: :meth:`thumbnail`, :meth:`frames` and :meth:`cut` take their place. Callbacks such
    as ``progress`` of an upload are called on threads.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 120.0,
        timeout_s: float = 600.0,
        retries: int = 3,
        max_response_bytes: int = 512 << 20,
        proxy: str | None = None,
        follow_redirects: bool = False,
        verify: bool | ssl.SSLContext = True,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare a client, as :class:`Client` does; nothing is sent yet."""
        self._settings = ClientSettings(
            address,
            token,
            connect_timeout_s,
            read_timeout_s,
            timeout_s,
            retries,
            max_response_bytes,
            proxy=proxy,
            follow_redirects=follow_redirects,
            verify=verify,
        )
        self._rules = Rules(self._settings)
        self._http = LoopHTTP(self._settings, transport)
        self._is_direct = transport is None
        self._blocking: ThreadHTTP | None = None
        self._lock = threading.Lock()
        self._verbs = Verbs(self._rules, self._media_of)
        self._is_closed = False

    # -- gallery ---------------------------------------------------------------------------

    async def add(
        self,
        paths: PathName | Iterable[PathName],
        *,
        metadata: Mapping[str, MetadataValue] | None = None,
        segment: str | float | Segmentation | None = None,
        stride: str | float | None = None,
        on_duplicate: OnDuplicate = "update",
        prune: bool = False,
        thumbnails: bool = True,
    ) -> AsyncJob:
        """Start a job that adds files of the service's machine; see :meth:`Client.add`."""
        options = AddOptions(metadata, segment, stride, on_duplicate, prune, thumbnails)
        model = await self._open().run(adding.add(self._rules, paths, options))
        return AsyncJob(model, self._rules, self._http)

    async def upload(
        self,
        files: PathName | Iterable[PathName],
        *,
        metadata: Mapping[str, MetadataValue] | None = None,
        segment: str | float | Segmentation | None = None,
        stride: str | float | None = None,
        on_duplicate: OnDuplicate = "update",
        thumbnails: bool = True,
        progress: ProgressFunction | None = None,
        timeout_s: float | None = None,
    ) -> AsyncJob:
        """Upload local files, and start a job that adds them; see :meth:`Client.upload`."""
        options = AddOptions(metadata, segment, stride, on_duplicate, False, thumbnails)
        flow = adding.upload(self._rules, files, options, progress, timeout_s)
        return AsyncJob(await self._open().run(flow), self._rules, self._http)

    async def remove(
        self,
        ids: str | SearchResult | Iterable[str | SearchResult] | None = None,
        *,
        where: str | None = None,
    ) -> int:
        """Remove videos and return their number; see :meth:`Client.remove`."""
        return await self._open().run(self._verbs.remove(ids, where))

    async def stats(self) -> GalleryModel:
        """Return what the gallery holds; see :meth:`Client.stats`."""
        return await self._open().run(self._verbs.stats())

    async def list_videos(
        self, where: str | None = None, *, limit: int = 100, offset: int = 0
    ) -> VideoPage:
        """Return one page of the gallery's videos; see :meth:`Client.list_videos`."""
        return await self._open().run(self._verbs.list_videos(where, limit, offset))

    async def all_videos(self, where: str | None = None) -> list[VideoModel]:
        """Return all videos of the gallery; see :meth:`Client.all_videos`."""
        return await self._open().run(self._verbs.all_videos(where))

    async def get_video(self, video: str | SearchResult) -> VideoModel:
        """Return one video with its segments; see :meth:`Client.get_video`."""
        return await self._open().run(self._verbs.get_video(video))

    async def refresh(self) -> None:
        """Make the service load the changes of others; see :meth:`Client.refresh`."""
        await self._open().run(self._verbs.refresh())

    # -- jobs ------------------------------------------------------------------------------

    async def jobs(self, limit: int = 50) -> list[AsyncJob]:
        """Return the service's newest jobs; see :meth:`Client.jobs`."""
        page = await self._open().run(adding.list_jobs(self._rules, limit))
        return [AsyncJob(model, self._rules, self._http) for model in page.jobs]

    async def job(self, job_id: str) -> AsyncJob:
        """Return a job by its id."""
        model = await self._open().run(adding.job_state(self._rules, job_id))
        return AsyncJob(model, self._rules, self._http)

    # -- search ----------------------------------------------------------------------------

    @spells_out(SearchKeywords)
    async def search(
        self,
        text: str,
        k: int = 10,
        *,
        video: Video | None = None,
        video_weight: float = 0.5,
        **options: Unpack[ClientSearchKeywords],
    ) -> SearchResults:
        """Find the ``k`` videos that fit a text best; see :meth:`Client.search`."""
        return await self._open().run(self._verbs.search(text, k, video, video_weight, {**options}))

    @spells_out(SearchKeywords)
    async def search_batch(
        self, texts: Sequence[str], k: int = 10, **options: Unpack[ClientSearchKeywords]
    ) -> list[SearchResults]:
        """Search for several texts at once; see :meth:`Client.search_batch`."""
        return await self._open().run(self._verbs.search_batch(texts, k, {**options}))

    @spells_out(SimilarityKeywords)
    async def search_by_video(
        self, video: Video, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to a video; see :meth:`Client.search_by_video`."""
        return await self._open().run(self._verbs.search_by_video(video, k, {**options}))

    @spells_out(SimilarityKeywords)
    async def search_by_image(
        self, image: ImageLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to an image; see :meth:`Client.search_by_image`."""
        return await self._open().run(self._verbs.search_by_image(image, k, {**options}))

    async def query_bank(self, texts: Sequence[str]) -> TextBank:
        """Return texts as a query bank; see :meth:`Client.query_bank`."""
        return TextBank(tuple(as_texts("texts", texts)))

    # -- evidence --------------------------------------------------------------------------

    @overload
    async def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    async def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    async def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Explain the score of a video, or the order of two; see :meth:`Retriever.explain`."""
        return await self._open().run(evidence.explain(self._rules, query, a, b))

    async def plot_explanation(self, explanation: Explanation | Contrast, path: PathName) -> None:
        """Write an explanation as a PNG; see :meth:`Client.plot_explanation`."""
        await self._open().run(evidence.plot(self._rules, explanation, path))

    # -- pictures and cuts of hits ---------------------------------------------------------

    async def thumbnail(self, hit: SearchResult, moment: Moment | None = None) -> NDArray[np.uint8]:
        """Return a small picture of a hit; see :meth:`SearchResult.thumbnail`."""
        flow: Any = media.flows_of(self._rules, hit).thumbnail(moment)
        picture: NDArray[np.uint8] = await self._open().run(flow)
        return picture

    async def frames(
        self, hit: SearchResult, moment: Moment | None = None, *, max_frames: int = 64
    ) -> media.Frames:
        """Return the frames of a hit and their times; see :meth:`SearchResult.frames`."""
        flow: Any = media.flows_of(self._rules, hit).frames(moment, max_frames=max_frames)
        found: media.Frames = await self._open().run(flow)
        return found

    async def cut(
        self,
        hit: SearchResult,
        out: PathName,
        moment: Moment | None = None,
        *,
        mode: CutMode = "exact",
        pad_s: float = 0.0,
        refined: bool = False,
        overwrite: bool = False,
    ) -> Cut:
        """Let the service cut a hit, and download the file; see :meth:`SearchResult.cut`."""
        hit = media.flows_of(self._rules, hit)
        flow: Any = hit.cut(
            out, moment, mode=mode, pad_s=pad_s, refined=refined, overwrite=overwrite
        )
        made: Cut = await self._open().run(flow)
        return made

    def _media_of(self, handle: str) -> RemoteMedia:
        return RemoteMedia(handle, self._rules, self._run_blocking)

    def _run_blocking(self, flow: Flow[Any]) -> Any:  # noqa: ANN401 - each call has its result
        """Run a call of a hit's own method. Raises InvalidArgumentError on an event loop."""
        self._open()
        if not self._is_direct or _is_on_a_loop():
            raise InvalidArgumentError(
                "a method of a hit would block the event loop; expected `await client.thumbnail"
                "(hit)`, `frames` or `cut`, or the method on a thread (asyncio.to_thread)"
            )
        with self._lock:
            self._blocking = self._blocking or ThreadHTTP(self._settings)
        return self._blocking.run(flow)

    # -- for pipelines of one's own --------------------------------------------------------

    async def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts; see :meth:`Client.encode_texts`."""
        return await self._open().run(self._verbs.encode_texts(texts))

    async def encode_videos(self, videos: Sequence[PathName]) -> VideoFeatures:
        """Upload local files and embed them; see :meth:`Client.encode_videos`."""
        return await self._open().run(self._verbs.encode_videos(videos))

    async def score(
        self, texts: TextFeatures | Sequence[str], videos: VideoFeatures | Sequence[str]
    ) -> Scores:
        """Score every text against every video; see :meth:`Client.score`."""
        return await self._open().run(self._verbs.score(texts, videos))

    # -- life ------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close all connections. Using the client afterwards raises ClosedError."""
        self._is_closed = True
        await self._http.close()
        with self._lock:
            if self._blocking is not None:
                self._blocking.close()

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<{type(self).__name__} of {self._settings.shown_address!r}{closed}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "an AsyncClient cannot be pickled or copied; make one in the worker: "
            f"AsyncClient({self._settings.shown_address!r})"
        )

    def _open(self) -> LoopHTTP:
        if self._is_closed:
            raise ClosedError(
                f"this AsyncClient of {self._settings.shown_address} is closed; make another"
            )
        return self._http


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
