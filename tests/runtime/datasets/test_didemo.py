from __future__ import annotations

from typing import Any

import pytest

from xclip_deploy.errors import AnnotationError

MOV = "12090392@N02_13482799053_87ef417396.mov"
MP4 = "55208132@N00_7999577432_33.mp4"
DATA: list[dict[str, Any]] = [
    {"video": MOV, "description": "a cat  jumps", "times": [[0, 0], [1, 1]], "annotation_id": 1},
    {"video": MP4, "description": "the camera pans", "times": [[0, 0]]},
    {"video": "of_another_split.avi", "description": "", "times": []},
    {"video": MOV, "description": "\nit lands ", "times": [[2, 2]]},
]


@pytest.fixture
def didemo(disk: Any) -> Any:
    for split in ("train", "val", "test"):
        disk.write(f"{split}_list.txt", f"{MP4}\n{MOV}\n")
        disk.write_json(f"{split}_data.json", DATA)
    disk.add_videos(MOV, MP4)
    return disk


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_descriptions_are_one_paragraph(didemo: Any, captions_by_id: Any, split: str) -> None:
    found = didemo.open("didemo", split)
    assert captions_by_id(found) == {MP4: ["the camera pans"], MOV: ["a cat jumps it lands"]}
    assert [video.id for video in found.videos] == [MP4, MOV]
    assert {video.end_s for video in found.videos} == {31.0}


def test_descriptions_that_are_left_out_are_counted(
    didemo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    didemo.open("didemo", "test")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith(
        "test_data.json: 1 of 4 descriptions are left out: their videos are not in test_list.txt"
    )
    caplog.clear()
    didemo.write("test_list.txt", f"{MP4}\n{MOV}\nof_another_split.avi")
    didemo.write_json("test_data.json", [*DATA, {**DATA[2], "description": "a"}])
    didemo.open("didemo", "test", max_missing_share=0.5)
    assert not caplog.records


def test_every_listed_video_is_found_or_named_as_missing(didemo: Any) -> None:
    names = [
        f"{n:04}@N0_{n}{'' if n % 3 else '.avi'}{ending}"
        for n, ending in enumerate([".mov", ".", ".3g2", ".qt", ".divx", ".MPG", ".m4v", ""] * 20)
    ]
    didemo.write("test_list.txt", "\n".join(names))
    didemo.write_json("test_data.json", [{"video": n, "description": "a"} for n in names])
    stored = [name for number, name in enumerate(names) if number % 7]
    didemo.add_videos(*stored)
    split = didemo.open("didemo", "test", max_missing_share=1.0)
    found = [video.id for video in split.videos]
    assert sorted([*found, *split.missing]) == sorted(names)
    assert all(video.path.name == video.id for video in split.videos)
    assert set(split.missing) == set(names) - set(stored)


@pytest.mark.parametrize("name", [MOV, MOV + ".mp4", MOV.replace(".mov", ".mp4")])
def test_a_file_may_have_the_ending_another_or_both(didemo: Any, name: str) -> None:
    (didemo.videos / MOV).unlink()
    didemo.add_videos(f"train/{name}")
    found = didemo.open("didemo", "test")
    assert {video.id: video.path for video in found.videos}[MOV] == didemo.videos / "train" / name


def test_a_listed_video_without_description(didemo: Any) -> None:
    didemo.write("val_list.txt", f"{MOV}\nnone.mp4\n")
    with pytest.raises(AnnotationError, match=r"no captions for none\.mp4 \(1 of 2\) of val_list"):
        didemo.open("didemo", "val")


def test_a_video_listed_twice(didemo: Any) -> None:
    didemo.write("val_list.txt", f"{MOV}\n{MOV}\n")
    with pytest.raises(AnnotationError, match=r"line 2: .* was listed before, at line 1"):
        didemo.open("didemo", "val")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "an object; expected a list"),
        ([[]], r"\[0\]: a list; expected an object"),
        ([{"video": MOV}], "holds video; expected 'description'"),
        ([{"description": "a"}], "holds description; expected 'video'"),
        ([{"video": MOV, "description": ["a"]}], "description: a list; expected text"),
        ([{"video": MOV, "description": " "}] * 2, f"empty caption at {MOV}"),
    ],
)
def test_descriptions_of_another_shape(didemo: Any, content: Any, expected: str) -> None:
    didemo.write_json("test_data.json", content)
    with pytest.raises(AnnotationError, match=expected):
        didemo.open("didemo", "test")


@pytest.mark.parametrize("name", ["test_list.txt", "test_data.json"])
def test_a_missing_file_is_named(didemo: Any, name: str) -> None:
    (didemo.annotations / name).unlink()
    with pytest.raises(AnnotationError, match=f"expected {name}$"):
        didemo.open("didemo", "test")


PUBLISHED = [
    "54322086@N00_3617694284_2f1bb9d6b8.mov",
    "10015567@N08_3655084291_e6dbb6ddb7.",
    "12090392@N02_13482799053_87ef417396.3g2",
    "15043534@N05_4189347823_4ba8e8b5b4.qt",
    "26122917@N00_3290127493_43e4d4f1d4.divx",
    "36822013@N00_4463236041_5eaf4cc3ea.MOV",
    "57795495@N07_6263225318_0bb0e5f96e.m2ts",
]
"""Names of the kinds that DiDeMo's lists hold."""


@pytest.mark.parametrize("stored", ["as published", "as .mp4", "without ending", "ending added"])
def test_files_of_every_published_name(disk: Any, stored: str) -> None:
    disk.write("test_list.txt", "\n".join(PUBLISHED))
    disk.write_json("test_data.json", [{"video": n, "description": "a"} for n in PUBLISHED])
    stems = {name: name.rpartition(".")[0] for name in PUBLISHED}
    names = {
        "as published": PUBLISHED,
        "as .mp4": [f"{stem}.mp4" for stem in stems.values()],
        "without ending": list(stems.values()),
        "ending added": [f"{name}.mp4" for name in PUBLISHED],
    }[stored]
    disk.add_videos(*names)
    disk.add_videos("readme.txt", "cover.jpg")
    if stored == "without ending":  # which only the content can tell
        for name in names:
            (disk.videos / name).write_bytes(b"\0\0\0\x18ftypqt  " + bytes(8))
    split = disk.open("didemo", "test")
    assert [video.id for video in split.videos] == PUBLISHED
    assert [video.path.name for video in split.videos] == names
    assert split.missing == ()


def test_a_file_without_ending_that_is_no_video_is_missing(disk: Any) -> None:
    disk.write("test_list.txt", "a.mov\nb.mov\n")
    disk.write_json(
        "test_data.json", [{"video": n, "description": "x"} for n in ("a.mov", "b.mov")]
    )
    disk.add_videos("a.mov", "b", "b.nothing")
    assert disk.open("didemo", "test", max_missing_share=0.5).missing == ("b.mov",)
