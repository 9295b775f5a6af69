"""The public face of the clients: the same in both, and closed to wrong arguments."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy import AsyncClient, Client, Retriever
from xclip_deploy.client.events import Event, EventReader
from xclip_deploy.client.jobs import AsyncJob, Job
from xclip_deploy.errors import InvalidArgumentError, ServiceError, XclipDeployError

HIT_METHODS = {"thumbnail", "frames", "cut"}
"""Coroutines that stand for methods of a hit, which would block."""
NOT_REMOTE = {
    *("add_features", "encode_frames", "estimate", "read_video", "save", "warm_up"),
}
"""Verbs of a Retriever that the service does not have."""


def public_methods(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_method_has_its_coroutine() -> None:
    expected, found = public_methods(Client), public_methods(AsyncClient)
    assert set(found) - HIT_METHODS == set(expected)
    assert len(expected) > 20
    for name, method in expected.items():
        assert inspect.iscoroutinefunction(found[name]), name
        mine, other = inspect.signature(method), inspect.signature(found[name])
        assert mine.parameters == other.parameters, name
        returned = str(other.return_annotation).replace("AsyncJob", "Job")
        assert str(mine.return_annotation) == returned, name
        assert method.__doc__, name
    jobs, coroutines = public_methods(Job), public_methods(AsyncJob)
    assert set(jobs) == set(coroutines)
    for name, method in jobs.items():
        assert (
            inspect.signature(method).parameters == inspect.signature(coroutines[name]).parameters
        )


def test_the_constructors_take_the_same() -> None:
    mine, other = (inspect.signature(kind).parameters for kind in (Client, AsyncClient))
    assert list(mine) == list(other)
    assert all(mine[name].default == other[name].default for name in mine)


def test_the_verbs_are_those_of_a_retriever() -> None:
    verbs, found = public_methods(Retriever), public_methods(Client)
    assert set(verbs) - set(found) == NOT_REMOTE
    for name in ("search", "search_batch", "search_by_video", "search_by_image", "explain"):
        assert list(inspect.signature(found[name]).parameters) == list(
            inspect.signature(verbs[name]).parameters
        )


WRONG: dict[str, Any] = {
    "none": None,
    "one": 1,
    "nan": math.nan,
    "huge": 10**30,
    "negative": -1,
    "empty": "",
    "bytes": b"x",
    "object": object(),
    "no members": [],
    "members": [None],
    "mapping": {},
    "array": np.zeros((2, 3)),
    "flat array": np.zeros(0, np.uint8),
    "zero byte": "a\0b",
    "surrogate": "\udcff",
    "long": "x" * 30_000,
}
CALLS: dict[str, dict[str, Any]] = {
    "add": {"paths": "/videos"},
    "all_videos": {},
    "encode_texts": {"texts": ["a man"]},
    "encode_videos": {"videos": [__file__]},
    "explain": {"query": "a man", "a": "v"},
    "get_video": {"video": "v"},
    "job": {"job_id": "j"},
    "jobs": {},
    "list_videos": {},
    "query_bank": {"texts": ["a man"]},
    "remove": {"ids": "v"},
    "score": {"texts": ["a man"], "videos": ["v"]},
    "search": {"text": "a man"},
    "search_batch": {"texts": ["a man"]},
    "search_by_image": {"image": __file__},
    "search_by_video": {"video": "v"},
    "upload": {"files": [__file__]},
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments(name: str) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(500))
    with Client(transport=transport, retries=0) as client:
        method: Callable[..., object] = getattr(client, name)
        for parameter in inspect.signature(method).parameters:
            for kind, value in WRONG.items():
                try:
                    method(**{**CALLS[name], parameter: value})
                except XclipDeployError as error:
                    message = str(error)
                except Exception as error:  # noqa: BLE001 - that is what is looked for
                    pytest.fail(f"{parameter}, {kind}: {type(error).__name__}: {error}")
                else:
                    continue
                assert 0 < len(message) <= 1000, (parameter, kind)
                assert "\n" not in message, (parameter, kind)


def test_both_need_httpx(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["httpx2"] = None
from xclip_deploy.errors import MissingExtraError
import xclip_deploy
for name in ("Client", "AsyncClient"):
    try:
        getattr(xclip_deploy, name)
    except MissingExtraError as error:
        assert "xclip-deploy[client]" in str(error), error
    else:
        raise SystemExit("it was loaded")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Events


def stream_of(events: list[tuple[int, str]], end: str) -> bytes:
    lines = [": comment", ""]
    for number, text in events:
        lines += [
            f"id: {number}",
            "event: job",
            *(f"data: {line}" for line in text.split("\n")),
            "",
        ]
    return (end.join(lines) + end).encode()


TEXTS = st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.tuples(st.integers(0, 99), TEXTS), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 20), max_size=30),
)
def test_events_do_not_depend_on_how_bytes_come(
    events: list[tuple[int, str]], end: str, sizes: list[int]
) -> None:
    content, reader = stream_of(events, end), EventReader()
    found: list[Event] = []
    for size in sizes:
        found += reader.feed(content[:size])
        content = content[size:]
    found += [*reader.feed(content), *reader.feed(b"\n" if end == "\r" else b"")]
    assert found == [Event(str(number), "job", text) for number, text in events]


def test_an_event_without_end_is_bounded() -> None:
    reader = EventReader()
    line = b"data: " + b"x" * (1 << 18) + b"\n"
    with pytest.raises(ServiceError, match="an event of more than"):
        all(not [*reader.feed(line)] for _ in range(100))


def test_a_stream_of_comments_is_not() -> None:
    reader = EventReader()
    for _ in range(100):
        assert list(reader.feed((b": " + b"x" * 1000 + b"\n\n") * 300)) == []


def test_policies_of_segments_travel() -> None:
    from xclip_deploy.client.adding import AddOptions
    from xclip_deploy.runtime.video.segmentation import Segmentation

    for policy in (Segmentation("windows", 8.0, 4.0), Segmentation.whole()):
        request = AddOptions(segment=policy).request(["a"])
        stride = None if request.segment == "whole" else request.stride
        assert Segmentation.of(request.segment, stride, 12.0) == policy
    with pytest.raises(InvalidArgumentError, match="shots"):
        AddOptions(segment=Segmentation("shots", 8.0, 8.0)).request(["a"])
