"""The page: adding, watching and removing videos, the token, and a server that goes away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from numbered_movies import write_movie

from xclip_deploy.service import create_app

OpenLive = Callable[..., str]
TOKEN = "a-long-token-for-the-tests"


def choose(site: Any, *paths: Path) -> None:
    """Choose files to add, and confirm."""
    site.page.set_input_files("#add-files", list(paths))
    site.page.click("dialog[open] button[type=submit]")


def outcome(site: Any) -> str:
    """Return what the page says of the newest job, once it ended."""
    site.page.wait_for_selector(".job .note")
    text: str = site.page.locator(".job").first.inner_text()
    return text


def test_an_added_video_is_found(open_live: OpenLive, visit: Any, tmp_path: Path) -> None:
    movie = write_movie(tmp_path / "new movie.mp4", 6)
    site = visit(open_live())
    page = site.page
    page.set_input_files("#add-files", [movie])
    page.click("dialog[open] details summary")
    page.click("dialog[open] .metadata-rows + button")
    page.get_by_label("Name of the field").fill("split")
    page.get_by_label("Value").fill("mine")
    page.click("dialog[open] button[type=submit]")
    assert "1 added" in outcome(site)
    site.wait("document.querySelectorAll('.is-library .card').length === 8")
    assert "8 videos" in page.locator("#summary").inner_text()
    site.drop("#drop-search", movie)
    card = site.cards().first
    assert card.locator(".card-name").inner_text() == "new movie.mp4"
    assert "mine" in card.locator(".metadata").inner_text()
    page.reload()
    page.wait_for_selector(".job .note")
    assert "1 added" in outcome(site), "a reload forgot the job"


def test_jobs_that_ended_are_hidden_together(
    open_live: OpenLive, visit: Any, tmp_path: Path
) -> None:
    site = visit(open_live())
    for name in ("one.mp4", "two.mp4"):
        broken = tmp_path / name
        broken.write_text(name)
        choose(site, broken)
        site.wait(f"document.querySelector('.tray').innerText.includes('{name} is in no video')")
    site.page.get_by_role("button", name="Hide all that ended").click()
    assert not site.page.locator(".tray").is_visible()
    site.page.reload()
    site.page.wait_for_selector("html[data-ready]")
    assert not site.page.locator(".tray").is_visible()


@pytest.mark.slow
def test_files_that_fail_are_named(open_live: OpenLive, visit: Any, tmp_path: Path) -> None:
    movie = write_movie(tmp_path / "whole.mp4", 4)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(movie.read_bytes()[:2000])
    site = visit(open_live())
    choose(site, movie, broken)
    told = outcome(site)
    assert "1 added" in told
    assert "broken.mp4" in told
    assert str(tmp_path) not in told


@pytest.mark.slow
def test_dropped_videos_are_added_and_others_left_out(
    open_live: OpenLive, visit: Any, tmp_path: Path
) -> None:
    movie = write_movie(tmp_path / "dropped.mp4", 4)
    notes = tmp_path / "notes.txt"
    notes.write_text("no video")
    site = visit(open_live())
    site.drop("#drop-add", movie, notes)
    dialog = site.page.locator("dialog[open]")
    assert "1 other file will be left out" in dialog.inner_text()
    dialog.locator("button[type=submit]").click()
    assert "1 added" in outcome(site)


@pytest.mark.slow
def test_a_folder_of_the_server_is_added_below_its_roots_alone(
    open_live: OpenLive, visit: Any, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    write_movie(tmp_path / "open" / "one.mp4", 4)
    site = visit(open_live(roots=(tmp_path / "open",)))
    site.expect_refusals()
    page = site.page
    page.get_by_text("Add a folder of the server").click()
    page.fill("#paths", str(tmp_path))
    page.click("dialog[open] button[type=submit]")
    page.wait_for_selector(".job .note.error")
    page.click(".job button[aria-label^=Hide]")
    page.get_by_text("Add a folder of the server").click()
    page.fill("#paths", str(tmp_path / "open"))
    page.click("dialog[open] button[type=submit]")
    assert "1 added" in outcome(site)


@pytest.mark.slow
def test_a_video_is_removed_after_a_question(open_live: OpenLive, visit: Any) -> None:
    site = visit(open_live())
    page = site.page
    page.get_by_role("button", name="Remove numbers.mp4").click()
    page.get_by_role("button", name="Keep").click()
    assert page.locator(".card").count() == 7
    assert page.evaluate("document.activeElement.getAttribute('aria-label') ?? "
                         "document.activeElement.innerText") == "Remove numbers.mp4"  # fmt: skip
    page.get_by_role("button", name="Remove numbers.mp4").click()
    page.locator("dialog[open] .danger").click()
    site.wait("document.querySelectorAll('.card').length === 6")
    site.wait("document.getElementById('summary').textContent.startsWith('6 videos')")


@pytest.mark.slow
def test_a_read_only_page_offers_no_changes(open_live: OpenLive, visit: Any) -> None:
    site = visit(open_live(read_only=True))
    assert site.page.locator(".is-library .card").count() == 7
    for words in ("Remove", "Add videos"):
        assert not site.page.get_by_role("button", name=words).count()


def test_an_empty_gallery_tells_how_to_start(
    open_live: OpenLive, visit: Any, tmp_path: Path
) -> None:
    site = visit(open_live(gallery=tmp_path / "gallery"))
    page = site.page
    page.wait_for_selector(".empty.is-first")
    text = page.locator(".empty").inner_text()
    assert "No videos yet" in text
    assert "xclip-deploy index" in text
    choose(site, write_movie(tmp_path / "first.mp4", 4))
    page.wait_for_selector(".is-library .card")
    assert site.search("numbers").count() == 1


def test_the_token_opens_the_page(open_live: OpenLive, visit: Any) -> None:
    site = visit(open_live(token=TOKEN), is_ready=False)
    site.expect_refusals()
    page = site.page
    page.fill("dialog[open] #token", "wrong")
    page.click("dialog[open] button[type=submit]")
    page.wait_for_selector("#token-fault:not([hidden])")
    page.fill("dialog[open] #token", TOKEN)
    page.click("dialog[open] button[type=submit]")
    page.wait_for_selector(".is-library .card")
    site.wait("document.querySelector('.card img').naturalWidth > 0")
    assert TOKEN not in page.url
    assert page.evaluate("document.cookie") == "", "a script can read the session"
    page.reload()
    page.wait_for_selector(".is-library .card")


@contextmanager
def serving(settings: Any, port: int) -> Iterator[str]:
    """Serve at a port, so that a later server can take the place of an earlier one."""
    config = uvicorn.Config(
        create_app(settings), "127.0.0.1", port, log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        assert time.monotonic() < deadline, "the service takes too long to start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def test_the_page_goes_on_after_a_restart_of_the_server(visit: Any, settings_of: Any) -> None:
    settings = settings_of()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(settings, port) as address:
        site = visit(address)
        site.expect_refusals()
        site.search("numbers")
    site.page.fill("#query", "a red square")
    site.page.press("#query", "Enter")
    site.page.wait_for_selector("#silence:not([hidden])")
    with serving(settings, port):
        site.page.wait_for_selector("#silence", state="hidden")
        assert site.cards().count() == 7
        assert site.page.input_value("#query") == "a red square"
        site.cards().first.locator(".play-button").click()
        site.moment()
        movie = write_movie(settings.data / "later.mp4", 4)
        choose(site, movie)
        assert "1 added" in outcome(site), "the page does not hear of jobs after a restart"
