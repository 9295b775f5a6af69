"""Exact searches of a gallery that is read in parts, against plain loops and the whole gallery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segment_samples import Planter, together

from xclip_deploy import Bundle, DeployedModel, Gallery
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions
from xclip_deploy.runtime.search import scope as scope_module
from xclip_deploy.runtime.search.gathering import Gathering, Keeping
from xclip_deploy.runtime.search.ranked import Ranked
from xclip_deploy.runtime.search.scope import Scope
from xclip_deploy.runtime.search.suppression import first_kept
from xclip_deploy.runtime.video.segmentation import Segmentation

IN_PARTS = SearchLimits(flat_videos=0, flat_bytes=0, held_bytes=0)
ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(-4, 4), st.booleans()), max_size=40)
"""Video and score of each row, and whether a filter leaves it; scores tie often."""


@given(
    ROWS,
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.3, 0.6, None]),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_parts_keep_the_moments_of_the_best_videos(
    given_rows: list[tuple[int, int, bool]],
    k: int,
    per_video: int,
    nms: float | None,
    cuts: list[int],
) -> None:
    numbers = np.array([number for number, _, _ in given_rows], np.int64)
    scores = np.array([score for _, score, _ in given_rows], np.float32)
    rows = 10 * np.arange(len(numbers))
    segments = np.array([(numbers[:n] == number).sum() for n, number in enumerate(numbers)])
    start_s = 2.0 * segments
    groups = Groups.of_codes(rows, numbers, segments, start_s, start_s + 4)
    is_in = np.array([is_left for _, _, is_left in given_rows], np.bool_)
    searched = np.flatnonzero(is_in)
    options = SearchOptions(k, per_video=per_video, nms=nms)
    snapshot = Gallery.__new__(Gallery)  # not read: the rows of the scope are given
    scope = Scope(snapshot, None, rows[searched])  # type: ignore[arg-type]
    gathering = Gathering(1, scope, Keeping.of(options, is_grouped=True), groups)
    for part in np.split(searched, np.searchsorted(searched, sorted(cuts))):
        gathering.add([Ranked(rows[part], scores[part], {})])
    (found,) = gathering.results()

    order = sorted(searched.tolist(), key=lambda n: (-scores[n], n))
    videos = list(dict.fromkeys(int(numbers[n]) for n in order))[:k]
    expected: list[int] = []
    for video in videos:
        own = [n for n in order if numbers[n] == video]
        starts = [float(start_s[n]) for n in own]
        kept = first_kept(starts, [start + 4 for start in starts], options.overlap, per_video)
        expected += [own[n] for n in kept]
    assert found.rows.tolist() == [10 * n for n in sorted(expected, key=order.index)]


@pytest.fixture(scope="module")
def late(
    bundle: Bundle, model: DeployedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gallery, Query]]:
    """A film whose best moment comes last, behind lesser ones that others surpass."""
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    likeness = np.zeros(60)
    likeness[[3, 9, 55]] = 1.0, 0.9, 8.0
    parts = [planter.video("other", [3.0, 0.0, 2.9, 0.0]), planter.video("late", likeness)]
    parts += [planter.video(f"more{n}", [2.0, 0.0, 1.8]) for n in range(4)]
    path: Path = tmp_path_factory.mktemp("late") / "gallery"
    opened = Gallery.open(path, bundle.manifest, create=True, limits=IN_PARTS)
    opened.add(*together(parts))
    yield opened, planter.query()
    opened.close()


@pytest.mark.parametrize("options", [{}, {"where": "id <> 'more1'"}, {"from_s": 8}])
def test_lesser_moments_are_found_whatever_the_parts(
    searcher: Searcher,
    late: tuple[Gallery, Query],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
) -> None:
    gallery, query = late

    def moments(k: int, videos: int) -> list[tuple[str, list[int]]]:
        monkeypatch.setattr(scope_module, "_SCAN_VIDEOS", videos)
        chosen = SearchOptions(k, exact=True, **options)  # type: ignore[arg-type]
        (found,) = searcher.search([query], gallery.snapshot(), chosen)
        return [(hit.id, [hit.segment, *(each.segment for each in hit.moments)]) for hit in found]

    for k in (1, 2, 4):
        whole = moments(k, 10_000)
        assert all(len(segments) > 1 for _, segments in whole)
        for videos in (1, 7, 20):
            assert moments(k, videos) == whole


def test_many_windows_at_the_best_moment_hide_no_other(searcher: Searcher, bundle: Bundle) -> None:
    """Windows of 8 s each half second: a moment's neighbours are as good, and are suppressed."""
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 0.5))
    likeness = np.zeros(400)
    likeness[100:140], likeness[300] = 4.0, 1.5
    gallery = Gallery(bundle.manifest)
    gallery.add(*planter.video("dense", likeness, noise=0.01))
    options = SearchOptions(exact=True, per_video=12, nms=0.01)
    (found,) = searcher.search([planter.query()], gallery.snapshot(), options)
    (hit,) = found
    assert len(hit.moments) == 11
    starts = sorted([hit.start_s, *(moment.start_s for moment in hit.moments)])
    assert min(np.diff(starts)) >= 7.5


def test_deduplication_shows_a_scene_once(searcher: Searcher, bundle: Bundle) -> None:
    """Films that share a scene differ elsewhere: only what was found is compared."""
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    first, second = planter.video("first", [0.2] * 6), planter.video("second", [0.2] * 6)
    scene = planter.video("scene", [5.0])[1]
    other = planter.video("other", [0.0])[1]

    def planted(
        video: tuple[list[GalleryVideo], VideoFeatures], **changes: VideoFeatures
    ) -> tuple[list[GalleryVideo], VideoFeatures]:
        rows, features = video
        parts = [features[n : n + 1] for n in range(len(features))]
        for name, part in changes.items():
            parts[int(name[1:])] = part
        return rows, VideoFeatures.concatenate(parts)

    gallery = Gallery(bundle.manifest)
    gallery.add(*together([planted(first, _1=scene), planted(second, _4=scene, _0=other)]))
    by_scene = Query(None, scene)
    by_other = Query(None, other)
    (both,) = searcher.search([by_scene], gallery.snapshot(), SearchOptions())
    assert [(hit.id, hit.segment) for hit in both] == [("first", 1), ("second", 4)]
    chosen = SearchOptions(deduplicate=True)
    (once,) = searcher.search([by_scene], gallery.snapshot(), chosen)
    assert [(hit.id, hit.near_identical) for hit in once] == [("first", ("second",))]
    (apart,) = searcher.search([by_other], gallery.snapshot(), chosen)
    assert (apart[0].id, apart[0].near_identical) == ("second", ())
    assert len(apart) == 2
