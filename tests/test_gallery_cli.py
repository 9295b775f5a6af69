"""``xclip-deploy gallery``, on galleries in LanceDB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome, Run, on_a_terminal, runner
from gallery_samples import MODEL, lance_store, sample

from xclip_deploy.errors import GalleryVersionError
from xclip_deploy.runtime.gallery import Gallery, VideoFile, lance_schema
from xclip_deploy.runtime.gallery.commit_record import read_record
from xclip_deploy.runtime.gallery.store import SearchLimits

COMMANDS = ["list", "show", "stats", "remove", "optimize", "verify", "rescue", "upgrade"]
IDS = [f"v{n:02}.mp4" for n in range(25)]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "gallery")


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A gallery of 25 videos: v01.mp4 takes 1 s and has n = 1, and so on."""
    path = tmp_path / "gallery"
    store = lance_store(path)
    store.put(*sample(IDS, source="cam [1]"), replace=False)
    store.close()
    return path


def ids_of(path: Path) -> list[str]:
    return [video.id for video in Gallery.open(path)]


def assert_refused(outcome: Outcome, status: int, *parts: str) -> None:
    """One line on standard error, nothing on standard output."""
    assert (outcome.status, outcome.out) == (status, ""), outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


# The group


def test_the_group_shows_its_help(run: Run) -> None:
    outcome = run()
    assert (outcome.status, outcome.err) == (0, "")
    assert run("--help").out == outcome.out
    lines = outcome.out[outcome.out.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run: Run, command: str) -> None:
    outcome = run(command, "-h")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"xclip-deploy gallery {command}" in outcome.out
    assert "--json" in outcome.out
    assert "--bundle" not in outcome.out


