"""Exact search of a gallery on the GPU: what an exact search on the CPU finds, from few rows.

The GPU returns the best rows of each text, at most ``MAX_COUNT``. Where rows are ranked, these are
the result. Where videos are ranked, their best rows name the videos, and a second scan scores the
other rows of those videos alone, for their moments. All scores are copied instead where more rows
are needed, and where a video adds to the score of the text: 4 bytes a row and array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.resident.on_device import Allowed, BestRows, OnDevice
from xclip_deploy.runtime.resident.scan import MAX_COUNT, TEXTS_A_PASS
from xclip_deploy.runtime.search.gathering import Gathering, Keeping
from xclip_deploy.runtime.search.planner import ScanSize
from xclip_deploy.runtime.search.ranked import Query, Ranked, texts_of
from xclip_deploy.runtime.search.scope import Scope
from xclip_deploy.runtime.search.suppression import first_kept

_ROWS_PER_VIDEO = 8
"""Rows that are asked for at first for each video that is ranked."""
_MOST_SCANS = 4
"""Most scans for the other rows of one text's videos; for more, all scores are copied."""


@dataclass(frozen=True, eq=False)
class DeviceSearch:
    """An exact search by text on the GPU. Raises ScanFailedError where that fails."""

    on_device: OnDevice
    scope: Scope
    keeping: Keeping
    groups: Groups | None
    score_scale: float
    """Factor from the mean of the grains to the score."""

    def run(self, queries: Sequence[Query]) -> list[tuple[Ranked, int]]:
        """Return the kept rows of each query, best first, and the number of scored rows."""
        allowed = self.on_device.allowed(self.scope.allowed_rows())
        if not len(allowed):
            return [(Ranked.empty(), 0)] * len(queries)
        found: list[Ranked] = []
        for part in slices(len(queries), TEXTS_A_PASS):
            found += self._search(queries[part], allowed)
        return [(ranked, len(allowed)) for ranked in found]

    def _search(self, queries: Sequence[Query], allowed: Allowed) -> list[Ranked]:
        if any(query.video is not None for query in queries):
            return [self._of_all(query, allowed) for query in queries]
        ranks_videos = self.groups is not None and self.keeping.by_video
        num_kept = self.keeping.count
        count = num_kept
        if ranks_videos:
            count = min(max(_ROWS_PER_VIDEO * num_kept, 256), MAX_COUNT)
        if min(count, len(allowed)) > MAX_COUNT:
            return [self._of_all(query, allowed) for query in queries]
        best = self.on_device.best(texts_of(queries), count, allowed)
        if not ranks_videos:
            return [_ranked(each).sorted() for each in best]
        return [
            self._by_video(query, each, num_kept, allowed)
            for query, each in zip(queries, best, strict=True)
        ]

    def _by_video(self, query: Query, best: BestRows, num_kept: int, allowed: Allowed) -> Ranked:
        """Complete the best rows of one text by the moments of the best videos."""
        assert self.groups is not None
        assert query.text is not None
        if self._num_videos(best.rows) < num_kept and len(best.rows) < len(allowed):
            # Few videos fill the list.
            (best,) = self.on_device.best(query.text, MAX_COUNT, allowed)
            if self._num_videos(best.rows) < num_kept and len(best.rows) < len(allowed):
                return self._of_all(query, allowed)
        numbers = self.groups.of(best.rows)
        _, firsts = np.unique(numbers, return_index=True)
        videos = numbers[np.sort(firsts)[:num_kept]]
        others = self._others(best.rows, numbers, videos.tolist(), allowed)
        if len(others) > _MOST_SCANS * MAX_COUNT:
            return self._of_all(query, allowed)
        parts = [_ranked(best).take(np.flatnonzero(np.isin(numbers, videos)))]
        for part in slices(len(others), MAX_COUNT):
            some = self.on_device.allowed(others[part])
            parts += map(_ranked, self.on_device.best(query.text, len(some), some))
        whole = Ranked.join(parts)
        gathering = self._gathering()
        gathering.add([whole.take(np.argsort(whole.rows))])
        return gathering.results()[0]

    def _others(self, rows: Rows, numbers: Rows, videos: list[int], allowed: Allowed) -> Rows:
        """Return the allowed rows of ``videos`` that are not among ``rows`` and may be shown."""
        assert self.groups is not None
        most = self.keeping.per_video
        missing: list[Rows] = []
        for number in videos:
            own = rows[numbers == number]  # best first
            others = np.setdiff1d(self.groups.rows_of(number), own)
            if not len(others):
                continue
            places = self.groups.places(own)
            starts_s, ends_s = self.groups.start_s[places], self.groups.end_s[places]
            overlap = self.keeping.overlap
            shown = first_kept(starts_s.tolist(), ends_s.tolist(), overlap, most)
            if len(shown) < most:
                missing.append(others)
        if not missing:
            return np.empty(0, np.int64)
        return np.intersect1d(np.concatenate(missing), allowed.rows, assume_unique=True)

    def _of_all(self, query: Query, allowed: Allowed) -> Ranked:
        """Choose among the scores of all rows, as on the CPU."""
        assert query.text is not None
        values = self.on_device.all(query.text, allowed)
        logits = values.pop("logits")[0]
        if query.video is not None:
            weight, video = query.video_weight, query.video.video_features
            cosines = self.on_device.all_products(video, allowed)[0]
            logits = (1 - weight) * logits + weight * self.score_scale * cosines
        grains = {name: array[0] for name, array in values.items()}
        gathering = self._gathering()
        gathering.add([Ranked(allowed.rows, logits.astype(np.float32), grains)])
        return gathering.results()[0]

    def _num_videos(self, rows: Rows) -> int:
        assert self.groups is not None
        return len(np.unique(self.groups.of(rows)))

    def _gathering(self) -> Gathering:
        return Gathering(1, self.scope, self.keeping, self.groups, holds_whole=True)


def scan_size(queries: Sequence[Query], on_device: OnDevice | None) -> ScanSize | None:
    """Return what a scan by the whole scorer would read; None where there can be none."""
    if on_device is None or on_device.scan is None:
        return None
    if not on_device.has_products and any(query.video is not None for query in queries):
        return None
    return ScanSize(on_device.device_name, on_device.num_slots, on_device.slot_bytes)


def num_passes(num_texts: int) -> int:
    """Return how often a scan for so many texts reads the gallery."""
    return -(-num_texts // TEXTS_A_PASS)


def _ranked(best: BestRows) -> Ranked:
    return Ranked(best.rows, best.scores, best.grains)
