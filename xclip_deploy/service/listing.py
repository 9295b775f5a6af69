"""Videos of the gallery as responses show them, and their removal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.gallery.records import times_of
from xclip_deploy.service.naming import check_filter, find_id, names_of
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.wire.gallery import (
    RemovedModel,
    RemoveRequest,
    SegmentModel,
    VideoModel,
    VideoPage,
)

if TYPE_CHECKING:
    from xclip_deploy.service.state import Service


def list_videos(service: Service, where: str | None, limit: int, offset: int) -> VideoPage:
    """Return a page of videos. Raises InvalidArgumentError for a filter, GalleryError."""
    show_paths = service.settings.show_paths
    check_filter(where, show_paths=show_paths)
    records = service.served.records()
    rows = records.first_rows(where)
    end = offset + limit
    return VideoPage(
        videos=[
            _model_of(video, show_paths=show_paths) for video in records.videos(rows[offset:end])
        ],
        total=len(rows),
        next_offset=end if end < len(rows) else None,
    )


def video_model(service: Service, name: str) -> VideoModel:
    """Return one video with its segments. Raises GalleryError."""
    show_paths = service.settings.show_paths
    records = service.served.records()
    video_id = find_id(records, name, show_paths=show_paths)
    rows = records.videos(records.segments([video_id])[video_id])
    segments = []
    for row in rows:
        start_s, end_s = times_of(row)
        segments.append(SegmentModel(segment=row.segment, start_s=start_s, end_s=end_s))
    model = _model_of(rows[0], show_paths=show_paths)
    return model.model_copy(update={"segments": segments})


def remove_videos(service: Service, asked: RemoveRequest) -> RemovedModel:
    """Remove videos, all or none, and then their files that were uploaded.

    Raises GalleryError for a video that is not there, InvalidArgumentError for a filter, and
    Refusal for a gallery in shards.
    """
    writer, show_paths = service.served.writer, service.settings.show_paths
    check_filter(asked.where, show_paths=show_paths)
    with writer.gallery.exclusive():
        records = VideoRecords([writer.gallery.snapshot()])
        if asked.videos is not None:
            ids = [find_id(records, name, show_paths=show_paths) for name in asked.videos]
            rows = [records.segments([each])[each][:1] for each in dict.fromkeys(ids)]
            videos = [video for row in rows for video in records.videos(row)]
        else:
            videos = records.videos(records.first_rows(asked.where))
        names = list(dict.fromkeys(video.id for video in videos))
        count = writer.remove(names) if names else 0
    service.uploads.forget(file for video in videos for file in video.files)
    return RemovedModel(num_removed=count)


def _model_of(video: GalleryVideo, *, show_paths: bool) -> VideoModel:
    names = names_of(video, show_paths=show_paths)
    return VideoModel(
        id=names.id,
        handle=names.handle,
        name=names.name,
        path=video.path if show_paths else None,
        paths=[file.path for file in video.files] if show_paths else [],
        duration_s=video.duration_s,
        num_segments=video.num_segments,
        metadata=dict(video.metadata),
        has_media=bool(video.files),
    )
