"""Calls of searches, evidence, embeddings and the gallery, as flows that either client runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from xclip_deploy.client.bodies import FilePart, FormBody, JsonBody
from xclip_deploy.client.exchange import Flow, Repeat, Request, address_of, exchange
from xclip_deploy.client.reading import (
    MediaOf,
    ignored,
    model_of,
    results_of,
    scores_of,
)
from xclip_deploy.client.settings import Rules
from xclip_deploy.client.videos import (
    Video,
    address_name,
    local_file,
    name_of,
    picture_part,
    sendable,
)
from xclip_deploy.errors import GalleryError, InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    as_number,
    as_sequence,
    as_text,
    as_texts,
    as_whole_number,
    shown,
)
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.results import SearchResult, SearchResults
from xclip_deploy.runtime.search import QueryBank, SearchOptions, SimilarityKeywords
from xclip_deploy.runtime.video import ImageLike
from xclip_deploy.wire import (
    BatchModel,
    BatchRequest,
    GalleryModel,
    RemovedModel,
    RemoveRequest,
    ResultsModel,
    ScoreRequest,
    ScoresModel,
    SearchRequest,
    SimilarityFields,
    TextFeaturesModel,
    TextsRequest,
    VideoFeaturesModel,
    VideoModel,
    VideoPage,
    WireModel,
)
from xclip_deploy.wire.gallery import MAX_PAGE
from xclip_deploy.wire.search import MAX_BATCH, SearchFields

Model = TypeVar("Model", bound=WireModel)
_JSON = "application/json"
_PAGE = 500


@dataclass(frozen=True)
class TextBank:
    """The texts of a query bank, which the service encodes; see :class:`QueryBank`."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


class ClientSearchKeywords(SimilarityKeywords, total=False):
    """Keywords of searches by text; the query bank holds texts, which the service encodes."""

    query_bank: TextBank | Sequence[str] | None


