"""Nobody gets in where they don't belong: hosts, origins, types, tokens, sizes and rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI, Request
from running_services import OpenService, refusal_of
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.security.rates import RateLimit
from xclip_deploy.service.security.sources import HostNames
from xclip_deploy.wire import API

TOKEN = "a-token-of-the-tests-0123456789"
ECHO = f"{API}/echo"


def add_echo(app: FastAPI) -> None:
    @app.post(ECHO)
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get(ECHO)
    async def show() -> dict[str, str]:
        return {"it": "works"}


@pytest.fixture(scope="module")
def guarded(settings_of: Callable[..., ServiceSettings]) -> Iterator[TestClient]:
    """A service with a token, of which nothing is changed."""
    app = create_app(settings_of(token=TOKEN))
    add_echo(app)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


# Hosts: a name of an attacker that leads here


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example:8000",
        "localhost@attacker.example",
        "192.168.0.7",
        "",
        "local host",
        "[::1].attacker.example",
        "127.0.0.1:8000:9",
        "127.0.0.1:x",
    ],
)
def test_strange_hosts(api: TestClient, host: str) -> None:
    for path in ("/", "/health/live", "/docs", f"{API}/session", "/metrics"):
        assert refusal_of(api.get(path, headers={"host": host}), 400) == "UnknownHost"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:8000", "127.8.8.8"]
)
def test_hosts_of_this_machine(api: TestClient, host: str) -> None:
    assert api.get("/health/live", headers={"host": host}).status_code == 200


def test_two_hosts(api: TestClient) -> None:
    headers = [("host", "127.0.0.1"), ("host", "attacker.example")]
    assert refusal_of(api.get("/health/live", headers=headers), 400) == "UnknownHost"


def test_hosts_by_name() -> None:
    local = HostNames("127.0.0.1", ["Videos.Example"])
    everywhere = HostNames("0.0.0.0", [])

    def host(text: str) -> Headers:
        return Headers({"host": text})

    assert local.check(host("videos.example:8443")) == "videos.example:8443"
    assert everywhere.check(host("192.168.0.7:8000"))  # rebinding needs a name
    for text in ("sub.videos.example", "192.168.0.7"):
        with pytest.raises(Refusal, match="--allow-host"):
            local.check(host(text))
    with pytest.raises(Refusal):
        everywhere.check(host("videos.example"))


# Origins and types: what pages can make a browser send


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://attacker.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9000"},  # another service of this machine
        {"origin": "http://127.0.0.1:8000.attacker.example"},
        {"origin": "file://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_posts_of_other_pages(api: TestClient, headers: dict[str, str]) -> None:
    for path in ("search", "session", "videos", "gallery/refresh"):
        response = api.post(f"{API}/{path}", json={}, headers=headers)
        assert refusal_of(response, 400) == "ForeignOrigin"
    assert refusal_of(api.delete(f"{API}/videos/x", headers=headers), 400) == "ForeignOrigin"
    if headers != {"sec-fetch-site": "none"}:
        got = api.get(f"{API}/session", headers=headers)
        assert refusal_of(got, 400) == "ForeignOrigin"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_requests_of_the_page_and_of_programs(api: TestClient, headers: dict[str, str]) -> None:
    assert api.get(f"{API}/session", headers=headers).status_code == 200
    answer = api.post(f"{API}/session", json={"token": "x"}, headers=headers)
    assert answer.status_code == 200


def test_a_link_to_the_page_works_and_a_picture_does_not(api: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    picture = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert api.get("/docs", headers=link).status_code == 200
    assert refusal_of(api.get("/docs", headers=picture), 400) == "ForeignOrigin"
    assert refusal_of(api.get(f"{API}/session", headers=link), 400) == "ForeignOrigin"


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "text/json",
        "",
    ],
)
def test_types_that_pages_can_post(api: TestClient, kind: str) -> None:
    for path in ("search", "session"):
        response = api.post(f"{API}/{path}", content="{}", headers={"content-type": kind})
        assert refusal_of(response, 415) == "UnsupportedContentType"
    response = api.post(f"{API}/videos", content="{}", headers={"content-type": "text/plain"})
    assert refusal_of(response, 415) == "UnsupportedContentType"


def test_json_where_files_are_expected(api: TestClient) -> None:
    assert refusal_of(api.post(f"{API}/videos", json={}), 415) == "UnsupportedContentType"


def test_a_body_without_a_type(api: TestClient) -> None:
    assert refusal_of(api.post(f"{API}/search", content="{}"), 415) == "UnsupportedContentType"


def test_a_packed_body(api: TestClient) -> None:
    response = api.post(f"{API}/search", json={}, headers={"content-encoding": "gzip"})
    assert refusal_of(response, 415) == "UnsupportedEncoding"


# Sizes and rates


def test_a_length_above_the_limit(api: TestClient) -> None:
    headers = {"content-type": "application/json", "content-length": str(17 << 20)}
    response = api.post(f"{API}/search", content=b"{}", headers=headers)
    assert refusal_of(response, 413) == "BodyTooLarge"


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "９", "1" * 30])
def test_a_length_that_is_none(api: TestClient, length: str) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", length.encode()),
    ]
    response = api.post(f"{API}/search", content=b"{}", headers=headers)
    assert refusal_of(response, 400) == "BadLength"


def test_a_body_in_chunks_above_the_limit(guarded: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    response = guarded.post(ECHO, content=chunks(), headers=headers)
    assert refusal_of(response, 413) == "BodyTooLarge"
    assert guarded.post(ECHO, content=b" " * (1 << 20), headers=headers).json() == {
        "bytes": 1 << 20
    }


def test_a_body_too_large_for_a_model_of_json(api: TestClient) -> None:
    """The framework reads these bodies itself, and has an error of its own."""

    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"}
    response = api.post(f"{API}/search", content=chunks(), headers=headers)
    assert refusal_of(response, 413) == "BodyTooLarge"


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "x"' + b"".join(b',"a%d":0' % n for n in range(70_000)) + b"}",
        b'{"text": [' + b"[]," * 70_000 + b"0]}",
        b"[" * 70_000,
    ],
)
def test_json_that_keeps_the_loop_busy(api: TestClient, body: bytes) -> None:
    """A million fields in 12 MB took half a minute, in which the service answered nobody."""
    headers = {"content-type": "application/json"}
    response = api.post(f"{API}/search", content=body, headers=headers)
    assert refusal_of(response, 413) == "BodyTooLarge"


def test_json_of_long_texts(api: TestClient) -> None:
    texts = ["a dog, a cat, a bird: " * 400] * 32
    assert api.post(f"{API}/encode/texts", json={"texts": texts}).status_code == 200


def test_too_many_requests(open_service: OpenService) -> None:
    client = open_service(requests_per_minute=3)
    answers = [client.get(f"{API}/session") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert refusal_of(answers[3], 429) == "TooManyRequests"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    # Health is not counted, so that a monitor does not take the service down.
    assert client.get("/health/ready").status_code == 200


def test_buckets_refill() -> None:
    limit = RateLimit(60)
    for _ in range(60):
        limit.take("a", now=0)
    with pytest.raises(Refusal) as caught:
        limit.take("a", now=0.5)
    assert caught.value.retry_after_s == 1
    limit.take("b", now=0.5)
    limit.take("a", now=1.5)
    with pytest.raises(Refusal):
        limit.take("a", now=1.5)


def test_buckets_are_bounded() -> None:
    limit = RateLimit(1)
    for number in range(20_000):
        limit.take(str(number), now=0)
    assert len(limit._clients) == 10_000


# Headers


@pytest.mark.parametrize("path", ["/", "/docs", "/health/live", f"{API}/session", "/nothing"])
def test_headers_of_security(api: TestClient, path: str) -> None:
    headers = api.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "http:" not in policy
    assert "*" not in policy
    assert "unsafe-inline" not in policy
    assert "script-src 'self';" in policy or path not in ("/", "/docs")
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_refusals_have_the_headers_too(api: TestClient) -> None:
    response = api.get("/", headers={"host": "attacker.example"})
    assert response.headers["x-content-type-options"] == "nosniff"


def test_too_many_requests_at_the_same_time(open_service: OpenService) -> None:
    client = open_service(max_running=0)
    response = client.get(f"{API}/session")
    assert refusal_of(response, 429) == "TooManyRequests"
    assert response.headers["retry-after"] == "1"
    assert client.get("/health/ready").status_code == 200
