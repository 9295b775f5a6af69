"""Results of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.grain_scores import KNOWN_GRAINS, GrainScores
from xclip_deploy.runtime.media import Cut, CutMode, Media
from xclip_deploy.runtime.presentation import brief, html_table, time_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SearchMethod = Literal["exact", "two-stage"]


@dataclass(frozen=True)
class TimeRange:
    """Start and end of what was searched for, in seconds from the video's start."""

    start_s: float
    end_s: float
    resolution_s: float
    """Largest distance between neighbouring frames at the range: nothing between was seen."""


@dataclass(frozen=True)
class Moment:
    """A segment of a video as a search found it."""

    segment: int
    """Number of the segment within its video, from 0."""
    start_s: float
    end_s: float | None
    score: float
    grains: GrainScores | None
    best_frame_time_s: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries and numbers for JSON."""
        return {**vars(self), "grains": None if self.grains is None else self.grains.to_dict()}


@dataclass(frozen=True)
class SearchResult:
    """One video that was found, by its best moment; with ``group="moment"``, one moment."""

    rank: int
    """Position among the hits; 1 is best."""
    id: str
    """Id of the video."""
    path: str | None
    score: float
    """Logit of a text query, or cosine of the two video embeddings for a video query.
    :class:`QueryBank` says what a calibrated score is."""
    grains: GrainScores | None
    """Similarity of each grain. None for a video query, which has no words."""
    best_frame_time_s: float
    """Time of the sampled frame most similar to the query, in seconds from the video's start.
    With one frame per second, it is exact to about a second."""
    duration_s: float | None = None
    metadata: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    """Every file with this content, the one at ``path`` first."""
    near_identical: tuple[str, ...] = ()
    """Ids of hits that ``deduplicate`` left out as nearly the same."""
    start_s: float = 0.0
    """Start of the segment that was found, in seconds from the video's start."""
    end_s: float | None = None
    """End of the segment, seconds; None where the duration is not known."""
    segment: int = 0
    """Number of the segment within its video; 0 for a video that is not cut."""
    moments: tuple[Moment, ...] = ()
    """Other good moments of the video, best first."""
    range: TimeRange | None = None
    """Start and end of what was searched for, refined from the frames' similarity; None without
    ``refine``, and in a gallery without segments."""
    confidence: float | None = None
    """Probability that nothing in a gallery without a match scores as high; None if it was not
    asked for or cannot be told."""

    media: Media | None = field(default=None, repr=False, compare=False)
    """The video's file, for :meth:`thumbnail`, :meth:`frames` and :meth:`cut`."""

    def thumbnail(self, moment: Moment | None = None) -> NDArray[np.uint8]:
        """Return a small picture of the segment: uint8 RGB [height, width, 3].

        ``moment``: one of :attr:`moments`, None for the hit itself. Without a stored thumbnail, the
        best frame is read from the file. Raises MomentSourceError if the file is gone or changed.
        """
        of: SearchResult | Moment = moment or self
        return self._media().thumbnail(of.start_s, of.best_frame_time_s)

    def frames(
        self, moment: Moment | None = None, *, max_frames: int = 64
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the segment's frames, uint8 RGB [n, height, width, 3], and times, seconds [n].

        They are as large as the video, thinned evenly to ``max_frames``. ``moment``: one of
        :attr:`moments`. Raises MomentSourceError if the file is gone or changed, VideoReadError.
        """
        start_s, end_s = self._span(moment)
        return self._media().frames(start_s, end_s, max_frames)

    def cut(
        self,
        out: str | PathLike[str],
        moment: Moment | None = None,
        *,
        mode: CutMode = "exact",
        pad_s: float = 0.0,
        refined: bool = False,
        overwrite: bool = False,
    ) -> Cut:
        """Write the segment to a video file, with sound; see :func:`runtime.moments.cut`.

        ``exact`` encodes exactly these seconds anew. ``copy`` copies the streams from the key frame
        before, and the result tells the actual start and end. ``moment``: one of :attr:`moments`.
        ``pad_s``: seconds to add at both ends. ``refined``: whether to cut :attr:`range` instead of
        the segment, where the hit has one. Raises MomentSourceError if the file is gone or
        changed, InvalidArgumentError, VideoReadError.
        """
        start_s, end_s = self._span(moment)
        if refined and moment is None and self.range is not None:
            start_s, end_s = self.range.start_s, self.range.end_s
        return self._media().cut(start_s, end_s, out, mode, pad_s, overwrite=overwrite)

    def _media(self) -> Media:
        if self.media is None:
            raise InvalidArgumentError(
                "this hit knows no file; expected one that a search of a Retriever returned"
            )
        return self.media

    def _span(self, moment: Moment | None) -> tuple[float, float]:
        of: SearchResult | Moment = moment or self
        if of.end_s is None:
            raise InvalidArgumentError(
                f"the end of {self.id!r:.200} is not known; expected a video with a duration_s"
            )
        return of.start_s, of.end_s

    def __repr__(self) -> str:
        parts: dict[str, object] = {"rank": self.rank, "id": self.id, "score": self.score}
        if self.end_s is not None:
            parts |= {"start_s": self.start_s, "end_s": self.end_s}
        parts["best_frame_time_s"] = self.best_frame_time_s
        if self.confidence is not None:
            parts["confidence"] = self.confidence
        return brief(self, **parts)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries and numbers for JSON."""
        return {
            "rank": self.rank,
            "id": self.id,
            "path": self.path,
            "score": self.score,
            "grains": None if self.grains is None else self.grains.to_dict(),
            "best_frame_time_s": self.best_frame_time_s,
            "duration_s": self.duration_s,
            "metadata": dict(self.metadata),
            "paths": self.paths,
            "near_identical": self.near_identical,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "segment": self.segment,
            "moments": [moment.to_dict() for moment in self.moments],
            "range": None if self.range is None else vars(self.range).copy(),
            "confidence": self.confidence,
        }


@dataclass(frozen=True)
class SearchResults(Sequence[SearchResult]):
    """Videos found for one query, best first, and how they were searched for."""

    hits: tuple[SearchResult, ...]
    method: SearchMethod
    """``exact`` scored every video. ``two-stage`` scored the best candidates by the
    video-sentence grain."""
    num_scored: int
    """Number of videos, or of their segments, whose full score was computed."""
    num_videos: int
    """Number of videos in the gallery."""
    reason: str
    """Reason for the method."""
    truncated_tokens: int = 0
    """Number of the query's last tokens that the model did not read; 0 where it read the whole."""
    num_segments: int | None = None
    """Number of segments in the gallery; None where every video is one."""
    note: str = ""
    """Reason for hits or confidences that are missing; empty where none are."""
    warnings: tuple[str, ...] = ()
    """Faults of the video that was searched by, and frames of it that are far apart. Each is
    logged, too."""
    answered_shards: tuple[int, ...] = ()
    """Numbers of the shards that were searched; empty for a gallery on one machine."""
    failed_shards: tuple[FailedShard, ...] = ()
    """Shards that did not answer, whose videos are missing. Only ``allow_partial`` leaves any
    out."""

    @property
    def is_truncated(self) -> bool:
        """Whether the query is longer than the model reads."""
        return self.truncated_tokens > 0

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> SearchResult: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SearchResult, ...]: ...

    def __getitem__(self, index: int | slice) -> SearchResult | tuple[SearchResult, ...]:
        return self.hits[index]

    def __iter__(self) -> Iterator[SearchResult]:
        return iter(self.hits)

    def __repr__(self) -> str:
        return brief(
            self,
            hits=len(self.hits),
            best=self.hits[0].id if self.hits else None,
            method=self.method,
            num_scored=self.num_scored,
            num_videos=self.num_videos,
            **({"truncated_tokens": self.truncated_tokens} if self.is_truncated else {}),
            **({"note": self.note} if self.note else {}),
            **({"warnings": self.warnings} if self.warnings else {}),
            **({"failed_shards": self.failed_shards} if self.failed_shards else {}),
        )

    def _repr_html_(self) -> str:
        fields = ["rank", "id", "score", "start_s", "end_s", "best_frame_time_s", "duration_s"]
        if any(hit.confidence is not None for hit in self.hits):
            fields.append("confidence")
        names = dict.fromkeys(name for hit in self.hits for name in hit.metadata)
        times = ("start_s", "end_s", "best_frame_time_s", "duration_s")
        rows = (
            (
                *(
                    time_text(getattr(hit, name), 1) if name in times else getattr(hit, name)
                    for name in fields
                ),
                *(hit.metadata.get(name) for name in names),
            )
            for hit in self.hits
        )
        title = f"{len(self.hits)} of {self.num_videos} videos, {self.method}: {self.reason}"
        if self.is_truncated:
            title += f"; the query's last {self.truncated_tokens} tokens were not read"
        missing = [f"shard {shard.number} is missing" for shard in self.failed_shards]
        for said in filter(None, [self.note, *self.warnings, *missing]):
            title += f"; {said}"
        return html_table(title, [*fields, *names], rows, len(self.hits))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries, lists and numbers for JSON."""
        return {
            "hits": [hit.to_dict() for hit in self.hits],
            "method": self.method,
            "num_scored": self.num_scored,
            "num_videos": self.num_videos,
            "reason": self.reason,
            "truncated_tokens": self.truncated_tokens,
            "num_segments": self.num_segments,
            "note": self.note,
            "warnings": list(self.warnings),
            "answered_shards": list(self.answered_shards),
            "failed_shards": [vars(shard).copy() for shard in self.failed_shards],
        }

    def to_arrow(self) -> pa.Table:
        """Convert to a table with one row a hit.

        Its columns are the fields and the grains, always of the same types, then the metadata.
        ``range`` and ``moments`` hold structures, the grains of other moments left out.
        Metadata with the name of a field or grain is left out. Raises MissingExtraError without
        PyArrow (extra ``gallery``).
        """
        try:
            import pyarrow as pa
        except ModuleNotFoundError as error:
            raise MissingExtraError("pyarrow", "gallery", "SearchResults.to_arrow") from error

        texts = pa.list_(pa.string())
        span = {name: pa.float64() for name in TimeRange.__dataclass_fields__}
        moment = {
            name: pa.int64() if name == "segment" else pa.float64()
            for name in Moment.__dataclass_fields__
            if name != "grains"
        }
        fields = {
            "rank": pa.int64(),
            "id": pa.string(),
            "path": pa.string(),
            "score": pa.float64(),
            **dict.fromkeys(KNOWN_GRAINS, pa.float64()),
            "best_frame_time_s": pa.float64(),
            "duration_s": pa.float64(),
            "paths": texts,
            "near_identical": texts,
            "start_s": pa.float64(),
            "end_s": pa.float64(),
            "segment": pa.int64(),
            "moments": pa.list_(pa.struct(moment.items())),
            "range": pa.struct(span.items()),
            "confidence": pa.float64(),
        }
        rows = []
        for hit in self.hits:
            row = hit.to_dict()
            row |= row.pop("grains") or {}
            more = row.pop("metadata")
            rows.append({name: more[name] for name in more if name not in fields} | row)
        columns = {
            name: pa.array([row.get(name) for row in rows], kind) for name, kind in fields.items()
        }
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in columns:
                columns[name] = pa.array([row.get(name) for row in rows])
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """Convert as :meth:`to_arrow` does. Raises MissingExtraError without pandas."""
        try:
            import pandas  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError("pandas", "pandas", "SearchResults.to_pandas") from error
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame
