"""Both drivers over real sockets, with services that fail."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flaky_service import FILM, GALLERY, FlakyService, Use, digest, job_model

from xclip_deploy import AsyncClient, Client
from xclip_deploy.client.jobs import AsyncJob
from xclip_deploy.errors import (
    InvalidArgumentError,
    ServiceBusyError,
    ServiceConnectionError,
    ServiceError,
    ServiceTimeoutError,
    VideoNotFoundError,
)
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.results import SearchResult


def hit() -> SearchResult:
    return SearchResult(1, "v/1", None, 1.0, None, 1.0, start_s=1.0, end_s=2.0)


# Requests


def test_headers_carry_the_token_and_addresses_do_not(flaky: FlakyService, use: Use) -> None:
    assert use(flaky.address, lambda client: client.stats(), token="secret") == GALLERY
    (headers,) = flaky.headers
    assert headers["authorization"] == "Bearer secret"
    assert headers["accept-encoding"] == "identity"


def test_proxies_and_passwords_of_the_environment_are_not_used(
    flaky: FlakyService, use: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("default login a password b")
    assert use(flaky.address, lambda client: client.stats()) == GALLERY
    assert "authorization" not in flaky.headers[0]


def test_a_proxy_that_is_asked_for_is_used(flaky: FlakyService, use: Use) -> None:
    call = lambda client: client.stats()  # noqa: E731
    with pytest.raises(ServiceConnectionError, match="cannot be reached"):
        use(flaky.address, call, proxy="http://127.0.0.1:9", retries=0)


def test_busy_services_are_asked_again(flaky: FlakyService, use: Use) -> None:
    flaky.refusals = [(429, {"Retry-After": "0"}), (503, {})]
    assert use(flaky.address, lambda client: client.stats()) == GALLERY
    flaky.refusals = [(429, {"Retry-After": "7"})]
    with pytest.raises(ServiceBusyError, match="too many; wait") as caught:
        use(flaky.address, lambda client: client.stats(), retries=0)
    assert caught.value.retry_after_s == 7


def test_redirects_are_followed_only_if_asked(flaky: FlakyService, use: Use) -> None:
    with pytest.raises(ServiceError, match="redirect"):
        use(flaky.address, lambda client: client.refresh())


def test_no_service(use: Use) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceConnectionError, match="xclip-deploy serve"):
            use(address, lambda client: client.stats(), retries=1)


# Servers that keep to no protocol


@contextmanager
def raw_server(*answers: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """A server that sends bytes, a byte each ``pause_s`` if there is one, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        ended = threading.Event()

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    try:
                        for n in range(0, len(answer), 1 if pause_s else len(answer) or 1):
                            connection.sendall(answer[n : n + 1] if pause_s else answer)
                            if ended.wait(pause_s):
                                return
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
    thread.join(30)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def json_answer(content: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(content), content)


def test_answers_that_break_are_asked_for_again(use: Use) -> None:
    whole = json_answer(GALLERY.model_dump_json().encode())
    with raw_server(b"", whole[:20], whole[:-5], whole) as address:
        assert use(address, lambda client: client.stats(), retries=5) == GALLERY


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"nonsense", b'{"num_videos": 1, "more": 2}', b"\xff" * 9]
)
def test_an_answer_that_is_none(content: bytes, use: Use) -> None:
    with (
        raw_server(json_answer(content)) as address,
        pytest.raises(ServiceError, match="sent no GalleryModel"),
    ):
        use(address, lambda client: client.stats())


def test_an_answer_without_end_is_bounded(use: Use) -> None:
    with (
        raw_server(HEAD + b"\r\n" + b"x" * 300_000) as address,
        pytest.raises(ServiceError, match="more than 100,000 bytes"),
    ):
        use(address, lambda client: client.stats(), max_response_bytes=100_000)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_service_that_trickles_is_given_up(part: str, use: Use) -> None:
    """Each byte comes in time, the whole does not."""
    answer = HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 10_000
    if part == "head":
        answer = HEAD + b"X-Long: " + b"x" * 10_000
    started = time.monotonic()
    with raw_server(answer, pause_s=0.005) as address, pytest.raises(ServiceTimeoutError):
        use(address, lambda client: client.stats(), timeout_s=0.6, retries=0)
    assert time.monotonic() - started < 10


