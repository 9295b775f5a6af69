"""Scored rows of a gallery, as they pass from the stages of a search to its hits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float32Array, Float64Array, FloatArray
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows


@dataclass(frozen=True)
class Query:
    """A text, a video, or both."""

    text: TextFeatures | None
    """One text."""
    video: VideoFeatures | None = None
    """One video."""
    video_weight: float = 0.0
    """Share of the video in the score, from 0 to 1."""
    truncated_tokens: int = 0
    """Number of the text's last tokens that the model does not read."""
    warnings: tuple[str, ...] = ()
    """Faults of the video, and frames of it that are far apart."""


@dataclass(frozen=True, eq=False)
class Spans:
    """The video of each row of a ranking, and its place in the video, where videos have several."""

    numbers: npt.NDArray[np.int64]
    """Number of the video [n], which no video of another shard has."""
    segments: npt.NDArray[np.int64]
    """Number of the row within its video [n]."""
    start_s: Float64Array
    """Start of the row in its video [n], seconds; NaN where it is not known."""
    end_s: Float64Array
    """End of the row [n], seconds, likewise."""

    @classmethod
    def of(cls, rows: Rows, groups: Groups) -> Spans:
        """Look up the spans of rows."""
        places = groups.places(rows)
        segments = groups.segments[places].astype(np.int64)
        return cls(groups.numbers[places], segments, groups.start_s[places], groups.end_s[places])

    def take(self, order: npt.NDArray[np.integer[Any]]) -> Spans:
        """Return the spans at some places."""
        return Spans(*(values[order] for values in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence[Spans]) -> Spans:
        """Join the spans of several rankings."""
        return cls(*(np.concatenate(each) for each in zip(*map(_values, parts), strict=True)))


def texts_of(queries: Sequence[Query]) -> TextFeatures:
    """Return the texts of queries that all have one."""
    texts = [query.text for query in queries if query.text is not None]
    assert len(texts) == len(queries)
    return TextFeatures(
        np.concatenate([text.sentence_features for text in texts]),
        np.concatenate([text.word_features for text in texts]),
        np.concatenate([text.num_words for text in texts]),
    )


@dataclass
class ReadFeatures:
    """Features that a search has read, kept so that no row is read twice."""

    parts: list[tuple[Rows, VideoFeatures]] = field(default_factory=list)
    """Rows, ascending, and their features."""

    def of(self, rows: Rows, snapshot: Snapshot) -> VideoFeatures:
        """Return the features of ``rows`` in this order; read those that are missing."""
        if not self.parts:
            return snapshot.features(rows)
        found = [_places(known, rows) for known, _ in self.parts]
        missing = np.flatnonzero(np.logical_and.reduce([places < 0 for places in found]))
        if len(missing):
            more = np.unique(rows[missing])
            self.parts.append((more, snapshot.features(more)))
            found.append(_places(more, rows))
        if len(found) == 1:
            return self.parts[0][1][found[0]]
        out = self.parts[0][1][np.maximum(found[0], 0)]
        for (_, features), places in zip(self.parts[1:], found[1:], strict=True):
            there = places >= 0
            part = features[places[there]]
            out.video_features[there] = part.video_features
            out.frame_features[there] = part.frame_features
            out.num_frames[there] = part.num_frames
        return out

    def frames(
        self, rows: Rows, snapshot: Snapshot
    ) -> Iterator[tuple[npt.NDArray[np.intp], FloatArray]]:
        """Yield places in ``rows`` and the frames [n, F, D] of the rows there, each row once.

        ``rows``: different rows in any order. Rows that are missing are read.
        """
        missing = np.ones(len(rows), np.bool_)
        for known, features in self.parts:
            places = _places(known, rows)
            here = np.flatnonzero(missing & (places >= 0))
            if len(here):
                missing[here] = False
                yield here, features.frame_features[places[here]]
        here = np.flatnonzero(missing)
        if len(here):
            here = here[np.argsort(rows[here])]
            read = snapshot.features(rows[here])
            self.parts.append((rows[here], read))
            yield here, read.frame_features


@dataclass
class Ranked:
    """Scored rows of one query, best first."""

    rows: Rows
    scores: Float32Array
    grains: dict[str, Float32Array]
    spans: Spans | None = None
    """The videos of the rows; None where every row is a video of its own."""
    blocks: npt.NDArray[np.int64] | None = None
    """Number of the set that each row was scored in; the rows of a lower one rank before. None for
    one set."""
    confidences: Float64Array | None = None
    """Confidence of each row, if it was asked for."""
    ties: npt.NDArray[np.int64] | None = None
    """Number of each row, of which the least wins among equal scores. None takes ``rows``, so that
    the row added first wins."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, order: npt.NDArray[np.integer[Any]]) -> Ranked:
        """Return the rows at some places."""
        return Ranked(
            self.rows[order],
            self.scores[order],
            {name: values[order] for name, values in self.grains.items()},
            None if self.spans is None else self.spans.take(order),
            None if self.blocks is None else self.blocks[order],
            None if self.confidences is None else self.confidences[order],
            None if self.ties is None else self.ties[order],
        )

    def sorted(self) -> Ranked:
        """Return the rows best first; ``ties`` orders equal scores."""
        keys = (self.rows if self.ties is None else self.ties, -self.scores)
        return self.take(np.lexsort(keys if self.blocks is None else (*keys, self.blocks)))

    @classmethod
    def empty(cls) -> Ranked:
        """Return no rows."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float32), {})

    @classmethod
    def join(cls, parts: Sequence[Ranked], *, as_blocks: bool = False) -> Ranked:
        """Join rows; ``as_blocks`` makes each part a block of its own."""
        if len(parts) == 1:
            return parts[0]
        spans = [part.spans for part in parts if part.spans is not None]
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
            {
                name: np.concatenate([part.grains[name] for part in parts])
                for name in parts[0].grains
            },
            Spans.join(spans) if spans else None,
            np.repeat(np.arange(len(parts)), [len(part) for part in parts]) if as_blocks else None,
        )


def _values(spans: Spans) -> list[npt.NDArray[Any]]:
    return list(vars(spans).values())


def _places(known: Rows, rows: Rows) -> npt.NDArray[np.int64]:
    """Return the place of each row in ``known``, -1 for one that is not there."""
    places = np.searchsorted(known, rows)
    places[places == len(known)] = 0
    is_there = known[places] == rows if len(known) else np.zeros(len(rows), np.bool_)
    return np.where(is_there, places, -1)
