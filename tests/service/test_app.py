"""The application opens, answers, tells its state, and closes."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from running_services import BASE_URL, OpenService, refusal_of, service_in, wait_until
from starlette.testclient import TestClient

from xclip_deploy import Retriever, SessionOptions
from xclip_deploy.errors import SessionError, VideoReadError
from xclip_deploy.service import ServiceSettings, create_app
from xclip_deploy.service.logs import JsonLines, log_as_json
from xclip_deploy.service.watching import ask_model
from xclip_deploy.wire import API, ErrorBody


def test_the_gallery_is_open(api: TestClient) -> None:
    service = service_in(api)
    assert len(service.served.writer) == 7
    assert service.served.writer.gallery.stats().num_segments == 11


def test_a_real_server(live_address: str) -> None:
    assert httpx2.get(f"{live_address}/health/ready").json() == {"status": "ready"}


def test_live_and_ready(api: TestClient) -> None:
    assert api.get("/health/live").json() == {"status": "live"}
    assert api.get("/health/ready").json() == {"status": "ready"}
    for path in ("/", "/health/live", "/health/ready"):  # as load balancers and monitors ask
        answer = api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_unknown_addresses_and_methods(api: TestClient) -> None:
    for method, path, status, kind in (
        ("GET", "/nothing", 404, "NotFound"),
        ("GET", f"{API}/nothing", 404, "NotFound"),
        ("PUT", f"{API}/search", 405, "MethodNotAllowed"),
        ("GET", "/docs/../../etc/passwd", 404, "NotFound"),
        ("GET", "/docs/%2e%2e%2fsettings.py", 404, "NotFound"),
        ("GET", "/static/%2e%2e/settings.py", 404, "NotFound"),
    ):
        response = api.request(method, path)
        error = ErrorBody.model_validate(response.json()).error
        assert (response.status_code, error.kind) == (status, kind), path


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (f"{API}/search", {"POST"}),
        (f"{API}/videos", {"GET", "POST"}),
        (f"{API}/videos/x", {"GET", "DELETE"}),
        (f"{API}/videos/x/media", {"GET", "HEAD"}),
        (f"{API}/jobs/x", {"GET", "DELETE"}),
        (f"{API}/session", {"GET", "POST", "DELETE"}),
        ("/static/icon.svg", {"GET", "HEAD"}),
        ("/", {"GET", "HEAD"}),
    ],
)
def test_the_methods_that_an_address_takes(api: TestClient, path: str, methods: set[str]) -> None:
    """All are named, though each has a route of its own."""
    answer = api.request("PATCH", path)
    assert refusal_of(answer, 405) == "MethodNotAllowed"
    assert set(answer.headers["allow"].split(", ")) == methods


def test_invalid_requests_are_told_in_one_line(api: TestClient) -> None:
    response = api.post(f"{API}/search", json={"text": "x", "k": 0, "secret": "y" * 10_000})
    error = ErrorBody.model_validate(response.json()).error
    assert response.status_code == 422
    assert error.kind == "InvalidArgumentError"
    assert error.message == "body.k: Input should be greater than or equal to 1; and 1 more"
    for content in ("{", "[" * 60_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff"):
        response = api.post(
            f"{API}/search", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code in (400, 422), response.text
        ErrorBody.model_validate(response.json())


# Ids of requests, logs and metrics


@pytest.mark.parametrize("given", ["abc-1.2_3", "A" * 64])
def test_request_ids_that_clients_choose(api: TestClient, given: str) -> None:
    assert api.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "-a", "A" * 65, 'a"b', "a\tb", "é"])
def test_request_ids_that_are_replaced(api: TestClient, given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1"))]
    found = api.get("/nothing", headers=headers).headers["x-request-id"]
    assert len(found) == 32
    assert int(found, 16) >= 0


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that the service logs, read back from JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("xclip_deploy")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)


def test_a_line_for_every_request(
    api: TestClient, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    api.get("/health/live?text=private%0A", headers={"x-request-id": "mine"})
    api.get("/no%0Athing", headers={"x-request-id": "other"})
    found = [line for line in lines() if line["message"] == "request"]
    assert [line["status"] for line in found] == [200, 404]
    assert found[0]["request_id"] == "mine"
    assert found[0]["route"] == "/health/live"
    assert found[0]["seconds"] >= 0
    assert found[0]["bytes"] == len('{"status":"live"}')
    assert found[1]["path"] == "/no\nthing"  # one line of JSON all the same
    assert "private" not in json.dumps(lines())


def test_logs_of_the_process() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    own = logging.getLogger("xclip_deploy").level
    stream = io.StringIO()
    try:
        log_as_json("info", stream)
        logging.getLogger("lance").info("not heard")
        logging.getLogger("xclip_deploy.service").info("heard %s", "\n")
        logging.getLogger("lance").warning("heard")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.getLogger("xclip_deploy").setLevel(own)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in found] == [
        ("info", "heard \n"),
        ("warning", "heard"),
    ]


def test_metrics(open_service: OpenService) -> None:
    client = open_service()
    metrics = service_in(client).metrics
    with metrics.time("encode_text"):
        pass
    metrics.batch("encode_text").observe(3)
    metrics.waiting("search").set(2)
    client.get(f"{API}/session")
    client.get("/nothing")
    client.get("/another")
    client.request("BREW", "/health/live")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    for line in (
        f'xclip_requests_total{{method="GET",route="{API}/session",status="200"}} 1.0',
        'xclip_requests_total{method="GET",route="none",status="404"} 2.0',
        'xclip_failures_total{kind="NotFound"} 2.0',
        'xclip_stage_seconds_count{stage="encode_text"} 1.0',
        'xclip_stage_seconds_count{stage="request"} 4.0',
        'xclip_batch_size_sum{stage="encode_text"} 3.0',
        'xclip_waiting{queue="search"} 2.0',
        "xclip_gallery_videos 7.0",
        "xclip_gallery_segments 11.0",
        "xclip_requests_running 1.0",
        "xclip_ready 1.0",
    ):
        assert line in text.splitlines(), line
    assert "BREW" not in text


# Errors of routes


def test_errors_that_routes_raise(
    settings_of: Callable[..., ServiceSettings], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    settings = settings_of()
    app = create_app(settings)
    failures = {
        "video": VideoReadError(f"{settings.data}/a b/x.mp4: no frame; expected a video"),
        "unexpected": ValueError(f"secret in {settings.data}"),
        "session": SessionError("the device went away"),
    }

    @app.get(API + "/fail/{name}")
    async def fail(name: str) -> None:
        await app.state.service.run(raise_it, failures[name])

    with TestClient(app, base_url=BASE_URL) as client:
        video = client.get(f"{API}/fail/video")
        assert video.status_code == 422
        assert video.json()["error"]["message"] == "x.mp4: no frame; expected a video"
        # What a client sends takes the service out of nothing.
        assert client.get("/health/ready").status_code == 200
        assert not app.state.service.health.is_doubtful

        unexpected = client.get(f"{API}/fail/unexpected", headers={"x-request-id": "find-me"})
        assert unexpected.status_code == 500
        assert unexpected.json()["error"]["kind"] == "UnexpectedError"
        assert "secret" not in unexpected.text
        found = [line for line in lines() if "traceback" in line]
        assert [line["request_id"] for line in found] == ["find-me"]
        assert "secret" in found[0]["traceback"]

        session = client.get(f"{API}/fail/session")
        assert session.status_code == 503
        assert session.headers["retry-after"] == "2"
        assert app.state.service.health.is_doubtful  # so the model is asked again


def raise_it(error: Exception) -> None:
    raise error


# Readiness


def test_a_model_that_fails_and_recovers(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_service(refresh_s=1000)
    service = service_in(client)
    ask = client.portal.call  # type: ignore[union-attr]

    def broken(*_arguments: object) -> None:
        raise SessionError(f"{service.settings.bundle}/scorer.onnx: the device went away")

    # The text and video encoders still answer; the scorer alone fails.
    monkeypatch.setattr(service.served.writer.model, "score", broken)
    ask(ask_model, service)
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["error"]["kind"] == "Unready"
    assert str(service.settings.bundle) not in answer.text
    assert client.get("/health/live").status_code == 200
    assert "xclip_ready 0.0" in client.get("/metrics").text
    assert service.health.is_doubtful
    monkeypatch.undo()
    ask(ask_model, service)
    assert client.get("/health/ready").status_code == 200
    assert not service.health.is_doubtful


def test_what_other_processes_write_is_seen(
    open_service: OpenService, gallery_path: Any, videos_path: Any
) -> None:
    client = open_service(refresh_s=0.05)
    service = service_in(client)
    with Retriever(
        service.settings.bundle, service.settings.gallery, session=SessionOptions(device="cpu")
    ) as other:
        other.remove(where="caption = 'numbers'")
    wait_until(lambda: "xclip_gallery_videos 6.0" in client.get("/metrics").text)
    assert len(service.served.writer) == 6


def test_a_gallery_that_goes_away_makes_unready(open_service: OpenService) -> None:
    client = open_service(refresh_s=0.05)
    service = service_in(client)
    hidden = service.settings.gallery.with_name("hidden")
    service.settings.gallery.rename(hidden)
    wait_until(lambda: client.get("/health/ready").status_code == 503)
    answer = client.get("/health/ready").json()["error"]
    assert str(hidden.parent) not in answer["message"]
    hidden.rename(service.settings.gallery)
    wait_until(lambda: client.get("/health/ready").status_code == 200)


# The description and its viewer


def test_the_description_documents_every_error(api: TestClient) -> None:
    description = api.get(f"{API}/openapi.json").json()
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            for status in ("400", "401", "404", "413", "415", "422", "429", "500", "503"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (path, method)


def test_the_viewer_needs_no_other_host(api: TestClient) -> None:
    page = api.get("/docs").text
    assert "//" not in page.replace("<!doctype html>", "")
    assert "<script>" not in page
    for name in ("start.js", "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/{name}" in page or name == "start.js"
        assert api.get(f"/docs/{name}").status_code == 200
