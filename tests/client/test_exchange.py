"""Rules of repetition, on a flaky world with a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.client.answers import Head
from xclip_deploy.client.bodies import JsonBody
from xclip_deploy.client.exchange import (
    BrokenError,
    Flow,
    Open,
    Pause,
    Read,
    Repeat,
    Request,
    address_of,
    exchange,
    whole_body,
)
from xclip_deploy.client.settings import ClientSettings, Rules
from xclip_deploy.errors import (
    GalleryError,
    InvalidArgumentError,
    ServiceBusyError,
    ServiceConnectionError,
    ServiceError,
    ServiceTimeoutError,
    XclipDeployError,
)
from xclip_deploy.wire import ErrorBody, ErrorModel

DONE = b"done"


@dataclass(frozen=True)
class Answer:
    """The service's answer to one request."""

    status: int = 200
    retry_after: str | None = None
    content: bytes = DONE
    length: int | None = None
    takes_s: float = 0.01
    breaks_after: int | None = None
    """Chunks before the connection breaks."""


@dataclass(frozen=True)
class Broken:
    """A connection that fails before there is an answer."""

    is_sent: bool
    is_timeout: bool = False
    takes_s: float = 0.01


@dataclass
class World:
    """A driver whose service answers by a script, and whose time passes only here."""

    script: list[Answer | Broken]
    now: float = 0.0
    opened: int = 0
    executed: int = 0
    """Requests that the service may have carried out."""
    pauses: list[float] = field(default_factory=list)
    _chunks: list[bytes | None] = field(default_factory=list)

    def rules(self, **changes: Any) -> Rules:
        return Rules(ClientSettings(**changes), clock=lambda: self.now, chance=lambda: 0.5)

    def run(self, flow: Flow[Any]) -> Any:
        outcome: Any = None
        broken: BrokenError | None = None
        while True:
            try:
                step = flow.send(outcome) if broken is None else flow.throw(broken)
            except StopIteration as end:
                return end.value
            outcome = broken = None
            try:
                outcome = self.perform(step)
            except BrokenError as error:
                broken = error

    def perform(self, step: Any) -> Any:
        if isinstance(step, Pause):
            assert step.seconds >= 0
            self.pauses.append(step.seconds)
            self.now += step.seconds
            return None
        if isinstance(step, Read):
            chunk = self._chunks.pop(0)
            if chunk is None:
                raise BrokenError("broken midway", is_sent=True)
            return chunk or None
        assert isinstance(step, Open)
        assert 0 < step.read_s <= step.left_s
        assert 0 < step.connect_s <= step.left_s
        planned = self.script[self.opened] if self.opened < len(self.script) else Answer()
        self.opened += 1
        self.now += min(planned.takes_s, step.read_s)
        if isinstance(planned, Broken):
            self.executed += planned.is_sent
            raise BrokenError("broken", is_sent=planned.is_sent, is_timeout=planned.is_timeout)
        if planned.takes_s > step.read_s:
            self.executed += 1
            raise BrokenError("late", is_sent=True, is_timeout=True)
        self.executed += planned.status < 400 or planned.status in (500, 502, 504)
        whole: list[bytes | None] = [planned.content, b""] if planned.content else [b""]
        cut = planned.breaks_after
        self._chunks = whole if cut is None else [*whole[:cut], None]
        headers = {} if planned.retry_after is None else {"retry-after": planned.retry_after}
        if planned.length is not None:
            headers["content-length"] = str(planned.length)
        return Head(planned.status, headers)


def body_reader(rules: Rules) -> Callable[[Head, float], Flow[bytes]]:
    return lambda head, until: whole_body(head, rules, until, rules.settings.max_response_bytes)


def call(world: World, repeat: Repeat = Repeat.ALWAYS, **changes: Any) -> Any:
    rules = world.rules(**changes)
    request = Request("POST", address_of("search"), body=JsonBody(b"{}"), repeat=repeat)
    return world.run(exchange(request, rules, body_reader(rules)))


