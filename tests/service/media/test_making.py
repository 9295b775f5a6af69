"""How moments are made: once for equal requests, within bounds, and without harm to others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from media_samples import Media, OpenMedia
from running_services import connected

from xclip_deploy.errors import VideoReadError
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.media import MediaLimits, Span
from xclip_deploy.service.media.cache import MediaCache, cache_key
from xclip_deploy.service.media.files import MediaVideo, open_source
from xclip_deploy.service.media.lanes import Flights, Lane

LIMITS = MediaLimits(
    pictures=2, encodings=1, memory_bytes=4 << 30, cache_bytes=1 << 30, timeout_s=30
)
MISBEHAVING = """
import os, signal, sys, time
from xclip_deploy.runtime.moments import worker

cut = worker.cut

def misbehave(path, start_s, *args, **options):
    open(os.environ["MEDIA_LOG"], "a").write(f"{os.getpid()}\\n")
    if start_s == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if start_s == 2:
        time.sleep(1000)
    if start_s == 3:
        bytearray(8 << 30)
    if start_s == 4:
        os.write(2, b"x")
        raise ValueError(f"a mistake with {path}")
    if start_s == 5:
        time.sleep(1.5)
    if start_s == 6:
        os._exit(0)
    return cut(path, start_s, *args, **options)