def made(kind: type[Model], **values: Any) -> Model:  # noqa: ANN401 - checked by the model
    """Make a request. Raises InvalidArgumentError for what the service would refuse."""
    try:
        return kind(**values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"][:2])) or "the request"
        raise InvalidArgumentError(
            f"{where} is {shown(fault['input'])}; expected what the service takes: {fault['msg']}"
        ) from error


def search_fields(k: int, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a search as a Retriever does, and return them for the service."""
    given = dict(options)
    bank = given.pop("query_bank", None)
    if isinstance(bank, QueryBank):
        raise InvalidArgumentError(
            "query_bank is a QueryBank, which holds embeddings; expected what "
            "client.query_bank(texts) gives"
        )
    within = given.get("within")
    if isinstance(within, SearchResult):
        given["within"] = within.id
    checked = SearchOptions.of(k, given)  # type: ignore[arg-type]
    values = {each.name: getattr(checked, each.name) for each in fields(checked)}
    values.pop("query_bank")
    if bank is not None:
        texts = bank.texts if isinstance(bank, TextBank) else as_texts("query_bank", bank)
        values["query_bank"] = list(texts)
    return values


def _named(video: Video | None) -> dict[str, Any]:
    """Return the fields that name a video of the gallery, and of a hit its segment."""
    if video is None:
        return {}
    segment = video.segment if isinstance(video, SearchResult) else None
    return {"video": name_of("video", video), "segment": segment}


@dataclass(frozen=True)
class Verbs:
    """The verbs of a client. Each returns a flow; a driver runs it."""

    rules: Rules
    media_of: MediaOf

    # -- search ----------------------------------------------------------------------------

    def search(
        self,
        text: str,
        k: int,
        video: Video | None,
        video_weight: float,
        options: dict[str, Any],
    ) -> Flow[SearchResults]:
        """Search by text, and by a video too if there is one."""
        values = search_fields(k, options)
        weight = as_number("video_weight", video_weight, 0, 1)
        file = None if video is None else local_file(video)
        if file is not None:
            extra = [("text", as_text("text", text), "text/plain; charset=utf-8")]
            values["video_weight"] = weight
            return (yield from self._uploaded("video", FilePart.of("file", file), values, extra))
        request = made(
            SearchRequest,
            text=as_text("text", text),
            **_named(video),
            video_weight=weight,
            **values,
        )
        return (yield from self._search(request, video))

    def search_batch(
        self, texts: Sequence[str], k: int, options: dict[str, Any]
    ) -> Flow[list[SearchResults]]:
        """Search by several texts, 64 in one request."""
        values, given = search_fields(k, options), as_texts("texts", texts)
        until, found = self.rules.deadline(), []
        for part in slices(len(given), MAX_BATCH):
            request = made(BatchRequest, texts=given[part], **values)
            model = yield from self._post("search/batch", request, BatchModel, until=until)
            found += [results_of(each, self.media_of) for each in model.results]
        return found

    def search_by_video(self, video: Video, k: int, options: dict[str, Any]) -> Flow[SearchResults]:
        """Search by a local file, which is uploaded, or by a video of the gallery."""
        values = search_fields(k, options)
        file = local_file(video)
        if file is not None:
            return (yield from self._uploaded("video", FilePart.of("file", file), values, []))
        request = made(SearchRequest, **_named(video), **values)
        return (yield from self._search(request, video))

    def search_by_image(
        self, image: ImageLike, k: int, options: dict[str, Any]
    ) -> Flow[SearchResults]:
        """Search by an image, which is uploaded."""
        values = search_fields(k, options)
        return (yield from self._uploaded("image", picture_part(image), values, []))

    def _search(self, request: SearchRequest, video: Video | None) -> Flow[SearchResults]:
        try:
            model = yield from self._post("search", request, ResultsModel)
        except GalleryError as error:
            if isinstance(video, (str, Path)) and type(error) is GalleryError:
                raise GalleryError(f"{error}; nor is there a local file of that name") from error
            raise
        return results_of(model, self.media_of)

    def _uploaded(
        self,
        what: str,
        part: FilePart,
        values: dict[str, Any],
        texts: list[tuple[str, str, str]],
    ) -> Flow[SearchResults]:
        weight = values.pop("video_weight", None)
        kind = SearchFields if texts else SimilarityFields
        if not texts and values.pop("query_bank", None) is not None:
            raise InvalidArgumentError(
                "query_bank calibrates searches by text alone; expected none with a video or image"
            )
        content = made(kind, **values).model_dump(mode="json", exclude_defaults=True)
        if weight is not None:
            content["video_weight"] = weight
        body = FormBody([("options", json.dumps(content), _JSON), *texts], [part])
        request = Request("POST", address_of("search", what), body=body)
        read = model_of(ResultsModel, self.rules)
        model = yield from exchange(request, self.rules, read)
        return results_of(model, self.media_of)

    # -- embeddings and scores -------------------------------------------------------------

    def encode_texts(self, texts: Sequence[str]) -> Flow[TextFeatures]:
        """Embed texts, 64 in one request."""
        given, until = as_texts("texts", texts), self.rules.deadline()
        if not given:
            raise InvalidArgumentError("texts is empty; expected at least one text")
        parts = []
        for part in slices(len(given), MAX_BATCH):
            request = made(TextsRequest, texts=given[part])
            model = yield from self._post("encode/texts", request, TextFeaturesModel, until=until)
            parts.append(model.features())
        return TextFeatures(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]))
        )

    def encode_videos(self, videos: Sequence[object]) -> Flow[VideoFeatures]:
        """Upload local files and embed them, one in a request."""
        files = [FilePart.of("file", file) for file in as_sequence("videos", videos, "videos")]
        if not files:
            raise InvalidArgumentError("videos is empty; expected at least one file")
        read, until = model_of(VideoFeaturesModel, self.rules), self.rules.deadline()
        parts = []
        for file in files:
            request = Request("POST", address_of("encode", "videos"), body=FormBody([], [file]))
            model = yield from exchange(request, self.rules, read, until)
            parts.append(model.features())
        return VideoFeatures.concatenate(parts)

    def score(
        self, texts: TextFeatures | Sequence[str], videos: VideoFeatures | Sequence[str]
    ) -> Flow[Scores]:
        """Score texts against videos, each as embeddings or by name."""
        sides = {
            "texts": TextFeaturesModel.of(texts)
            if isinstance(texts, TextFeatures)
            else as_texts("texts", texts),
            "videos": VideoFeaturesModel.of(videos)
            if isinstance(videos, VideoFeatures)
            else [name_of("videos", each) for each in as_sequence("videos", videos, "videos")],
        }
        model = yield from self._post("score", made(ScoreRequest, **sides), ScoresModel)
        return scores_of(model)

    # -- gallery ---------------------------------------------------------------------------

    def stats(self) -> Flow[GalleryModel]:
        """Ask for the content of the gallery."""
        return (yield from self._get(("gallery",), GalleryModel))

    def list_videos(self, where: str | None, limit: int, offset: int) -> Flow[VideoPage]:
        """Ask for one page of videos."""
        count = as_whole_number("limit", limit, 1, MAX_PAGE)
        first = as_whole_number("offset", offset, 0)
        params = [("limit", str(count)), ("offset", str(first))]
        if where is not None:
            params.append(("where", sendable("where", where)))
        return (yield from self._get(("videos",), VideoPage, params))

    def all_videos(self, where: str | None) -> Flow[list[VideoModel]]:
        """Ask for all videos, page by page."""
        videos: list[VideoModel] = []
        offset: int | None = 0
        while offset is not None:
            page: VideoPage = yield from self.list_videos(where, _PAGE, offset)
            videos += page.videos
            # A service that goes back would never end.
            is_onward = page.next_offset is not None and page.next_offset > offset
            offset = page.next_offset if is_onward else None
        return videos

    def get_video(self, video: str | SearchResult) -> Flow[VideoModel]:
        """Ask for one video with its segments."""
        return (yield from self._get(("videos", address_name(name_of("video", video))), VideoModel))

    def remove(
        self, ids: str | SearchResult | Iterable[str | SearchResult] | None, where: str | None
    ) -> Flow[int]:
        """Remove videos. It is not repeated if its outcome is not known."""
        if (ids is None) == (where is None):
            raise InvalidArgumentError(
                "remove takes ids or a filter `where`; expected exactly one of them"
            )
        names = None
        if ids is not None:
            given = (
                [ids] if isinstance(ids, (str, SearchResult)) else as_sequence("ids", ids, "ids")
            )
            names = [name_of("ids", each) for each in given]
            if not names:
                return 0
        request = made(RemoveRequest, videos=names, where=where)
        model = yield from self._post("videos/remove", request, RemovedModel, repeat=Repeat.REFUSED)
        return model.num_removed

    def refresh(self) -> Flow[None]:
        """Make the service load what others wrote to the gallery."""
        request = Request("POST", address_of("gallery", "refresh"))
        yield from exchange(request, self.rules, ignored(self.rules))

    def _post(
        self,
        path: str,
        content: WireModel,
        kind: type[Model],
        *,
        repeat: Repeat = Repeat.ALWAYS,
        until: float | None = None,
    ) -> Flow[Model]:
        address = address_of(*path.split("/"))
        request = Request("POST", address, body=JsonBody.of(content), repeat=repeat)
        return (yield from exchange(request, self.rules, model_of(kind, self.rules), until))

    def _get(
        self, parts: tuple[str, ...], kind: type[Model], params: Sequence[tuple[str, str]] = ()
    ) -> Flow[Model]:
        request = Request("GET", address_of(*parts), params)
        return (yield from exchange(request, self.rules, model_of(kind, self.rules)))