STATUSES = st.sampled_from([200, 202, 400, 401, 404, 409, 422, 429, 500, 502, 503, 504, 507])
ANSWERS = st.builds(
    Answer,
    status=STATUSES,
    retry_after=st.sampled_from([None, "0", "1", "2.5", "10", "nonsense", "-1", "9" * 40]),
    takes_s=st.floats(0, 100),
    breaks_after=st.sampled_from([None, None, 0, 1]),
)
BREAKS = st.builds(Broken, is_sent=st.booleans(), is_timeout=st.booleans())
SCRIPTS = st.lists(ANSWERS | BREAKS, max_size=8)


@given(SCRIPTS, st.sampled_from(Repeat), st.integers(0, 5))
def test_what_a_flaky_service_can_do(
    script: list[Answer | Broken], repeat: Repeat, retries: int
) -> None:
    world = World(script)
    with suppress(XclipDeployError):
        assert call(world, repeat, retries=retries, timeout_s=120, read_timeout_s=30) == DONE
    # Bounds hold: attempts, and the whole time (the last answer may come up to the end).
    assert world.opened <= retries + 1
    assert world.now <= 120 + 1e-6
    # What must not be carried out twice is not: every attempt but the last was not carried out.
    if repeat is not Repeat.ALWAYS:
        assert world.executed <= 1
    if repeat is Repeat.UNSENT:
        assert all(isinstance(each, Broken) and not each.is_sent for each in attempts(world)[:-1])
    for planned, pause_s in zip(attempts(world), world.pauses, strict=False):
        if not isinstance(planned, Answer) or planned.takes_s > 30:
            continue
        if planned.breaks_after is None and planned.status in (429, 503):
            wanted = {"1": 1, "2.5": 2.5, "10": 10}.get(planned.retry_after or "", 0)
            assert pause_s >= wanted


def attempts(world: World) -> list[Answer | Broken]:
    return [*world.script, Answer()][: world.opened]


@given(st.integers(0, 3), BREAKS | st.builds(Answer, status=st.sampled_from([429, 502, 503, 504])))
def test_a_request_that_only_reads_gets_through(failures: int, failure: Answer | Broken) -> None:
    world = World([failure] * failures)
    assert call(world, retries=3) == DONE
    assert world.opened == failures + 1


