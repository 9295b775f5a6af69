"""Fifty queries of galleries in 1, 3 and 8 shards, on a Ray cluster of three nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_galleries import Nodes, line_of, write_shards
from cluster_pages_program import OPTIONS, TEXTS, pages
from segment_samples import Planter, unit

from xclip_deploy import Bundle, Gallery, Retriever, VideoFeatures
from xclip_deploy.runtime.video.segmentation import Segmentation

pytestmark = pytest.mark.slow
COUNTS = (1, 3, 8)


def videos_with_copies(bundle: Bundle) -> list[Any]:
    """Make 120 videos of up to 5 segments, and a nearly identical copy of every second."""
    planter = Planter(bundle.manifest.model, Segmentation("windows", 8.0, 4.0))
    rng = np.random.default_rng(6)
    videos = [
        planter.video(f"v{n:03d}", rng.uniform(0, 2, 1 + n % 5), kind=f"k{n % 3}")
        for n in range(120)
    ]
    for n in range(0, 120, 2):
        rows, features = videos[n]
        copied = [row.model_copy(update={"id": f"w{n:03d}", "path": f"w{n:03d}"}) for row in rows]
        frames = unit(
            features.frame_features + 1e-3 * rng.standard_normal(features.frame_features.shape)
        )
        near = VideoFeatures(unit(frames.mean(axis=1)), frames, features.num_frames)
        videos.append((copied, near))
    return videos


def test_pages_do_not_depend_on_the_number_of_shards(
    bundle: Bundle,
    bundle_path: Path,
    tmp_path: Path,
    nodes: Nodes,
) -> None:
    videos = videos_with_copies(bundle)
    places = [tmp_path / f"in-{count}" for count in COUNTS]
    for place, count in zip(places, COUNTS, strict=True):
        write_shards(place, bundle, videos, count)
    whole = Gallery.open(tmp_path / "whole", bundle.manifest, create=True)
    rows = [row for part, _ in videos for row in part]
    whole.add(rows, VideoFeatures.concatenate([features for _, features in videos]))
    whole.close()
    found = line_of("cluster_pages_program.py", bundle_path, nodes.address, *places, timeout_s=900)
    with Retriever(bundle, tmp_path / "whole", device="cpu") as retriever:
        expected = pages(retriever)
    # Copies were left out, and shown beside the hits.
    assert any(hit[5] for of_text in expected for hit in of_text[3])
    assert found["nodes"] == [1, 3, 3]
    for of_count in found["pages"]:
        for text, own, others in zip(TEXTS, of_count, expected, strict=True):
            assert len(own) == len(OPTIONS) + 1
            for page, other in zip(own, others, strict=True):
                assert page, text
                assert [hit[:2] + hit[3:] for hit in page] == [hit[:2] + hit[3:] for hit in other]
                scores = [hit[2] for hit in other]
                assert [hit[2] for hit in page] == pytest.approx(scores, rel=1e-5, abs=1e-5)
