"""Settings are checked once, and the token stays secret."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest

from xclip_deploy import AsyncClient, Client
from xclip_deploy.client.settings import TOKEN_VARIABLE, ClientSettings
from xclip_deploy.errors import ClosedError, InvalidArgumentError

SECRET = "a-secret-token"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        f"http://host/?token={SECRET}",
        "http://host/#x",
        "http://host/\n",
        "http://a b/",
        f"http://user:{SECRET}@host",
        7,
    ],
)
def test_an_address_that_is_none(address: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Client(address)
    assert SECRET not in str(caught.value)


def test_a_prefix_and_a_slash_are_taken() -> None:
    assert ClientSettings("http://host:1/clips/").address == "http://host:1/clips"
    assert ClientSettings("http://[::1]:8000").address == "http://[::1]:8000"


@pytest.mark.parametrize("token", ["", " ", "with space", "ü", "a\nb", "x" * 5000, 7])
def test_a_token_that_is_none_is_not_shown(token: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Client(token=token)
    assert str(token) == "7" or str(token).strip() == "" or str(token) not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_token_is_shown_nowhere(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    for client in (kind(), kind(token=SECRET)):
        assert client._settings.token == SECRET
        for shown in (client, client._settings, client._rules, client._verbs, client._http):
            assert SECRET not in repr(shown)
        for make in (copy.copy, pickle.dumps):
            with pytest.raises(InvalidArgumentError, match="cannot be pickled") as caught:
                make(client)
            assert SECRET not in str(caught.value)


def test_a_token_over_plain_http_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for address in ("http://127.0.0.1:1", "http://localhost", "https://host", "http://[::1]"):
            ClientSettings(address, SECRET)
        assert not caplog.records
        ClientSettings("http://host", SECRET)
    assert "without encryption" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"connect_timeout_s": 0},
        {"read_timeout_s": float("nan")},
        {"timeout_s": -1},
        {"retries": -1},
        {"retries": 1.5},
        {"max_response_bytes": 1},
        {"proxy": ""},
        {"proxy": 7},
        {"follow_redirects": "yes"},
        {"verify": None},
    ],
)
def test_other_settings_are_checked(wrong: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgumentError):
            kind(**wrong)


def test_a_closed_client_says_so() -> None:
    client = Client()
    assert repr(client) == "<Client of 'http://127.0.0.1:8000'>"
    client.close()
    client.close()
    with pytest.raises(ClosedError, match="is closed"):
        client.stats()
    assert "closed" in repr(client)