@given(st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_pauses_grow_and_vary_within_bounds(chances: list[float]) -> None:
    drawn = iter(chances)
    rules = Rules(ClientSettings(), chance=lambda: next(drawn))
    for repetition in range(1, 11):
        doubled = min(8.0, 0.25 * 2 ** (repetition - 1))
        assert doubled / 2 <= rules.pause_s(repetition, None) <= doubled
        assert 3.0 <= rules.pause_s(repetition, 3.0) <= 3.0 + doubled / 2


@pytest.mark.parametrize(
    ("repeat", "script", "attempts"),
    [
        (Repeat.UNSENT, [Broken(is_sent=False)] * 2, 3),
        (Repeat.UNSENT, [Broken(is_sent=True)], 1),
        (Repeat.UNSENT, [Answer(503, "1")], 1),
        (Repeat.UNSENT, [Answer(429, "1")], 1),
        (Repeat.REFUSED, [Answer(503, "1")], 2),
        (Repeat.REFUSED, [Answer(503)], 1),
        (Repeat.REFUSED, [Answer(502)], 1),
        (Repeat.REFUSED, [Broken(is_sent=True)], 1),
        (Repeat.REFUSED, [Broken(is_sent=False)], 2),
        (Repeat.ALWAYS, [Answer(500)], 1),
        (Repeat.ALWAYS, [Answer(422)], 1),
        (Repeat.ALWAYS, [Answer(503)], 2),
        (Repeat.ALWAYS, [Answer(breaks_after=1)], 2),
        (Repeat.ALWAYS, [Answer(length=9)], 2),
        (Repeat.ALWAYS, [Broken(is_sent=True, is_timeout=True)], 2),
    ],
)
def test_what_is_sent_again(repeat: Repeat, script: list[Answer | Broken], attempts: int) -> None:
    world = World(script)
    gets_through = attempts > len(script)
    if gets_through:
        assert call(world, repeat) == DONE
    else:
        with pytest.raises(XclipDeployError):
            call(world, repeat)
    assert world.opened == attempts


def test_a_wait_that_is_longer_than_the_call_is_not_begun() -> None:
    world = World([Answer(429, "500")])
    with pytest.raises(ServiceBusyError) as caught:
        call(world, timeout_s=100)
    assert caught.value.retry_after_s == 500
    assert world.pauses == []


def test_the_whole_time_bounds_all_attempts() -> None:
    world = World([Broken(is_sent=True, is_timeout=True, takes_s=40)] * 9)
    with pytest.raises(ServiceTimeoutError, match="did not answer in time"):
        call(world, timeout_s=100, read_timeout_s=40, retries=9)
    assert world.now <= 100
    assert world.opened == 3


def test_an_answer_is_bounded() -> None:
    for answer in (Answer(content=b"x" * 2000), Answer(length=1 << 40)):
        world = World([answer])
        with pytest.raises(ServiceError, match="more than 1,024 bytes"):
            call(world, max_response_bytes=1024)
        assert world.opened == 1


def test_a_redirect_and_compression_are_not_followed() -> None:
    with pytest.raises(ServiceError, match=r"redirect \(307\)"):
        call(World([Answer(307)]))

    class Compressed(World):
        def perform(self, step: Any) -> Any:
            outcome = super().perform(step)
            is_head = isinstance(outcome, Head)
            return Head(200, {"content-encoding": "gzip"}) if is_head else outcome

    with pytest.raises(ServiceError, match="compresses"):
        call(Compressed([]))


def test_connections_that_fail_say_what_is_known() -> None:
    with pytest.raises(ServiceConnectionError, match="cannot be reached"):
        call(World([Broken(is_sent=False)] * 9))
    with pytest.raises(ServiceConnectionError, match="may have carried the request out"):
        call(World([Broken(is_sent=True)]), Repeat.REFUSED)


# Errors


def refused(kind: str, status: int, message: str = "found; expected") -> World:
    body = ErrorBody(error=ErrorModel(kind=kind, message=message, request_id="r1"))
    return World([Answer(status, content=body.model_dump_json().encode())] * 9)


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("GalleryError", 404, GalleryError),
        ("InvalidArgumentError", 422, InvalidArgumentError),
        ("TooManyRequests", 429, ServiceBusyError),
        ("UnexpectedError", 500, ServiceError),
        ("XclipDeployError", 500, ServiceError),
        ("ServiceTimeoutError", 500, ServiceError),
        ("MAX_MESSAGE", 500, ServiceError),
        ("__doc__", 500, ServiceError),
    ],
)
def test_an_error_comes_back_as_its_class(
    kind: str, status: int, expected: type[XclipDeployError]
) -> None:
    with pytest.raises(XclipDeployError) as caught:
        call(refused(kind, status))
    assert type(caught.value) is expected
    assert "found; expected" in str(caught.value)
    if isinstance(caught.value, ServiceError):
        assert caught.value.status == status
        assert caught.value.kind == kind
        assert caught.value.request_id == "r1"


def test_every_class_can_come_back() -> None:
    from xclip_deploy.client.answers import _KINDS, error_of

    assert len(_KINDS) > 30
    for name, kind in _KINDS.items():
        error = error_of(ErrorModel(kind=name, message="m", request_id="r"))
        assert str(error) == "m"
        if not issubclass(kind, ServiceError) and kind is not XclipDeployError:
            assert type(error) is kind
            local = kind("m") if name != "MissingExtraError" else kind("p", "e", "m")
            assert set(vars(error)) == set(vars(local)), name


def test_a_message_cannot_act_on_a_terminal() -> None:
    with pytest.raises(GalleryError) as caught:
        call(refused("GalleryError", 404, "a\x1b[2Jb\nc" + "x" * 5000))
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 1000


@given(st.binary(max_size=300))
def test_an_error_without_a_body_that_is_known(content: bytes) -> None:
    with pytest.raises(ServiceError, match="answered 418 without an error"):
        call(World([Answer(418, content=content)]))
