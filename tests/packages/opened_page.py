"""A page on disk in a real browser: what it loads, and how it fits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_MS = 30_000
_LOADED = """() => [...document.images].every(image => image.complete)
    && [...document.querySelectorAll("video")]
        .every(video => video.error !== null || video.readyState >= 2)"""
_BROKEN = """() => [
    ...[...document.images].filter(image => !image.naturalWidth).map(image => image.currentSrc),
    ...[...document.querySelectorAll("video")]
        .filter(video => video.error !== null || !video.videoWidth).map(video => video.currentSrc),
]"""
_WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium through Playwright; skip the test where either is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        yield browser
        browser.close()


def check_page(browser: Any, file: Path, *, width: int, scheme: str) -> Any:
    """Open a page from disk and return it, loaded.

    Fail on a picture or video that does not load, an error in the console, a request to a host,
    and a page that is wider than the window.
    """
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.set_default_timeout(TIMEOUT_MS)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", lambda request: faults.extend(_foreign(request.url)))
    page.goto(file.as_uri())
    page.wait_for_function(_LOADED)
    faults += page.evaluate(_BROKEN)
    wider = page.evaluate(_WIDER)
    assert faults == []
    assert wider == 0, f"the page scrolls sideways by {wider} px"
    return page


def _foreign(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [f"a request to a host: {url}"]
