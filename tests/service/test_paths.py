"""Paths to add lie below allowed folders, however they are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from xclip_deploy.errors import InvalidArgumentError, VideoNotFoundError, VideoReadError
from xclip_deploy.runtime.decoding import DecoderPool, FileContent
from xclip_deploy.runtime.indexing import open_sources
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.video import FrameSampling, MediaPolicy, VideoReading
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.paths import AllowedRoots
from xclip_deploy.service.results import results_to_json


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two allowed folders, ``a`` and ``b``, beside ``secret`` and ``a-more``, which are not."""
    for name in ("a/deep/er/clip.mp4", "b/other.mp4", "secret/clip.mp4", "a-more/clip.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


@pytest.fixture
def roots(tree: Path) -> AllowedRoots:
    return AllowedRoots([tree / "a", tree / "b"])


def refused(roots: AllowedRoots, path: object) -> str:
    with pytest.raises(Refusal) as refusal:
        roots.locate(str(path))
    assert refusal.value.status == 403
    return str(refusal.value)


def test_what_lies_below_is_found(roots: AllowedRoots, tree: Path) -> None:
    clip = tree / "a" / "deep" / "er" / "clip.mp4"
    assert roots.locate(str(clip)) == clip
    assert roots.locate(f"{tree}//a/./deep/../deep/er/clip.mp4") == clip
    assert roots.locate("deep/er/clip.mp4") == clip
    assert roots.locate("other.mp4") == tree / "b" / "other.mp4"
    assert roots.locate(str(tree / "a")) == tree / "a"
    assert roots.locate(".") == tree / "a"


@pytest.mark.parametrize(
    "written",
    [
        "{tree}/secret/clip.mp4",
        "{tree}/secret/none.mp4",  # the same answer as for one that exists
        "{tree}/a/../secret/clip.mp4",
        "{tree}/a/deep/../../secret/clip.mp4",
        "{tree}/a-more/clip.mp4",
        "{tree}/A/deep/er/clip.mp4",
        "{tree}",
        "../secret/clip.mp4",
        "deep/../../secret/clip.mp4",
        "/",
        "/etc/passwd",
        "/proc/self/root/etc/passwd",
        "/proc/self/environ",
        "//etc/passwd",
    ],
)
def test_what_lies_elsewhere_is_refused(roots: AllowedRoots, tree: Path, written: str) -> None:
    said = refused(roots, written.format(tree=tree))
    assert str(tree) not in said
    assert "is not below a folder whose files may be added" in said


@pytest.mark.parametrize(
    "written",
    ["%2e%2e/secret/clip.mp4", "..%2fsecret%2fclip.mp4", "~/clip.mp4", "file:///etc/passwd",
     "..\\secret\\clip.mp4", "deep/er/CLIP.mp4", "x" * 300, "d/" * 2000],
)  # fmt: skip
def test_nothing_is_decoded(roots: AllowedRoots, written: str) -> None:
    with pytest.raises(VideoNotFoundError):
        roots.locate(written)


@pytest.mark.parametrize("written", ["clip.mp4\0.txt", "", "x" * 4097, "\ud800", "\udcff.mp4"])
def test_impossible_paths(roots: AllowedRoots, written: str) -> None:
    with pytest.raises(InvalidArgumentError):
        roots.locate(written)


def test_links_out_are_refused_at_every_level(roots: AllowedRoots, tree: Path) -> None:
    (tree / "a" / "file.mp4").symlink_to(tree / "secret" / "clip.mp4")
    (tree / "a" / "folder").symlink_to(tree / "secret")
    (tree / "a" / "twice").symlink_to("folder")
    (tree / "a" / "up").symlink_to("../..")
    (tree / "a" / "dangling.mp4").symlink_to(tree / "secret" / "none.mp4")
    for path in ("file.mp4", "folder/clip.mp4", "twice/clip.mp4", "up/etc", "dangling.mp4"):
        refused(roots, path)
        refused(roots, tree / "a" / path)


def test_links_within_lead_to_the_file(roots: AllowedRoots, tree: Path) -> None:
    (tree / "a" / "link").symlink_to("deep")
    (tree / "a" / "across.mp4").symlink_to(tree / "b" / "other.mp4")
    assert roots.locate("link/er/clip.mp4") == tree / "a" / "deep" / "er" / "clip.mp4"
    assert roots.locate("across.mp4") == tree / "b" / "other.mp4"


def test_a_folder_that_is_a_link_keeps_its_name(tree: Path) -> None:
    (tree / "named").symlink_to("a")
    roots = AllowedRoots([tree / "named"])
    assert roots.locate("deep/er/clip.mp4") == tree / "named" / "deep" / "er" / "clip.mp4"
    assert roots.locate(f"{tree}/a/deep") == tree / "named" / "deep"


def test_circles_pipes_and_closed_folders(roots: AllowedRoots, tree: Path) -> None:
    (tree / "a" / "circle").symlink_to("circle")
    os.mkfifo(tree / "a" / "pipe.mp4")
    for name in ("circle", "pipe.mp4"):
        with pytest.raises(VideoReadError):
            roots.locate(name)


def test_the_service_s_own_folder_is_left_out(tree: Path) -> None:
    roots = AllowedRoots([tree / "a"], excluded=[tree / "a" / "deep"])
    refused(roots, "deep/er/clip.mp4")
    refused(roots, tree / "a" / "deep")
    sources = open_sources([tree / "a"], accepts=roots.holds)
    assert sources.videos == []
    assert "leads out" in sources.failed[0].reason


def test_a_root_must_be_a_folder(tree: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is no folder"):
        AllowedRoots([tree / "none"])


def test_folders_are_walked_without_leaving(roots: AllowedRoots, tree: Path) -> None:
    (tree / "a" / "file.mp4").symlink_to(tree / "secret" / "clip.mp4")
    (tree / "a" / "folder").symlink_to(tree / "secret")
    (tree / "a" / "across").symlink_to(tree / "b")
    sources = open_sources([roots.locate(".")], accepts=roots.holds)
    assert {video.path.removeprefix(f"{tree}/a/") for video in sources.videos} == {
        "deep/er/clip.mp4",
        "across/other.mp4",
    }
    assert {Path(video.path).name for video in sources.failed} == {"file.mp4", "folder"}


def test_lists_name_no_files_elsewhere(roots: AllowedRoots, tree: Path) -> None:
    listed = tree / "a" / "list.txt"
    listed.write_text(f"deep/er/clip.mp4\n../secret/clip.mp4\n/etc/passwd\n{tree}/b/other.mp4\n")
    sources = open_sources([listed], accepts=roots.holds)
    assert len(sources.videos) == 2
    assert len(sources.failed) == 2


def test_a_link_put_in_place_after_the_check(roots: AllowedRoots, tree: Path, clips: Path) -> None:
    """The decoder looks again, before it opens the file and once it has read it."""
    shutil.copy(clips / "mdn_frog.webm", tree / "secret" / "frog.webm")
    shutil.copy(clips / "mdn_frog.webm", tree / "a" / "frog.webm")
    reading = VideoReading(FrameSampling(max_frames=2), 16, policy=MediaPolicy(within=roots.real))
    path = roots.locate("frog.webm")
    with DecoderPool[str](reading, workers=1) as pool:
        pool.submit("before", path)
        assert isinstance(taken(pool), FileContent)
        path.unlink()
        path.symlink_to(tree / "secret" / "frog.webm")
        pool.submit("after", path)
        assert "leads out" in str(taken(pool))

        path.unlink()
        shutil.copy(clips / "mdn_frog.webm", path)

        def swap(_content_sha256: str) -> bool:
            path.unlink()
            path.symlink_to(tree / "secret" / "frog.webm")
            return True

        pool.submit("meanwhile", path, swap)
        assert "leads out" in str(taken(pool))
        pool.submit("no policy", path)
    with DecoderPool[str](replace(reading, policy=None), workers=1) as pool:
        pool.submit("command line", path)
        assert isinstance(taken(pool), FileContent)


def taken(pool: DecoderPool[str]) -> object:
    result = pool.take(60)
    assert result is not None
    return result[1]


def test_over_http(open_service: Callable[..., object], tree: Path) -> None:
    client = open_service(roots=(tree / "a",))
    for path, status in (
        ("/etc/passwd", 403),
        (f"{tree}/secret/clip.mp4", 403),
        ("none.mp4", 404),
        ("a\0b", 422),
    ):
        answer = client.post("/api/v1/index", json={"paths": [path]})  # type: ignore[attr-defined]
        assert answer.status_code == status, answer.text
        assert str(tree) not in answer.text
    without = open_service()
    answer = without.post("/api/v1/index", json={"paths": ["/etc/passwd"]})  # type: ignore[attr-defined]
    assert answer.status_code == 403


@pytest.mark.parametrize("show_paths", [True, False])
def test_the_reason_of_a_search_shows_no_folder(show_paths: bool) -> None:
    """Where a bundle lacks scan kernels, the reason names it."""
    lacks = "bundle /secret/place/xclip-bundle has no scan kernels for GPUs"
    results = SearchResults((), "exact", 0, 3, f"asked for; not resident on cuda:0: {lacks}")
    content = json.loads(results_to_json(results, show_paths=show_paths))
    assert ("/secret" in content["reason"]) == show_paths
    assert "xclip-bundle has no scan kernels" in content["reason"]
