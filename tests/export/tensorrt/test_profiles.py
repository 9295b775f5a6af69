"""Shape ranges."""

from __future__ import annotations

import pytest

from xclip_deploy import BatchRange, Bundle, EngineShapes
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.manifest import Graph, Precision


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (-1, 1, 1)])
def test_disordered_ranges_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="expected 1 <= min <= opt <= max"):
        BatchRange(*sizes)


def test_every_dynamic_axis_takes_its_own_range(bundle: Bundle) -> None:
    shapes = EngineShapes(
        videos=BatchRange(1, 2, 3),
        texts=BatchRange(4, 5, 6),
        scored_texts=BatchRange(7, 8, 9),
        scored_videos=BatchRange(10, 11, 12),
    )
    graphs = bundle.manifest.graphs[Precision.FP16]
    ranges = {graph: shapes.profile(graph, spec) for graph, spec in graphs.items()}
    assert ranges[Graph.VIDEO_ENCODER]["num_frames"].max == (3,)
    assert ranges[Graph.TEXT_ENCODER]["token_ids"].opt == (5, 32)
    assert ranges[Graph.SCORER]["word_features"].min == (7, 32, 64)
    assert ranges[Graph.SCORER]["frame_features"].max == (12, 12, 64)
