"""The actors that encode and that search, called in this process."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import Bundle
from xclip_deploy.errors import BundleError
from xclip_deploy.runtime.cluster import ActorOptions, read_shards
from xclip_deploy.runtime.cluster.actors import ShardActor
from xclip_deploy.runtime.cluster.encoding import EncodedPart, EncoderActor, EncoderOptions
from xclip_deploy.runtime.indexing.claims import ContentFilter, prefix_of
from xclip_deploy.runtime.search import SearchOptions
from xclip_deploy.runtime.video.segmentation import Segmentation

NOTHING = np.empty(0, np.uint64)


class Counted:
    """An actor, and the files whose frames its decoders returned."""

    def __init__(self, bundle: Bundle, stored: ContentFilter) -> None:
        options = EncoderOptions(bundle.manifest.fingerprint, Segmentation("whole"))
        self.actor = EncoderActor(str(bundle.path), ActorOptions(), options)
        self.actor.encode([], NOTHING, stored)
        self.decoded: list[str] = []
        take = self.actor._pool.take

        def noted(*arguments: Any, **options: Any) -> Any:
            taken = take(*arguments, **options)
            if taken is not None and getattr(taken[1], "frames", None) is not None:
                self.decoded.append(taken[0].source.path)
            return taken

        self.actor._pool.take = noted  # type: ignore[method-assign]

    def encode(
        self, *paths: Path, read: npt.NDArray[np.uint64] = NOTHING, is_forced: bool = False
    ) -> EncodedPart:
        self.decoded.clear()
        return self.actor.encode([str(path) for path in paths], read, is_forced=is_forced)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def files(clips: Path, tmp_path: Path) -> list[Path]:
    """Two contents, each in two files."""
    film = (clips / "conditions" / "dog_square.mp4").read_bytes()
    found = []
    for name, tail in (("a", b""), ("a-copy", b""), ("b", b"\0"), ("b-copy", b"\0")):
        found.append(tmp_path / f"{name}.mp4")
        found[-1].write_bytes(film + tail)
    return found


@pytest.fixture
def actor(bundle: Bundle, files: list[Path]) -> Iterator[Counted]:
    """An actor of a run whose shards hold the first content."""
    stored = ContentFilter()
    stored.add(sha256_of(files[0]))
    counted = Counted(bundle, stored)
    yield counted
    counted.actor._pool.close()


def test_known_contents_are_hashed_and_not_decoded(actor: Counted, files: list[Path]) -> None:
    part = actor.encode(*files)
    # The shards hold the first content; the second is decoded once.
    (decoded,) = actor.decoded
    assert decoded in {str(path) for path in files[2:]}
    assert part.failed == part.warnings == ()
    found = {each.file.path: each for each in part.files}
    assert set(found) == {str(path) for path in files}
    assert [path for path, each in found.items() if each.encoded] == [decoded]
    for path in files:
        each = found[str(path)]
        assert each.content_sha256 == sha256_of(path)
        assert each.file.size_bytes == path.stat().st_size
        assert each.file.modified_ns == path.stat().st_mtime_ns


def test_what_other_actors_read_is_not_decoded(actor: Counted, files: list[Path]) -> None:
    read = np.array([prefix_of(sha256_of(files[2]))], np.uint64)
    part = actor.encode(files[2], read=read)
    assert actor.decoded == []
    assert [each.encoded for each in part.files] == [None]
    # It stays known.
    actor.encode(files[3])
    assert actor.decoded == []


def test_a_forced_part_is_decoded(actor: Counted, files: list[Path]) -> None:
    """The gallery may have lost the content since the run began."""
    part = actor.encode(files[1], is_forced=True)
    assert actor.decoded == [str(files[1])]
    assert part.files[0].encoded is not None
    actor.encode(files[1])
    assert actor.decoded == []


def test_a_machine_with_another_bundle_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    expected = r"is model [0-9a-f]{12}…, expected model 000000000000…, as on the others"
    options = EncoderOptions("0" * 64, Segmentation("whole"))
    with pytest.raises(BundleError, match=expected):
        EncoderActor(str(bundle_path), ActorOptions(), options)
    with pytest.raises(BundleError, match=expected):
        ShardActor(str(bundle_path), str(tmp_path), ActorOptions(), "0" * 64)


def test_a_gallery_that_was_made_anew_is_opened_anew(galleries: Any, bundle: Bundle) -> None:
    """Its versions have the numbers of the old one's."""
    first, second = read_shards(galleries.sharded).shards[:2]
    assert first.version == second.version
    place = galleries.sharded / first.path
    fingerprint = bundle.manifest.fingerprint
    actor = ShardActor(str(bundle.path), str(place), ActorOptions(), fingerprint)

    def found() -> list[str]:
        actor.open(first.version)
        names = ["v000", "v001"]
        answer: Any = actor.answer(first.version, "find", (), SearchOptions(), names, None)
        return sorted(set(answer.ids))

    assert found() == found() == ["v000"]
    shutil.rmtree(place)
    shutil.copytree(galleries.sharded / second.path, place)
    assert found() == ["v001"]


def test_a_filter_takes_many_contents_at_once() -> None:
    rng = np.random.default_rng(0)
    contents = [rng.bytes(32).hex() for _ in range(70_000)]
    many, few = ContentFilter(), ContentFilter()
    many.update(np.array([prefix_of(each) for each in contents], np.uint64))
    for each in contents[:100]:
        few.add(each)
    few.update(np.array([prefix_of(each) for each in contents[100:200]], np.uint64))
    assert all(each in many for each in contents)
    assert all(each in few for each in contents[:200])
    assert not any(each in few for each in contents[200:])
    # One more, after the filter was sorted.
    many.add("f" * 64)
    many.update(np.empty(0, np.uint64))
    assert "f" * 64 in many
    assert "e" * 64 not in many
