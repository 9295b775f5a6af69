"""The page of hits that a search shows: chosen from its ranked rows, and described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.records import Rows, times_of
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.runtime.moments.hit_media import HitMedia
from xclip_deploy.runtime.results import Moment, SearchResult
from xclip_deploy.runtime.search.grouping import ranks_within
from xclip_deploy.runtime.search.near_identical import distinct
from xclip_deploy.runtime.search.options import SearchOptions
from xclip_deploy.runtime.search.ranked import Ranked, Spans
from xclip_deploy.runtime.search.showing import Shown
from xclip_deploy.runtime.search.suppression import first_kept, kept_first, suppressed


@dataclass
class Page:
    """Rows that are shown, best first."""

    hits: Ranked
    ranked: Ranked
    """All rows that the hits were chosen from."""
    moments: list[list[int]]
    """Places in ``ranked`` of the other good moments of each hit's video."""
    dropped: dict[int, list[int]]
    """Row of a hit to the rows that it replaces as nearly identical."""

    @classmethod
    def of(
        cls, ranked: Ranked, options: SearchOptions, features: Callable[[Rows], VideoFeatures]
    ) -> Page:
        """Choose the page of ``ranked``, which is sorted. ``features`` reads those of rows."""
        heads, spans = ranked, ranked.spans
        if spans is not None and options.group == "video":
            heads = ranked.take(np.flatnonzero(ranks_within(spans.numbers) == 0))
        elif spans is not None and options.overlap is not None:
            is_out = suppressed(spans.numbers, spans.start_s, spans.end_s, options.overlap)
            heads = ranked.take(kept_first(is_out, options.candidates))
        dropped: dict[int, list[int]] = {}
        if options.near_identical is not None and len(heads):
            found = features(heads.rows)
            kept, dropped = distinct(found, options.near_identical, options.depth)
            dropped = {
                int(heads.rows[n]): [int(heads.rows[m]) for m in others]
                for n, others in dropped.items()
            }
            heads = heads.take(np.array(kept, np.int64))
        hits = heads.take(np.arange(len(heads))[options.offset : options.depth])
        if hits.blocks is not None:
            # Blocks decide which page a video is on. On its page, the score decides.
            hits.blocks = None
            hits = hits.sorted()
        moments: list[list[int]] = [[]] * len(hits)
        if spans is not None and options.group == "video":
            moments = _others(spans, hits, options)
        return cls(hits, ranked, moments, dropped)

    @property
    def other_rows(self) -> Rows:
        """Rows of the other good moments."""
        places = [n for part in self.moments for n in part]
        return self.ranked.rows[np.array(places, np.int64)]

    @property
    def dropped_rows(self) -> Rows:
        """Rows that hits of the page replace, each once."""
        shown = set(self.hits.rows.tolist())
        rows = [row for hit, part in self.dropped.items() if hit in shown for row in part]
        return np.array(list(dict.fromkeys(rows)), np.int64)


def describe(page: Page, shown: Shown, offset: int) -> tuple[SearchResult, ...]:
    """Return the hits of a page. ``shown``: what they show, by the rows of the page."""
    hits = page.hits
    others = page.ranked.take(np.array([n for part in page.moments for n in part], np.int64))
    # Without spans there are no moments.
    described = iter([] if others.spans is None else _moments(others, shown))
    grains, scores = _grains(hits), hits.scores.tolist()
    results = []
    for n, row in enumerate(hits.rows.tolist()):
        video = shown.videos[row]
        replaced = dict.fromkeys(shown.dropped[other] for other in page.dropped.get(row, ()))
        replaced.pop(video.id, None)  # another moment of the same video
        start_s, end_s = times_of(video)
        results.append(
            SearchResult(
                rank=offset + n + 1,
                id=video.id,
                path=video.path,
                score=scores[n],
                grains=grains[n],
                best_frame_time_s=shown.best_time_s[row],
                duration_s=video.duration_s,
                metadata=dict(video.metadata),
                paths=tuple(file.path for file in video.files),
                near_identical=tuple(replaced),
                start_s=start_s,
                end_s=end_s,
                segment=video.segment,
                moments=tuple(islice(described, len(page.moments[n]))),
                range=shown.ranges.get(row),
                confidence=None if hits.confidences is None else float(hits.confidences[n]),
                media=HitMedia.of(video, shown.thumbnails.get(row)),
            )
        )
    return tuple(results)


def _moments(found: Ranked, shown: Shown) -> list[Moment]:
    """Describe rows as moments of their videos."""
    assert found.spans is not None
    return [
        Moment(segment, start_s, end_s, score, grains, shown.best_time_s[row])
        for row, segment, start_s, end_s, score, grains in zip(
            found.rows.tolist(),
            found.spans.segments.tolist(),
            found.spans.start_s.tolist(),
            found.spans.end_s.tolist(),
            found.scores.tolist(),
            _grains(found),
            strict=True,
        )
    ]


def _grains(found: Ranked) -> list[GrainScores | None]:
    if not found.grains:
        return [None] * len(found)
    columns = [values.tolist() for values in found.grains.values()]
    return [
        GrainScores(dict(zip(found.grains, row, strict=True))) for row in zip(*columns, strict=True)
    ]


def _others(spans: Spans, hits: Ranked, options: SearchOptions) -> list[list[int]]:
    """Return the places in ``spans`` of the other good moments of each hit, best first."""
    assert hits.spans is not None
    by_video: dict[int, list[int]] = {number: [] for number in hits.spans.numbers.tolist()}
    for n, number in enumerate(spans.numbers.tolist()):
        if number in by_video:
            by_video[number].append(n)
    starts_s, ends_s = spans.start_s.tolist(), spans.end_s.tolist()
    found = []
    for own in by_video.values():  # in the order of the hits
        kept = first_kept(
            [starts_s[n] for n in own], [ends_s[n] for n in own], options.overlap, options.per_video
        )
        # A video's best moment comes first and is the hit itself.
        found.append([own[n] for n in kept[1:]])
    return found
