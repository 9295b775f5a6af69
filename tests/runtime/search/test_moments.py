"""Search of long videos: filled pages, suppression, one video, a span of time, in both stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from segment_samples import Planter, together

from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import GalleryError, InvalidArgumentError
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.gallery.records import VideoFile
from xclip_deploy.runtime.gallery.store import SearchLimits
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search import Query, QueryBank, Searcher, SearchOptions
from xclip_deploy.runtime.search import scope as scope_module
from xclip_deploy.runtime.video.segmentation import Segmentation

CROWD = 1000
OTHERS = 30
NOTHING_IN_MEMORY = SearchLimits(flat_videos=0, flat_bytes=0, held_bytes=0)


class World:
    """One crowd of segments that fit better than any of 30 other videos of five, and a clip."""

    def __init__(self, bundle: Bundle) -> None:
        planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
        rng = np.random.default_rng(1)
        parts = [planter.video("/films/crowd.mkv", rng.uniform(1.5, 2.0, CROWD), kind="film")]
        for n in range(OTHERS):
            likeness = rng.uniform(0, 0.2, 5)
            likeness[n % 5] = 1.3 - 0.03 * n
            parts.append(planter.video(f"/talks/t{n:02d}/talk.mkv", likeness, kind=f"k{n % 2}"))
        (clip,), features = planter.video("/clips/short.mp4", [1.45], kind="k0")
        whole = clip.model_copy(update={"start_s": None, "end_s": None})
        parts.append(([whole], features))
        self.rows, self.features = together(parts)
        self.query = planter.query()


@pytest.fixture(scope="module")
def world(bundle: Bundle) -> World:
    return World(bundle)


@pytest.fixture(scope="module", params=["memory", "lancedb", "index"])
def gallery(
    request: pytest.FixtureRequest,
    bundle: Bundle,
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gallery]:
    path: Path = tmp_path_factory.mktemp("moments") / "gallery"
    if request.param == "memory":
        opened = Gallery(bundle.manifest)
    elif request.param == "lancedb":
        opened = Gallery.open(path, bundle.manifest, create=True)
    else:
        limits = replace(NOTHING_IN_MEMORY, index_from=500, partitions=0, min_partitions=1)
        opened = Gallery.open(path, bundle.manifest, create=True, limits=limits)
    opened.add(world.rows, world.features)
    if request.param == "index":
        opened.optimize()
        assert opened.snapshot().num_partitions is not None
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def logits(model: DeployedModel, world: World) -> np.ndarray:
    """The score of every row by the scorer alone."""
    features = VideoFeatures(
        world.features.video_features.astype(np.float16),
        world.features.frame_features.astype(np.float16),
        world.features.num_frames,
    )
    assert world.query.text is not None
    row: np.ndarray = model.score(world.query.text, features).logits[0]
    return row


def by_video(world: World, logits: np.ndarray) -> list[tuple[str, int]]:
    """Each video with the segment of its best score, best first."""
    best: dict[str, int] = {}
    for n in np.argsort(-logits, kind="stable").tolist():
        best.setdefault(world.rows[n].id, world.rows[n].segment)
    return list(best.items())


def search(searcher: Searcher, gallery: Gallery, world: World, **options: object) -> SearchResults:
    chosen = SearchOptions(**options)  # type: ignore[arg-type]
    (found,) = searcher.search([world.query], gallery.snapshot(), chosen)
    return found


def heads(found: SearchResults) -> list[tuple[str, int]]:
    return [(hit.id, hit.segment) for hit in found]


def test_exact_is_the_best_score_of_each_video(
    searcher: Searcher, gallery: Gallery, world: World, logits: np.ndarray
) -> None:
    found = search(searcher, gallery, world, k=40, exact=True)
    assert heads(found) == by_video(world, logits)
    assert (found.num_scored, found.num_videos, found.num_segments) == (1151, 32, 1151)
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    for hit in found:
        start_s = 4.0 * hit.segment
        assert (hit.start_s, hit.end_s) == (start_s, start_s + 8)
        assert start_s <= hit.best_frame_time_s < start_s + 8
        assert hit.range is not None
        assert max(0, start_s - 8) <= hit.range.start_s < hit.range.end_s
        assert hit.range.end_s <= min(start_s + 16, hit.duration_s or 0)
        assert hit.range.resolution_s == pytest.approx(8 / 12, abs=1e-5)  # times in microseconds


def test_ranges_can_be_left_out(searcher: Searcher, gallery: Gallery, world: World) -> None:
    whole = search(searcher, gallery, world, exact=True)
    plain = search(searcher, gallery, world, exact=True, refine=False)
    assert [hit.range for hit in plain] == [None] * 10
    assert [replace(hit, range=None) for hit in whole] == list(plain)


def test_exact_in_parts(
    searcher: Searcher,
    gallery: Gallery,
    world: World,
    logits: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scope_module, "_SCAN_VIDEOS", 101)
    monkeypatch.setattr(type(gallery.snapshot()), "held", lambda _self: None)
    found = search(searcher, gallery, world, k=12, exact=True)
    assert heads(found) == by_video(world, logits)[:12]


def test_a_crowd_leaves_room_for_others(
    searcher: Searcher, gallery: Gallery, world: World, logits: np.ndarray
) -> None:
    """1,000 better segments of one video; few candidates."""
    found = search(searcher, gallery, world, k=10, exact=False, candidates=30)
    ids = [hit.id for hit in found]
    assert len(set(ids)) == len(ids) == 10
    assert ids[0] == "/films/crowd.mkv"
    assert found.num_scored <= 30 + 90 + 60 + 180
    expected = [name for name, _ in by_video(world, logits)[:10]]
    assert len(set(ids) & set(expected)) >= 8
    every = search(searcher, gallery, world, k=40, exact=False, candidates=30)
    assert {hit.id for hit in every} == {row.id for row in world.rows}


@pytest.mark.parametrize("exact", [True, False])
def test_pages_neither_repeat_nor_lose_a_video(
    searcher: Searcher, gallery: Gallery, world: World, exact: bool
) -> None:
    ids, scores = [], []
    for offset in range(0, 45, 5):
        page = search(searcher, gallery, world, k=5, offset=offset, exact=exact, candidates=20)
        assert [hit.rank for hit in page] == list(range(offset + 1, offset + 1 + len(page)))
        assert [hit.score for hit in page] == sorted((hit.score for hit in page), reverse=True)
        ids += [hit.id for hit in page]
        scores += [hit.score for hit in page]
    assert sorted(ids) == sorted({row.id for row in world.rows})
    if exact:
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("nms", [0.3, 0.5, None])
def test_pages_of_moments_reach_the_suppressed_ones(
    searcher: Searcher, gallery: Gallery, world: World, exact: bool, nms: float | None
) -> None:
    options = {"group": "moment", "nms": nms, "where": "kind = 'film' and _segment < 40"}
    found = []
    for offset in range(0, 45, 6):
        page = search(
            searcher, gallery, world, k=6, offset=offset, exact=exact, candidates=40, **options
        )
        found += heads(page)
        assert all(hit.moments == () for hit in page)
    assert sorted(found) == [("/films/crowd.mkv", n) for n in range(40)]
    # Windows of 8 s every 4 s: neighbours overlap by a third.
    segments = [segment for _, segment in found]
    kept: list[int] = []
    for segment in segments:
        if any(abs(segment - other) < 2 for other in kept) and nms == 0.3:
            break
        kept.append(segment)
    assert len(kept) == (40 if nms != 0.3 else len(kept))
    if nms == 0.3:
        assert len(kept) >= 14
        assert all(any(abs(n - m) < 2 for m in kept) for n in segments[len(kept) :])


def test_other_moments_do_not_overlap(
    searcher: Searcher, gallery: Gallery, world: World, logits: np.ndarray
) -> None:
    options = {"exact": True, "k": 5, "nms": 0.3, "per_video": 4}
    (crowd, *others) = search(searcher, gallery, world, **options)
    assert len(crowd.moments) == 3
    segments = [crowd.segment, *(moment.segment for moment in crowd.moments)]
    assert all(abs(a - b) >= 2 for n, a in enumerate(segments) for b in segments[:n])
    scores = [crowd.score, *(moment.score for moment in crowd.moments)]
    assert scores == sorted(scores, reverse=True)
    for moment in crowd.moments:
        assert moment.score == pytest.approx(float(logits[moment.segment]), rel=1e-3)
        assert moment.start_s == 4.0 * moment.segment
        assert moment.start_s <= moment.best_frame_time_s < moment.start_s + 8
        assert moment.grains is not None
    assert all(len(hit.moments) <= 3 for hit in others)
    (alone,) = search(searcher, gallery, world, exact=True, k=1, per_video=1)
    assert alone.moments == ()


@pytest.mark.parametrize("exact", [True, False, None])
def test_within_one_video(
    searcher: Searcher, gallery: Gallery, world: World, logits: np.ndarray, exact: bool | None
) -> None:
    for name in ("crowd.mkv", "/films/crowd.mkv"):
        found = search(
            searcher, gallery, world, within=name, group="moment", k=5, nms=None, exact=exact
        )
        assert [hit.id for hit in found] == ["/films/crowd.mkv"] * 5
        assert exact is None or (found.method == "exact") is exact
        if found.method == "exact":  # the untrained scorer's first stage is another ranking
            assert found[0].segment == int(np.argmax(logits[:CROWD]))
    span = search(
        searcher, gallery, world, within="crowd.mkv", from_s="1:40", to_s=120, k=99,
        group="moment", exact=exact,
    )  # fmt: skip
    assert sorted(hit.segment for hit in span) == list(range(24, 30))
    (one,) = search(searcher, gallery, world, within="crowd.mkv", k=5, exact=exact)
    assert one.id == "/films/crowd.mkv"


def test_names_of_no_video_and_of_several(
    searcher: Searcher, gallery: Gallery, world: World
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'talk.mkv' names 30 videos \(/talks/t00"):
        search(searcher, gallery, world, within="talk.mkv")
    strange = ("x\0", "\udc80.mkv", "a" * 5000)
    for name in ("none.mkv", "t_lk.mkv", "%", "crowd", "/crowd.mkv", *strange):
        with pytest.raises(GalleryError, match="in the gallery of 32; expected an id, a path"):
            search(searcher, gallery, world, within=name)


@pytest.fixture(params=["memory", "lancedb"])
def named(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Iterator[Gallery]:
    """Talks under ids of the user's own, one with two files, and a clip without a file."""
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    files = {
        "opening": ("/mnt/a/talk.mkv", "/mnt/b/copy's of 100%.mkv"),
        "closing": ("/mnt/c/talk.mkv",),
        "q&a": ("/mnt/c/panel.mkv",),
        "panel.mkv": ("/mnt/d/other.mkv",),
        "again": ("/mnt/c/panel_2.mkv",),
        "twice": ("/mnt/c/panel_2.mkv",),
        "folder/bare": (),
        "there": (str(Path.cwd() / "here.mkv"),),
        "elsewhere": ("/mnt/e/here.mkv",),
    }
    parts = []
    for name, paths in files.items():
        rows, features = planter.video(name, [0.1, 1.0])
        own = tuple(VideoFile(path=path) for path in paths)
        change = {"files": own, "path": paths[0] if paths else None}
        parts.append(([row.model_copy(update=change) for row in rows], features))
    path = tmp_path / "named"
    opened = (
        Gallery(bundle.manifest)
        if request.param == "memory"
        else Gallery.open(path, bundle.manifest, create=True)
    )
    opened.add(*together(parts))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("opening", "opening"),
        ("/mnt/a/talk.mkv", "opening"),
        ("/mnt/b/copy's of 100%.mkv", "opening"),
        ("copy's of 100%.mkv", "opening"),
        ("/mnt/c/../c/talk.mkv", "closing"),
        ("panel.mkv", "panel.mkv"),  # an id counts before a file name
        ("other.mkv", "panel.mkv"),
        ("/mnt/c/panel.mkv", "q&a"),
        ("bare", "folder/bare"),
        ("here.mkv", "there"),  # a path from the working directory counts before a file name
    ],
)
def test_within_a_video_with_an_id_of_its_own(
    searcher: Searcher, named: Gallery, world: World, name: str, expected: str
) -> None:
    found = search(searcher, named, world, within=name, group="moment")
    assert [hit.id for hit in found] == [expected] * 2


