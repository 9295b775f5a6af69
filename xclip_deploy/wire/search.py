"""Requests and responses of search, evidence, encoding and scoring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xclip_deploy.runtime.gallery.records import MetadataValue
from xclip_deploy.wire.arrays import ArrayModel, TextFeaturesModel, VideoFeaturesModel
from xclip_deploy.wire.base import FailedShardModel, QueryText, VideoName, WireModel

MAX_K = 1000
MAX_BATCH = 64
MAX_BANK = 1000
MAX_OFFSET = 100_000
Time = Annotated[float, Field(ge=0, le=1e9)] | Annotated[str, Field(max_length=32)]
"""Seconds, or a text such as ``1:02:03.5``."""


class SimilarityFields(WireModel):
    """Options of every search; :class:`SearchOptions` describes each."""

    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    where: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET)] = 0
    min_score: float | None = None
    deduplicate: bool | Annotated[float, Field(gt=0, le=1)] = False
    exact: bool | None = None
    candidates: Annotated[int, Field(ge=1, le=100_000)] = 300
    group: Literal["video", "moment"] = "video"
    per_video: Annotated[int, Field(ge=1, le=1000)] = 3
    nms: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    within: VideoName | None = None
    from_s: Time | None = None
    to_s: Time | None = None
    refine: bool = True
    confidence: bool = False
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None


class SearchFields(SimilarityFields):
    """Options of searches by text."""

    query_bank: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_BANK)] | None = None
    """Texts to calibrate scores with."""


class SearchRequest(SearchFields):
    """A search by text, by a video of the gallery, or by both."""

    text: QueryText | None = None
    video: VideoName | None = None
    """Video of the gallery that hits should resemble."""
    segment: Annotated[int, Field(ge=0)] | None = None
    """Segment of that video; None takes the mean of all its segments."""
    video_weight: Annotated[float, Field(ge=0, le=1)] = 0.5


class BatchRequest(SearchFields):
    """Searches by several texts with the same options."""

    texts: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_BATCH)]


class MomentModel(WireModel):
    """A segment of a video as a search found it; see :class:`Moment`."""

    segment: int
    start_s: float
    end_s: float | None
    score: float
    grains: dict[str, float | None] | None
    best_frame_time_s: float


class RangeModel(WireModel):
    """A refined range; see :class:`TimeRange`."""

    start_s: float
    end_s: float
    resolution_s: float


class HitModel(MomentModel):
    """One hit; see :class:`SearchResult`. Fields of its best moment are the hit's own."""

    rank: int
    id: str
    handle: str
    """Name of the video in addresses."""
    name: str
    """File name, or the id of a video without a file."""
    path: str | None
    """Path of the file; None where the service hides paths."""
    paths: list[str]
    near_identical: list[str]
    duration_s: float | None
    metadata: dict[str, MetadataValue]
    moments: list[MomentModel]
    range: RangeModel | None
    confidence: float | None
    has_media: bool
    """Whether the video was added from a file, so that it can be shown, played and cut."""


class ResultsModel(WireModel):
    """Results of one query; see :class:`SearchResults`."""

    hits: list[HitModel]
    method: Literal["exact", "two-stage"]
    num_scored: int
    num_videos: int
    reason: str
    truncated_tokens: int
    num_segments: int | None
    note: str
    warnings: list[str] = Field(default_factory=list)
    """Warnings of this search, such as a query video that was thinned out."""
    answered_shards: list[int] = Field(default_factory=list)
    """Numbers of the shards that were searched; empty for a gallery on one machine."""
    failed_shards: list[FailedShardModel] = Field(default_factory=list)
    """Shards that did not answer, whose videos are missing."""


class BatchModel(WireModel):
    """Results of several queries, in the order of the texts."""

    results: list[ResultsModel]


class HitName(WireModel):
    """A video, or one segment of it."""

    video: VideoName
    segment: Annotated[int, Field(ge=0)] | None = None
    """None takes the segment with the best score."""


class ExplainRequest(WireModel):
    """A question why a video has its score, or why it ranks above another."""

    query: QueryText
    hit: HitName
    other: HitName | None = None


class TextsRequest(WireModel):
    """Texts to embed."""

    texts: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_BATCH)]


class ScoreRequest(WireModel):
    """Texts against videos: each side as names or as embeddings."""

    texts: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_BATCH)] | TextFeaturesModel
    videos: Annotated[list[VideoName], Field(min_length=1, max_length=1000)] | VideoFeaturesModel


class ScoresModel(WireModel):
    """Logits and grains of every text against every video, [T, V]; see :class:`Scores`."""

    logits: ArrayModel
    grains: dict[str, ArrayModel]
