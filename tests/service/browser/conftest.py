"""A real browser over a real server.

Every page fails its test on a request to another host, an error of a script, or a message of the
content policy. A test says ``site.expect_refusals()`` where the server refuses on purpose.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numbered_movies import number_in

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Fewer processes: all pages are of one server, and no GPU draws.
    "--in-process-gpu",
    "--disable-site-isolation-trials",
]
TIMEOUT_MS = 30_000
SIZE = {"width": 1280, "height": 800}
READY = "html[data-ready]"
_PICTURE = """video => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    return [canvas.width, canvas.height,
            [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
}"""


class Site:
    """A page of a browser, and what it did."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.faults: list[str] = []
        self._refusals = False
        host = urlsplit(address).netloc
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: self._check_host(request.url, host))
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("console", lambda message: self._hear(message.type, message.text))

    def _check_host(self, url: str, host: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data", "about") and parts.netloc != host:
            self.faults.append(f"a request to another host: {url}")

    def _hear(self, kind: str, text: str) -> None:
        is_refusal = "Failed to load resource" in text or "ERR_" in text
        if kind == "error" and not (self._refusals and is_refusal):
            self.faults.append(f"console: {text}")

    def expect_refusals(self) -> None:
        self._refusals = True

    def open(self, path: str = "/", *, is_ready: bool = True) -> None:
        self.page.goto(self.address + path)
        if is_ready:
            self.page.wait_for_selector(READY)

    def wait(self, condition: str) -> None:
        """Wait until an expression is true. Playwright's own way is against the page's policy."""
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"not true in time: {condition}"
            self.page.wait_for_timeout(50)

    def search(self, text: str) -> Any:
        """Type a query; return the cards."""
        self.page.fill("#query", text)
        self.page.press("#query", "Enter")
        return self.cards()

    def cards(self) -> Any:
        """Return the cards of hits, once they are there."""
        self.page.wait_for_selector('#list[aria-busy="false"] .cards:not(.is-library) .card')
        return self.page.locator(".card")

    def moment(self) -> None:
        """Wait until the player shows a frame of the moment, and nothing is left to say."""
        self.wait(
            """() => {
                const video = document.getElementById("video");
                const note = document.querySelector(".screen-note");
                return video && video.readyState >= 2 && !video.seeking && video.videoWidth > 0
                    && (note.hidden || note.classList.contains("info"));
            }"""
        )

    def shown_number(self) -> int:
        """Read the number that is burnt into the frame on display."""
        video = self.page.locator("#video").element_handle()
        width, height, values = video.evaluate(_PICTURE)
        picture = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
        return number_in(picture)

    def handle_of(self, name: str) -> str:
        """Return the handle of a video of the gallery."""
        listed = self.page.evaluate("async () => (await fetch('/api/v1/videos?limit=100')).json()")
        found: str = next(each["handle"] for each in listed["videos"] if each["name"] == name)
        return found

    def drop(self, target: str, *paths: Path) -> None:
        """Drag files from the desktop over the page and drop them on an element of it."""
        files = [
            {"name": path.name, "bytes": list(path.read_bytes()), "type": kind_of(path)}
            for path in paths
        ]
        transfer = self.page.evaluate_handle(
            """files => {
                const transfer = new DataTransfer();
                for (const {name, bytes, type} of files)
                    transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
                return transfer;
            }""",
            files,
        )
        self.page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
        self.page.dispatch_event(target, "dragover", {"dataTransfer": transfer})
        self.page.dispatch_event(target, "drop", {"dataTransfer": transfer})


def kind_of(path: Path) -> str:
    return {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}.get(path.suffix, "")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    # It keeps an event loop running in this thread, so that it ends with each module.
    with playwright_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chromium(playwright: Any) -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def firefox(playwright: Any) -> Iterator[Any]:
    if not Path(playwright.firefox.executable_path).exists():
        pytest.skip("Playwright's Firefox is not installed")
    browser = playwright.firefox.launch()
    yield browser
    browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Site]]:
    """Open a page of its own at an address; keywords are those of a browser's context."""
    with ExitStack() as stack:
        sites: list[Site] = []

        def opened(
            address: str,
            path: str = "/",
            *,
            browser: Any = None,
            is_ready: bool = True,
            **options: Any,
        ) -> Site:
            context = (browser or chromium).new_context(**{"viewport": SIZE, **options})
            stack.callback(context.close)
            site = Site(context.new_page(), address)
            sites.append(site)
            site.open(path, is_ready=is_ready)
            return site

        yield opened
        faults = [fault for site in sites for fault in site.faults]
    assert not faults, "\n".join(faults)


@pytest.fixture
def site(visit: Callable[..., Site], live_address: str) -> Site:
    """A page of the service that all tests share. Its gallery is not to be changed."""
    return visit(live_address)
