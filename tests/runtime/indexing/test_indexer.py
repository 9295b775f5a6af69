"""What becomes of new, unchanged, changed, equal and missing files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from indexing_stand_ins import (
    contents,
    index_files,
    manifest,
    only,
    paths_of,
    videos_of,
)

from xclip_deploy.errors import DuplicateIdError, InvalidArgumentError
from xclip_deploy.runtime.decoding import DecoderPool
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.indexing import name_sources
from xclip_deploy.runtime.progress import Progress


def no_encoding(videos: Sequence[Any]) -> VideoFeatures:
    raise AssertionError(f"{len(videos)} videos were encoded")


def test_new_then_unchanged(gallery: Gallery, index: Any, make: Any) -> None:
    paths = [str(make(f"{n}.mp4", n)) for n in range(6)]
    folder = Path(paths[0]).parent
    calls: list[Progress] = []
    report = index(folder, progress=calls.append)
    only(report, indexed=paths)
    assert report.added == tuple(paths)
    assert [call.done for call in calls] == list(range(1, 7))
    assert calls[-1] == Progress("videos", 6, 6)
    before = contents(gallery)
    assert sorted(paths for paths, _ in before.values()) == [[path] for path in paths]
    video = videos_of(gallery)[paths[0]]
    status = Path(paths[0]).stat()
    assert video.files[0].size_bytes == status.st_size
    assert video.files[0].modified_ns == status.st_mtime_ns
    assert video.duration_s == 2.0
    assert video.frame_times_s == (0.0, 1.0)

    again = index_files(gallery, folder, encode=no_encoding)
    only(again, unchanged=paths)
    assert again.skipped == tuple(paths)
    assert contents(gallery) == before


def test_files_are_not_read_again(
    gallery: Gallery, index: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("a.mp4", 0)
    index(path)
    monkeypatch.setattr(DecoderPool, "submit", no_encoding)
    only(index(path), unchanged=[str(path)])


def test_a_new_time_alone_costs_no_decoding(gallery: Gallery, index: Any, make: Any) -> None:
    path = make("a.mp4", 0)
    index(path)
    os.utime(path, ns=(1, 10**18))
    only(
        index_files(gallery, path, encode=no_encoding),
        unchanged=[str(path)],
    )
    assert videos_of(gallery)[str(path)].files[0].modified_ns == 10**18


def test_changed(gallery: Gallery, index: Any, make: Any) -> None:
    path, other = make("a.mp4", 0), make("b.mp4", 1)
    listing = Path(path.parent, "list.csv")
    listing.write_text("file,camera\na.mp4,7\n")
    index(path.parent, listing)
    make("a.mp4", 2)
    report = index(path.parent)
    only(report, changed=[str(path)], unchanged=[str(other)], passed_over=[str(listing)])
    make("expected/a.mp4", 2)
    assert len(gallery) == 2
    fresh = Gallery(manifest())
    index_files(fresh, path, other)
    assert contents(gallery) == contents(fresh)
    assert videos_of(gallery)[str(path)].metadata == {"camera": 7}  # stays with the file


def test_equal_files_are_stored_once(gallery: Gallery, index: Any, make: Any) -> None:
    first, second, third = (make(name, 5) for name in ("a.mp4", "b.mp4", "sub/c.mp4"))
    report = index(first.parent)
    only(
        report,
        indexed=[str(first)],
        duplicates={str(second): str(first), str(third): str(first)},
    )
    assert paths_of(gallery) == {str(first): [str(first), str(second), str(third)]}
    only(index(first.parent), unchanged=[str(first)] * 3)
    fourth = make("d.mp4", 5)
    only(
        index_files(gallery, first.parent, encode=no_encoding),
        unchanged=[str(first)] * 3,
        duplicates={str(fourth): str(first)},
    )


def test_the_first_of_equal_files_changes(gallery: Gallery, index: Any, make: Any) -> None:
    """The video lives on under its next file, embeddings and metadata with it."""
    first, second, third = (make(name, 5) for name in ("a.mp4", "b.mp4", "c.mp4"))
    index(first.parent)
    before = contents(gallery)
    make("a.mp4", 6)
    report = index(first.parent)
    only(report, changed=[str(first)], unchanged=[str(first)] * 2)
    assert paths_of(gallery) == {
        str(first): [str(first)],
        str(second): [str(second), str(third)],
    }
    after = contents(gallery)
    (content,) = before
    assert after[content] == ([str(second), str(third)], before[content][1])
    only(index(first.parent), unchanged=[str(first), str(second), str(second)])


def test_all_equal_files_change_at_once(gallery: Gallery, index: Any, make: Any) -> None:
    names = ("a.mp4", "b.mp4", "c.mp4")
    paths = [make(name, 5) for name in names]
    index(*paths)
    for n, name in enumerate(names):
        make(name, 6 + n)
    only(index(*paths), changed=[str(path) for path in paths])
    assert paths_of(gallery) == {str(path): [str(path)] for path in paths}


def test_files_trade_their_contents(gallery: Gallery, index: Any, make: Any) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 2)
    index(first, second)
    before = contents(gallery)
    make("a.mp4", 2), make("b.mp4", 1)
    report = index(first, second)
    assert not report.failed
    after = contents(gallery)
    assert {f: numbers for f, (_, numbers) in after.items()} == {
        f: numbers for f, (_, numbers) in before.items()
    }
    assert sorted(paths for paths, _ in after.values()) == [[str(first)], [str(second)]]
    only(index(first, second), unchanged=[str(first), str(second)])


def test_a_changed_file_becomes_equal_to_another(gallery: Gallery, index: Any, make: Any) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 2)
    index(first, second)
    make("b.mp4", 1)
    only(index(first, second), unchanged=[str(first)], duplicates={str(second): str(first)})
    assert paths_of(gallery) == {str(first): [str(first), str(second)]}


# Pruning


def test_prune(gallery: Gallery, index: Any, make: Any, tmp_path: Path) -> None:
    paths = [make(f"{n}.mp4", n) for n in range(4)]
    twin = make("z.mp4", 0)
    elsewhere = make("../elsewhere/x.mp4", 9).resolve()
    index(paths[0].parent, elsewhere.parent)
    for path in (paths[0], paths[1], elsewhere):
        path.unlink()
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(map(str, [*paths[2:], twin])))
    only(index(listing, prune=True), unchanged=[str(p) for p in [*paths[2:], paths[0]]])
    assert len(gallery) == 5  # no folder was given
    only(index(paths[0].parent), unchanged=[str(p) for p in [*paths[2:], paths[0]]])
    report = index(paths[0].parent, prune=True)
    only(
        report,
        unchanged=[str(p) for p in [*paths[2:], paths[0]]],
        pruned=[str(paths[0]), str(paths[1])],
    )
    assert paths_of(gallery) == {str(path): [str(path)] for path in (*paths[2:], twin, elsewhere)}


def test_a_moved_folder_costs_no_decoding(gallery: Gallery, index: Any, make: Any) -> None:
    folder = make("old/a.mp4", 1).parent.parent
    make("old/b.mp4", 1), make("old/c.mp4", 3)
    index(folder)
    before = contents(gallery)
    (folder / "old").rename(folder / "new")
    report = index_files(gallery, folder, encode=no_encoding, prune=True)
    assert len(report.pruned) == 3
    assert {f: numbers for f, (_, numbers) in contents(gallery).items()} == {
        f: numbers for f, (_, numbers) in before.items()
    }
    new = folder / "new"
    assert paths_of(gallery) == {
        str(new / "a.mp4"): [str(new / "a.mp4"), str(new / "b.mp4")],
        str(new / "c.mp4"): [str(new / "c.mp4")],
    }


def test_an_unmounted_disk_empties_nothing(gallery: Gallery, index: Any, make: Any) -> None:
    folder = make("a.mp4", 1).parent
    make("b.mp4", 2)
    index(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    report = index(folder, prune=True)
    assert len(gallery) == 2
    assert report.pruned == ()
    assert "holds no video at all" in report.warnings[0].reason
    assert "its 2 videos stay" in report.warnings[0].reason


# Ids, metadata, on_duplicate


def test_metadata_from_a_list(gallery: Gallery, index: Any, make: Any, tmp_path: Path) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 2)
    listing = first.parent / "list.csv"
    listing.write_text("file,id,scene,length\na.mp4,A,street,3\nb.mp4,,,4\n")
    only(index(listing), indexed=["A", str(second)])
    assert {name: dict(v.metadata) for name, v in videos_of(gallery).items()} == {
        "A": {"scene": "street", "length": 3},
        str(second): {"length": 4},
    }
    before = contents(gallery)
    listing.write_text("file,id,scene\na.mp4,A2,forest\nb.mp4,,river\n")
    only(index_files(gallery, listing, encode=no_encoding), unchanged=["A2", str(second)])
    assert {name: dict(v.metadata) for name, v in videos_of(gallery).items()} == {
        "A2": {"scene": "forest"},
        str(second): {"scene": "river"},
    }
    report = index_files(gallery, first.parent, encode=no_encoding)
    only(report, unchanged=["A2", str(second)], passed_over=[str(listing)])
    assert contents(gallery) == before
    assert videos_of(gallery)["A2"].metadata == {"scene": "forest"}


def test_metadata_of_an_equal_file_is_not_kept(gallery: Gallery, index: Any, make: Any) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 1)
    listing = first.parent / "list.csv"
    listing.write_text("file,scene\na.mp4,street\nb.mp4,river\n")
    report = index(listing)
    only(report, indexed=[str(first)], duplicates={str(second): str(first)})
    assert [warning.path for warning in report.warnings] == [str(second)]
    assert "whose metadata stands" in report.warnings[0].reason
    assert videos_of(gallery)[str(first)].metadata == {"scene": "street"}


def test_ids_trade_places(gallery: Gallery, index: Any, make: Any) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 2)
    listing = first.parent / "list.csv"
    listing.write_text("file,id\na.mp4,X\nb.mp4,Y\n")
    index(listing)
    before = contents(gallery)
    listing.write_text("file,id\na.mp4,Y\nb.mp4,X\n")
    assert not index(listing).failed
    assert not index(listing).failed
    assert paths_of(gallery) == {"Y": [str(first)], "X": [str(second)]}
    assert contents(gallery) == before


def test_on_duplicate(gallery: Gallery, index: Any, make: Any) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 2)
    index(first)
    with pytest.raises(DuplicateIdError, match="already in the gallery"):
        index(first, second, on_duplicate="error")
    make("a.mp4", 3)
    report = index(first, second, on_duplicate="skip")
    only(report, unchanged=[str(first)], indexed=[str(second)])
    only(index(first, second, on_duplicate="replace"), changed=[str(first), str(second)])
    only(index(first, second, on_duplicate="replace"), changed=[str(first), str(second)])
    only(index(first, second), unchanged=[str(first), str(second)])
    with pytest.raises(InvalidArgumentError, match="'ignore'"):
        index(first, on_duplicate="ignore")


def test_an_id_for_another_file(gallery: Gallery, index: Any, make: Any) -> None:
    first, second = make("a.mp4", 1), make("b.mp4", 2)
    only(index_files(gallery, sources=name_sources([first], ["x"])), indexed=["x"])
    only(index_files(gallery, sources=name_sources([second], ["x"])), changed=["x"])
    assert paths_of(gallery) == {"x": [str(second)]}
    bad = first.with_name("bad.mp4")
    bad.write_text("no video")
    report = index_files(gallery, sources=name_sources([bad], ["x"]), on_duplicate="replace")
    only(report, failed=[str(bad)])
    assert paths_of(gallery) == {"x": [str(second)]}