def test_files_of_several_videos_are_listed(
    searcher: Searcher, named: Gallery, world: World
) -> None:
    for name, ids in (
        ("talk.mkv", "opening; closing"),
        ("panel_2.mkv", "again; twice"),
        ("/mnt/c/panel_2.mkv", "again; twice"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            search(searcher, named, world, within=name)
        assert str(caught.value) == f"{name!r} names 2 videos ({ids}); expected the id of one"
    for name in ("alk.mkv", "c/talk.mkv", "panel%2.mkv", "copy's of 1000.mkv", "mnt"):
        with pytest.raises(GalleryError, match="in the gallery of 9; expected an id, a path"):
            search(searcher, named, world, within=name)


@pytest.mark.parametrize("exact", [True, False])
def test_a_span_of_every_video(
    searcher: Searcher, gallery: Gallery, world: World, exact: bool
) -> None:
    found = search(
        searcher, gallery, world, from_s=16, to_s=20, k=99, group="moment", exact=exact,
        where="kind <> 'film' or _segment < 50",
    )  # fmt: skip
    # The clip of 8 s is one segment without times.
    expected = {(row.id, row.segment) for row in world.rows if row.segment in (3, 4)}
    assert set(heads(found)) == expected
    early = search(searcher, gallery, world, to_s=1, k=99, exact=exact, where="kind = 'k0'")
    assert len(early) == 16
    assert {hit.segment for hit in early} == {0}
    with pytest.raises(InvalidArgumentError, match="is not understood"):
        search(searcher, gallery, world, to_s=1, where="true) or (true")


def test_beyond_the_end_is_nothing(searcher: Searcher, gallery: Gallery, world: World) -> None:
    for options in ({"within": "short.mp4"}, {"within": "short.mp4", "exact": False}):
        found = search(searcher, gallery, world, from_s="5:00", **options)
        assert len(found) == 0
        assert found.note == "'short.mp4' from 5:00.0 holds nothing to search"


@pytest.mark.parametrize("exact", [True, False, None])
@pytest.mark.parametrize("group", ["video", "moment"])
def test_a_filter_that_nothing_matches(
    searcher: Searcher, gallery: Gallery, world: World, exact: bool | None, group: str
) -> None:
    options = {"where": "kind = 'none'", "group": group, "exact": exact, "confidence": True}
    assert len(search(searcher, gallery, world, **options)) == 0
    (by_video,) = searcher.search(
        [Query(None, world.features[:1])], gallery.snapshot(), SearchOptions(where="kind = 'none'")
    )
    assert len(by_video) == 0


def test_a_whole_video_lasts_to_its_end(searcher: Searcher, gallery: Gallery, world: World) -> None:
    (clip,) = search(searcher, gallery, world, within="short.mp4")
    assert (clip.start_s, clip.end_s, clip.segment, clip.moments) == (0.0, 8.0, 0, ())
    assert clip.range is not None
    assert 0 <= clip.range.start_s < clip.range.end_s <= 8


@pytest.mark.parametrize("exact", [True, False])
def test_every_other_option_knows_segments(
    searcher: Searcher,
    gallery: Gallery,
    world: World,
    logits: np.ndarray,
    exact: bool,
) -> None:
    ranked = by_video(world, logits)
    whole = search(searcher, gallery, world, k=40, exact=exact, candidates=1151)
    least = whole[4].score
    some = search(searcher, gallery, world, k=40, exact=exact, candidates=1151, min_score=least)
    assert heads(some) == heads(whole)[:5]
    filtered = search(searcher, gallery, world, k=3, exact=exact, where="kind = 'k1'")
    odd = [name for name, _ in ranked if "/t" in name and int(name[8:10]) % 2]
    assert [hit.id for hit in filtered] == odd[:3]
    # Every segment of the world is like the query; a low cosine drops nearly all of them.
    alike = search(searcher, gallery, world, k=3, exact=exact, deduplicate=0.2)
    assert alike[0].id == "/films/crowd.mkv"
    assert alike[0].near_identical
    assert alike[0].id not in alike[0].near_identical
    assert len(set(alike[0].near_identical)) == len(alike[0].near_identical)
    rng = np.random.default_rng(4)
    texts = world.query.text
    assert texts is not None
    noise = rng.standard_normal((5, *texts.word_features.shape[1:])).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    bank = QueryBank(TextFeatures(noise[:, 0], noise, texts.num_words.repeat(5)))
    banked = search(searcher, gallery, world, k=10, exact=exact, query_bank=bank)
    assert len({hit.id for hit in banked}) == 10
    assert [hit.score for hit in banked] == sorted((hit.score for hit in banked), reverse=True)
    batch = searcher.search([world.query] * 2, gallery.snapshot(), SearchOptions(k=7, exact=exact))
    assert heads(batch[0]) == heads(batch[1])


@pytest.mark.parametrize("exact", [None, True])
def test_by_video_and_by_both(
    searcher: Searcher, gallery: Gallery, world: World, exact: bool | None
) -> None:
    places = {(row.id, row.segment): n for n, row in enumerate(world.rows)}
    wanted = places["/talks/t07/talk.mkv", 3]
    video = world.features[wanted : wanted + 1]
    snapshot = gallery.snapshot()
    options = SearchOptions(k=10, exact=exact, candidates=20)
    (found,) = searcher.search([Query(None, video)], snapshot, options)
    assert (found[0].id, found[0].segment) == ("/talks/t07/talk.mkv", 3)
    assert found[0].score == pytest.approx(1, abs=2e-3)
    assert found[0].grains is None
    assert found[0].range is not None
    assert len({hit.id for hit in found}) == 10
    both = Query(world.query.text, video, 0.9)
    options = replace(options, exact=exact or False)
    (found,) = searcher.search([both], snapshot, options)
    assert (found[0].id, found[0].segment) == ("/talks/t07/talk.mkv", 3)
    assert len({hit.id for hit in found}) == 10


def test_equal_scores_keep_the_order_of_addition(
    searcher: Searcher, bundle: Bundle, world: World
) -> None:
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 8.0))
    rows, features = planter.video("a", [0.5, 0.5])
    same = VideoFeatures(*(array[[0, 0]] for array in vars(features).values()))
    gallery = Gallery(bundle.manifest)
    copies = [row.model_copy(update={"id": "b", "path": "b", "files": ()}) for row in rows]
    copies = [GalleryVideo(**{**row.model_dump(), "files": ()}) for row in copies]
    gallery.add([*rows, *copies], VideoFeatures.concatenate([same, same]))
    for exact in (True, False):
        (found,) = searcher.search(
            [planter.query()], gallery.snapshot(), SearchOptions(exact=exact)
        )
        assert heads(found) == [("a", 0), ("b", 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "scene"}, "group is 'scene'.*'video', 'moment'"),
        ({"per_video": 0}, "per_video is 0"),
        ({"per_video": 2.5}, "per_video"),
        ({"nms": 0}, "nms is 0: expected a temporal IoU above 0"),
        ({"nms": 1.5}, "nms is 1.5"),
        ({"nms": float("nan")}, "nms is nan"),
        ({"nms": "much"}, "nms is 'much'"),
        ({"within": ""}, "within is ''"),
        ({"within": 3}, "within is 3"),
        ({"from_s": -1}, "from_s is -1"),
        ({"from_s": "soon"}, "from_s is 'soon'; expected a time such as"),
        ({"to_s": float("inf")}, "to_s is inf"),
        ({"to_s": 0}, "to_s is 0 s and from_s 0 s"),
        ({"from_s": "1:00", "to_s": 60}, "to_s is 60 s and from_s 60 s"),
        ({"to_s": True}, "to_s is True"),
        ({"min_confidence": 1.1}, "min_confidence is 1.1"),
        ({"refine": 1}, "refine is 1"),
        ({"confidence": "yes"}, "confidence is 'yes'"),
    ],
)
def test_absurd_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        SearchOptions(**options)  # type: ignore[arg-type]


def test_off_is_none_or_one() -> None:
    assert SearchOptions(nms=1).overlap is None
    assert SearchOptions(nms=None).overlap is None
    assert SearchOptions(from_s="1:02:03.5").span_s == (3723.5, None)
