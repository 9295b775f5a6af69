"""What indexing would take, told before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import runner
from numbered_movies import write_movie

from xclip_deploy import Bundle, Retriever
from xclip_deploy.errors import GallerySegmentationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movies")
    write_movie(folder / "long.mp4", 20, sounds=())
    write_movie(folder / "short.mp4", 3, sounds=())
    (folder / "broken.mp4").write_bytes((folder / "short.mp4").read_bytes()[:600])
    return folder


def test_an_estimate_is_what_indexing_gives(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    with Retriever(bundle, tmp_path / "gallery", create=True) as retriever:
        estimate = retriever.estimate(folder, segment="6s", stride="3s")
        assert len(retriever) == 0
        assert (estimate.num_videos, estimate.num_unreadable) == (3, 1)
        assert estimate.duration_s == pytest.approx(23, abs=0.2)
        assert estimate.seconds > 0
        report = retriever.add(folder, segment="6s", stride="3s", thumbnails=False)
        assert len(report.indexed) == 2
        assert estimate.num_segments == len(retriever.gallery.snapshot()) == 7
        again = retriever.estimate(folder)
        assert (again.num_segments, again.num_unchanged, again.size_bytes) == (0, 2, 0)
        with pytest.raises(GallerySegmentationError):
            retriever.estimate(folder, segment="8s")


def test_the_command_writes_nothing(
    bundle_path: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gallery = tmp_path / "gallery"
    run = runner(capfd, "index", str(folder), "--bundle", str(bundle_path), "--estimate")
    result = run("--gallery", gallery, "--segment", "6s", "--stride", "3s")
    assert result.status == 0
    assert "3 videos of 0:23 give 7 segments" in result.out
    assert "1 cannot be opened" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert not gallery.exists()
    assert run("--gallery", gallery, "--json").json()["num_segments"] == 3
