from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import InvalidArgumentError, MissingVideosError
from xclip_deploy.runtime.datasets.catalogue import DATASETS, SPLITS, open_dataset


@pytest.fixture
def some(disk: Any) -> Any:
    disk.write("captions.csv", "file,caption\n" + "".join(f"{n}.mp4,x\n" for n in range(10)))
    disk.add_videos(*(f"{n}.mp4" for n in range(9)))
    return disk


def test_names() -> None:
    assert {"msrvtt", "msrvtt-7k", "msvd", "lsmdc", "didemo", "activitynet"} < set(DATASETS)
    assert SPLITS == ("train", "val", "test")


def test_text_paths_are_welcome(some: Any) -> None:
    split = open_dataset("folder", "val", str(some.annotations), str(some.videos))
    assert split.name == "folder/val"
    assert split.missing == ("9.mp4",)


def test_a_tenth_may_be_missing_unless_told_otherwise(some: Any) -> None:
    (some.videos / "0.mp4").unlink()
    with pytest.raises(MissingVideosError, match="2 of 10 videos"):
        some.open("folder", "val")
    assert some.open("folder", "val", max_missing_share=0.2).missing == ("0.mp4", "9.mp4")


@pytest.mark.parametrize(
    ("name", "split", "share", "expected"),
    [
        ("msr-vtt", "train", 0.1, "dataset is 'msr-vtt'; expected one of msrvtt, .*, folder"),
        ("folder", "dev", 0.1, "split is 'dev'; expected one of train, val, test"),
        ("folder", "val", 1.1, r"max_missing_share is 1\.1 .*; expected .* from 0 to 1"),
        ("folder", "val", -0.1, r"max_missing_share is -0\.1"),
        ("folder", "val", float("nan"), "max_missing_share is nan"),
    ],
)
def test_wrong_arguments(some: Any, name: str, split: str, share: float, expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=expected):
        some.open(name, split, max_missing_share=share)
