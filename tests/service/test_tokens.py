"""The token: who has it, what carries it, and where it is required."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from running_services import refusal_of
from starlette.testclient import TestClient

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.service import ServiceSettings, create_app, read_token
from xclip_deploy.service.security.sources import is_loopback
from xclip_deploy.service.security.tokens import SESSION_S, Guard, check_binding
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


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": "Bearer "},
        {"cookie": f"xclip-session={TOKEN}"},
        {"x-token": TOKEN},
    ],
)
def test_no_token(guarded: TestClient, headers: dict[str, str]) -> None:
    for path in (ECHO, "/metrics", "/docs", f"{API}/openapi.json", f"{API}/nothing"):
        response = guarded.get(path, headers=headers)
        assert refusal_of(response, 401) == "Unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in response.text
    assert guarded.post(ECHO, json={}, headers=headers).status_code == 401
    assert guarded.get(ECHO, params={"token": TOKEN}).status_code == 401


def test_the_token(guarded: TestClient) -> None:
    for text in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
        assert guarded.get(ECHO, headers={"authorization": text}).status_code == 200


def test_what_needs_no_token(guarded: TestClient) -> None:
    assert guarded.get("/health/live").status_code == 200
    assert guarded.get("/health/ready").status_code == 200
    assert guarded.get("/").status_code in (200, 404)
    state = guarded.get(f"{API}/session").json()
    assert state == {"signed_in": False, "needs_token": True}


def test_signing_in_and_out(guarded: TestClient) -> None:
    wrong = guarded.post(f"{API}/session", json={"token": "x" * 20})
    assert refusal_of(wrong, 401) == "Unauthorized"
    assert "set-cookie" not in wrong.headers
    right = guarded.post(f"{API}/session", json={"token": TOKEN})
    cookie = right.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert guarded.get(ECHO).status_code == 200
    assert guarded.get(f"{API}/session").json()["signed_in"] is True
    # The cookie does not help another site's page.
    foreign = {"origin": "http://attacker.example"}
    assert guarded.post(ECHO, json={}, headers=foreign).status_code == 400
    # A wrong token is not made good by the cookie.
    assert guarded.get(ECHO, headers={"authorization": "Bearer wrong"}).status_code == 401
    guarded.delete(f"{API}/session")
    assert guarded.get(ECHO).status_code == 401


def test_a_body_before_the_token_is_small(guarded: TestClient) -> None:
    """Strangers can send it, and many at a time would fill the memory."""
    body = {"token": TOKEN, "more": "x" * 20_000}
    assert refusal_of(guarded.post(f"{API}/session", json=body), 413) == "BodyTooLarge"
    assert guarded.post(f"{API}/session", json={"token": "\u20ac" * 512}).status_code == 401


def test_the_cookie_behind_https(guarded: TestClient) -> None:
    headers = {"origin": "https://127.0.0.1:8000"}
    answer = guarded.post(f"{API}/session", json={"token": TOKEN}, headers=headers)
    assert "Secure" in answer.headers["set-cookie"]
    guarded.cookies.clear()


def test_cookies_end_and_belong_to_their_token() -> None:
    guard, other = Guard(TOKEN), Guard(TOKEN + "2")
    value = guard.issue(now=1000)
    assert guard.accepts_cookie(value, now=1000 + SESSION_S - 1)
    assert not guard.accepts_cookie(value, now=1000 + SESSION_S)
    assert not other.accepts_cookie(value, now=1000)
    assert guard.cookie != other.cookie
    end, _, signature = value.partition(".")
    assert not guard.accepts_cookie(f"{int(end) + 1}.{signature}", now=1000)
    assert not guard.accepts_cookie(f"{end}.", now=1000)


@settings(max_examples=30)
@given(st.text(max_size=80))
def test_made_up_cookies_and_tokens(text: str) -> None:
    guard = Guard(TOKEN)
    assert not guard.accepts_cookie(text)
    assert not guard.accepts(text)


def test_comparisons_take_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison goes through hmac.compare_digest, on digests of one length."""
    compared: list[tuple[Any, Any]] = []

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return bool(a == b)

    monkeypatch.setattr("hmac.compare_digest", compare)
    guard = Guard(TOKEN)
    assert guard.accepts(TOKEN)
    assert not guard.accepts("x")
    assert guard.accepts_cookie(guard.issue())
    assert [len(a) == len(b) for a, b in compared] == [True, True, True]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "videos.example", ""])
def test_an_open_address_requires_a_token(
    settings_of: Callable[..., ServiceSettings], host: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="--token-file") as caught:
        create_app(settings_of(host=host))
    assert "\n" not in str(caught.value)
    check_binding(host, TOKEN)


def test_loopback_addresses() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"):
        assert is_loopback(host)
        check_binding(host, None)


def test_reading_tokens(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"  {TOKEN}\n")
    variable = {"XCLIP_DEPLOY_TOKEN": TOKEN + "2"}
    assert read_token(file, variable) == TOKEN
    assert read_token(None, variable) == TOKEN + "2"
    assert read_token(None, {}) is None
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_token(tmp_path / "none", {})
    for bad in ("", "short", "two words of a token 123", "é" * 20, "x" * 600):
        file.write_text(bad)
        with pytest.raises(InvalidArgumentError, match="expected 16 to 512") as caught:
            read_token(file, {})
        assert bad not in str(caught.value) or not bad
    with pytest.raises(InvalidArgumentError, match="XCLIP_DEPLOY_TOKEN"):
        read_token(None, {"XCLIP_DEPLOY_TOKEN": ""})


def test_settings_do_not_show_the_token(settings_of: Callable[..., ServiceSettings]) -> None:
    assert TOKEN not in repr(settings_of(token=TOKEN))
