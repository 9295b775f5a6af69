"""Moments on the command line, and the explanation of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run, runner
from segment_samples import Planter, together

from xclip_deploy import Bundle, Retriever
from xclip_deploy.errors import GalleryError
from xclip_deploy.runtime.video.segmentation import Segmentation

QUERY = "a man walks"
LONG = "/films/crowd.mkv"


@pytest.fixture(scope="module")
def filled(bundle: Bundle) -> Iterator[Retriever]:
    """A film of more than an hour and five talks, like the query at known segments."""
    with Retriever(bundle, device="cpu", threads=1) as retriever:
        planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
        planter.target = retriever.encode_texts([QUERY]).sentence_features[0]
        likeness = [0.0] * 1000
        likeness[930], likeness[20], likeness[400] = 6.0, 1.8, 1.2
        parts = [planter.video(LONG, likeness)]
        parts += [
            planter.video(f"/talks/{n}/talk.mkv", [0.1, 1.2 - 0.1 * n, 0.1]) for n in range(5)
        ]
        retriever.add_features(*together(parts))
        yield retriever


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def places(
    filled: Retriever, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[object]:
    gallery = tmp_path_factory.mktemp("moments") / "gallery"
    filled.save(gallery)
    return ["--bundle", bundle_path, "--gallery", gallery]


def test_a_line_for_each_moment(run: Run, places: list[object]) -> None:
    outcome = run("search", QUERY, *places)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    header, best = lines[1], lines[3]
    assert header.split() == ["#", "score", "sure", "time", "best", "frame", "video"]
    assert best.split()[0] == "1"
    assert best.split()[-1] == LONG
    (where,) = [word for word in best.split() if "-" in word]
    start, end = where.split("-")
    assert start.startswith("1:0")
    assert end.startswith("1:0")
    assert lines[4].split()[1:2] == ["1:20.0-1:28.0"]
    assert lines[5].split()[1:2] == ["26:40.0-26:48.0"]
    assert sum(LONG in line for line in lines) == 1
    assert max(len(line) for line in lines) <= 80
    assert re.search(r"\d+ of 1,015 segments of 6 videos scored", outcome.out)


def test_moments_of_one_video_as_json(run: Run, places: list[object], filled: Retriever) -> None:
    options = ("--group", "moment", "--within", "crowd.mkv", "--from", "1:00", "--to", "30:00")
    outcome = run("search", QUERY, "-k", 2, *options, "--nms", "0.3", *places, "--json")
    (found,) = outcome.json()
    assert (found["num_videos"], found["num_segments"], found["note"]) == (6, 1015, "")
    assert [hit["segment"] for hit in found["results"]] == [20, 400]
    assert [hit["start_s"] for hit in found["results"]] == [80.0, 1600.0]
    first = found["results"][0]
    assert first["range"]["start_s"] < first["best_frame_time_s"] < first["range"]["end_s"]
    expected = filled.search(
        QUERY, 2, group="moment", within=LONG, from_s=60, to_s="30:00", nms=0.3
    )
    assert [hit.segment for hit in expected] == [20, 400]


def test_no_such_moment(run: Run, places: list[object]) -> None:
    outcome = run("search", QUERY, "--min-confidence", "0", "-k", 1, *places)
    assert outcome.out.splitlines()[1].split()[:3] == ["#", "score", "sure"]
    outcome = run("search", "seven zebras", "--min-confidence", "1", *places)
    assert outcome.status == 0
    assert "nothing is found with a confidence of 1; the best has " in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nms", "0"), "nms is 0: expected a temporal IoU above 0"),
        (("--from", "late"), "from_s is 'late'"),
        (("--from", "2:00", "--to", "1:00"), "to_s is 60 s and from_s 120 s"),
        (("--within", "talk.mkv"), "'talk.mkv' names 5 videos"),
        (("--within", "none.mkv"), "no video 'none.mkv' in the gallery of 6"),
    ],
)
def test_wrong_options(
    run: Run, places: list[object], options: tuple[str, ...], message: str
) -> None:
    outcome = run("search", QUERY, *options, *places)
    assert outcome.status != 0
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_the_segment_of_a_hit_is_explained(filled: Retriever) -> None:
    hits = filled.search(QUERY, 3, group="moment", within=LONG, nms=None)
    for hit in hits:
        explanation = filled.explain(QUERY, hit)
        assert (explanation.video_id, explanation.segment) == (LONG, hit.segment)
        assert explanation.score == pytest.approx(hit.score, rel=1e-3)
        assert (explanation.start_s, explanation.end_s) == (hit.start_s, hit.end_s)
        moment = explanation.best_moment
        assert moment.best_frame_time_s == hit.best_frame_time_s
        assert hit.end_s is not None
        assert hit.start_s <= moment.start_s < moment.end_s <= hit.end_s
        assert explanation.to_dict()["segment"] == hit.segment
    assert str(filled.explain(QUERY, hits[0])).startswith("segment 931 of 1000, 1:02:00.0 to 1:0")
    # An id alone takes the segment that fits best.
    assert filled.explain(QUERY, LONG).segment == hits[0].segment == 930
    contrast = filled.explain(QUERY, hits[0], hits[1])
    assert contrast.difference > 0


def test_a_segment_that_is_gone(filled: Retriever, bundle: Bundle) -> None:
    hit = filled.search(QUERY, 1)[0]
    with Retriever(bundle, device="cpu", threads=1) as other:
        planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
        other.add_features(*planter.video(LONG, [0.5, 0.5]))
        with pytest.raises(GalleryError, match=f"no segment 930 of '{LONG}' in the gallery"):
            other.explain(QUERY, hit)


def test_the_picture_says_why_it_has_no_frames(
    run: Run, places: list[object], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    outcome = run("explain", QUERY, *places, "-o", tmp_path / "explain.png")
    assert outcome.status == 0
    assert outcome.out.startswith("segment 931 of 1000, 1:02:00.0 to 1:02:08.0: score ")
    assert (tmp_path / "explain.png").stat().st_size > 1000
