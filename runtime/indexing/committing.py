"""Write the files that were read to the gallery, under its lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.indexing.edit import GalleryEdit
from xclip_deploy.runtime.indexing.records import EncodedVideo, Placed, ReadyFile, Task, What
from xclip_deploy.runtime.video import READING_VERSION


@dataclass
class CommitResult:
    """The outcome of a commit."""

    placed: list[Placed] = field(default_factory=list)
    missing: list[ReadyFile] = field(default_factory=list)
    """Files without features, whose content is neither in the gallery nor in another file."""


def commit_files(gallery: Gallery, files: Sequence[ReadyFile]) -> CommitResult:
    """Write files to the gallery in one step, on top of what other writers committed.

    Raises GalleryError; then nothing was written.
    """
    ready = sorted(files, key=lambda file: file.task.order)
    result = CommitResult()
    with gallery.exclusive():
        commit = _Commit(gallery, ready, result)
        for item in ready:
            commit.place(item)
        commit.edit.write()
    return result


def detach_files(gallery: Gallery, files: Sequence[tuple[str, str]]) -> list[str]:
    """Remove files, given with their videos' ids, from the gallery; return those removed."""
    detached = []
    with gallery.exclusive():
        edit = GalleryEdit(gallery, [video_id for _, video_id in files])
        for path, video_id in files:
            # The video was renamed if another of its files was detached just now.
            renamed = edit.new_name(video_id)
            if edit.lists(renamed, path):
                edit.detach(renamed, path)
                detached.append(path)
        edit.write()
    return detached


def clear_files(gallery: Gallery, tasks: Sequence[Task]) -> None:
    """Take files out of a shard, as they were committed to another one.

    The ids that they took there become free here.
    """
    with gallery.exclusive():
        names = {known.video_id for task in tasks for known in task.known}
        names |= {task.source.wanted_id for task in tasks}
        commit = _Commit(gallery, [], CommitResult(), sorted(names))
        for task in tasks:
            commit.clear(task)
        commit.edit.write()


