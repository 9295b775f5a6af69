"""The page: playing from exactly the moment, the evidence, and cutting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numbered_movies import decode, write_movie

RATE = 10  # frames a second of numbers.mp4


def show(site: Any, name: str, start_s: float, end_s: float, query: str = "") -> None:
    """Open a moment by its address."""
    handle = site.handle_of(name)
    site.open(f"/?q={query}&v={handle}&t={start_s}&e={end_s}")
    site.moment()


@pytest.mark.parametrize(
    "start_s",
    # Every day, the start, and a time within the film that no key frame has.
    [
        0.0,
        pytest.param(8.0, marks=pytest.mark.slow),
        17.3,
        pytest.param(39.9, marks=pytest.mark.slow),
    ],
)
def test_a_link_shows_the_frame_of_its_time_and_does_not_play(site: Any, start_s: float) -> None:
    show(site, "numbers.mp4", start_s, 40)
    assert abs(site.shown_number() - round(start_s * RATE)) <= 1
    assert site.page.evaluate("document.getElementById('video').paused")
    assert site.page.evaluate("document.getElementById('video').muted")


def test_every_click_plays_from_its_own_moment(site: Any) -> None:
    page = site.page
    site.search("numbers")
    card = page.locator(".card", has=page.locator(".card-name", has_text="numbers.mp4"))
    # Time stands still, so that the frame on display is the first of the moment.
    page.evaluate("HTMLMediaElement.prototype.play = async () => {}")
    for button in [*card.locator(".moment").all(), card.locator(".moment").first]:
        button.click()
        site.moment()
        start_s = float(page.url.split("&t=")[1].split("&")[0])
        site.wait(f"Math.abs(document.getElementById('video').currentTime - {start_s}) < 0.01")
        assert abs(site.shown_number() - round(start_s * RATE)) <= 1


def test_a_click_plays_and_space_pauses(site: Any) -> None:
    page = site.page
    site.search("numbers").first.locator(".play-button").click()
    site.moment()
    site.wait("!document.getElementById('video').paused")
    page.keyboard.press("Space")
    site.wait("document.getElementById('video').paused")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stage", state="hidden")
    assert page.evaluate("document.activeElement.className") == "play-button"
    page.go_back()
    page.wait_for_selector("#stage:not([hidden])")
    assert page.evaluate("document.getElementById('video').paused"), "it plays by itself"


def test_the_timeline_seeks_by_keys_and_clicks(site: Any) -> None:
    show(site, "numbers.mp4", 8.0, 16)
    track = site.page.locator(".track")
    track.focus()
    site.page.keyboard.press("ArrowRight")
    site.moment()
    assert abs(site.shown_number() - 90) <= 1
    box = track.bounding_box()
    site.page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + 2)
    site.moment()
    assert abs(site.shown_number() - 300) <= 2


@pytest.mark.slow
def test_what_the_browser_cannot_play_is_converted_and_shows_the_same_frame(
    open_live: Callable[..., str], visit: Any, tmp_path: Path
) -> None:
    movie = write_movie(tmp_path / "old.avi", 20, codecs=("mpeg4", "mp2"), sounds=((0, 20),))
    site = visit(open_live(roots=(tmp_path,)))
    site.expect_refusals()
    add_path(site, movie)
    show(site, "old.avi", 12.5, 16)
    assert "converted copy" in site.page.locator(".screen-note").inner_text()
    assert abs(site.shown_number() - 125) <= 1
    # A time that the copy does not hold needs another copy.
    site.page.locator(".track").focus()
    site.page.keyboard.press("Home")
    site.wait("document.querySelector('.now').textContent.startsWith('0:00')")
    site.moment()
    assert site.shown_number() <= 1


def add_path(site: Any, path: Path) -> None:
    """Add a file of the server and wait until it is in the gallery."""
    state = site.page.evaluate(
        """async path => {
            const send = (address, body) => fetch("/api/v1/" + address, body && {
                method: "POST", body: JSON.stringify(body),
                headers: {"Content-Type": "application/json"}}).then(answer => answer.json());
            let job = await send("index", {paths: [path]});
            while (["waiting", "running"].includes(job.state)) {
                await new Promise(resolve => setTimeout(resolve, 100));
                job = await send("jobs/" + job.id);
            }
            return job;
        }""",
        str(path),
    )
    assert state["state"] == "done", state
    assert not state["report"]["failed"], state


def test_a_moment_that_is_gone_is_named(site: Any) -> None:
    site.expect_refusals()
    site.open(f"/?v={'0' * 64}&t=1")
    site.page.wait_for_selector(".screen-note.error")
    assert "no video" in site.page.locator(".screen-note").inner_text().lower()


def test_the_evidence_opens_tells_values_and_jumps(site: Any) -> None:
    page = site.page
    show(site, "numbers.mp4", 8.0, 16, "a red numbers")
    page.click("#section-why summary")
    page.wait_for_selector(".heat-map")
    words = page.locator(".heat-map tbody th").all_inner_texts()
    assert words == ["a", "red", "numbers"]
    cells = page.locator(".heat-map tbody tr").first.locator(".cell")
    times = page.locator(".frame-button .number").all_inner_texts()
    assert cells.count() == len(times) > 1
    cells.nth(1).hover()
    readout = page.locator(".readout").inner_text()
    assert readout.startswith(f"“a” at {times[1]}: similarity ")
    cells.nth(2).click()
    site.moment()
    minutes, seconds = times[2].split(":")
    assert abs(site.shown_number() - round((int(minutes) * 60 + float(seconds)) * RATE)) <= 1
    cells.nth(0).focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".readout").inner_text().startswith("“red” at")
    site.wait("document.querySelector('.frame-button img').naturalWidth > 0")


def test_words_without_evidence_are_named(site: Any) -> None:
    answer = site.page.evaluate(
        """async handle => (await fetch("/api/v1/explain", {method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify({query: "a red square and a dog",
                hit: {video: handle}})})).json()""",
        site.handle_of("0000.mp4"),
    )
    missing = answer["explanation"]["missing_words"]
    handle = site.handle_of("0000.mp4")
    site.open(f"/?q=a+red+square+and+a+dog&v={handle}&t=0&s={answer['explanation']['segment']}")
    site.page.click("#section-why summary")
    site.page.wait_for_selector(".verdict")
    assert site.page.locator(".verdict strong").all_inner_texts() == [
        f"“{word}”" for word in missing
    ]


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_moment_is_cut_at_its_adjusted_ends(site: Any, tmp_path: Path, mode: str) -> None:
    page = site.page
    show(site, "numbers.mp4", 8.0, 16)
    page.click("#section-cut summary")
    page.fill("#cut-start", "0:10.50")
    page.fill("#cut-end", "12")
    page.get_by_role("button", name="End 0.1 s later").click()
    page.check(f"#cut-{mode}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Cut and download").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    numbers = decode(path).numbers
    told = page.locator(".cut-form .note.done").inner_text()
    assert "with sound" in told
    if mode == "exact":
        assert numbers == list(range(105, 121))
        assert "0:10.50 – 0:12.10" in told
    else:
        assert numbers[0] <= 105
        assert numbers[-1] >= 120
        assert f"It holds 0:{numbers[0] / RATE:05.2f}" in told


def test_a_wrong_end_is_named(site: Any) -> None:
    page = site.page
    show(site, "numbers.mp4", 8.0, 16)
    page.click("#section-cut summary")
    page.fill("#cut-end", "0:07")
    page.get_by_role("button", name="Cut and download").click()
    page.wait_for_selector(".cut-form .note.error")
    assert "after the start" in page.locator(".cut-form .note").inner_text()


def test_the_focus_returns_from_the_player_on_a_phone(visit: Any, live_address: str) -> None:
    site = visit(live_address, "/?q=numbers", viewport={"width": 360, "height": 740})
    page = site.page
    site.cards().nth(1).locator(".play-button").click()
    site.moment()
    assert page.evaluate("document.activeElement.id") == "stage-close"
    assert page.evaluate("document.getElementById('list').inert")
    page.click("#stage-close")
    page.wait_for_selector("#stage", state="hidden")
    assert page.evaluate(
        "document.activeElement.closest('.card') === document.querySelectorAll('.card')[1]"
    )


# Every day, Chromium shows this frame: test_a_link_shows_the_frame_of_its_time_and_does_not_play.
@pytest.mark.slow
def test_firefox_shows_the_frame_too(visit: Any, firefox: Any, live_address: str) -> None:
    site = visit(live_address, browser=firefox)
    show(site, "numbers.mp4", 17.3, 40)
    assert abs(site.shown_number() - 173) <= 1
