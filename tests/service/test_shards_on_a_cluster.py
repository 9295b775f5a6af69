"""The service over a gallery in shards: a real server, and actors on a real Ray cluster."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cluster_galleries import Nodes, line_of, running_nodes
from opened_page import chromium
from running_services import refusal_of, wait_until
from served_programs import Program, command_line
from starlette.testclient import TestClient

from xclip_deploy import Client, Gallery
from xclip_deploy.errors import ShardError
from xclip_deploy.runtime.cluster import publish_shards
from xclip_deploy.wire import API

pytestmark = pytest.mark.slow
LIMIT_S = 2.0
Answer = dict[str, Any]
Serve = Callable[..., Program]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="needs Ray: pip install 'xclip-deploy[cluster]'")
    with running_nodes(2) as found:
        yield found


@pytest.fixture
def serve(nodes: Nodes, bundle_path: Path, sharded_path: Path, tmp_path: Path) -> Serve:
    """Return a function that prepares a service over a copy of the shards."""
    shutil.copytree(sharded_path, tmp_path / "gallery")

    def program(*options: str) -> Program:
        return Program(bundle_path, tmp_path, "--cluster", nodes.address, *options)

    return program


def actors_of(nodes: Nodes) -> list[int]:
    return nodes.processes("ray::ShardActor")


def searched(client: httpx2.Client, **body: Any) -> Answer:
    response = client.post(f"{API}/search", json={"text": "a red square", **body})
    assert response.status_code == 200, response.text
    found: Answer = response.json()
    return found


def ready(client: httpx2.Client) -> Answer:
    found: Answer = client.get("/health/ready").json()
    return found


SEARCHES: list[Answer] = [
    {"text": "a red square"},
    {"text": "a red square", "exact": True, "k": 3},
    {"text": "a red square", "exact": False, "candidates": 4, "k": 3},
    {"text": "a red square", "k": 2, "offset": 3},
    {"text": "a blue circle", "group": "moment", "k": 6, "nms": None},
    {"text": "numbers", "where": "split = 'train' or caption = 'numbers'"},
    {"text": "numbers", "within": "numbers.mp4", "group": "moment", "from_s": 9},
    {"text": "a triangle", "deduplicate": True, "min_score": -100},
    {"text": "a triangle", "query_bank": ["red", "green", "a circle"], "k": 4},
]


def compared(found: Answer, expected: Answer) -> None:
    """Compare results: the same hits, and scores within rounding."""
    assert found["num_videos"] == expected["num_videos"]
    assert found["num_segments"] == expected["num_segments"]
    assert len(found["hits"]) == len(expected["hits"]) > 0
    for own, other in zip(found["hits"], expected["hits"], strict=True):
        for scores in (own, other, *own["moments"], *other["moments"]):
            scores.pop("grains")
        numbers = [each.pop("score") for each in (own, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
        moments = [each.pop("moments") for each in (own, other)]
        assert own == other
        for moment, same in zip(*moments, strict=True):
            assert moment.pop("score") == pytest.approx(same.pop("score"), abs=1e-4)
            assert moment == same


def test_shards_answer_as_one_gallery_does(
    serve: Serve, api: TestClient, nodes: Nodes, tmp_path: Path
) -> None:
    with serve("--timeout", "60", "--replicas", "2").running() as (_, client):
        assert len(actors_of(nodes)) == 4
        for body in SEARCHES:
            found = client.post(f"{API}/search", json=body)
            expected = api.post(f"{API}/search", json=body)
            assert (found.status_code, expected.status_code) == (200, 200), (body, found.text)
            compared(found.json(), expected.json())
            assert found.json()["answered_shards"] == [0, 1]
            assert found.json()["failed_shards"] == []
        listed = {each["handle"]: each for each in api.get(f"{API}/videos").json()["videos"]}
        pages = [client.get(f"{API}/videos?limit=4&offset={n}").json() for n in (0, 4)]
        assert [page["next_offset"] for page in pages] == [4, None]
        assert [page["total"] for page in pages] == [7, 7]
        assert {each["handle"]: each for page in pages for each in page["videos"]} == listed
        where = {"where": "split = 'train'"}
        assert client.get(f"{API}/videos", params=where).json()["total"] == 4
        for handle in listed:
            for path in ("", "/thumbnail?time_s=0", "/frame?time_s=1", "/media"):
                place = f"{API}/videos/{handle}{path}"
                assert client.get(place).content == api.get(place).content, place
            like = {"video": handle, "k": 5}
            compared(
                client.post(f"{API}/search", json=like).json(),
                api.post(f"{API}/search", json=like).json(),
            )
        names = [{"video": handle} for handle in listed]
        asked = {"query": "a red square", "hit": names[0], "other": names[1]}
        found, expected = (each.post(f"{API}/explain", json=asked) for each in (client, api))
        assert found.json()["contrast"]["difference"] == pytest.approx(
            expected.json()["contrast"]["difference"], abs=1e-4
        )
        picture = client.post(f"{API}/explain.png", json=asked)
        assert picture.headers["content-type"] == "image/png"
        scored = {"texts": ["a red square"], "videos": list(listed)}
        assert client.post(f"{API}/score", json=scored).status_code == 200
        about, one = client.get(f"{API}/gallery").json(), api.get(f"{API}/gallery").json()
        assert (about["num_shards"], about["can_upload"], about["can_add_paths"]) == (
            2,
            False,
            False,
        )
        for name in ("num_videos", "num_segments", "num_files", "segmentation", "metadata"):
            assert about[name] == one[name]
        check_writing_is_refused(client, next(iter(listed)))
        with Client(str(client.base_url)) as service:
            hits = service.search("a red square", k=3)
            assert hits.answered_shards == (0, 1)
            assert hits[0].cut(tmp_path / "cut.mp4").path.stat().st_size > 0


def check_writing_is_refused(client: httpx2.Client, handle: str) -> None:
    answers = [
        client.post(f"{API}/videos", files={"files": ("a.mp4", b"0", "video/mp4")}),
        client.post(f"{API}/index", json={"paths": ["videos"]}),
        client.delete(f"{API}/videos/{handle}"),
        client.post(f"{API}/videos/remove", json={"where": "duration_s > 0"}),
    ]
    for answer in answers:
        assert refusal_of(answer, 409) == "GalleryInShards"
        said = answer.json()["error"]["message"]
        assert "xclip-deploy index VIDEOS --gallery gallery --cluster auto" in said
        assert "/" not in said
    assert client.get(f"{API}/jobs").json() == {"jobs": [], "total": 0}


def test_a_publication_is_followed(serve: Serve) -> None:
    program = serve("--timeout", "60")
    with program.running() as (_, client):
        gone = searched(client)["hits"][0]
        for number in range(2):
            shard = Gallery.open(program.gallery / f"shard-{number:03d}")
            video = next((v for v in shard.videos() if v.content_sha256 == gone["handle"]), None)
            if video is not None:
                shard.remove(video.id)
            shard.close()
        assert client.post(f"{API}/gallery/refresh").status_code == 204
        # What is not published is searched and listed as before.
        assert searched(client)["hits"][0]["handle"] == gone["handle"]
        assert client.get(f"{API}/videos/{gone['handle']}").status_code == 200
        publish_shards(program.gallery)
        wait_until(lambda: client.get(f"{API}/gallery").json()["num_videos"] == 6, 60)
        found = searched(client)
        assert found["num_videos"] == 6
        assert gone["handle"] not in [hit["handle"] for hit in found["hits"]]
        assert client.get(f"{API}/videos/{gone['handle']}").status_code == 404
        assert client.get(f"{API}/videos/{gone['handle']}/thumbnail").status_code == 404
        assert "xclip_gallery_videos 6.0" in client.get("/metrics").text


def test_the_others_answer_where_a_shard_hangs(serve: Serve, nodes: Nodes) -> None:
    with serve("--timeout", f"{LIMIT_S:g}", "--allow-partial").running() as (_, client):
        wait_until(lambda: searched(client)["answered_shards"] == [0, 1], 60)
        stopped = actors_of(nodes)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            started = time.monotonic()
            found = searched(client)
            assert time.monotonic() - started < LIMIT_S + 0.5
            (failed,) = found["failed_shards"]
            assert failed["reason"] == "no answer within 2 s"
            assert failed["node"]
            assert found["answered_shards"] == [1 - failed["number"]]
            assert 0 < len(found["hits"]) < 7
            wait_until(lambda: ready(client)["failed_shards"] != [], 30)
            assert ready(client)["status"] == "ready"
            (lost,) = ready(client)["failed_shards"]
            assert lost == {**failed, "reason": f"no answer within 2 s from process {stopped}"}
            # Known to hang, the shard is not waited for.
            started = time.monotonic()
            again = searched(client)
            assert time.monotonic() - started < LIMIT_S
            assert again["failed_shards"] == [lost]
            metrics = client.get("/metrics").text
            assert f'xclip_failed_shards_total{{shard="{failed["number"]}"}}' in metrics
            assert "xclip_lost_shards 1.0" in metrics
            # Records, pictures and explanations come from files.
            assert client.get(f"{API}/videos").json()["total"] == 7
            batch = {"texts": ["red", "a dog"], "k": 2}
            results = client.post(f"{API}/search/batch", json=batch).json()["results"]
            assert [each["failed_shards"] for each in results] == [[lost]] * 2
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: ready(client)["failed_shards"] == [], 30)
        wait_until(lambda: searched(client)["answered_shards"] == [0, 1], 30)


def test_a_lost_shard_is_an_error_that_names_it(serve: Serve, nodes: Nodes) -> None:
    with serve("--timeout", f"{LIMIT_S:g}").running() as (_, client):
        wait_until(lambda: searched(client)["answered_shards"] == [0, 1], 60)
        stopped = actors_of(nodes)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            started = time.monotonic()
            texts = {"texts": ["red", "a dog", "green"]}
            for path, body in (("search", {"text": "red"}), ("search/batch", texts)):
                answer = client.post(f"{API}/{path}", json=body)
                assert refusal_of(answer, 503) == "ShardError"
                said = answer.json()["error"]["message"]
                assert said.startswith("shard ")
                assert "no answer within 2 s" in said
                assert "retry-after" in answer.headers
            # A batch waits once, whatever the number of its texts.
            assert time.monotonic() - started < 2 * (LIMIT_S + 0.5)
            wait_until(lambda: client.get("/health/ready").status_code == 503, 30)
            unready = client.get("/health/ready")
            assert refusal_of(unready, 503) == "ShardError"
            assert "of 2 shards, " in unready.json()["error"]["message"]
            assert client.get(f"{API}/videos").json()["total"] == 7
            with (
                Client(str(client.base_url), retries=0) as service,
                pytest.raises(ShardError, match="did not answer"),
            ):
                service.search("red")
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: client.get("/health/ready").status_code == 200, 30)
        os.kill(stopped, signal.SIGKILL)

        # Ray starts it anew, and the new one opens the version that is asked for.
        def answers() -> bool:
            return client.post(f"{API}/search", json={"text": "red"}).status_code == 200

        wait_until(lambda: stopped not in actors_of(nodes), 30)
        wait_until(answers, 60)


def test_actors_that_were_started_anew_are_found(
    serve: Serve, nodes: Nodes, bundle_path: Path
) -> None:
    program = serve("--timeout", f"{LIMIT_S:g}")
    words: list[str | Path] = [
        *("serve-shards", program.gallery, "--bundle", bundle_path),
        *("--cluster", nodes.address, "--cpus", "0.2"),
    ]
    command_line(*words)
    try:
        with program.running() as (_, client):
            first = set(actors_of(nodes))
            assert len(first) == 2  # the service starts none of its own
            wait_until(lambda: searched(client)["answered_shards"] == [0, 1], 60)
            command_line(*words)
            assert not first & set(actors_of(nodes))

            def answers() -> bool:
                return client.post(f"{API}/search", json={"text": "red"}).status_code == 200

            wait_until(answers, 60)
            wait_until(lambda: client.get("/health/ready").status_code == 200, 30)
    finally:
        command_line(*words, "--stop")


def test_coroutines_search_shards(nodes: Nodes, bundle_path: Path, sharded_path: Path) -> None:
    found = line_of("cluster_async_program.py", bundle_path, sharded_path, nodes.address)
    assert found["same"]
    assert found["length"] == 7
    assert found["explained"]
    # A coroutine that is cancelled stops waiting, and the others go on.
    assert found["cancelled_s"] < LIMIT_S / 2
    assert found["lost"].startswith("ShardError: shard ")
    assert found["partial"] == [1, 1]
    assert found["writing"].startswith("InvalidArgumentError: a ShardedRetriever only searches")
    assert found["whole"] == [0, 1]


def test_the_page_warns_of_a_missing_shard(serve: Serve, nodes: Nodes) -> None:
    with (
        chromium() as browser,
        serve("--timeout", f"{LIMIT_S:g}", "--allow-partial").running() as (_, client),
    ):
        wait_until(lambda: searched(client)["answered_shards"] == [0, 1], 60)
        page = browser.new_page()
        page.set_default_timeout(30_000)
        page.goto(f"{client.base_url}/?q=a+red+square")
        page.wait_for_selector(".card")
        assert page.query_selector(".missing-shards") is None
        stopped = actors_of(nodes)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            page.click("#submit")
            warning = page.wait_for_selector(".missing-shards[role=alert]").inner_text()
            assert "1 of 2 shards of the gallery was not searched." in warning
            assert "No answer within 2 s." in warning
            assert 0 < len(page.query_selector_all(".card")) < 7
            # The list of all videos is whole, and says how videos are added.
            page.click("#home")
            page.wait_for_selector(".is-library")
            assert len(page.query_selector_all(".card")) == 7
            assert "--cluster auto" in page.inner_text("#list .hint")
            assert page.is_hidden("#add")
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: searched(client)["answered_shards"] == [0, 1], 30)
        # A list without a shard is not kept.
        page.go_back()
        page.wait_for_selector(".cards:not(.is-library) .card")
        assert page.query_selector(".missing-shards") is None
