"""Shape ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy import Bundle
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.export.tensorrt import BatchRange, EngineShapes
from xclip_deploy.runtime.manifest import Graph, Precision


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (-1, 1, 1)])
def test_disordered_ranges_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="expected 1 <= min <= opt <= max"):
        BatchRange(*sizes)


@given(st.tuples(*[st.integers(1, 10**6)] * 3).map(sorted))
def test_ranges_are_read_as_they_are_written(sizes: list[int]) -> None:
    found = BatchRange(*sizes)
    assert BatchRange.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3:4", "a", "1:x:3", "-1:1:2", "1.5", "3:2:1"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="batch range"):
        BatchRange.parse(text)


def test_one_number_is_all_three() -> None:
    assert BatchRange.parse("8") == BatchRange(8, 8, 8)


def test_every_dynamic_axis_takes_its_own_range(bundle: Bundle) -> None:
    shapes = EngineShapes(
        videos=BatchRange(1, 2, 3),
        texts=BatchRange(4, 5, 6),
        scored_texts=BatchRange(7, 8, 9),
        scored_videos=BatchRange(10, 11, 12),
    )
    graphs = bundle.manifest.graphs[Precision.FP16]
    profiles = {graph: shapes.profiles(graph, spec) for graph, spec in graphs.items()}
    (video,) = profiles[Graph.VIDEO_ENCODER]
    assert video["num_frames"].max == (3,)
    # A profile for exactly one text comes first, whatever the range is.
    query, bulk = profiles[Graph.TEXT_ENCODER]
    assert query["token_ids"].min == query["token_ids"].max == (1, 32)
    assert bulk["token_ids"].opt == (5, 32)
    query, bulk = profiles[Graph.SCORER]
    assert query["word_features"].max == (1, 32, 64)
    assert query["frame_features"] == bulk["frame_features"]
    assert bulk["word_features"].min == (7, 32, 64)
    assert bulk["frame_features"].max == (12, 12, 64)


@pytest.mark.parametrize(
    "shapes", [EngineShapes(query_profile=False), EngineShapes(texts=BatchRange(1, 1, 1))]
)
def test_no_second_profile_where_there_is_no_use_for_it(
    bundle: Bundle, shapes: EngineShapes
) -> None:
    spec = bundle.manifest.graphs[Precision.FP16][Graph.TEXT_ENCODER]
    (profile,) = shapes.profiles(Graph.TEXT_ENCODER, spec)
    assert profile["token_ids"].max == (shapes.texts.max, 32)


def test_options_name_what_is_not_the_default() -> None:
    assert EngineShapes().options() == {}
    shapes = EngineShapes(videos=BatchRange(1, 1, 2), query_profile=False)
    assert shapes.options() == {"video-batch": "1:1:2", "no-query-profile": ""}