class _Commit:
    def __init__(
        self,
        gallery: Gallery,
        ready: Sequence[ReadyFile],
        result: CommitResult,
        names: Sequence[str] = (),
    ) -> None:
        ids = set(names)
        ids |= {known.video_id for item in ready for known in item.task.known}
        ids |= {item.task.source.wanted_id for item in ready}
        contents = {item.content_sha256 for item in ready if item.content_sha256 is not None}
        self.edit = GalleryEdit(gallery, sorted(ids), sorted(contents))
        self._result = result
        self._encoded = {item.content_sha256: item.encoded for item in ready if item.encoded}

    def place(self, item: ReadyFile) -> None:
        if item.content_sha256 is None:
            self._touch(item)
            return
        edit, task, path = self.edit, item.task, item.file.path
        owner = edit.with_content(item.content_sha256)
        # Among files with the same content, the first of the sources names the video.
        encoded = item.encoded or (
            self._encoded.get(item.content_sha256) if owner is None else None
        )
        if owner is None and encoded is None:
            self._result.missing.append(item)
            return
        listing = [name for name in self._names(task) if edit.lists(name, path)]
        before = [video for name in listing if (video := edit.get(name)) and video.path == path]
        for name in listing:
            if (owner is None or name != owner.id) and edit.lists(name, path):
                edit.detach(name, path)
        if owner is not None:
            self._join(item, owner.id, was_listed=owner.id in listing)
            return
        assert encoded is not None
        wanted = task.source.wanted_id
        was_there = bool(listing) or edit.get(wanted) is not None
        self._make_way(wanted, moves=task.source.id is None or wanted in listing)
        metadata = task.source.metadata
        if metadata is None:
            metadata = next((dict(video.metadata) for video in before), {})
        video = GalleryVideo(
            id=wanted,
            path=path,
            files=(item.file,),
            content_sha256=item.content_sha256,
            duration_s=encoded.duration_s,
            frame_times_s=(),
            reading_version=READING_VERSION,
            metadata=metadata,
        )
        edit.add(_segments_of(video, encoded), encoded.features)
        self._note(task, "changed" if was_there else "indexed", wanted)

    def clear(self, task: Task) -> None:
        """Take out a file, and whatever video has its id."""
        edit, path, wanted = self.edit, task.source.path, task.source.wanted_id
        listing = [name for name in self._names(task) if edit.lists(name, path)]
        for name in listing:
            if edit.lists(name, path):
                edit.detach(name, path)
        self._make_way(wanted, moves=task.source.id is None or wanted in listing)

    def _join(self, item: ReadyFile, video_id: str, *, was_listed: bool) -> None:
        """List a file under the video that has its content."""
        task = item.task
        self.edit.set_file(video_id, item.file)
        is_encoded = task.replace and item.encoded is not None and was_listed
        if is_encoded:
            assert item.encoded is not None
            video = self.edit.get(video_id)
            assert video is not None
            read = {"duration_s": item.encoded.duration_s, "reading_version": READING_VERSION}
            video = video.model_copy(update=read)
            self.edit.add(_segments_of(video, item.encoded), item.encoded.features)
        name, warning = self._describe(task, video_id)
        what: What = "unchanged" if was_listed else "duplicate"
        self._note(task, "changed" if is_encoded else what, name, warning)

    def _touch(self, item: ReadyFile) -> None:
        """Update the record of an unchanged file."""
        task, path = item.task, item.file.path
        name = task.known[0].video_id
        video = self.edit.get(name)
        if video is None or item.file not in video.files:
            self._result.missing.append(item)
            return
        shard = task.known[0].shard
        for other in task.known[1:]:
            # Another shard may list the file under the same id; it is cleared there.
            if other.shard == shard and self.edit.lists(other.video_id, path):
                self.edit.detach(other.video_id, path)
        name, warning = self._describe(task, name)
        self._note(task, "unchanged", name, warning)

    def _describe(self, task: Task, video_id: str) -> tuple[str, str | None]:
        """Give a video the id and metadata of its first file; returns its id and a warning."""
        source = task.source
        video = self.edit.get(video_id)
        assert video is not None
        if video.path != source.path:
            if source.metadata is None or dict(source.metadata) == dict(video.metadata):
                return video_id, None
            return video_id, f"has the content of {video.path}, whose metadata stands"
        if source.id is not None and source.id != video_id:
            self._make_way(source.id, moves=False)
            self.edit.rename(video_id, source.id)
            video_id = source.id
        if source.metadata is not None:
            self.edit.set_metadata(video_id, dict(source.metadata))
        return video_id, None

    def _make_way(self, video_id: str, *, moves: bool) -> None:
        """Free an id: rename the video that has it if ``moves``, else remove that video."""
        video = self.edit.get(video_id)
        if video is not None and moves and video.files:
            self.edit.move_aside(video_id)
        elif video is not None:
            self.edit.drop(video_id)

    def _names(self, task: Task) -> list[str]:
        names = [known.video_id for known in task.known] + [task.source.wanted_id]
        return list(dict.fromkeys(names))

    def _note(self, task: Task, what: What, name: str, warning: str | None = None) -> None:
        self._result.placed.append(Placed(task, what, name, warning))


def _segments_of(video: GalleryVideo, encoded: EncodedVideo) -> list[GalleryVideo]:
    """Return a row for each segment of an encoded video."""
    count = len(encoded.segments)
    return [
        video.model_copy(
            update={
                "segment": n,
                "num_segments": count,
                "start_s": segment.start_s,
                "end_s": segment.end_s,
                "frame_times_s": segment.frame_times_s,
                "segmentation": encoded.segmentation,
            }
        )
        for n, segment in enumerate(encoded.segments)
    ]