def test_a_silent_service_is_given_up(flaky: FlakyService, use: Use) -> None:
    flaky.delay_s = 3
    with pytest.raises(ServiceTimeoutError, match="did not answer in time"):
        use(flaky.address, lambda client: client.stats(), read_timeout_s=0.1, retries=1)
    assert len(flaky.headers) == 2


# Uploads


def test_files_are_uploaded_as_they_are(flaky: FlakyService, use: Use, tmp_path: Path) -> None:
    names = ["a.mp4", 'quote".mp4', "ü — ö.mp4", "line\nbreak.mp4", "empty.mp4"]
    contents = [FILM, b"x", b"--boundary\r\n" * 30, b"y" * 300_000, b""]
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    seen: list[Progress] = []
    job = use(
        flaky.address,
        lambda client: client.upload(
            [tmp_path / name for name in names],
            metadata={"n": 1, "text": "ü"},
            segment=8.0,
            progress=seen.append,
        ),
    )
    assert job.id == "j1"
    (form,) = flaky.forms
    assert form["options"] == '{"metadata":{"n":1,"text":"ü"},"segment":"8"}'
    shown = ["a.mp4", "quote%22.mp4", "ü — ö.mp4", "line%0Abreak.mp4", "empty.mp4"]
    sizes = [len(content) for content in contents]
    assert form["files"] == [
        ("files", name, size, digest(content))
        for name, size, content in zip(shown, sizes, contents, strict=True)
    ]
    (headers,) = flaky.headers
    assert int(headers["content-length"]) > sum(sizes)
    done = [each.done for each in seen]
    assert done == sorted(done)
    assert (seen[-1].done, seen[-1].total, seen[-1].stage) == (sum(sizes), sum(sizes), "uploading")
    assert len(done) > 5