def test_no_model_is_opened(gallery: Path) -> None:
    code = """
import sys

for name in ("torch", "onnx", "onnxruntime", "av", "cv2"):
    sys.modules[name] = None
from xclip_deploy.cli import main

main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "gallery", "stats", "--gallery", str(gallery)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("show",),
        ("remove",),
        ("remove", "v01.mp4", "--where", "n > 1"),
        ("list", "--limit", "0"),
        ("list", "--offset", "-1"),
        ("optimize", "--keep-minutes", "-1"),
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, gallery: Path, arguments: tuple[str, ...]) -> None:
    places = ("--gallery", gallery) if len(arguments) > 1 else ()
    assert_refused(run(*arguments, *places), 2, "see: xclip-deploy gallery", "--help")
    assert ids_of(gallery) == IDS


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("show", "x"),
        ("stats",),
        ("remove", "x"),
        ("optimize",),
        ("verify",),
        ("rescue", "--output", "not-there"),
        ("upgrade",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_galleries_that_cannot_be_opened(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "none"
    found = run(*arguments, "--gallery", path)
    assert_refused(found, 10, f"run: xclip-deploy index VIDEOS --gallery {path}")
    assert not path.exists()
    assert_refused(run(*arguments, "--gallery", ""), 2, "gallery is ''")
    assert_refused(run(*arguments, "--gallery", __file__), 10, "is no gallery but a file")
    monkeypatch.setattr(lance_schema, "SCHEMA_VERSION", 1)
    with pytest.raises(GalleryVersionError):  # it is made, and cannot be opened
        lance_store(tmp_path / "older")
    found = run(*arguments, "--gallery", tmp_path / "older")
    assert_refused(found, 10, "has schema version 1, this release reads 3")


# list


# show


def test_show(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gallery"
    videos, features = sample([str(tmp_path / "a.mp4"), "named"], note="two\nlines")
    size, time_ns = 3_400_000, 1_700_000_000_000_000_000
    files = [
        VideoFile(path=str(tmp_path / name), size_bytes=size, modified_ns=time_ns)
        for name in ("a.mp4", "copy.mp4")
    ]
    update = {"path": files[0].path, "files": tuple(files)}
    store = lance_store(path)
    store.put([videos[0].model_copy(update=update), videos[1]], features, replace=False)
    monkeypatch.chdir(tmp_path)
    shown = run("show", tmp_path / "a.mp4", "--gallery", path)
    assert (shown.status, shown.err) == (0, "")
    for part in (
        f"id:           {tmp_path / 'a.mp4'}\n",
        f"file:         {files[1].path} (3.4 MB, changed 2023-11-14 22:13:20 UTC)\n",
        "SHA-256:      0-",
        "duration:     0:00 (0.000 s)\n",
        "frames:       2, at 0:00.0, 0:01.5\n",
        "metadata:     n = 0\n",
    ):
        assert part in shown.out
    # By a file, as it is named from here, and by another of the same content.
    for name in ("a.mp4", "./x/../a.mp4", "copy.mp4"):
        assert run("show", name, "--gallery", path).out == shown.out
    content = run("show", "named", "--gallery", path, "--json").json()
    assert content == Gallery.open(path).get("named").model_dump(mode="json")


def test_show_what_is_not_there(run: Run, gallery: Path) -> None:
    outcome = run("show", "x.mp4", "--gallery", gallery)
    command = f"run: xclip-deploy gallery list --gallery {gallery}"
    assert_refused(outcome, 10, "no video 'x.mp4' in the gallery", command)
    assert_refused(run("show", "", "--gallery", gallery), 2, "expected an id of the gallery")
    outcome = run("show", os.fsdecode(b"\xff.mp4"), "--gallery", gallery)
    assert_refused(outcome, 10, "no video '\\udcff.mp4'")


# stats


def test_stats(run: Run, gallery: Path) -> None:
    outcome = run("stats", "--gallery", gallery)
    assert (outcome.status, outcome.err) == (0, "")
    size = Gallery.open(gallery).stats().size_bytes
    assert size is not None
    assert outcome.out.splitlines() == [
        f"gallery:      {gallery}",
        "videos:       25",
        "files:        25",
        "duration:     5:00",
        f"size on disk: {size / 1e6:.1f} MB",
        f"model:        {MODEL[:16]}",
        "index:        none: every video is compared",
        "metadata:     n (whole numbers)",
        "metadata:     source (texts)",
    ]
    content = run("stats", "--gallery", gallery, "--json").json()
    assert content == Gallery.open(gallery).stats().to_dict()
    assert (content["fingerprint"], content["total_duration_s"]) == (MODEL, 300.0)


def test_stats_of_a_gallery_with_an_index(run: Run, tmp_path: Path) -> None:
    store = lance_store(tmp_path / "gallery", SearchLimits(index_from=256))
    store.put(*sample([str(n) for n in range(512)]), replace=False)
    assert run("stats", "--gallery", tmp_path / "gallery", "--json").json()["has_index"] is False
    store.optimize(lambda _: None)
    outcome = run("stats", "--gallery", tmp_path / "gallery")
    assert "index:        approximate\n" in outcome.out


# remove


def test_remove_by_id(run: Run, gallery: Path) -> None:
    outcome = run("remove", "v01.mp4", "/videos/v03.mp4", "v01.mp4", "--gallery", gallery)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"2 videos removed; {gallery} holds 23\n"
    assert set(IDS) - set(ids_of(gallery)) == {"v01.mp4", "v03.mp4"}
    outcome = run("remove", "v05.mp4", "--gallery", gallery, "--json")
    assert outcome.json() == {
        "gallery": str(gallery),
        "dry_run": False,
        "removed": 1,
        "videos": 22,
        "ids": ["v05.mp4"],
    }


@pytest.mark.parametrize(("name", "status"), [("x.mp4", 10), ("", 2)])
def test_remove_all_or_none(run: Run, gallery: Path, name: str, status: int) -> None:
    assert_refused(run("remove", "v01.mp4", name, "--gallery", gallery), status, repr(name))
    assert ids_of(gallery) == IDS


def test_remove_by_filter(run: Run, gallery: Path) -> None:
    arguments = ("remove", "--where", "n >= 22", "--gallery", gallery)
    outcome = run(*arguments, "--yes")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"3 videos removed; {gallery} holds 22\n"
    assert ids_of(gallery) == IDS[:22]
    # Nothing left to ask about.
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (0, f"0 videos removed; {gallery} holds 22\n")


def test_remove_by_filter_without_a_terminal(
    run: Run, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        for extra in ((), ("--json",)):
            outcome = run("remove", "--where", "n = 2", "--gallery", gallery, *extra)
            assert_refused(outcome, 2, f"1 video of {gallery} match", "--yes", "--dry-run")
    assert ids_of(gallery) == IDS


@pytest.mark.parametrize(("answer", "removed"), [("y", 3), ("n", 0)])
def test_remove_by_filter_asks_on_a_terminal(gallery: Path, answer: str, removed: int) -> None:
    status, screen = on_a_terminal(
        *("gallery", "remove"),
        "--where",
        "n >= 22",
        "--gallery",
        gallery,
        answer=answer,
        columns=300,
    )
    assert status == 0, screen
    assert f"Remove 3 videos from {gallery}? [y/N]" in screen
    assert f"{removed} videos removed; {gallery} holds {25 - removed}\n" in screen
    assert ids_of(gallery) == IDS[: 25 - removed]


def test_remove_dry_run(run: Run, gallery: Path) -> None:
    for chosen in (("--where", "n >= 24"), ("v24.mp4",)):
        outcome = run("remove", *chosen, "--gallery", gallery, "--dry-run")
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.out.splitlines()[2].split()[0] == "v24.mp4"
        assert outcome.out.splitlines()[-1] == (
            f"1 video would be removed from {gallery}, which holds 25"
        )
        content = run("remove", *chosen, "--gallery", gallery, "--dry-run", "--json").json()
        assert (content["ids"], content["removed"]) == (["v24.mp4"], 0)
    assert ids_of(gallery) == IDS


# optimize


def test_optimize(run: Run, gallery: Path) -> None:
    run("remove", "v01.mp4", "--gallery", gallery)
    outcome = run("optimize", "--gallery", gallery)
    assert outcome.status == 0
    assert outcome.err == ""
    assert outcome.out.startswith(f"{gallery}: 24 videos, ")
    content = run("optimize", "--gallery", gallery, "--keep-minutes", "0", "--json").json()
    assert content.pop("seconds") > 0
    assert content == {"gallery": str(gallery), "videos": 24}
    assert len(ids_of(gallery)) == 24


# verify, rescue and upgrade


def damage(path: Path, video_id: str) -> None:
    """Change one bit of the embeddings of a video."""
    snapshot = lance_store(path, create=False).snapshot()
    features = snapshot.features(np.array([snapshot.find([video_id])[video_id]]))
    (file,) = (path / "videos.lance" / "data").iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(features.video_features.tobytes())] ^= 1
    file.write_bytes(content)


def test_verify(run: Run, gallery: Path) -> None:
    outcome = run("verify", "--gallery", gallery)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"{gallery}: 25 videos, all whole\n"
    found = json.loads(run("verify", "--gallery", gallery, "--json").out)
    assert found == {
        "gallery": str(gallery),
        "is_whole": True,
        "num_videos": 25,
        "damaged_videos": [],
        "damaged_files": [],
    }


def test_verify_names_damage_and_rescue_saves_the_rest(
    run: Run, gallery: Path, tmp_path: Path
) -> None:
    damage(gallery, "v07.mp4")
    outcome = run("verify", "--gallery", gallery)
    assert (outcome.status, outcome.out) == (10, "damaged: v07.mp4\n")
    new = tmp_path / "new"
    command = f"xclip-deploy gallery rescue --gallery {gallery} --output NEW_GALLERY"
    assert f"run: {command}" in outcome.err
    as_json = run("verify", "--gallery", gallery, "--json")
    assert as_json.status == 10
    assert json.loads(as_json.out)["damaged_videos"] == ["v07.mp4"]
    outcome = run("rescue", "--gallery", gallery, "--output", new)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == (
        f"lost: v07.mp4\n24 videos copied to {new}, 1 lost; to index those again run: "
        f"xclip-deploy index VIDEOS --gallery {new}\n"
    )
    assert ids_of(new) == [name for name in IDS if name != "v07.mp4"]
    assert run("verify", "--gallery", new).status == 0
    found = run("rescue", "--gallery", gallery, "--output", new)
    assert_refused(found, 10, "is there already; choose another path")
    found = json.loads(run("rescue", "--gallery", gallery, "--output", f"{new}-2", "--json").out)
    assert (found["num_videos"], found["lost"]) == (24, ["v07.mp4"])


def test_rescue_tells_that_the_newest_version_is_lost(
    run: Run, gallery: Path, tmp_path: Path
) -> None:
    run("remove", "v03.mp4", "--gallery", gallery)
    record = read_record(gallery)
    assert record is not None
    (gallery / "videos.lance" / "_versions" / record.manifest).unlink()
    found = run("list", "--gallery", gallery)
    assert_refused(found, 10, f"version {record.version} was committed", "gallery rescue")
    outcome = run("rescue", "--gallery", gallery, "--output", tmp_path / "new")
    assert outcome.status == 0
    assert f"version {record.version} is lost; version {record.version - 1} was read" in outcome.err
    assert ids_of(tmp_path / "new") == IDS


def test_upgrade(run: Run, gallery: Path) -> None:
    found = run("upgrade", "--gallery", gallery)
    assert_refused(found, 10, "has schema version 3 already")
