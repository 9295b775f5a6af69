"""Captions of an annotation file, by video."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.split import AnnotatedVideo


def collapse(text: str) -> str:
    """Collapse every run of whitespace to one space, and strip both ends."""
    return " ".join(text.split())


class CaptionCollector:
    """Captions gathered while a file is read, then given out by video."""

    def __init__(self, path: Path) -> None:
        self._path = path  # for messages
        self._captions: dict[str, list[str]] = {}
        self._empty_places: list[str] = []

    def add(self, video_id: str, text: str, place: str) -> None:
        """Note a caption, with its whitespace collapsed.

        Args:
            video_id: Name that the dataset gives the video.
            text: The caption as written.
            place: Its place in the file. Messages name it.

        Raises:
            AnnotationError: The text holds half a surrogate pair, which is no character.
        """
        caption = collapse(text)
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            raise AnnotationError(
                f"{self._path}: {place}: the caption holds U+{ord(caption[error.start]):04X}, "
                "which is half a character; expected Unicode text"
            ) from error
        if not caption:
            self._empty_places.append(place)
        self._captions.setdefault(video_id, []).append(caption)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._captions

    def by_id(self) -> dict[str, tuple[str, ...]]:
        """Return the captions by video, both in the order in which they came.

        Raises:
            AnnotationError: Some captions are empty.
        """
        if self._empty_places:
            count = len(self._empty_places)
            others = f" and {count - 1} more" if count > 1 else ""
            raise AnnotationError(
                f"{self._path}: empty caption at {self._empty_places[0]}{others}; "
                "expected text in every caption"
            )
        return {video_id: tuple(captions) for video_id, captions in self._captions.items()}

    def of(
        self, video_ids: Sequence[str], listed_in: Path, *, end_s: float | None = None
    ) -> list[AnnotatedVideo]:
        """Return the listed videos with their captions, in the order of the list.

        Args:
            video_ids: Ids of the videos, without repetition.
            listed_in: File of the list. Messages name it.
            end_s: End of all of these videos, in seconds. None takes them whole.

        Raises:
            AnnotationError: Some captions are empty, or a video has none.
        """
        captions = self.by_id()
        bare = [video_id for video_id in video_ids if video_id not in captions]
        if bare:
            raise AnnotationError(
                f"{self._path}: no captions for {enumerate_ids(bare)} "
                f"({len(bare)} of {len(video_ids)}) of {listed_in.name}; "
                "expected captions for every video listed"
            )
        return [AnnotatedVideo(video_id, captions[video_id], end_s=end_s) for video_id in video_ids]


def enumerate_ids(ids: Collection[str], shown: int = 3) -> str:
    """Name the first few of many ids."""
    first = ", ".join(list(ids)[:shown])
    return f"{first}, …" if len(ids) > shown else first
