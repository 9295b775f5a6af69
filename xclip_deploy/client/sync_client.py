"""The client for threads."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, overload

from xclip_deploy.client import adding, evidence
from xclip_deploy.client.adding import AddOptions
from xclip_deploy.client.http import ThreadHTTP
from xclip_deploy.client.jobs import Job
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
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.results import SearchResult, SearchResults
from xclip_deploy.runtime.search import SearchKeywords, SimilarityKeywords, spells_out
from xclip_deploy.runtime.video import ImageLike
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.wire import GalleryModel, VideoModel, VideoPage

if TYPE_CHECKING:
    import httpx2
    from typing_extensions import Self, Unpack


class Client:
    """The verbs and results of a :class:`Retriever`, from a service.

    >>> client = Client("http://127.0.0.1:8000")                    # doctest: +SKIP
    >>> client.upload(["dog.mp4"]).wait()                           # doctest: +SKIP
    >>> client.search("a dog on a leash", k=3)[0].cut("dog-1.mp4")  # doctest: +SKIP

    It is safe to use from several threads, and a context manager. Errors of the service are raised
    as the classes that a Retriever raises. ServiceError and its subclasses are of the service
    itself: no connection, no answer in time, too many requests, a wrong token.

    Requests that only read are repeated after failures, with growing pauses. A request that changes
    the gallery is repeated only where it was not carried out. An upload is sent once.
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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        ``address``: scheme, host and port. ``token``: the service's secret; None takes that of
        the variable ``XCLIP_DEPLOY_TOKEN``. ``connect_timeout_s``: longest time to connect.
        ``read_timeout_s``: longest time without a byte. ``timeout_s``: longest time of a call, with
        its repetitions; uploads have none. ``retries``: most repetitions. ``max_response_bytes``:
        largest answer in memory. ``proxy``: address of a proxy; those of the environment are not
        used. ``verify``: whether, or how, certificates are checked. ``transport``: a transport of
        httpx2, such as for tests.

        Raises InvalidArgumentError, MissingExtraError.
        """
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
        self._http = ThreadHTTP(self._settings, transport)
        self._verbs = Verbs(self._rules, self._media_of)
        self._is_closed = False

    # -- gallery ---------------------------------------------------------------------------

    def add(
        self,
        paths: PathName | Iterable[PathName],
        *,
        metadata: Mapping[str, MetadataValue] | None = None,
        segment: str | float | Segmentation | None = None,
        stride: str | float | None = None,
        on_duplicate: OnDuplicate = "update",
        prune: bool = False,
        thumbnails: bool = True,
    ) -> Job:
        """Start a job that adds files or folders of the service's machine.

        They lie below the folders that the service was started with. The other arguments are those
        of :meth:`Retriever.add`. Raises ServiceAccessError for paths elsewhere, and as that does.
        """
        options = AddOptions(metadata, segment, stride, on_duplicate, prune, thumbnails)
        model = self._open().run(adding.add(self._rules, paths, options))
        return Job(model, self._rules, self._http)

    def upload(
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
    ) -> Job:
        """Upload local files, and start a job that adds them. Bytes are streamed, and sent once.

        ``progress``: a function that is called with a :class:`Progress` in bytes. ``timeout_s``:
        longest time of the upload; None sets no limit. After a connection that broke, look at
        :meth:`jobs` before you upload again. Raises VideoNotFoundError for a file that is not
        there, ServiceError, InvalidArgumentError.
        """
        options = AddOptions(metadata, segment, stride, on_duplicate, False, thumbnails)
        flow = adding.upload(self._rules, files, options, progress, timeout_s)
        return Job(self._open().run(flow), self._rules, self._http)

    def remove(
        self,
        ids: str | SearchResult | Iterable[str | SearchResult] | None = None,
        *,
        where: str | None = None,
    ) -> int:
        """Remove videos by id, handle or hit, or those that match a filter; return their number.

        Raises GalleryError for a video that is not there.
        """
        return self._open().run(self._verbs.remove(ids, where))

    def stats(self) -> GalleryModel:
        """Return what the gallery holds, and which model the service runs."""
        return self._open().run(self._verbs.stats())

    def list_videos(
        self, where: str | None = None, *, limit: int = 100, offset: int = 0
    ) -> VideoPage:
        """Return one page of the gallery's videos; ``where`` filters as in searches."""
        return self._open().run(self._verbs.list_videos(where, limit, offset))

    def all_videos(self, where: str | None = None) -> list[VideoModel]:
        """Return all videos of the gallery, or all that match a filter."""
        return self._open().run(self._verbs.all_videos(where))

    def get_video(self, video: str | SearchResult) -> VideoModel:
        """Return one video with its segments. Raises GalleryError if it is not there."""
        return self._open().run(self._verbs.get_video(video))

    def refresh(self) -> None:
        """Make the service load the changes that other processes made to the gallery."""
        self._open().run(self._verbs.refresh())

    # -- jobs ------------------------------------------------------------------------------

    def jobs(self, limit: int = 50) -> list[Job]:
        """Return the service's newest jobs, ``limit`` at most."""
        page = self._open().run(adding.list_jobs(self._rules, limit))
        return [Job(model, self._rules, self._http) for model in page.jobs]

    def job(self, job_id: str) -> Job:
        """Return a job by its id."""
        model = self._open().run(adding.job_state(self._rules, job_id))
        return Job(model, self._rules, self._http)

    # -- search ----------------------------------------------------------------------------

    @spells_out(SearchKeywords)
    def search(
        self,
        text: str,
        k: int = 10,
        *,
        video: Video | None = None,
        video_weight: float = 0.5,
        **options: Unpack[ClientSearchKeywords],
    ) -> SearchResults:
        """Find the ``k`` videos that fit a text best; see :meth:`Retriever.search`.

        ``video``: a local file, which is uploaded, or a video of the gallery by id, handle or hit.
        ``query_bank``: what :meth:`query_bank` gives.
        """
        return self._open().run(self._verbs.search(text, k, video, video_weight, {**options}))

    @spells_out(SearchKeywords)
    def search_batch(
        self, texts: Sequence[str], k: int = 10, **options: Unpack[ClientSearchKeywords]
    ) -> list[SearchResults]:
        """Search for several texts at once; see :meth:`Retriever.search_batch`."""
        return self._open().run(self._verbs.search_batch(texts, k, {**options}))

    @spells_out(SimilarityKeywords)
    def search_by_video(
        self, video: Video, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to a video; see :meth:`Retriever.search_by_video`.

        ``video``: a local file, which is uploaded, or a video of the gallery by id, handle or hit.
        """
        return self._open().run(self._verbs.search_by_video(video, k, {**options}))

    @spells_out(SimilarityKeywords)
    def search_by_image(
        self, image: ImageLike, k: int = 10, **options: Unpack[SimilarityKeywords]
    ) -> SearchResults:
        """Find the ``k`` videos most similar to an image; see :meth:`Retriever.search_by_image`."""
        return self._open().run(self._verbs.search_by_image(image, k, {**options}))

    def query_bank(self, texts: Sequence[str]) -> TextBank:
        """Return texts as a query bank, which calibrates scores; see :class:`QueryBank`."""
        return TextBank(tuple(as_texts("texts", texts)))

    # -- evidence --------------------------------------------------------------------------

    @overload
    def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Explain the score of a video, or the order of two; see :meth:`Retriever.explain`."""
        return self._open().run(evidence.explain(self._rules, query, a, b))

    def plot_explanation(self, explanation: Explanation | Contrast, path: PathName) -> None:
        """Write an explanation as a PNG, which the service draws from the gallery as it is now."""
        self._open().run(evidence.plot(self._rules, explanation, path))

    # -- for pipelines of one's own --------------------------------------------------------

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts; see :meth:`Retriever.encode_texts`."""
        return self._open().run(self._verbs.encode_texts(texts))

    def encode_videos(self, videos: Sequence[PathName]) -> VideoFeatures:
        """Upload local files and embed them; see :meth:`Retriever.encode_videos`."""
        return self._open().run(self._verbs.encode_videos(videos))

    def score(
        self, texts: TextFeatures | Sequence[str], videos: VideoFeatures | Sequence[str]
    ) -> Scores:
        """Score every text against every video; see :meth:`Retriever.score`.

        Either side is embeddings, or texts and videos of the gallery by name.
        """
        return self._open().run(self._verbs.score(texts, videos))

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all connections. Using the client afterwards raises ClosedError."""
        self._is_closed = True
        self._http.close()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<{type(self).__name__} of {self._settings.shown_address!r}{closed}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "a Client cannot be pickled or copied; make one in the worker: "
            f"Client({self._settings.shown_address!r})"
        )

    def _media_of(self, handle: str) -> RemoteMedia:
        return RemoteMedia(handle, self._rules, lambda flow: self._open().run(flow))

    def _open(self) -> ThreadHTTP:
        if self._is_closed:
            raise ClosedError(
                f"this Client of {self._settings.shown_address} is closed; make another"
            )
        return self._http
