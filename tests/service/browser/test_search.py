"""The page: searching, the address, keys and filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

QUERY = "a red square moves left"


def text_of(site: Any, selector: str) -> str:
    found: str = site.page.locator(selector).inner_text()
    return found


def test_a_query_shows_cards_and_says_how_many(site: Any) -> None:
    assert site.page.locator(".cards.is-library .card").count() == 7
    cards = site.search(QUERY)
    assert cards.count() == 7
    first = cards.first
    assert first.locator(".score").inner_text().startswith("score")
    assert first.locator(".grain").count() == 4
    site.wait("document.querySelector('.card img').naturalWidth > 0")
    site.wait("document.getElementById('announcements').textContent !== ''")
    assert "of 7 videos" in text_of(site, "#announcements")
    assert "q=a+red+square" in site.page.url


def test_several_moments_of_a_video_are_on_its_card(site: Any) -> None:
    cards = site.search("numbers")
    card = next(
        each for each in cards.all() if each.locator(".card-name").inner_text() == "numbers.mp4"
    )
    moments = card.locator(".moment").all()
    assert len(moments) > 1
    assert card.locator(".strip .mark").count() == len(moments)


def test_moments_are_listed_one_by_one(site: Any) -> None:
    site.page.check("#group-moment", force=True)
    assert site.search(QUERY).count() > 7
    assert "group=moment" in site.page.url


def test_back_and_forward_restore_lists(site: Any) -> None:
    site.search(QUERY)
    site.search("a dog")
    site.page.go_back()
    site.wait(f"document.getElementById('query').value === {QUERY!r}")
    site.page.go_back()
    site.page.wait_for_selector(".cards.is-library")
    site.page.go_forward()
    site.cards()
    assert site.page.input_value("#query") == QUERY


def test_keys_lead_through_the_page(site: Any) -> None:
    page = site.page
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    site.search(QUERY)
    page.locator(".card .play-button").first.focus()
    place = (
        "[...document.querySelectorAll('.card')].findIndex(c => c.contains(document.activeElement))"
    )
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == 1
    page.keyboard.press("ArrowDown")
    below = page.evaluate(place)
    assert below > 2
    page.keyboard.press("ArrowUp")
    assert page.evaluate(place) == 1
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open] .keys")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert page.evaluate(place) == 1, "the focus did not return"


def test_filters_narrow_hits_and_go_into_the_address(site: Any) -> None:
    page = site.page
    site.search(QUERY)
    page.click("#filter-toggle")
    row = page.locator(".filter-row").first
    row.locator("select").nth(0).select_option("split")
    row.locator("select").nth(1).select_option("eq")
    row.locator("input").fill("train")
    page.click(".filter-form button[type=submit]")
    site.wait("document.querySelectorAll('.cards .card').length === 4")
    assert page.locator(".chip").inner_text().startswith("split is train")
    page.reload()
    site.cards()
    assert page.locator(".card").count() == 4
    page.click(".chip button")
    site.wait("document.querySelectorAll('.cards .card').length === 7")


def test_a_wrong_expression_is_explained(site: Any) -> None:
    site.expect_refusals()
    page = site.page
    site.search(QUERY)
    page.click("#filter-toggle")
    page.click(".expert summary")
    page.fill("#filter-where", "duration_s <")
    page.click(".filter-form button[type=submit]")
    page.wait_for_selector(".empty[role=alert]")
    assert "The filter" in text_of(site, ".empty")


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wider_than_the_screen(visit: Any, live_address: str, width: int) -> None:
    site = visit(live_address, f"/?q={QUERY}", viewport={"width": width, "height": 740})
    site.cards().first.locator(".play-button").click()
    site.page.wait_for_selector("#stage:not([hidden])")
    assert site.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_dropped_picture_is_searched_with(site: Any, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.fromarray(np.full((40, 60, 3), (200, 30, 30), np.uint8)).save(picture)
    site.drop("#list", picture)
    cards = site.cards()
    assert cards.count() == 7
    assert cards.first.locator(".grain").count() == 0
    assert text_of(site, ".example-name") == "red.png"
    site.page.click("#example button")
    site.page.wait_for_selector(".cards.is-library")


def test_a_dropped_video_is_searched_with(site: Any, videos_path: Path) -> None:
    clip = videos_path / "shapes" / "train" / "0002.mp4"
    site.drop("#drop-search", clip)
    first = site.cards().first.inner_text()
    assert "\n0002.mp4\nscore 1.00\n" in first, text_of(site, "main")
    assert text_of(site, ".example-name") == "0002.mp4"


def test_what_is_neither_picture_nor_video_is_named(site: Any, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no video")
    site.drop("#drop-search", notes)
    assert "notes.txt is neither" in text_of(site, "#summary")


def test_more_like_this_survives_a_reload(site: Any) -> None:
    site.search(QUERY)
    name = site.page.locator(".card-name").nth(2).inner_text()
    site.page.locator(".card").nth(2).get_by_text("More like this").click()
    site.wait("document.querySelectorAll('.grain').length === 0")
    assert site.cards().first.locator(".card-name").inner_text() == name
    site.page.reload()
    assert site.cards().first.locator(".card-name").inner_text() == name


def test_markup_in_an_address_stays_text(visit: Any, live_address: str) -> None:
    site = visit(live_address, "/?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    site.cards()
    assert site.page.locator("img[src=x]").count() == 0
