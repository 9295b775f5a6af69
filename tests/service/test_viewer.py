"""The viewer of the description in a real browser: it draws under its policy, and stays here."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_viewer_draws_without_another_host(live_address: str) -> None:
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        hosts: set[str] = set()
        faults: list[str] = []
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("console", lambda said: faults.extend([said.text] * (said.type == "error")))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{live_address}/docs")
        page.get_by_text("/api/v1/search", exact=True).first.click()
        page.get_by_role("button", name="Try it out").wait_for()
        browser.close()
    assert faults == []
    assert hosts - {""} == {urlsplit(live_address).netloc}