def test_an_upload_is_sent_once(flaky: FlakyService, use: Use, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(FILM)
    flaky.refusals = [(503, {"Retry-After": "0"})]
    with pytest.raises(ServiceBusyError):
        use(flaky.address, lambda client: client.upload(tmp_path / "a.mp4"))
    assert len(flaky.headers) == 1


def test_files_that_cannot_be_uploaded(flaky: FlakyService, use: Use, tmp_path: Path) -> None:
    for wrong, error in (
        (tmp_path / "missing.mp4", VideoNotFoundError),
        (tmp_path, InvalidArgumentError),
        ([], InvalidArgumentError),
        (7, InvalidArgumentError),
    ):
        with pytest.raises(error):
            use(flaky.address, lambda client, wrong=wrong: client.upload(wrong))
    assert flaky.headers == []


@pytest.mark.parametrize("size", [100, 2 << 20])
def test_a_file_that_changes_meanwhile(
    flaky: FlakyService, use: Use, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(FILM)

    def change(progress: Progress) -> None:
        path.write_bytes(b"x" * size)

    with pytest.raises(InvalidArgumentError, match="changed while it was uploaded"):
        use(flaky.address, lambda client: client.upload(path, progress=change))
    assert flaky.forms == []


def test_a_callback_that_fails_ends_the_upload(
    flaky: FlakyService, use: Use, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(FILM)

    def stop(progress: Progress) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        use(flaky.address, lambda client: client.upload(tmp_path / "a.mp4", progress=stop))


# Jobs


async def listed(states: Any) -> list[Any]:
    return [state async for state in states]


def states_of(job: Any) -> Any:
    return listed(job.events()) if isinstance(job, AsyncJob) else list(job.events())


def started(client: Any, then: Any) -> Any:
    """Get the job and go on with it, in either way."""
    job = client.job("j1")
    if not asyncio.iscoroutine(job):
        return then(job)

    async def go() -> Any:
        result = then(await job)
        return await result if hasattr(result, "__await__") else result

    return go()


@pytest.mark.parametrize("loses_last", [False, True])
def test_a_job_is_followed_over_broken_connections(
    flaky: FlakyService, use: Use, loses_last: bool
) -> None:
    flaky.loses_last_event = loses_last
    states = use(flaky.address, lambda client: started(client, states_of))
    assert [state.last_event for state in states] == list(range(7))
    assert states[-1] == job_model(6)
    assert flaky.connections[:2] == [0, 2]


def test_a_job_is_awaited(flaky: FlakyService, use: Use) -> None:
    seen: list[Progress] = []
    wait = lambda job: job.wait(progress=seen.append)  # noqa: E731
    report = use(flaky.address, lambda client: started(client, wait))
    assert report.indexed == ("a",)
    assert [progress.done for progress in seen] == list(range(7))
    # It ended: nothing is asked again.
    count = len(flaky.connections)
    assert use(flaky.address, lambda client: started(client, wait)).indexed == ("a",)
    assert len(flaky.connections) == count


def test_await_job(flaky: FlakyService) -> None:
    async def go() -> None:
        async with AsyncClient(flaky.address) as client:
            assert (await (await client.job("j1"))).indexed == ("a",)

    asyncio.run(go())


def test_waiting_ends_in_time(flaky: FlakyService, use: Use) -> None:
    flaky.events_a_connection = 0
    wait = lambda job: job.wait(0.3)  # noqa: E731
    with pytest.raises(ServiceTimeoutError, match="it goes on"):
        use(flaky.address, lambda client: started(client, wait))


def test_events_can_be_left(flaky: FlakyService) -> None:
    with Client(flaky.address) as client:
        job = client.job("j1")
        assert next(iter(job.events())).last_event == 0
        assert client.stats() == GALLERY


# Cuts


def cut(client: Any, out: Path, **options: Any) -> Any:
    if isinstance(client, AsyncClient):
        return client.cut(hit(), out, **options)
    found = hit()
    object.__setattr__(found, "media", client._media_of("v/1"))
    return found.cut(out, **options)


def test_a_cut_is_downloaded_whole(flaky: FlakyService, use: Use, tmp_path: Path) -> None:
    flaky.broken_cuts = 2
    out = tmp_path / "out.mp4"
    made = use(flaky.address, lambda client: cut(client, out, pad_s=0.5))
    assert out.read_bytes() == FILM
    assert (made.start_s, made.end_s, made.has_sound, made.mode) == (1.5, 2.5, True, "exact")
    assert made.path == out
    assert made.warnings == ("a gap",)
    with pytest.raises(InvalidArgumentError, match="exists"):
        use(flaky.address, lambda client: cut(client, out))
    use(flaky.address, lambda client: cut(client, out, overwrite=True))


@pytest.mark.parametrize(
    ("broken", "headers"),
    [
        (9, {}),
        (0, {"Content-Length": str(len(FILM) + 1)}),
        (0, {"X-Start-S": "nonsense"}),
        (0, {"X-Mode": "other"}),
        (0, {"Content-Type": "text/html"}),
    ],
)
def test_a_cut_that_fails_leaves_nothing(
    flaky: FlakyService, use: Use, tmp_path: Path, broken: int, headers: dict[str, str]
) -> None:
    flaky.broken_cuts, flaky.cut_headers = broken, headers
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("new.mp4", "old.mp4"):
        with pytest.raises(ServiceError):
            use(
                flaky.address,
                lambda client, name=name: cut(client, tmp_path / name, overwrite=True),
            )
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["out.avi", "out", "no/out.mp4", "."])
def test_places_that_no_cut_goes_to(
    flaky: FlakyService, use: Use, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidArgumentError):
        use(flaky.address, lambda client: cut(client, tmp_path / name))


def test_methods_of_hits_do_not_block_the_loop(flaky: FlakyService, tmp_path: Path) -> None:
    async def go() -> None:
        async with AsyncClient(flaky.address) as client:
            found = hit()
            object.__setattr__(found, "media", client._media_of("v/1"))
            with pytest.raises(InvalidArgumentError, match="await client"):
                found.cut(tmp_path / "a.mp4")
            await asyncio.to_thread(found.cut, tmp_path / "a.mp4")
        assert (tmp_path / "a.mp4").read_bytes() == FILM

    asyncio.run(go())
