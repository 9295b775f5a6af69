"""Filters: what they let through, the same in every store, and what they refuse."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gallery_samples import DIM, FRAMES, lance_store, sample
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery import GalleryStore, GalleryVideo, Snapshot
from xclip_deploy.runtime.gallery.filters import MAX_CONDITIONS, MAX_FILTER_CHARACTERS, parse_filter
from xclip_deploy.runtime.gallery.memory_store import MemoryStore

TEXTS = [
    "cam1",
    "Cam2",
    "it's",
    "a_b",
    "a%b",
    "back\\slash",
    "line\nbreak",
    "ÉCLAIR",
    "é\0x 😀",
    "",
]


def all_kinds() -> list[GalleryVideo]:
    """Every field is missing in some."""
    return [
        GalleryVideo(
            id=f"v{n}",
            content_sha256=None if n % 4 == 1 else f"f{n}",
            duration_s=None if n % 5 == 2 else n * 1.5,
            frame_times_s=(0.0, 1.0),
            metadata={
                **({"source": TEXTS[n % len(TEXTS)]} if n % 7 else {}),
                **({"whole": n - 10} if n % 3 else {}),
                **({"share": n / 8} if n % 4 else {}),
                **({"is_day": n % 2 == 0} if n % 6 else {}),
                **({"order": n, "Mixed": "x"} if n > 9 else {}),
            },
        )
        for n in range(24)
    ]


def matching(snapshot: Snapshot, where: str) -> list[int]:
    return sorted(int(video.id[1:]) for video in snapshot.videos(snapshot.matching(where)))


@pytest.fixture(scope="module")
def both() -> Iterator[list[Snapshot]]:
    """The same videos in memory and in LanceDB."""
    videos = all_kinds()
    features = sample([video.id for video in videos])[1]
    with tempfile.TemporaryDirectory() as folder:
        stores: list[GalleryStore] = [
            MemoryStore(DIM, FRAMES),
            lance_store(Path(folder, "gallery")),
        ]
        for store in stores:
            store.put(videos[:12], features[:12], replace=False)
            store.put(videos[12:], features[12:], replace=False)
        yield [store.snapshot() for store in stores]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("whole = 4", [14]),
        ("whole = 4.0 or WHOLE == 5", [14]),  # no 15, whose is missing
        ("source = 'it''s' and duration_s < 10", []),
        ("source = 'it''s'", [2, 12, 22]),
        ("id in ('v1', 'v2') or Whole = 4", [1, 2, 14]),
        ("id not in ('v1', 'v2') and whole < -5", [4]),
        ("whole < -5.5", [1, 2, 4]),
        ("-5.5 > whole", [1, 2, 4]),
        ("whole between -9 and -8", [1, 2]),
        ("whole not between -8 and 100", [1]),
        ("share in (1, .5, -3)", []),
        ("share in (1.25, 0.625)", [5, 10]),
        ("whole in (1, 2.5)", [11]),
        ("source like 'cam_'", [10, 20]),
        ("source ilike 'CAM%'", [1, 10, 11, 20]),
        ("source like 'a\\_b' or source like 'a\\%b'", [3, 4, 13, 23]),
        ("source like '%\\\\%'", [5, 15]),
        ("source like 'line%break'", [6, 16]),
        ("source like '_\0%'", [8, 18]),
        ("source = ''", [9, 19]),
        ("source > 'z'", [8, 17, 18]),  # by UTF-8
        ("source not like '%'", []),
        ("source is null", [0, 7, 14, 21]),
        ("fingerprint is null and is_day is not null", [1, 5, 9, 13, 17, 21]),
        ("is_day and whole > 9", [20, 22]),
        ("not is_day and whole > 9", [23]),
        ("is_day = false and whole > 9 or is_day <> false and whole = 12", [22, 23]),
        ("not (whole > -9 or whole is null)", [1]),
        ("not not whole = 4", [14]),
        ("num_frames between 1 and 2 and duration_s < 2", [0, 1]),
        ("\"order\" = 11 or `order` = 12 and mixed = 'x'", [11, 12]),
        ("share < whole and whole <= 4", [13, 14]),
        ("source = id", []),
        ("true", list(range(24))),
        ("false or whole = 4", [14]),
        ("whole = 9223372036854775807 or whole = -9223372036854775807", []),
        ("whole > -1e300 and whole < -8", [1]),
    ],
)
def test_what_filters_let_through(both: list[Snapshot], where: str, expected: list[int]) -> None:
    for snapshot in both:
        found = matching(snapshot, where)
        assert found == expected
        in_parts = [row for rows, _ in snapshot.scan(5, where) for row in rows]
        assert sorted(in_parts) == sorted(snapshot.matching(where))


NAMES = st.sampled_from(["id", "source", "whole", "share", "is_day", "duration_s", '"order"'])
VALUES = (
    st.integers(-12, 14).map(str)
    | st.sampled_from(["0.5", "-1.25", "1e1", "7.", "true", "false"])
    | st.sampled_from([*TEXTS, "v3", "v1%", "%a%", "_a%"]).map(
        lambda t: f"'{t}'".replace("t's", "t''s")
    )
)
SIGNS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
CONDITIONS = st.one_of(
    st.tuples(NAMES, SIGNS, VALUES | NAMES).map(" ".join),
    st.tuples(VALUES, SIGNS, NAMES).map(" ".join),
    st.tuples(
        NAMES, st.sampled_from(["in", "NOT in"]), st.lists(VALUES, min_size=1, max_size=3)
    ).map(lambda p: f"{p[0]} {p[1]} ({', '.join(p[2])})"),
    st.tuples(NAMES, st.sampled_from(["like", "not like", "ilike"]), VALUES).map(" ".join),
    st.tuples(NAMES, st.sampled_from(["between", "not between"]), VALUES, VALUES).map(
        lambda p: f"{p[0]} {p[1]} {p[2]} and {p[3]}"
    ),
    st.tuples(NAMES, st.sampled_from(["is null", "is not null", ""])).map(" ".join),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(" ".join),
        part.map(lambda text: f"not ({text})"),
        part.map(lambda text: f"({text})"),
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(FILTERS)
@example("share = whole")
@example("not (source like '%a%' and is_day)")
@example("whole not in (1, 0.5)")
def test_both_stores_answer_alike(both: list[Snapshot], where: str) -> None:
    def answer(snapshot: Snapshot) -> list[int] | str:
        try:
            return matching(snapshot, where)
        except InvalidArgumentError as error:
            return str(error)

    assert answer(both[0]) == answer(both[1])


@given(st.text())
@example("whole = 1\ud800")
@example("'")
@example("whole = 1e999")
def test_any_text_is_read_or_refused(where: str) -> None:
    try:
        parse_filter(where, {"whole": int})
    except InvalidArgumentError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either outcome is right


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("", "expected a column or value, found the end"),
        (" ", "expected a column or value, found the end"),
        ("n =", "expected a column or value, found the end"),
        ("nothing = 3", "no column 'nothing'; there are duration_s, .*, n, num_frames, source"),
        ('"source = 3', "quotation mark is not closed"),
        ("id = 'a", "quotation mark is not closed"),
        # What a database would read up to, and drop the rest of.
        ("n = 1; drop table videos", "no such sign: '; drop"),
        ("n = 1 -- all", "no such sign: '-- all"),
        ("n = 1 /* all */", r"no such sign: '/\*"),
        ("n = 1)", r"expected and, or, or the end, found '\)"),
        ("n = 1) or (n = 2", r"expected and, or, or the end, found '\)"),
        ("n = 1 limit 1", "expected and, or, or the end, found 'limit 1"),
        ("n = 1 n = 2", "expected and, or, or the end"),
        ("(n = 1", "found the end"),
        ("n = (select 1)", "expected a column or value"),
        ("exists (select 1)", "no column 'exists'"),
        ("n in (select n from videos)", "expected a value"),
        ("n in (with recursive r as (select 1) select 1)", "expected a value"),
        ("n in ()", "expected a value"),
        ("random() > 0", "no column 'random'"),
        ("load_extension('x')", "no column 'load_extension'"),
        ("length(source) > 3", "no column 'length'"),
        ("n = ?", "no such sign"),
        ("n / 0 = 1", "no such sign"),
        ("n is 4", "expected null"),
        ("n = null", "expected a column or value, found 'null"),
        ("n not", "expected = <"),
        ("n", "expected = <"),
        ("source", "expected = <"),
        ("3", "expected = <"),
        ("source = 3", "source holds texts, not 3"),
        ("n = '3'", "n holds whole numbers, not '3'"),
        ("n = true", "n holds whole numbers, not True"),
        ("n in (1, 'x')", "n holds whole numbers, not 'x'"),
        ("n = source", "n holds whole numbers, not source"),
        ("is_day = 1", "is_day holds truth values, not 1"),
        ("is_day < true", "which have no order"),
        ("n like '1%'", "like compares a column of texts"),
        ("source like 3", "like compares a column of texts"),
        (r"source like 'a\b'", "escapes %, _ or"),
        ("source like 'a\\'", "escapes %, _ or"),
        ("1 = 1", "names no column"),
        ("rowid = 1", "no column 'rowid'"),
        ("_rowid = 1", "no column '_rowid'"),
        ("video_features is null", "no column 'video_features'"),
        ("n = 99999999999999999999", "no number of 64 bits"),
        ("n = 1e999", "no number of 64 bits"),
        ("n = 12abc", "no such sign"),
    ],
)
def test_filters_that_are_none(two_videos: Snapshot, where: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as raised:
        two_videos.matching(where)
    assert "expected an expression such as: duration_s < 30" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(InvalidArgumentError, match=reason):
        list(two_videos.scan(1, where))


def test_no_filter_runs_long(both: list[Snapshot]) -> None:
    largest = [
        " or ".join(f"not (whole = {n} and share < {n})" for n in range(MAX_CONDITIONS // 2)),
        " and ".join(f"source not like '%{'a%' * 15}{n}'" for n in range(MAX_CONDITIONS)),
        f"whole in ({', '.join(map(str, range(10_000)))})",
        "not " * 16_000 + "whole = 4",
    ]
    for where in largest:
        assert len(where) <= MAX_FILTER_CHARACTERS
        started_s = time.process_time()  # other load does not count
        found = [matching(snapshot, where) for snapshot in both]
        assert found[0] == found[1]
        assert time.process_time() - started_s < 20
    deepest = "whole = 4"
    for _ in range(10):
        deepest = f"not (whole = 1 and is_day or {deepest} or share < 0)"
    for snapshot in both:
        assert matching(snapshot, f"({deepest})") == matching(snapshot, f"(({deepest}))"[1:-1])
        for where, reason in (
            ("(" * 60_000 + "whole = 4", "nested deeper than 12"),
            (" or ".join(["whole = 4"] * (MAX_CONDITIONS + 1)), "more than 1000 conditions"),
            ("whole in (" + "1, " * 30_000 + "1)", "more than 65536 characters"),
        ):
            with pytest.raises(InvalidArgumentError, match=reason) as raised:
                snapshot.matching(where)
            assert len(str(raised.value)) < 700


def test_a_filter_that_is_no_text(store: GalleryStore) -> None:
    with pytest.raises(InvalidArgumentError, match="it is a int, not a text"):
        store.snapshot().matching(3)  # type: ignore[arg-type]


def test_a_field_that_no_video_has_any_longer(store: GalleryStore) -> None:
    store.put(*sample(["a"], source="cam1"), replace=False)
    store.put(*sample(["b"]), replace=False)
    store.remove(["a"])
    assert store.snapshot().matching("source = 'cam1'").tolist() == []
    assert len(store.snapshot().matching("source is null")) == 1
