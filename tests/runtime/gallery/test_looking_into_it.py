"""Listing, counting, summing up and removing by filter, in every kind of store."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from gallery_samples import unit

from xclip_deploy import Bundle, Gallery, GalleryVideo, VideoFeatures
from xclip_deploy.errors import ClosedError, GalleryError, InvalidArgumentError
from xclip_deploy.runtime.gallery import VideoFile
from xclip_deploy.runtime.manifest import Manifest

NAMES = [f"v{n}" for n in range(7)]


@pytest.fixture
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


@pytest.fixture(params=["memory", "lancedb"])
def gallery(request: pytest.FixtureRequest, manifest: Manifest, tmp_path: Path) -> Gallery:
    """Seven videos, of which the odd ones are of camera 1; the last has two files."""
    if request.param == "memory":
        made = Gallery(manifest)
    else:
        made = Gallery.open(tmp_path / "gallery", manifest, create=True)
    config = manifest.model
    rng = np.random.default_rng(0)
    frames = unit(rng.standard_normal((len(NAMES), config.max_frames, config.embed_dim)))
    videos = [
        GalleryVideo(
            id=name,
            path=f"/{name}",
            files=tuple(
                VideoFile(path=path) for path in ([f"/{name}", "/copy"] if n == 6 else [f"/{name}"])
            ),
            duration_s=float(n),
            frame_times_s=(0.0,),
            metadata={"source": f"cam{n % 2}", "n": n},
        )
        for n, name in enumerate(NAMES)
    ]
    # In two parts, as galleries grow.
    for part in (slice(0, 4), slice(4, 7)):
        features = VideoFeatures(frames[part, 0], frames[part], np.ones(len(frames[part]), int))
        made.add(videos[part], features)
    return made


def test_listing(gallery: Gallery) -> None:
    assert [video.id for video in gallery] == NAMES
    assert [video.id for video in gallery.videos()] == NAMES
    assert gallery.videos()[3].metadata == {"source": "cam1", "n": 3}
    assert [video.id for video in gallery.videos("source = 'cam1'")] == ["v1", "v3", "v5"]
    assert gallery.videos("n > 100") == []


def test_paging(gallery: Gallery) -> None:
    pages = [gallery.videos(offset=offset, limit=3) for offset in range(0, 9, 3)]
    assert [[video.id for video in page] for page in pages] == [NAMES[:3], NAMES[3:6], NAMES[6:]]
    found = gallery.videos("source = 'cam0'", offset=1, limit=2)
    assert [video.id for video in found] == ["v2", "v4"]
    assert gallery.videos(limit=0) == []
    assert [video.id for video in gallery.videos(offset=6)] == ["v6"]


def test_counting(gallery: Gallery) -> None:
    assert gallery.count() == len(gallery) == 7
    assert gallery.count("source = 'cam1'") == 3
    assert gallery.count("duration_s >= 5") == 2


def test_getting_one(gallery: Gallery) -> None:
    video = gallery.get("v6")
    assert (video.path, video.duration_s) == ("/v6", 6.0)
    assert [file.path for file in video.files] == ["/v6", "/copy"]
    with pytest.raises(GalleryError, match="no video 'v7' in the gallery of 7"):
        gallery.get("v7")


def test_summing_up(gallery: Gallery, manifest: Manifest) -> None:
    found = gallery.stats()
    assert found.fingerprint == manifest.fingerprint
    assert (found.num_videos, found.num_files, found.total_duration_s) == (7, 8, 21.0)
    assert found.metadata == {"source": "texts", "n": "whole numbers"}
    assert found.uri == gallery.uri
    assert (found.size_bytes or 0) > 0 if gallery.uri else found.size_bytes is None


def test_removing_by_filter(gallery: Gallery) -> None:
    assert gallery.remove(where="source = 'cam1' and n < 5") == 2
    assert gallery.remove(where="n > 100") == 0
    assert [video.id for video in gallery] == ["v0", "v2", "v4", "v5", "v6"]
    assert gallery.remove("v0") == 1
    for wrong in ({}, {"ids": "v2", "where": "n = 2"}):
        with pytest.raises(InvalidArgumentError, match="one of the two"):
            gallery.remove(**wrong)
    with pytest.raises(InvalidArgumentError):
        gallery.remove(where="no filter")
    assert len(gallery) == 4


def test_closed_means_closed(gallery: Gallery) -> None:
    where = repr(gallery.uri) if gallery.uri else "in memory"
    assert repr(gallery).startswith("<Gallery ")
    assert where in repr(gallery)
    assert repr(gallery).endswith(", 7 videos>")
    gallery.close()
    gallery.close()
    for use in (
        lambda: len(gallery),
        lambda: list(gallery),
        lambda: "v0" in gallery,
        gallery.videos,
        gallery.count,
        gallery.stats,
        gallery.refresh,
        gallery.snapshot,
        lambda: gallery.get("v0"),
        lambda: gallery.remove("v0"),
        lambda: gallery.optimize(),
    ):
        with pytest.raises(ClosedError, match="is closed; open it again"):
            use()
    assert repr(gallery).endswith(", closed>")


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pickling_is_refused(gallery: Gallery, duplicate: object) -> None:
    with pytest.raises(InvalidArgumentError, match="open it in the worker"):
        duplicate(gallery)  # type: ignore[operator]


@pytest.mark.parametrize("times", [(), (0.0, 1.0, 2.0)])
def test_an_update_keeps_one_time_a_frame(gallery: Gallery, times: tuple[float, ...]) -> None:
    before = list(gallery)
    good = before[1].model_copy(update={"metadata": {"late": 1}})
    wrong = before[2].model_copy(update={"frame_times_s": times})
    expected = rf"video 'v2' has {len(times)} frame times, expected 1,"
    with pytest.raises(InvalidArgumentError, match=expected):
        gallery.update([good, wrong])
    assert list(gallery) == before
    assert "late" not in gallery.stats().metadata
    gallery.update([good, before[2].model_copy(update={"frame_times_s": (5.0,)})])
    assert gallery.get("v2").frame_times_s == (5.0,)
