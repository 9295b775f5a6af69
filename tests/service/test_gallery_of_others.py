"""Another process deletes from the gallery, compacts it or replaces it while services run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_services import wait_until
from served_programs import (
    Load,
    Program,
    check_equal,
    command_line,
    jobs_of,
    rows_of,
    search,
    wait_for_all,
)

from xclip_deploy import Retriever
from xclip_deploy.wire import API


def videos_of(client: httpx2.Client) -> dict[str, str]:
    """Return the names of the gallery's videos, by handle; none while it cannot be read."""
    answer = client.get(f"{API}/videos?limit=1000")
    assert answer.status_code in (200, 503), answer.text
    listed = answer.json()["videos"] if answer.status_code == 200 else []
    return {video["handle"]: video["name"] for video in listed}


def everything(handles: list[str]) -> Callable[[httpx2.Client, int], httpx2.Response]:
    """Return a function that asks for something else each time, of videos that may be gone."""

    def ask(client: httpx2.Client, number: int) -> httpx2.Response:
        handle = handles[number % len(handles)]
        kind = number // len(handles) % 6
        if kind == 0:
            return client.get(f"{API}/videos/{handle}")
        if kind == 1:
            return client.get(f"{API}/videos/{handle}/thumbnail")
        if kind == 2:
            body: dict[str, Any] = {"query": "a red square", "hit": {"video": handle}}
            return client.post(f"{API}/explain", json=body)
        if kind == 3:
            return client.post(f"{API}/search", json={"video": handle})
        if kind == 4:
            return client.post(f"{API}/score", json={"texts": ["a dog"], "videos": [handle]})
        return search(client, number)

    return ask


@pytest.fixture
def program(bundle_path: Path, gallery_path: Path, tmp_path: Path) -> Program:
    shutil.copytree(gallery_path, tmp_path / "gallery")
    return Program(bundle_path, tmp_path)


@pytest.mark.slow
def test_another_process_deletes_and_compacts(program: Program) -> None:
    """Answers under load are right or say that a video is gone; nothing fails."""
    place = ("--gallery", program.gallery)
    with program.running() as (process, client):
        before = videos_of(client)
        ask = everything(list(before))
        with Load(client.base_url, ask) as load, Load(client.base_url, search, 2) as searches:
            command_line("gallery", "remove", "--where", "split = 'none'", "-y", *place)
            command_line("gallery", "optimize", *place)
            assert client.post(f"{API}/gallery/refresh").status_code == 204
            assert len(videos_of(client)) == 6
            command_line("gallery", "remove", "--where", "split = 'train'", "-y", *place)
            # Files that only older snapshots read go at once.
            command_line("gallery", "optimize", "--keep-minutes", "0", *place)
            wait_until(lambda: len(videos_of(client)) == 2, 60)
        with Load(client.base_url, ask) as after:
            wait_until(lambda: after.count > 60, 120)
        assert process.poll() is None
        assert client.get("/health/ready").status_code == 200
        hits = search(client, 0).json()["hits"]
        assert {hit["handle"] for hit in hits} == videos_of(client).keys()
    # Until the service follows, what it knew of may be missing: try again, says a 503.
    for each in (load, searches):
        assert set(each.statuses) <= {200, 404, 503}, (each.statuses, each.failures)
        assert each.statuses[200] > 0
    assert set(after.statuses) == {200, 404}, (after.statuses, after.failures)


@pytest.mark.slow
def test_another_process_replaces_the_gallery(
    program: Program, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    """The folder is another one at once; it holds other videos of the same model."""
    other = tmp_path / "other"
    with Retriever(bundle_path, other, create=True, device="cpu") as retriever:
        retriever.add([clips / "mdn_frog.webm", clips / "intel_asl_walk.mkv"], workers=1)
    with program.running() as (process, client):
        before = videos_of(client)
        names = {"mdn_frog.webm", "intel_asl_walk.mkv"}
        with Load(client.base_url, everything(list(before))) as load:
            for _ in range(2):
                program.gallery.rename(tmp_path / "away")
                other.rename(program.gallery)
                wait_until(lambda: set(videos_of(client).values()) == names, 60)
                assert {hit["name"] for hit in search(client, 0).json()["hits"]} == names
                program.gallery.rename(other)
                (tmp_path / "away").rename(program.gallery)
                wait_until(lambda: videos_of(client) == before, 60)
        assert process.poll() is None
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        # A job adds to the gallery that lies there now.
        with (clips / "mdn_frog.webm").open("rb") as file:
            answer = client.post(f"{API}/videos", files=[("files", ("frog.webm", file))])
        job = wait_for_all(client)[answer.json()["id"]]
        assert job["state"] == "done"
        assert len(job["report"]["indexed"]) == 1
        assert set(videos_of(client).values()) == {*before.values(), "frog.webm"}
    # 503 says, with Retry-After, that the gallery cannot be read in the middle of it.
    assert set(load.statuses) <= {200, 404, 503}, (load.statuses, load.failures)
    assert load.statuses[200] > 0


@pytest.mark.slow
def test_two_services_that_write(
    bundle_path: Path, videos_path: Path, clips: Path, tmp_path: Path
) -> None:
    """Both receive, index and remove at the same time; each answers what both wrote."""
    shapes = sorted((videos_path / "shapes").rglob("*.mp4"))
    halves = (shapes[:4], [*shapes[2:], clips / "mdn_frog.webm"])  # two videos come to both
    gallery = tmp_path / "gallery"
    one, two = (Program(bundle_path, tmp_path / name, gallery=gallery) for name in ("one", "two"))
    for each in (one, two):
        each.data.parent.mkdir()
    with one.running() as (_, first), two.running() as (_, second):
        with Load(first.base_url, search, 2) as a, Load(second.base_url, search, 2) as b:
            for paths in zip_longest(*halves):
                for client, path in zip((first, second), paths, strict=True):
                    if path is None:
                        continue
                    files = [("files", (path.name, path.read_bytes()))]
                    assert client.post(f"{API}/videos", files=files).status_code == 202
            for client in (first, second):
                jobs = wait_for_all(client).values()
                assert all(job["state"] == "done" and not job["report"]["failed"] for job in jobs)
            # The second removes what the first received.
            handle = next(iter(jobs_of(first).values()))["videos"][0]
            assert second.delete(f"{API}/videos/{handle}").status_code == 200
            wait_until(lambda: first.get(f"{API}/videos/{handle}").status_code == 404, 60)
            for path in ("thumbnail", "media", "frame?time_s=0", "playable"):
                assert first.get(f"{API}/videos/{handle}/{path}").status_code == 404
        for client in (first, second):
            assert client.get("/health/ready").status_code == 200
            wait_until(lambda client=client: len(videos_of(client)) == len(shapes), 60)  # type: ignore[misc]
        assert videos_of(first) == videos_of(second)
    for load in (a, b):
        assert set(load.statuses) == {200}, (load.statuses, load.failures)
    with Retriever(bundle_path, tmp_path / "whole", create=True, device="cpu") as retriever:
        retriever.add([*shapes, clips / "mdn_frog.webm"], workers=1)
    expected = rows_of(tmp_path / "whole", bundle_path)
    del expected[handle]
    check_equal(rows_of(gallery, bundle_path), expected)
