"""The application opens, answers and closes."""

from __future__ import annotations

from starlette.testclient import TestClient

from xclip_deploy.service.state import Service


def test_the_gallery_is_open(api: TestClient) -> None:
    service = api.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    assert len(service.retriever) == 7
    assert service.retriever.gallery.stats().num_segments == 11


def test_a_real_server(live_address: str) -> None:
    import httpx2

    assert httpx2.get(f"{live_address}/api/v1/openapi.json").status_code == 200