worker.cut = misbehave
worker.main()
"""
"""A process that does what the start of the moment says."""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("MEDIA_LOG", str(path))
    return path


@pytest.fixture
def command(tmp_path: Path, log: Path) -> tuple[str, ...]:
    script = tmp_path / "misbehaving.py"
    script.write_text(MISBEHAVING)
    return (sys.executable, str(script))


def play(media: Media, start_s: float, name: str = "h264.mp4") -> Any:
    return media.get(name, "playable", start_s=start_s, end_s=start_s + 1)


def runs(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_fails_costs_one_request(
    open_media: OpenMedia, command: tuple[str, ...], log: Path
) -> None:
    limits = replace(LIMITS, timeout_s=-2)  # 4 s for each second of the moment are left: 2 s
    media = open_media(limits=limits, command=command)
    said = {1: "SIGSEGV", 2: "was given up", 3: "memory", 4: "a mistake with h264.mp4"}
    for start_s, text in said.items():
        found = play(media, start_s)
        assert found.status_code == 422, found.text
        assert found.json()["error"]["kind"] == "VideoReadError"
        assert text in found.json()["error"]["message"]
        assert str(media.path("h264.mp4").parent) not in found.text
    media.library.limits = LIMITS
    assert play(media, 0).status_code == 200
    assert list(media.library.cache._unfinished.iterdir()) == []
    assert not any(is_running(pid) for pid in runs(log)[:2])


def test_a_process_that_is_killed(open_media: OpenMedia, command: Any, log: Path) -> None:
    media = open_media(limits=LIMITS, command=command)
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(play, media, 2)
        wait_for(lambda: runs(log))
        os.kill(runs(log)[0], signal.SIGKILL)
        response = found.result(20)
    assert response.status_code == 422
    assert "SIGKILL" in response.json()["error"]["message"]
    # One that is killed while it is idle costs nothing at all.
    assert play(media, 0).status_code == 200
    os.kill(runs(log)[-1], signal.SIGKILL)
    wait_for(lambda: not is_running(runs(log)[-1]))
    assert play(media, 0.5).status_code == 200


def test_a_process_that_ends_by_itself_is_replaced(
    open_media: OpenMedia, command: Any, log: Path
) -> None:
    media = open_media(limits=LIMITS, command=command)
    found = play(media, 6)
    assert found.status_code == 503
    assert found.headers["retry-after"]
    assert len(set(runs(log))) == 3  # three tries


def test_equal_requests_share_one_run(open_media: OpenMedia, command: Any, log: Path) -> None:
    media = open_media(limits=LIMITS, command=command)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: play(media, 5), range(6)))
    assert {response.status_code for response in found} == {200}
    assert len({response.content for response in found}) == 1
    assert len(runs(log)) == 1
    assert play(media, 5).content == found[0].content
    assert len(runs(log)) == 1  # kept


def test_too_many_at_a_time(open_media: OpenMedia, command: Any, log: Path) -> None:
    media = open_media(limits=replace(LIMITS, encodings_waiting=1), command=command)
    library = media.library
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(play, media, 5)
        wait_for(lambda: library.encodings.num_running == 1)
        second = threads.submit(play, media, 5.5)
        wait_for(lambda: library.encodings.num_waiting == 1)
        third = play(media, 5.7)
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) >= 1
        # Pictures have a lane of their own.
        assert media.get("h264.mp4", "frame", time_s=1).status_code == 200
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert library.encodings.num_running == library.encodings.num_waiting == 0
    assert play(media, 5.7).status_code == 200


def test_clients_that_go_away(
    open_live: Any, samples_gallery: Path, log: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    from xclip_deploy.service.media import library as module

    monkeypatch.setattr(module, "worker_command", lambda: command)
    address = open_live(gallery=samples_gallery, read_only=True)
    handle = json.loads((samples_gallery / "handles.json").read_text())["h264.mp4"]
    path = f"/api/v1/videos/{handle}/playable"
    request = f"GET {path}?start_s=2&end_s=3 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with connected(address) as last:
        with connected(address) as first:
            for client in (first, last):
                client.sendall(request)
            wait_for(lambda: runs(log))
        time.sleep(0.5)
        (pid,) = runs(log)
        assert is_running(pid), "one client still waits"
    wait_for(lambda: not is_running(pid))
    assert httpx2.get(f"{address}{path}?start_s=1.5&end_s=3", timeout=60).status_code == 200


def test_a_result_that_is_too_large(open_media: OpenMedia) -> None:
    media = open_media(limits=replace(LIMITS, max_file_bytes=20_000, max_frames_bytes=200_000))
    found = play(media, 0)
    assert found.status_code == 422
    assert "larger than 20,000 bytes" in found.json()["error"]["message"]
    found = media.get("h264.mp4", "frames", start_s=0, end_s=8)
    assert found.status_code == 422
    assert "max_side" in found.json()["error"]["message"]
    small = media.get("h264.mp4", "frames", start_s=0, end_s=8, max_side=16)
    assert small.status_code == 200


def test_a_full_disk(open_media: OpenMedia, monkeypatch: pytest.MonkeyPatch) -> None:
    media = open_media(limits=LIMITS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(media.library.cache, "put", full)
    found = play(media, 0)
    assert (found.status_code, found.json()["error"]["kind"]) == (507, "NoRoom")
    assert media.get("h264.mp4", "thumbnail", start_s=0.5).status_code == 200


def test_the_cache_is_bounded_and_survives_a_restart(open_media: OpenMedia, tmp_path: Path) -> None:
    media = open_media(limits=LIMITS, data=tmp_path / "data")
    sizes = [len(play(media, start_s).content) for start_s in (0, 1, 2)]
    first = play(media, 0)  # used last
    keys = media.library.cache.keys()
    limits = replace(LIMITS, cache_bytes=sum(sizes) - 1)
    again = open_media(limits=limits, data=tmp_path / "data")
    assert again.library.cache.keys() == keys[1:]
    assert again.library.cache.size_bytes <= limits.cache_bytes
    assert play(again, 0).headers["etag"] == first.headers["etag"]  # not made anew
    files = list((tmp_path / "data" / "media").glob("??/*.bin"))
    assert sum(path.stat().st_size for path in files) <= limits.cache_bytes
    # A moment that is made anew has another tag, so parts of the two are never joined.
    for path in files:
        path.unlink()
    assert play(again, 0).headers["etag"] != first.headers["etag"]


def test_what_is_larger_than_the_cache_is_served(open_media: OpenMedia, tmp_path: Path) -> None:
    media = open_media(limits=replace(LIMITS, cache_bytes=10), data=tmp_path / "data")
    found = play(media, 0)
    assert found.status_code == 200
    assert len(found.content) > 1000
    assert media.library.cache.keys() == []
    assert list((tmp_path / "data" / "media").rglob("*.bin")) == []


def test_a_file_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    cache = MediaCache(tmp_path / "cache", 1000)
    key = cache_key("a")
    with cache.unfinished("x") as path:
        path.write_bytes(b"content")
        cache.put(key, path, {"a": 1})
    kept = cache.open(key)
    assert kept is not None
    assert (kept.content.read(0, 99), kept.facts) == (b"content", {"a": 1})
    os.truncate(tmp_path / "cache" / key[:2] / f"{key}.bin", 3)
    assert cache.open(key) is None
    assert cache.keys() == []
    cache.close()


def test_eviction_leaves_the_ones_used_last(tmp_path: Path) -> None:
    cache = MediaCache(tmp_path / "cache", 100)
    keys = [cache_key(number) for number in range(6)]
    held = []
    for number, key in enumerate(keys):
        if number == 3:
            cache.open(keys[0])
        with cache.unfinished("x") as path:
            path.write_bytes(bytes([number]) * 33)
            held.append(cache.put(key, path, {}))
    assert cache.keys() == [keys[0], keys[4], keys[5]] or cache.keys() == [keys[3], *keys[4:]]
    # A file that is being sent is sent to its end.
    assert [each.content.read(0, 99) for each in held] == [bytes([n]) * 33 for n in range(6)]
    assert cache.size_bytes <= 100
    cache.close()


def test_what_a_killed_service_left_is_removed(tmp_path: Path) -> None:
    first = MediaCache(tmp_path, 100)
    left = tmp_path / "unfinished-0123"
    (left / "more").mkdir(parents=True)
    os.utime(left, (0, 0))
    second = MediaCache(tmp_path, 100)
    assert not left.exists()
    assert first._unfinished.exists(), "its service runs"
    first.close()
    second.close()


def test_a_run_that_fails_fails_for_all_who_wait() -> None:
    async def fail() -> int:
        await asyncio.sleep(0.01)
        raise VideoReadError("bad")

    async def check() -> None:
        flights: Flights[int] = Flights()
        found = await asyncio.gather(
            *(flights.join("a", fail) for _ in range(3)), return_exceptions=True
        )
        assert [str(error) for error in found] == ["bad"] * 3
        assert len(flights) == 0

    asyncio.run(check())


def test_a_run_goes_on_while_one_waits() -> None:
    async def check() -> None:
        flights: Flights[int] = Flights()
        ended: list[str] = []

        async def work() -> int:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            ended.append("done")
            return 7

        first, second = (asyncio.ensure_future(flights.join("a", work)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == 7
        third = asyncio.ensure_future(flights.join("a", work))
        await asyncio.sleep(0.01)
        third.cancel()
        await asyncio.sleep(0)
        # Whoever comes now starts anew, although the other is about to end.
        assert await flights.join("a", work) == 7
        assert ended == ["done", "cancelled", "done"]
        assert len(flights) == 0

    asyncio.run(check())


def test_a_lane_is_free_again_after_a_waiter_left() -> None:
    async def check() -> None:
        lane = Lane("tests", 1, 1, 3)

        async def take(seconds: float) -> None:
            async with lane.turn():
                await asyncio.sleep(seconds)

        first = asyncio.ensure_future(take(0.05))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(take(0))
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await take(0)
        assert (refused.value.status, refused.value.retry_after_s) == (429, 3)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await take(0)
        assert lane.num_running == lane.num_waiting == 0

    asyncio.run(check())


def test_spans_are_rounded_and_checked() -> None:
    assert Span.of(1.00001, 2.0004) == Span.of(1.0, 2.0)
    assert Span.of(1, None).checked(10).end_s is None


def test_a_video_without_a_file() -> None:
    with pytest.raises(Refusal) as refused:
        open_source(MediaVideo("id-YQ", "a", (), None, None, None))
    assert refused.value.status == 404
