"""JSON of the service: requests, responses and errors, as the server and the client share them.

Every model is strict: an unknown field is an error. Times are seconds from a video's start.

A video has two names. ``id`` is the gallery's id, or the handle where that id is a path and the
service hides paths. ``handle`` addresses the video in URLs. Requests take either.
"""

from __future__ import annotations

from xclip_deploy.wire.arrays import ArrayModel, TextFeaturesModel, VideoFeaturesModel
from xclip_deploy.wire.base import API, ErrorBody, ErrorModel, WireModel
from xclip_deploy.wire.evidence import (
    ContrastModel,
    EvidenceModel,
    ExplanationModel,
)
from xclip_deploy.wire.gallery import (
    AddOptions,
    GalleryModel,
    IndexRequest,
    RemovedModel,
    RemoveRequest,
    SegmentModel,
    VideoModel,
    VideoPage,
)
from xclip_deploy.wire.jobs import JobModel, JobPage, JobState, ProgressModel, ReportModel
from xclip_deploy.wire.search import (
    BatchModel,
    BatchRequest,
    ExplainRequest,
    HitModel,
    MomentModel,
    ResultsModel,
    ScoreRequest,
    ScoresModel,
    SearchFields,
    SearchRequest,
    SimilarityFields,
    TextsRequest,
)

__all__ = [
    "API",
    "AddOptions",
    "ArrayModel",
    "BatchModel",
    "BatchRequest",
    "ContrastModel",
    "ErrorBody",
    "ErrorModel",
    "EvidenceModel",
    "ExplainRequest",
    "ExplanationModel",
    "GalleryModel",
    "HitModel",
    "IndexRequest",
    "JobModel",
    "JobPage",
    "JobState",
    "MomentModel",
    "ProgressModel",
    "RemoveRequest",
    "RemovedModel",
    "ReportModel",
    "ResultsModel",
    "ScoreRequest",
    "ScoresModel",
    "SearchFields",
    "SearchRequest",
    "SegmentModel",
    "SimilarityFields",
    "TextFeaturesModel",
    "TextsRequest",
    "VideoFeaturesModel",
    "VideoModel",
    "VideoPage",
    "WireModel",
]
