"""Jobs of a service, seen by its API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from starlette.testclient import TestClient

from xclip_deploy.service.state import Service
from xclip_deploy.wire import JobModel

API = "/api/v1"
ENDED = ("done", "failed", "cancelled")


def service_of(client: TestClient) -> Service:
    service = client.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    return service


def index(client: TestClient, *paths: str, **options: Any) -> JobModel:
    answer = client.post(f"{API}/index", json={"paths": paths, **options})
    assert answer.status_code == 202, answer.text
    job = JobModel.model_validate(answer.json())
    assert answer.headers["location"] == f"{API}/jobs/{job.id}"
    return job


def get(client: TestClient, job_id: str) -> JobModel:
    answer = client.get(f"{API}/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return JobModel.model_validate(answer.json())


def until(client: TestClient, job_id: str, *states: str) -> JobModel:
    deadline = time.monotonic() + 60
    while (job := get(client, job_id)).state not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def events(client: TestClient, address: str, **headers: str) -> list[tuple[int, JobModel]]:
    """Read a stream to its end."""
    with client.stream("GET", f"{API}{address}", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        return list(parsed(answer.iter_lines()))


def parsed(lines: Iterator[str]) -> Iterator[tuple[int, JobModel]]:
    number = 0
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            assert value == "job"
        elif name == "data":
            job = JobModel.model_validate_json(value)
            assert job.last_event == number
            yield number, job
